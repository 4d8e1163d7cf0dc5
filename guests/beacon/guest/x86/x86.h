/* What the parts in this folder offer each other. */
#pragma once
#include "guest.h"

/* boot.S and vectors.S */
extern uint8_t trampoline[], trampoline_end[], exception_stubs[], ring0_call_site[];
extern uint8_t ring0_stacks[], ring3_stacks[];
extern uint64_t gdt[];
extern struct {
    uint16_t limit;
    uint64_t base;
} __attribute__((packed)) gdt_pointer;
extern uint64_t start_info, starting_vcpu;
void tick_stub(void), ipi_stub(void), serial_stub(void), spurious_stub(void);
void enter_ring3(void (*start)(vcpu_t), void *stack, vcpu_t me) __attribute__((noreturn));
void sleep_ring0(volatile uint64_t *wakeups) __attribute__((noreturn));
void ring0_call(uint64_t number);

/* ring0.c: what ring 0 found out before the guest left it. */
struct found {
    uint32_t kvmclock;        /* the clock page is being kept */
    uint32_t tsc_khz_cpuid;   /* 0: CPUID does not say */
    uint32_t avx;             /* 1: XCR0 holds the AVX state, 2: AVX-512 too */
};
extern struct found found;

/* clock.c */
extern volatile struct clock_page {
    uint32_t version, unused;
    uint64_t tsc, nanoseconds;
    uint32_t multiplier;
    int8_t shift;
    uint8_t flags, unused2[2];
} clock_page; /* kept by KVM */
void check_clock_msr(vcpu_t me);

/* registers.c */
void load_ring0_registers(uint64_t vcpu);
void find_msrs_kept(uint64_t vcpu);
void check_ring0_registers(vcpu_t me);

/* What the stubs of vectors.S count by offset. */
_Static_assert(offsetof(struct vcpu, ticks) == VCPU_TICKS, "");
_Static_assert(offsetof(struct vcpu, ipis_taken) == VCPU_IPIS_TAKEN, "");
_Static_assert(offsetof(struct vcpu, spurious) == VCPU_SPURIOUS, "");
