/* The PL011, and output on the debug console. */
#include "aarch64.h"

enum pl011 { DR = 0x0, FR = 0x18, LCR_H = 0x2c, CR = 0x30, IMSC = 0x38 };
#define RECEIVE_EMPTY 0x10
#define TRANSMIT_FULL 0x20
#define RECEIVED 0x50 /* enough bytes, or the last one some time ago */

void uart_start(void) {
    mmio_write(PL011 + LCR_H, 0x60); /* 8n1, no FIFO: an interrupt for each byte */
    mmio_write(PL011 + CR, 0x301);   /* on, both ways */
    mmio_write(PL011 + IMSC, RECEIVED);
    enable_serial_interrupt();
}

int uart_has_byte(void) { return !(mmio_read(PL011 + FR) & RECEIVE_EMPTY); }

uint8_t uart_take(void) { return mmio_read(PL011 + DR); }

/* A UART is waited for, but not for ever: a peer that doesn't read must not stop the guest. */
void put_byte(uint64_t port, uint8_t byte) {
    if (port != SERIAL) {
        mmio_write(DEBUGCON, byte);
        return;
    }
    for (int tries = 0; tries < 1000 && mmio_read(PL011 + FR) & TRANSMIT_FULL; tries++)
        pause();
    mmio_write(PL011 + DR, byte);
}
