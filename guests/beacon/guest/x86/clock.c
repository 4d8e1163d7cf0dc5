/* The clocks: how fast the TSC runs, the LAPIC timer, and KVM's clock page. Only TSC deltas are ever used. */
#include "x86.h"

#define KVM_LAPIC_KHZ 1000000 /* the bus frequency of KVM's and QEMU's LAPIC */
#define CALIBRATION_MS 20

__attribute__((section(".data"), aligned(64))) volatile struct clock_page clock_page;

static uint64_t khz_of_clock_page(void) {
    if (!found.kvmclock || !clock_page.multiplier)
        return 0;
    uint64_t khz = (1000000ull << 32) / clock_page.multiplier;
    return clock_page.shift < 0 ? khz << -clock_page.shift : khz >> clock_page.shift;
}

/* Starts the LAPIC timer as a plain down-counter. */
static void start_counter(void) {
    mmio_write(LAPIC_SVR, 0x100 | VECTOR_SPURIOUS);
    mmio_write(LAPIC_TIMER, MASKED | VECTOR_TICK);
    mmio_write(LAPIC_TIMER_DIVIDE, 0xb); /* by 1 */
    mmio_write(LAPIC_TIMER_INITIAL, 0xffffffff);
}

/* TSC ticks in CALIBRATION_MS of the LAPIC timer, taken to run at KVM's frequency. */
static uint64_t khz_by_lapic(void) {
    start_counter();
    uint32_t from = mmio_read(LAPIC_TIMER_CURRENT), to;
    uint64_t start = cycles();
    do
        to = mmio_read(LAPIC_TIMER_CURRENT);
    while (from - to < CALIBRATION_MS * KVM_LAPIC_KHZ);
    return (cycles() - start) * KVM_LAPIC_KHZ / (from - to);
}

/* The LAPIC timer's frequency against the TSC's; within 2 % of KVM's it is KVM's. */
static uint32_t lapic_khz(void) {
    start_counter();
    uint32_t from = mmio_read(LAPIC_TIMER_CURRENT);
    uint64_t start = cycles(), end = start + control.tsc_khz * CALIBRATION_MS;
    while (cycles() < end)
        pause();
    uint32_t to = mmio_read(LAPIC_TIMER_CURRENT);
    uint64_t khz = (from - to) * control.tsc_khz / (cycles() - start);
    return khz > KVM_LAPIC_KHZ / 50 * 49 && khz < KVM_LAPIC_KHZ / 50 * 51 ? KVM_LAPIC_KHZ : khz;
}

void find_tsc_frequency(void) {
    uint64_t khz = options.tsc_khz;
    enum tsc_source source = TSC_GIVEN;
    if (!khz)
        khz = found.tsc_khz_cpuid, source = TSC_CPUID;
    if (!khz)
        khz = khz_of_clock_page(), source = TSC_KVMCLOCK;
    if (!khz)
        khz = khz_by_lapic(), source = TSC_LAPIC;
    control.tsc_khz = khz;
    control.tsc_source = source;
    control.lapic_khz = lapic_khz();

    /* The clock page means something only if the guest sees the TSC that KVM thinks it sees. */
    uint64_t age = cycles() - clock_page.tsc;
    if (found.kvmclock && clock_page.multiplier && age < usec(60000000))
        control.classes |= 1 << CLASS_CLOCK;
}

void start_interrupts(void) {
    mmio_write(LAPIC_SVR, 0x100 | VECTOR_SPURIOUS);
    mmio_write(LAPIC_TPR, 0);
    if (!options.tick)
        return;
    mmio_write(LAPIC_TIMER, TIMER_PERIODIC | VECTOR_TICK);
    mmio_write(LAPIC_TIMER_DIVIDE, 0xb);
    mmio_write(LAPIC_TIMER_INITIAL, options.tick * control.lapic_khz / 1000);
}

/* Ring 0: KVM keeps the clock page only while this MSR points to it. */
void check_clock_msr(vcpu_t me) {
    uint64_t expected = (uint64_t)&clock_page | 1, now = rdmsr(MSR_KVM_SYSTEM_TIME);
    count(&me->checks[CLASS_CLOCK]);
    if (now != expected) {
        record_register(me, CLASS_CLOCK, 1, expected, now);
        wrmsr(MSR_KVM_SYSTEM_TIME, expected);
    }
}

/* KVM's clock must not run backwards. vCPU 0 owns the page. */
void check_clock(vcpu_t me) {
    static uint64_t latest;
    if (!(control.classes & 1 << CLASS_CLOCK) || vcpu_number(me))
        return;
    uint32_t version;
    uint64_t now;
    do {
        version = clock_page.version;
        uint64_t delta = cycles() - clock_page.tsc;
        delta = clock_page.shift < 0 ? delta >> -clock_page.shift : delta << clock_page.shift;
        now = clock_page.nanoseconds + (uint64_t)((unsigned __int128)delta * clock_page.multiplier >> 32);
    } while ((version & 1) || version != clock_page.version);
    count(&me->checks[CLASS_CLOCK]);
    if (now < latest)
        record_register(me, CLASS_CLOCK, 0, latest, now);
    latest = now;
}
