/* Starting the other vCPUs by INIT and SIPI. APIC ids count up: workers, then the sleeper, then the one left waiting. */
#include "guest.h"

#define START_USEC 3000000

static uint64_t waiting, waiting_until; /* 0: nobody */

static void send(uint64_t vcpu, uint32_t what) {
    mmio_write(LAPIC_ICR_TARGET, vcpu << 24);
    mmio_write(LAPIC_ICR, what);
}

static void wait(uint64_t microseconds) {
    uint64_t until = rdtsc() + usec(microseconds);
    while (rdtsc() < until)
        pause();
}

static void init(uint64_t vcpu, enum role role) {
    control.vcpu[vcpu].writing = NONE_PAGE;
    control.vcpu[vcpu].role = role;
    send(vcpu, ICR_INIT);
    wait(10000);
}

static void sipi(uint64_t vcpu) {
    starting_vcpu = vcpu;
    barrier();
    send(vcpu, ICR_SIPI | TRAMPOLINE >> 12);
}

static void start(uint64_t vcpu, enum role role) {
    init(vcpu, role);
    sipi(vcpu);
    uint64_t until = rdtsc() + usec(START_USEC);
    while (!control.vcpu[vcpu].started && rdtsc() < until)
        pause();
    if (!control.vcpu[vcpu].started)
        say("vcpu %d did not start", vcpu);
}

void start_vcpus(void) {
    memcpy((void *)TRAMPOLINE, trampoline, trampoline_end - trampoline);
    uint64_t next = options.cpus;
    for (uint64_t vcpu = 1; vcpu < options.cpus; vcpu++)
        start(vcpu, WORKER);
    if (options.sleep)
        start(next++, SLEEPER);
    if (options.wait) {
        waiting = next++;
        init(waiting, WAITING);
    }
    control.vcpus = next;
}

/* SIPI alone: it starts a vCPU only if that still waits for it. */
void start_waiting(void) {
    if (!waiting || control.vcpu[waiting].role != WAITING)
        return;
    control.vcpu[waiting].role = SLEEPER;
    sipi(waiting);
    waiting_until = rdtsc() + usec(START_USEC);
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
