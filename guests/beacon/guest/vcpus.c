/* Starting the other vCPUs. Their numbers count up: workers, then the sleeper, then the one left waiting. */
#include "guest.h"

#define START_USEC 3000000

static uint64_t waiting, waiting_until; /* 0: nobody */

static void reset(uint64_t vcpu, enum role role) {
    control.vcpu[vcpu].writing = NONE_PAGE;
    control.vcpu[vcpu].role = role;
    reset_vcpu(vcpu);
}

static void start(uint64_t vcpu, enum role role) {
    reset(vcpu, role);
    start_vcpu(vcpu);
    uint64_t until = cycles() + usec(START_USEC);
    while (!control.vcpu[vcpu].started && cycles() < until)
        pause();
    if (!control.vcpu[vcpu].started)
        say("vcpu %d did not start", vcpu);
}

void start_vcpus(void) {
    prepare_starting();
    uint64_t next = options.cpus;
    for (uint64_t vcpu = 1; vcpu < options.cpus; vcpu++)
        start(vcpu, WORKER);
    if (options.sleep)
        start(next++, SLEEPER);
    if (options.wait) {
        waiting = next++;
        reset(waiting, WAITING);
    }
    control.vcpus = next;
}

/* No reset before it: this starts a vCPU only if it still waits. */
void start_waiting(void) {
    if (!waiting || control.vcpu[waiting].role != WAITING)
        return;
    control.vcpu[waiting].role = SLEEPER;
    start_vcpu(waiting);
    waiting_until = cycles() + usec(START_USEC);
}

void watch_waiting(uint64_t now) {
    if (!waiting_until)
        return;
    if (control.vcpu[waiting].started)
        say("vcpu %d started", waiting);
    else if (now > waiting_until)
        say("vcpu %d did not start", waiting);
    else
        return;
    waiting_until = 0;
}
