/* vCPU 0: from what the loader hands over to the worker's loop. */
#include "guest.h"

static void read_command_line(void) {
    const char *from = loader_command_line();
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
    clear_loader();
    control.magic = CONTROL_MAGIC;
    find_tsc_frequency();
    if (options.serial)
        uart_start();
    start_vcpus();
    work(me);
}
