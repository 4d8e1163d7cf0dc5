/* Keeps an interrupt pending half of the time: interrupts of its priority are held back, it is sent and stays pending for
 * 50 ms, then it is let through and the handler must have run exactly once. */
#include "guest.h"

#define PHASE_USEC 50000

static struct {
    uint64_t next, taken;
    int held;
} phases[MAX_VCPUS];

void pend(vcpu_t me, uint64_t now) {
    typeof(&phases[0]) phase = &phases[vcpu_number(me)];
    if (now < phase->next)
        return;
    if (phase->held) {
        if (me->ipis_taken != phase->taken) {
            count(&me->interrupts_early);
            record_interrupt(me, IPI_EARLY, phase->taken, me->ipis_taken);
        }
        me->ipi_held = phase->held = 0;
        hold_interrupts_back(0);
    } else {
        uint64_t expected = phase->taken + (me->ipis_sent > 0);
        if (me->ipis_taken < expected) {
            count(&me->interrupts_lost);
            record_interrupt(me, IPI_LOST, expected, me->ipis_taken);
        } else if (me->ipis_taken > expected) {
            count(&me->interrupts_duplicated);
            record_interrupt(me, IPI_DUPLICATED, expected, me->ipis_taken);
        }
        phase->taken = me->ipis_taken;
        phase->held = 1;
        hold_interrupts_back(1);
        count(&me->ipis_sent);
        interrupt_oneself(me);
        me->ipi_held = 1;
    }
    phase->next = cycles() + usec(PHASE_USEC);
}
