/* What the guest's parts offer each other. One block a file. */
#pragma once
#include "control.h"
#include "cpu.h"
#include "options.h"
#include "page.h"
#include "say.h"

typedef volatile struct vcpu *vcpu_t;
static inline uint64_t vcpu_number(vcpu_t me) { return me - control.vcpu; }
static inline uint64_t usec(uint64_t n) { return n * control.tsc_khz / 1000; }

/* boot.S and vectors.S */
extern uint8_t trampoline[], trampoline_end[], exception_stubs[], ring0_call_site[];
extern uint8_t ring0_stacks[], ring3_stacks[], bss_start[], bss_end[];
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

/* Bytes a C compiler may ask for. */
void *memset(void *to, int value, size_t size);
void *memcpy(void *to, const void *from, size_t size);

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
void find_tsc_frequency(void);
void start_lapic(void);
void check_clock(vcpu_t me);
void check_clock_msr(vcpu_t me);

/* registers.c */
uint64_t held_value(uint64_t vcpu, enum class class, uint64_t index);
void load_ring0_registers(uint64_t vcpu);
void find_msrs_kept(uint64_t vcpu);
void check_ring0_registers(vcpu_t me);
void load_registers(vcpu_t me);
void check_registers(vcpu_t me);
void hold_general(vcpu_t me, uint64_t until);

/* record.c */
void record_page(vcpu_t me, uint64_t page, uint64_t generation);
void record_register(vcpu_t me, enum class class, uint64_t index, uint64_t expected, uint64_t found);
void record_interrupt(vcpu_t me, enum interrupt_fault fault, uint64_t expected, uint64_t found);
void announce(vcpu_t me);

/* memory.c */
void lay_out_memory(void);
uint64_t data_page(uint64_t index);
void fill_share(vcpu_t me);
void visit_page(vcpu_t me);
void scan_page(vcpu_t me);

/* pend.c */
void pend(vcpu_t me, uint64_t now);

/* serial.c */
void start_serial(void);
void serial_received(vcpu_t me);
void obey_commands(vcpu_t me);
void watch_serial(vcpu_t me, uint64_t now);

/* vcpus.c */
void start_vcpus(void);
void start_waiting(void);
void watch_waiting(uint64_t now);

/* work.c */
void work(vcpu_t me) __attribute__((noreturn));
