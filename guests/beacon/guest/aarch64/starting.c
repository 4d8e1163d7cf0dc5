/* PSCI. A vCPU is off until it is started, so there is nothing to reset. */
#include "aarch64.h"

#define CPU_ON 0xc4000003
#define SYSTEM_RESET 0x84000009

void prepare_starting(void) {}

void reset_vcpu(uint64_t vcpu) { (void)vcpu; }

void start_vcpu(uint64_t vcpu) {
    __asm__ volatile("dsb sy" ::: "memory");
    psci(CPU_ON, vcpu, (uint64_t)secondary, vcpu);
}

void end_guest(void) { psci(SYSTEM_RESET, 0, 0, 0); }

/* From boot.S, on the vCPU's own stack. */
void el1_start(vcpu_t me) {
    if (vcpu_number(me) == 0)
        main(me);
    if (me->role != SLEEPER)
        work(me);
    start_interrupts();
    me->started = 1;
    sleep(&me->wakeups);
}

/* From vectors.S. Nothing but interrupts is expected. */
void panic(uint64_t vector, uint64_t esr, uint64_t elr, uint64_t far) {
    count(&control.panics);
    say("panic vector=%d esr=%x pc=%x address=%x", vector, esr, elr, far);
    for (;;)
        __asm__ volatile("msr daifset, #15\nwfi");
}
