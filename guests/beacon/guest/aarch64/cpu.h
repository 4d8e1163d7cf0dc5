/* Single instructions, and registers in memory. */
#pragma once
#include "layout.h"
#include <stdint.h>

#define barrier() __asm__ volatile("" ::: "memory")
#define read_register(name)                                                   \
    ({                                                                        \
        uint64_t value_;                                                      \
        __asm__ volatile("mrs %0, " name : "=r"(value_)::"memory");           \
        value_;                                                               \
    })
#define write_register(name, value) __asm__ volatile("msr " name ", %0\nisb" ::"r"((uint64_t)(value)) : "memory")

static inline uint64_t cycles(void) {
    __asm__ volatile("isb" ::: "memory");
    return read_register("cntvct_el0");
}
static inline void pause(void) { __asm__ volatile("yield" ::: "memory"); }

/* The moves are spelled out: KVM is told what a plain load or store did, and no more. */
static inline void mmio_write(uint64_t address, uint32_t value) {
    __asm__ volatile("str %w0, [%1]" ::"r"(value), "r"(address) : "memory");
}
static inline uint32_t mmio_read(uint64_t address) {
    uint32_t value;
    __asm__ volatile("ldr %w0, [%1]" : "=r"(value) : "r"(address) : "memory");
    return value;
}
static inline void mmio_write8(uint64_t address, uint8_t value) {
    __asm__ volatile("strb %w0, [%1]" ::"r"(value), "r"(address) : "memory");
}
static inline void mmio_write64(uint64_t address, uint64_t value) {
    __asm__ volatile("str %0, [%1]" ::"r"(value), "r"(address) : "memory");
}

/* A counter that an interrupt of the same vCPU may also raise. */
static inline uint64_t take(volatile uint64_t *counter) { return __atomic_fetch_add(counter, 1, __ATOMIC_RELAXED); }
static inline void count(volatile uint64_t *counter) { take(counter); }

/* What spin_holding() sets: N, Z and C. V is compared too: it must stay clear. */
#define FLAGS_HELD 0xe0000000ull
#define FLAGS_COMPARED 0xf0000000ull
