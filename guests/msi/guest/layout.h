// Where the guest keeps what, in guest-physical memory. `src/lib.rs` knows the control block.
#pragma once

#include <stdint.h>

#define UART 0x09000000ul
#define GICD 0x08000000ul
#define GITS 0x08080000ul
#define GICR 0x080a0000ul
#define GICR_STRIDE 0x20000ul

#define QUEUE 0x40800000ul          // 64 KiB of commands
#define DEVICE_TABLE 0x40810000ul   // flat: 512 KiB, a device id of 16 bits
#define DEVICE_LEVEL_1 0x408a0000ul // two levels: 64 KiB of pointers
#define DEVICE_LEVEL_2 0x408b0000ul // and four pages of 64 KiB
#define COLLECTION_TABLE 0x408f0000ul
#define LPI_CONFIGURATION 0x40900000ul
#define LPI_PENDING 0x40910000ul    // 64 KiB a CPU
#define TRANSLATION 0x40930000ul    // interrupt translation tables, 4 KiB each
#define TABLES_END 0x40940000ul
#define CONTROL 0x40a00000ul
#define DIRTY 0x40b00000ul          // pages that are written all the time

#define LPI_BITS 14                 // LPIs 8192 to 16383
#define FIRST_LPI 8192
#define COUNTED 512                 // LPIs that are counted

#define STEADY_DEVICE 5
#define STEADY_EVENTS 64            // event e is LPI FIRST_LPI + e
#define HOLD_EVENT 64               // do not take interrupts for a while
#define CHURN_EVENT 65              // stop remapping, or go on
#define RESET_EVENT 66              // ask for a reset of the machine
#define MOVING_DEVICE 0x2123        // in a second-level page of its own
#define MOVING_EVENTS 32
#define MOVING_LPI (FIRST_LPI + 128)    // event e is one of the four from MOVING_LPI + 4 e on
#define PASSING_DEVICE 0x456        // unmapped and mapped again, as a whole
#define PASSING_EVENTS 8
#define PASSING_LPI (FIRST_LPI + 256)   // event e is one of the two from PASSING_LPI + 2 e on

#define LEAVING_DEVICE 1            // unmapped while there is no remapping, with the option
#define LEAVING_LPI (FIRST_LPI + 272)

#define MAGIC 0x3149534d574d4857ul

// All fields are 8 bytes wide but the arrays, so that they are where the host expects them.
struct control_block {
    uint64_t magic;             // set when everything is ready
    uint64_t cpus;
    uint64_t beats;             // rounds of the first CPU
    uint64_t churns;            // remappings done
    uint64_t churning;          // 1 while it remaps
    uint64_t holding[2];        // 1 while a CPU takes no interrupts
    uint64_t stray;             // interrupts that are none of ours
    uint64_t failed;            // commands that were not taken
    uint64_t died;              // exception vector + 1, and then
    uint64_t syndrome, where, address;
    uint64_t backwards;         // the virtual counter went back
    uint64_t biggest_step;      // of the virtual counter between two rounds, in us
    uint64_t two_level;
    uint64_t count, frequency;  // of the virtual counter: now, and a second's
    uint32_t moving[MOVING_EVENTS];     // the LPI of each event; 0 while it is remapped
    uint32_t passing[PASSING_EVENTS];
    uint32_t counts[2][COUNTED];        // interrupts taken, by CPU and LPI
};
