/* INIT and SIPI. A vCPU's number is its APIC id. */
#include "x86.h"

#define INIT_USEC 10000

static void send(uint64_t vcpu, uint32_t what) {
    mmio_write(LAPIC_ICR_TARGET, vcpu << 24);
    mmio_write(LAPIC_ICR, what);
}

void prepare_starting(void) { memcpy((void *)TRAMPOLINE, trampoline, trampoline_end - trampoline); }

void reset_vcpu(uint64_t vcpu) {
    send(vcpu, ICR_INIT);
    uint64_t until = cycles() + usec(INIT_USEC);
    while (cycles() < until)
        pause();
}

void start_vcpu(uint64_t vcpu) {
    starting_vcpu = vcpu;
    barrier();
    send(vcpu, ICR_SIPI | TRAMPOLINE >> 12);
}

void end_guest(void) { ring0_call(CALL_TRIPLE_FAULT); }
