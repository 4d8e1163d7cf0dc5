/* What the parts in this folder offer each other. */
#pragma once
#include "guest.h"

/* boot.S */
void secondary(void);
void sleep(volatile uint64_t *wakeups) __attribute__((noreturn));
int64_t psci(uint64_t function, uint64_t first, uint64_t second, uint64_t third);

/* interrupts.c */
void start_gic(vcpu_t me);
void enable_serial_interrupt(void);

/* loader.c */
extern const uint8_t *device_tree;
