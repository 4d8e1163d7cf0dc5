/* The command line. src/command_line.rs specifies it. */
#pragma once
#include <stdint.h>

struct options {
    uint64_t heartbeat_port, heartbeat_usec;
    uint64_t say;
    uint64_t seed;
    uint64_t mem, set, rate, fill_random, high, scan; /* MiB and MiB/s */
    uint64_t cpus, sleep, wait;
    uint64_t tick, pend, serial, echo, hold, avx;
    uint64_t tsc_khz;
};
extern struct options options;

/* Reads `text` into `options`; what it does not know is said and left out. */
void parse_options(const char *text);
