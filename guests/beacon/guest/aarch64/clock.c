/* The virtual counter, whose frequency the CPU tells, and the virtual timer. */
#include "aarch64.h"

void find_tsc_frequency(void) {
    control.tsc_khz = options.tsc_khz ? options.tsc_khz : read_register("cntfrq_el0") / 1000;
    control.tsc_source = options.tsc_khz ? TSC_GIVEN : TSC_CPUID;
    control.classes |= 1 << CLASS_CLOCK;
}

void start_interrupts(void) {
    uint64_t stack;
    __asm__ volatile("mov %0, sp" : "=r"(stack));
    start_gic(*(vcpu_t *)(stack & -(uint64_t)STACK_SIZE));
    if (options.tick) {
        write_register("cntv_cval_el0", cycles() + usec(options.tick));
        write_register("cntv_ctl_el0", 1);
    }
    __asm__ volatile("msr daifclr, #2" ::: "memory");
}

/* Time must not run backwards. */
void check_clock(vcpu_t me) {
    static uint64_t latest;
    if (vcpu_number(me))
        return;
    uint64_t now = cycles();
    count(&me->checks[CLASS_CLOCK]);
    if (now < latest)
        record_register(me, CLASS_CLOCK, 0, latest, now);
    latest = now;
}
