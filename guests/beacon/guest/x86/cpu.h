/* Single instructions and the LAPIC's and IOAPIC's registers. Ring 3 may use all but the last group. */
#pragma once
#include "layout.h"
#include <stdint.h>

#define barrier() __asm__ volatile("" ::: "memory")

static inline uint64_t cycles(void) {
    uint32_t low, high;
    __asm__ volatile("rdtsc" : "=a"(low), "=d"(high)::"memory");
    return (uint64_t)high << 32 | low;
}
static inline void pause(void) { __asm__ volatile("pause" ::: "memory"); }
static inline void out8(uint16_t port, uint8_t value) { __asm__ volatile("outb %0, %1" ::"a"(value), "Nd"(port)); }
static inline uint8_t in8(uint16_t port) {
    uint8_t value;
    __asm__ volatile("inb %1, %0" : "=a"(value) : "Nd"(port));
    return value;
}

/* Memory-mapped registers; the moves are spelled out because KVM decodes the instruction. */
static inline void mmio_write(uint64_t address, uint32_t value) {
    __asm__ volatile("movl %0, (%1)" ::"r"(value), "r"(address) : "memory");
}
static inline uint32_t mmio_read(uint64_t address) {
    uint32_t value;
    __asm__ volatile("movl (%1), %0" : "=r"(value) : "r"(address) : "memory");
    return value;
}
enum lapic {
    LAPIC_TPR = LAPIC + 0x80,
    LAPIC_SVR = LAPIC + 0xf0,
    LAPIC_ICR = LAPIC + 0x300,
    LAPIC_ICR_TARGET = LAPIC + 0x310,
    LAPIC_TIMER = LAPIC + 0x320,
    LAPIC_TIMER_INITIAL = LAPIC + 0x380,
    LAPIC_TIMER_CURRENT = LAPIC + 0x390,
    LAPIC_TIMER_DIVIDE = LAPIC + 0x3e0,
};
#define ICR_SELF 0x40000
#define ICR_INIT 0x4500
#define ICR_SIPI 0x4600
#define TIMER_PERIODIC 0x20000
#define MASKED 0x10000

/* A counter that ring 0 of the same vCPU may also raise: one instruction each, so an interrupt can't come between. */
static inline void count(volatile uint64_t *counter) { __asm__ volatile("incq %0" : "+m"(*counter)); }
static inline uint64_t take(volatile uint64_t *counter) {
    uint64_t one = 1;
    __asm__ volatile("xaddq %0, %1" : "+r"(one), "+m"(*counter)::"memory");
    return one;
}

/* Ring 0 only. */
#define MSR_KVM_SYSTEM_TIME 0x4b564d01
static inline uint64_t rdmsr(uint32_t msr) {
    uint32_t low, high;
    __asm__ volatile("rdmsr" : "=a"(low), "=d"(high) : "c"(msr));
    return (uint64_t)high << 32 | low;
}
static inline void wrmsr(uint32_t msr, uint64_t value) {
    __asm__ volatile("wrmsr" ::"a"((uint32_t)value), "d"((uint32_t)(value >> 32)), "c"(msr) : "memory");
}
struct cpuid {
    uint32_t eax, ebx, ecx, edx;
};
static inline struct cpuid cpuid(uint32_t leaf) {
    struct cpuid r;
    __asm__ volatile("cpuid" : "=a"(r.eax), "=b"(r.ebx), "=c"(r.ecx), "=d"(r.edx) : "a"(leaf), "c"(0));
    return r;
}

/* What spin_holding() sets, and what of the flags is compared: ID and DF. */
#define FLAGS_HELD 0x200400ull
#define FLAGS_COMPARED FLAGS_HELD
