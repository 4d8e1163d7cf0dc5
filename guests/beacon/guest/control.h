/* The control block at CONTROL: the guest's account of itself, read by the host. src/control.rs documents every field;
 * the two change together, with the version. */
#pragma once
#include "layout.h"
#include <stddef.h>
#include <stdint.h>

#define CONTROL_MAGIC 0x314e4f4341454221ull /* bytes "!BEACON1" */
#define CONTROL_VERSION 1
#define NONE_PAGE (~0ull)

enum state { BOOTING = 0, FILLING = 1, RUNNING = 2 };
enum role { UNUSED = 0, WORKER = 1, SLEEPER = 2, WAITING = 3 };
enum kind { STALE = 1, FOREIGN = 2, CORRUPT = 3, BLANK = 4, REGISTER = 5, INTERRUPT = 6 };

enum interrupt_fault { IPI_LOST = 1, IPI_DUPLICATED = 2, IPI_EARLY = 3, TIMER_LOST = 4, SERIAL_LOST = 5 };
enum tsc_source { TSC_GIVEN = 1, TSC_CPUID = 2, TSC_KVMCLOCK = 3, TSC_LAPIC = 4 };

/* Classes of held registers; CLASSES bits in the header say which are checked. */
enum class {
    CLASS_X87,
    CLASS_SSE,
    CLASS_AVX,
    CLASS_SEGMENT_BASE,
    CLASS_DEBUG,
    CLASS_FLAGS,
    CLASS_GENERAL,
    CLASS_MSR,
    CLASS_CLOCK,
    CLASS_AVX512,
    CLASS_COUNT
};

struct range {
    uint64_t first_page; /* guest-physical address / 4096 */
    uint64_t pages;
};

struct record {
    uint32_t kind;
    uint32_t what; /* register number, see registers.h; 0 for pages */
    uint64_t page;
    uint64_t expected;
    uint64_t found[2];
    uint64_t progress;
    uint64_t tsc;
    uint64_t reserved;
};
_Static_assert(sizeof(struct record) == 64, "");

#define MAX_RANGES 8
#define MAX_RECORDS 16

struct vcpu {
    uint32_t role, started;
    uint64_t set_first, set_pages;
    uint64_t progress;
    uint64_t writing;
    uint64_t fill_first, fill_pages, scanned; /* 0x28.. */
    uint64_t edges;                           /* 0x40 */
    uint64_t beats, max_gap;                  /* 0x48 */
    uint64_t ticks;                           /* 0x58 */
    uint64_t max_gap_beat, last_beat;         /* 0x60 */
    uint64_t timer_lost, wakeups;             /* 0x70 */
    uint64_t interrupts_early;                /* 0x80 */
    uint64_t spurious;                        /* 0x88 */
    uint64_t ipis_sent, ipis_taken;           /* 0x90 */
    uint64_t interrupts_lost, interrupts_duplicated, ipi_held; /* 0xa0 */
    uint64_t serial_bytes, serial_sum, serial_last; /* 0xb8 */
    uint64_t mismatches[5];                   /* 0xd0: by kind, [0] unused */
    uint64_t checks[12];                      /* 0xf8: by class */
    uint64_t failures[12];                    /* 0x158: by class */
    uint64_t records;                         /* 0x1b8 */
    uint8_t reserved[0x400 - 0x1c0];
    struct record record[MAX_RECORDS];        /* 0x400 */
    uint8_t rest[0x1000 - 0x800];
};
_Static_assert(sizeof(struct vcpu) == 0x1000, "");
_Static_assert(offsetof(struct vcpu, checks) == 0xf8, "");
_Static_assert(offsetof(struct vcpu, record) == 0x400, "");

struct control {
    uint64_t magic;
    uint32_t version, state;
    uint64_t seed, tsc_khz;             /* 0x10 */
    uint32_t tsc_source, lapic_khz;     /* 0x20 */
    uint32_t workers, vcpus;            /* 0x28 */
    uint64_t classes;                   /* 0x30 */
    uint32_t fill, heartbeat_port;      /* 0x38 */
    uint64_t heartbeat_usec;            /* 0x40 */
    uint64_t panics;                    /* 0x48 */
    uint64_t data_pages;                /* 0x50 */
    uint64_t set_first, set_pages;      /* 0x58 */
    uint64_t fill_first, fill_pages;    /* 0x68 */
    uint64_t ranges;                    /* 0x78 */
    struct range range[MAX_RANGES];     /* 0x80 */
    uint8_t reserved[0x400 - 0x100];
    char command_line[0x400];           /* 0x400 */
    uint8_t rest[0x1000 - 0x800];
    struct vcpu vcpu[MAX_VCPUS];        /* 0x1000 */
};
_Static_assert(offsetof(struct control, range) == 0x80, "");
_Static_assert(offsetof(struct control, vcpu) == 0x1000, "");
_Static_assert(sizeof(struct control) == CONTROL_END - CONTROL, "");

extern volatile struct control control; /* placed by link.ld */
