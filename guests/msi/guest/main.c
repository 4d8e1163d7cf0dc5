// Maps devices, events and collections, keeps remapping some of them, takes MSIs and counts them by interrupt number.

#include "cpu.h"
#include "gic.h"
#include "its.h"
#include "layout.h"
#include "options.h"

#define control ((volatile struct control_block *)CONTROL)

static const uint64_t PSCI_CPU_ON = 0xc4000003;
static const uint64_t PSCI_SYSTEM_RESET = 0x84000009;
static const uint64_t HOLD_SECONDS = 2;

static volatile uint64_t hold_until;
static uint64_t dirty_pages;
static volatile uint64_t second_cpu_without_lpis;
static uint64_t leaves, left;

extern void second(void);

static void say(const char *text)
{
    for (; *text; text++)
        write32(UART, (uint8_t)*text);
}

static void clear(uint64_t from, uint64_t to)
{
    for (; from < to; from += 8)
        write64(from, 0);
}

static void check_sent(int sent)
{
    if (!sent)
        control->failed++;
}

// ---- what is mapped ------------------------------------------------------------------------------------------------------

// Collections are the CPUs'. Steady events go round them.
static uint32_t collection(uint64_t n)
{
    return n % control->cpus;
}

static void map_steady(void)
{
    check_sent(its_map_device(STEADY_DEVICE, TRANSLATION, 7));
    for (uint32_t event = 0; event < STEADY_EVENTS; event++)
        check_sent(its_map_event(STEADY_DEVICE, event, FIRST_LPI + event, collection(event)));
    check_sent(its_map_event(STEADY_DEVICE, HOLD_EVENT, FIRST_LPI + HOLD_EVENT, 0));
    check_sent(its_map_event(STEADY_DEVICE, CHURN_EVENT, FIRST_LPI + CHURN_EVENT, 0));
    check_sent(its_map_event(STEADY_DEVICE, RESET_EVENT, FIRST_LPI + RESET_EVENT, 0));
}

static void remap_moving(uint32_t event, uint64_t round)
{
    uint32_t lpi = MOVING_LPI + 4 * event + round % 4;
    int was_mapped = control->moving[event] != 0;
    control->moving[event] = 0;
    if (was_mapped)
        check_sent(its_discard(MOVING_DEVICE, event));
    check_sent(its_map_event(MOVING_DEVICE, event, lpi, collection(round)));
    control->moving[event] = lpi;
}

static void remap_passing(uint64_t round)
{
    // Another table each time, cleared as the architecture asks for.
    uint64_t table = TRANSLATION + 0x2000 + (round % 2) * 0x1000;
    for (uint32_t event = 0; event < PASSING_EVENTS; event++)
        control->passing[event] = 0;
    check_sent(its_unmap_device(PASSING_DEVICE));
    clear(table, table + 0x1000);
    check_sent(its_map_device(PASSING_DEVICE, table, 4));
    for (uint32_t event = 0; event < PASSING_EVENTS; event++) {
        uint32_t lpi = PASSING_LPI + 2 * event + round % 2;
        check_sent(its_map_event(PASSING_DEVICE, event, lpi, collection(event)));
        control->passing[event] = lpi;
    }
}

// What only a walk from a table's beginning comes by: the device with the lowest id, and the lowest event of another.
static void map_leaving(void)
{
    check_sent(its_map_device(LEAVING_DEVICE, TRANSLATION + 0x4000, 1));
    check_sent(its_map_event(LEAVING_DEVICE, 0, LEAVING_LPI, 0));
    left = 0;
}

// They are unmapped, for as long as there is no remapping.
static void leave(void)
{
    check_sent(its_unmap_device(LEAVING_DEVICE));
    check_sent(its_discard(MOVING_DEVICE, 0));
    control->moving[0] = 0;
    left = 1;
}

static void churn(uint64_t round)
{
    remap_moving(round % MOVING_EVENTS, round / MOVING_EVENTS);
    check_sent(its_move_event(STEADY_DEVICE, round % STEADY_EVENTS, collection(round / STEADY_EVENTS + round)));
    if (round % 16 == 0)
        remap_passing(round / 16);
    control->churns++;
}

// ---- interrupts ----------------------------------------------------------------------------------------------------------

void on_interrupt(void)
{
    uint32_t intid = gic_acknowledge();
    uint32_t lpi = intid - FIRST_LPI;
    if (intid < FIRST_LPI || lpi >= COUNTED) {
        if (intid < 1020 || intid >= FIRST_LPI)
            control->stray++;
        if (intid >= 1020 && intid < FIRST_LPI)
            return;
    } else {
        control->counts[cpu_number()][lpi]++;
        if (lpi == HOLD_EVENT)
            hold_until = counter() + HOLD_SECONDS * counter_frequency();
        if (lpi == CHURN_EVENT)
            control->churning ^= 1;
        if (lpi == RESET_EVENT)
            call_psci(PSCI_SYSTEM_RESET, 0, 0, 0);
    }
    gic_end(intid);
}

void on_death(uint64_t vector, uint64_t syndrome, uint64_t where, uint64_t address)
{
    control->syndrome = syndrome;
    control->where = where;
    control->address = address;
    control->died = vector + 1;
    say("msi: died\n");
}

// While the host wants interrupts to stay pending. Whether it did.
static int hold(uint64_t cpu)
{
    if (hold_until == 0)
        return 0;
    mask_interrupts();
    control->holding[cpu] = 1;
    while (counter() < hold_until)
        if (cpu == 0)
            control->count = counter();
    if (cpu == 0) {
        while (control->cpus > 1 && control->holding[1] == 0 && counter() < hold_until + counter_frequency())
            ;
        hold_until = 0;
    } else {
        while (hold_until != 0)
            ;
    }
    control->holding[cpu] = 0;
    unmask_interrupts();
    return 1;
}

// ---- CPUs ----------------------------------------------------------------------------------------------------------------

static void measure_step(uint64_t *last)
{
    uint64_t now = counter();
    if (now < *last) {
        control->backwards++;
    } else {
        uint64_t step = (now - *last) * 1000000 / counter_frequency();
        if (step > control->biggest_step)
            control->biggest_step = step;
    }
    *last = now;
    control->count = now;
}

void main_first(uint64_t device_tree)
{
    clear(CONTROL, CONTROL + sizeof(struct control_block));
    clear(QUEUE, TABLES_END);
    hold_until = 0;                     // A reset loads the image again, which has no word for what is 0.
    control->two_level = option(device_tree, "two_level", 0);
    control->frequency = counter_frequency();
    dirty_pages = option(device_tree, "pages", 64);
    // Collections and events name it all the same: their LPIs stay pending, and there is no table for them.
    second_cpu_without_lpis = option(device_tree, "second_cpu_without_lpis", 0);
    leaves = option(device_tree, "leaves", 0);

    gic_prepare_tables();
    gic_prepare_cpu(0);
    control->cpus = 1;
    if (call_psci(PSCI_CPU_ON, 1, (uint64_t)second, 1) == 0)
        while (control->cpus != 2)
            ;
    its_prepare(control->two_level);
    for (uint32_t cpu = 0; cpu < control->cpus; cpu++)
        check_sent(its_map_collection(cpu, cpu));
    map_steady();
    check_sent(its_map_device(MOVING_DEVICE, TRANSLATION + 0x1000, 5));
    for (uint32_t event = 0; event < MOVING_EVENTS; event++)
        remap_moving(event, 0);
    remap_passing(0);
    if (leaves)
        map_leaving();
    for (uint32_t cpu = 0; cpu < control->cpus; cpu++)
        check_sent(its_invalidate_all(cpu));
    control->churning = 1;
    control->magic = MAGIC;
    say("msi: ready\n");
    unmask_interrupts();

    uint64_t last = counter();
    for (uint64_t round = 1;; round++) {
        measure_step(&last);
        control->beats++;
        for (uint64_t page = 0; page < dirty_pages; page++)
            write64(DIRTY + page * 4096, round);
        if (control->churning) {
            if (left)
                map_leaving();
            churn(round);
        } else if (leaves && !left) {
            leave();
        }
        if (hold(0))
            last = counter();
    }
}

void main_second(void)
{
    if (!second_cpu_without_lpis)
        gic_prepare_cpu(1);
    control->cpus = 2;
    unmask_interrupts();
    for (;;)
        hold(1);
}
