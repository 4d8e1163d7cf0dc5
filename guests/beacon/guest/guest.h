/* What the guest's parts offer each other. One block a file; the last block is what each architecture's folder gives. */
#pragma once
#include "control.h"
#include "cpu.h"
#include "options.h"
#include "page.h"
#include "say.h"

typedef volatile struct vcpu *vcpu_t;
static inline uint64_t vcpu_number(vcpu_t me) { return me - control.vcpu; }
static inline uint64_t usec(uint64_t n) { return n * control.tsc_khz / 1000; }

/* main.c, and bytes.c: what a C compiler may ask for */
void main(vcpu_t me) __attribute__((noreturn));
void *memset(void *to, int value, size_t size);
void *memcpy(void *to, const void *from, size_t size);

/* held.c */
uint64_t tag(uint64_t vcpu, enum class class, uint64_t index);
int differs(vcpu_t me, enum class class, uint64_t index, uint64_t expected, uint64_t found);
int differs_wide(vcpu_t me, enum class class, uint64_t index, const uint64_t expected[2], const uint64_t found[2]);
void choose_general(uint64_t vcpu);
void hold_general(vcpu_t me, uint64_t until);

/* record.c */
void record_page(vcpu_t me, uint64_t page, uint64_t generation);
void record_register(vcpu_t me, enum class class, uint64_t index, uint64_t expected, uint64_t found);
void record_interrupt(vcpu_t me, enum interrupt_fault fault, uint64_t expected, uint64_t found);
void announce(vcpu_t me);

/* memory.c */
void lay_out_memory(void);
void add_range(uint64_t from, uint64_t to);
uint64_t data_page(uint64_t index);
void fill_share(vcpu_t me);
void visit_page(vcpu_t me);
void scan_page(vcpu_t me);

/* pend.c */
void pend(vcpu_t me, uint64_t now);

/* serial.c */
void serial_received(vcpu_t me);
void obey_commands(vcpu_t me);
void watch_serial(vcpu_t me, uint64_t now);

/* vcpus.c */
void start_vcpus(void);
void start_waiting(void);
void watch_waiting(uint64_t now);

/* work.c */
void work(vcpu_t me) __attribute__((noreturn));

/* From here on: ARCHITECTURE/. */

/* boot.S and link.ld */
extern uint8_t bss_start[], bss_end[];

/* loader.c: what the loader hands over, in memory that will be overwritten */
const char *loader_command_line(void);
void add_loader_ranges(void);
void clear_loader(void); /* where it lies in pages that shall read as zeros */

/* clock.c */
void find_tsc_frequency(void);
void start_interrupts(void); /* this vCPU's own, and its timer if there is one */
void check_clock(vcpu_t me);

/* registers.S: keeps `values` in general registers, and FLAGS_HELD of the flags set, until the counter reaches `until`; then
 * stores what it finds there, the flags last. cpu.h says which flags. */
#define GENERAL_HELD 12
void spin_holding(const uint64_t values[GENERAL_HELD], uint64_t until, uint64_t found[GENERAL_HELD + 1]);

/* registers.c */
void prepare_registers(void);
void load_registers(vcpu_t me);
void check_registers(vcpu_t me);
struct register_names {
    const char *prefix;        /* numbered from `first` on; null: none */
    const char *const *names;  /* of those before */
    unsigned first;
};
struct register_names register_names(enum class class);

/* interrupts.c: one of one's own, that can be held back */
void hold_interrupts_back(int held);
void interrupt_oneself(vcpu_t me);

/* uart.c */
void uart_start(void);
int uart_has_byte(void);
uint8_t uart_take(void);
void put_byte(uint64_t port, uint8_t byte); /* SERIAL, or a port of one byte at a time */

/* starting.c */
void prepare_starting(void);
void reset_vcpu(uint64_t vcpu); /* to where it waits for start_vcpu() */
void start_vcpu(uint64_t vcpu);
void end_guest(void);
