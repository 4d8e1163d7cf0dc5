// Instructions that C has no words for.
#pragma once

#include <stdint.h>

#define read_register(name) ({ uint64_t value; __asm__ volatile("mrs %0, " name : "=r"(value) : : "memory"); value; })
#define write_register(name, value) __asm__ volatile("msr " name ", %0\n\tisb" : : "r"((uint64_t)(value)) : "memory")

static inline void barrier(void)
{
    __asm__ volatile("dsb sy" : : : "memory");
}

static inline void write32(uint64_t at, uint32_t value)
{
    *(volatile uint32_t *)at = value;
}

static inline uint32_t read32(uint64_t at)
{
    return *(volatile uint32_t *)at;
}

static inline void write64(uint64_t at, uint64_t value)
{
    *(volatile uint64_t *)at = value;
}

static inline uint64_t read64(uint64_t at)
{
    return *(volatile uint64_t *)at;
}

static inline void mask_interrupts(void)
{
    __asm__ volatile("msr daifset, #2" : : : "memory");
}

static inline void unmask_interrupts(void)
{
    __asm__ volatile("msr daifclr, #2" : : : "memory");
}

static inline uint64_t cpu_number(void)
{
    return read_register("mpidr_el1") & 0xff;
}

static inline uint64_t counter(void)
{
    __asm__ volatile("isb" : : : "memory");
    return read_register("cntvct_el0");
}

static inline uint64_t counter_frequency(void)
{
    return read_register("cntfrq_el0");
}

static inline uint64_t call_psci(uint64_t function, uint64_t a, uint64_t b, uint64_t c)
{
    register uint64_t x0 __asm__("x0") = function;
    register uint64_t x1 __asm__("x1") = a;
    register uint64_t x2 __asm__("x2") = b;
    register uint64_t x3 __asm__("x3") = c;
    __asm__ volatile("hvc #0" : "+r"(x0), "+r"(x1), "+r"(x2), "+r"(x3)
                     : : "x4", "x5", "x6", "x7", "x8", "x9", "x10", "x11", "x12", "x13", "x14", "x15", "x16", "x17",
                       "memory");
    return x0;
}
