/* The GICv3: one's own redistributor and CPU interface, and what to do when an interrupt comes. */
#include "aarch64.h"

enum distributor { GICD_CTLR = 0x0, GICD_IGROUPR = 0x80, GICD_ISENABLER = 0x100, GICD_IPRIORITYR = 0x400, GICD_IROUTER = 0x6000 };
enum redistributor {
    GICR_WAKER = 0x14,
    GICR_SGI = 0x10000, /* the second frame has the distributor's layout, for interrupts below 32 */
};
#define ARE_AND_GROUP1 0x12
#define CHILDREN_ASLEEP 4

static void enable(uint64_t frame, unsigned interrupt, uint8_t priority) {
    uint32_t bit = 1u << interrupt % 32;
    uint64_t word = interrupt / 32 * 4;
    mmio_write(frame + GICD_IGROUPR + word, mmio_read(frame + GICD_IGROUPR + word) | bit);
    mmio_write8(frame + GICD_IPRIORITYR + interrupt, priority);
    mmio_write(frame + GICD_ISENABLER + word, bit);
}

void start_gic(vcpu_t me) {
    uint64_t redistributor = GICR + vcpu_number(me) * GICR_STRIDE;
    mmio_write(GICD + GICD_CTLR, ARE_AND_GROUP1);
    mmio_write(redistributor + GICR_WAKER, 0);
    while (mmio_read(redistributor + GICR_WAKER) & CHILDREN_ASLEEP)
        pause();
    enable(redistributor + GICR_SGI, INTID_SELF, PRIORITY_SELF);
    enable(redistributor + GICR_SGI, INTID_TICK, PRIORITY);
    write_register("icc_sre_el1", 7);
    write_register("icc_pmr_el1", MASK_NONE);
    write_register("icc_igrpen1_el1", 1);
}

void enable_serial_interrupt(void) {
    mmio_write(GICD + GICD_CTLR, ARE_AND_GROUP1);
    mmio_write64(GICD + GICD_IROUTER + 8 * INTID_SERIAL, 0);
    enable(GICD, INTID_SERIAL, PRIORITY);
}

void hold_interrupts_back(int held) { write_register("icc_pmr_el1", held ? MASK_SELF : MASK_NONE); }

void interrupt_oneself(vcpu_t me) {
    write_register("icc_sgi1r_el1", (uint64_t)INTID_SELF << 24 | 1ull << vcpu_number(me));
}

/* The next tick is a period after this one, or after now if the timer has fallen behind. */
static void tick(vcpu_t me) {
    count(&me->ticks);
    uint64_t now = cycles(), next = read_register("cntv_cval_el0") + usec(options.tick);
    write_register("cntv_cval_el0", next > now ? next : now + usec(options.tick));
}

void interrupt(vcpu_t me) {
    uint64_t number = read_register("icc_iar1_el1") & 0xffffff;
    if (number >= INTID_SPURIOUS) {
        count(&me->spurious);
        return;
    }
    switch (number) {
    case INTID_SELF: count(&me->ipis_taken); break;
    case INTID_TICK: tick(me); break;
    case INTID_SERIAL: serial_received(me); break;
    }
    write_register("icc_eoir1_el1", number);
}
