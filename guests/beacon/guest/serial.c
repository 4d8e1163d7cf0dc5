/* What the serial port receives: counted, and some bytes are commands. Its interrupt comes to vCPU 0. */
#include "guest.h"

#define WATCH_USEC 200000

static volatile uint32_t start_asked, end_asked, zero_asked, status_asked;

/* The interrupt handler. The line may be edge-triggered: read until nothing is left. */
void serial_received(vcpu_t me) {
    while (uart_has_byte()) {
        uint8_t byte = uart_take();
        me->serial_bytes++;
        me->serial_sum += byte;
        me->serial_last = byte;
        switch (byte) {
        case 'S': start_asked = 1; break;
        case 'P': end_asked = 1; break;
        case 'Z': zero_asked = 1; break;
        case '?': status_asked = 1; break;
        }
        if (options.echo)
            put_byte(SERIAL, byte);
    }
}

/* A byte that waits from one look to the next, with none taken between, has lost its interrupt. */
void watch_serial(vcpu_t me, uint64_t now) {
    static uint64_t next, taken;
    static int waiting, lost;
    if (!options.serial || now < next)
        return;
    next = now + usec(WATCH_USEC);
    if (me->serial_bytes != taken)
        waiting = lost = 0;
    taken = me->serial_bytes;
    if (lost || !uart_has_byte())
        return;
    if (waiting) {
        lost = 1;
        record_interrupt(me, SERIAL_LOST, taken + 1, taken);
    }
    waiting = 1;
}

static void say_status(vcpu_t me) {
    uint64_t pages = 0, faults = 0;
    for (uint64_t i = 0; i < MAX_VCPUS; i++) {
        pages += control.vcpu[i].progress;
        faults += control.vcpu[i].records;
    }
    say("status pages=%d faults=%d beats=%d ticks=%d bytes=%d gap_usec=%d gap_beat=%d", pages, faults, me->beats, me->ticks,
        me->serial_bytes, me->max_gap * 1000 / control.tsc_khz, me->max_gap_beat);
}

/* vCPU 0's main loop. */
void obey_commands(vcpu_t me) {
    if (start_asked) {
        start_asked = 0;
        start_waiting();
    }
    if (zero_asked) {
        zero_asked = 0;
        me->max_gap = 0;
    }
    if (status_asked) {
        status_asked = 0;
        say_status(me);
    }
    if (end_asked) {
        say("end");
        end_guest();
    }
}
