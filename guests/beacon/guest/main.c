/* vCPU 0 in ring 3: from the loader's start info to the worker's loop. */
#include "guest.h"
#include "start_info.h"

void *memset(void *to, int value, size_t size) {
    void *at = to;
    __asm__ volatile("rep stosb" : "+D"(at), "+c"(size) : "a"(value) : "memory");
    return to;
}

void *memcpy(void *to, const void *from, size_t size) {
    void *at = to;
    __asm__ volatile("rep movsb" : "+D"(at), "+S"(from), "+c"(size)::"memory");
    return to;
}

/* The loader's structures lie in memory that will be overwritten. */
static void read_command_line(void) {
    const struct start_info *info = (const struct start_info *)start_info;
    const char *from = (const char *)info->command_line;
    for (unsigned i = 0; from && i + 1 < sizeof control.command_line && from[i]; i++)
        control.command_line[i] = from[i];
    parse_options((const char *)control.command_line);
}

void main(vcpu_t me) {
    memset(bss_start, 0, bss_end - bss_start);
    memset((void *)&control, 0, sizeof control);
    read_command_line();
    control.version = CONTROL_VERSION;
    control.state = FILLING;
    control.seed = options.seed;
    control.workers = options.cpus;
    control.fill = options.fill_random;
    control.heartbeat_port = options.heartbeat_port;
    control.heartbeat_usec = options.heartbeat_usec;
    me->role = WORKER;
    lay_out_memory();
    control.magic = CONTROL_MAGIC;
    find_tsc_frequency();
    start_serial();
    start_vcpus();
    work(me);
}
