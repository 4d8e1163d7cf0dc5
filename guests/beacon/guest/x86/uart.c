/* The 16550 at 0x3f8, whose receive interrupt is pin 4 of the IOAPIC; and output on any port. */
#include "x86.h"

#define PIN 4

static void ioapic_write(uint32_t index, uint32_t value) {
    mmio_write(IOAPIC, index);
    mmio_write(IOAPIC + 0x10, value);
}

void uart_start(void) {
    ioapic_write(0x10 + 2 * PIN + 1, 0); /* to APIC id 0 */
    ioapic_write(0x10 + 2 * PIN, VECTOR_SERIAL);
    out8(SERIAL + 3, 0x03); /* 8n1 */
    out8(SERIAL + 2, 0x01); /* FIFOs on, an interrupt for each byte */
    out8(SERIAL + 4, 0x0b); /* OUT2 lets the interrupt through */
    out8(SERIAL + 1, 0x01); /* received data available */
}

int uart_has_byte(void) { return in8(SERIAL + 5) & 1; }

uint8_t uart_take(void) { return in8(SERIAL); }

/* A UART is waited for, but not for ever: a peer that doesn't read must not stop the guest. */
void put_byte(uint64_t port, uint8_t byte) {
    if (port == SERIAL)
        for (int tries = 0; tries < 1000 && !(in8(SERIAL + 5) & 0x20); tries++)
            pause();
    out8(port, byte);
}
