/* The 16550 at 0x3f8: its receive interrupt (pin 4 of the IOAPIC, to vCPU 0), and the bytes that are commands. */
#include "guest.h"

#define PIN 4
#define WATCH_USEC 200000

static volatile uint32_t start_asked, end_asked, zero_asked, status_asked;

static void ioapic_write(uint32_t index, uint32_t value) {
    mmio_write(IOAPIC, index);
    mmio_write(IOAPIC + 0x10, value);
}

void start_serial(void) {
    if (!options.serial)
        return;
    ioapic_write(0x10 + 2 * PIN + 1, 0); /* to APIC id 0 */
    ioapic_write(0x10 + 2 * PIN, VECTOR_SERIAL);
    out8(SERIAL + 3, 0x03); /* 8n1 */
    out8(SERIAL + 2, 0x01); /* FIFOs on, an interrupt for each byte */
    out8(SERIAL + 4, 0x0b); /* OUT2 lets the interrupt through */
    out8(SERIAL + 1, 0x01); /* received data available */
}

/* Ring 0, the interrupt handler. The line is edge-triggered: read until nothing is left. */
void serial_received(vcpu_t me) {
    while (in8(SERIAL + 5) & 1) {
        uint8_t byte = in8(SERIAL);
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
            out8(SERIAL, byte);
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
    if (lost || !(in8(SERIAL + 5) & 1))
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
        ring0_call(CALL_TRIPLE_FAULT);
    }
}
