//! A running 16550A.
//!
//! Bytes leave the moment they are written, so the transmitter is always empty; a byte that has come and is below the FIFO's
//! trigger level raises the character-timeout interrupt at once, as if the line had been idle. Both are what a driver sees of
//! an infinitely fast line. Nothing changes while the machine is stopped: input is not taken.

use std::collections::VecDeque;

use crate::bus::PortDevice;
use crate::uart::{self, Uart};

/// First port of COM1.
pub const FIRST_PORT: u16 = 0x3f8;
/// Number of ports.
pub const PORTS: u16 = 8;

/// Bytes a FIFO holds.
pub(super) const FIFO: usize = 16;

pub(super) mod bits {
    //! Register bits, by the 16550's data sheet.
    pub(in super::super) const IER_RECEIVED: u8 = 0x01;
    pub(in super::super) const IER_TRANSMITTER_EMPTY: u8 = 0x02;
    pub(in super::super) const IER_LINE_STATUS: u8 = 0x04;
    pub(in super::super) const IER_MODEM_STATUS: u8 = 0x08;
    pub(in super::super) const IIR_NONE: u8 = 0x01;
    pub(in super::super) const IIR_TRANSMITTER_EMPTY: u8 = 0x02;
    pub(in super::super) const IIR_RECEIVED: u8 = 0x04;
    pub(in super::super) const IIR_LINE_STATUS: u8 = 0x06;
    pub(in super::super) const IIR_MODEM_STATUS: u8 = 0x00;
    pub(in super::super) const IIR_TIMEOUT: u8 = 0x0c;
    pub(in super::super) const IIR_ID: u8 = 0x0f;
    pub(in super::super) const IIR_FIFO: u8 = 0xc0;
    pub(in super::super) const FCR_ENABLE: u8 = 0x01;
    pub(in super::super) const FCR_CLEAR_RECEIVER: u8 = 0x02;
    /// The bits of FCR that stay: enable, DMA mode, trigger level.
    pub(in super::super) const FCR_KEPT: u8 = 0xc9;
    pub(in super::super) const LCR_DLAB: u8 = 0x80;
    pub(in super::super) const MCR_DTR: u8 = 0x01;
    pub(in super::super) const MCR_RTS: u8 = 0x02;
    pub(in super::super) const MCR_OUT1: u8 = 0x04;
    pub(in super::super) const MCR_OUT2: u8 = 0x08;
    pub(in super::super) const MCR_LOOP: u8 = 0x10;
    pub(in super::super) const LSR_DATA: u8 = 0x01;
    pub(in super::super) const LSR_OVERRUN: u8 = 0x02;
    /// Overrun, parity, framing, break.
    pub(in super::super) const LSR_ERRORS: u8 = 0x1e;
    pub(in super::super) const LSR_TRANSMITTER: u8 = 0x60;
    pub(in super::super) const MSR_CTS: u8 = 0x10;
    pub(in super::super) const MSR_DSR: u8 = 0x20;
    pub(in super::super) const MSR_RI: u8 = 0x40;
    pub(in super::super) const MSR_DCD: u8 = 0x80;
    pub(in super::super) const MSR_DELTAS: u8 = 0x0f;
}
use bits::*;

/// Everything the guest can see, and the FIFO behind it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Registers {
    pub(super) divider: u16,
    pub(super) ier: u8,
    pub(super) lcr: u8,
    pub(super) mcr: u8,
    pub(super) lsr: u8,
    pub(super) msr: u8,
    pub(super) scr: u8,
    pub(super) fcr: u8,
    /// The byte last received, for reads of an empty receiver.
    pub(super) rbr: u8,
    /// The transmitter became empty and the guest has not been told.
    pub(super) transmitter_pending: bool,
    pub(super) received: VecDeque<u8>,
}

impl Registers {
    pub(super) fn fifo_enabled(&self) -> bool {
        self.fcr & FCR_ENABLE != 0
    }

    /// The identity of the highest pending interrupt, with the FIFO bits.
    pub(super) fn iir(&self) -> u8 {
        let id = if self.ier & IER_LINE_STATUS != 0 && self.lsr & LSR_ERRORS != 0 {
            IIR_LINE_STATUS
        } else if self.ier & IER_RECEIVED != 0 && self.lsr & LSR_DATA != 0 {
            if self.fifo_enabled() && self.received.len() < self.trigger_level() {
                IIR_TIMEOUT
            } else {
                IIR_RECEIVED
            }
        } else if self.ier & IER_TRANSMITTER_EMPTY != 0 && self.transmitter_pending {
            IIR_TRANSMITTER_EMPTY
        } else if self.ier & IER_MODEM_STATUS != 0 && self.msr & MSR_DELTAS != 0 {
            IIR_MODEM_STATUS
        } else {
            IIR_NONE
        };
        if self.fifo_enabled() { id | IIR_FIFO } else { id }
    }

    fn trigger_level(&self) -> usize {
        [1, 4, 8, 14][usize::from(self.fcr >> 6)]
    }

    fn pop(&mut self) -> u8 {
        if let Some(byte) = self.received.pop_front() {
            self.rbr = byte;
        }
        if self.received.is_empty() {
            self.lsr &= !LSR_DATA;
        }
        self.rbr
    }

    fn set_fcr(&mut self, value: u8) {
        let toggled = (value ^ self.fcr) & FCR_ENABLE != 0;
        if toggled || value & FCR_CLEAR_RECEIVER != 0 {
            self.received.clear();
            self.lsr &= !LSR_DATA;
        }
        self.fcr = if value & FCR_ENABLE != 0 { value & FCR_KEPT } else { 0 };
    }

    fn set_mcr(&mut self, value: u8) {
        self.mcr = value & 0x1f;
        let lines = if self.mcr & MCR_LOOP != 0 {
            let pairs = [(MCR_RTS, MSR_CTS), (MCR_DTR, MSR_DSR), (MCR_OUT1, MSR_RI), (MCR_OUT2, MSR_DCD)];
            pairs.iter().filter(|(out, _)| self.mcr & out != 0).fold(0, |lines, (_, line)| lines | line)
        } else {
            MSR_DCD | MSR_DSR | MSR_CTS
        };
        let changed = (lines ^ self.msr) >> 4;
        self.msr = lines | (self.msr & MSR_DELTAS) | changed;
    }

    fn set_ier(&mut self, value: u8) {
        let enabled = value & !self.ier & IER_TRANSMITTER_EMPTY != 0;
        self.ier = value & 0x0f;
        if enabled {
            self.transmitter_pending = true;
        }
    }
}

impl uart::Registers for Registers {
    /// After power-on: 9600 baud, a peer that is there, OUT2 set.
    fn power_on() -> Self {
        Self {
            divider: 12,
            ier: 0,
            lcr: 0,
            mcr: MCR_OUT2,
            lsr: LSR_TRANSMITTER,
            msr: MSR_DCD | MSR_DSR | MSR_CTS,
            scr: 0,
            fcr: 0,
            rbr: 0,
            transmitter_pending: false,
            received: VecDeque::with_capacity(FIFO),
        }
    }

    fn interrupt(&self) -> bool {
        self.iir() & IIR_ID != IIR_NONE
    }

    fn room(&self) -> usize {
        let capacity = if self.fifo_enabled() { FIFO } else { 1 };
        capacity.saturating_sub(self.received.len())
    }

    fn push(&mut self, byte: u8) {
        if self.room() == 0 {
            self.lsr |= LSR_OVERRUN;
            return;
        }
        self.received.push_back(byte);
        self.lsr |= LSR_DATA;
    }

    fn loops_back(&self) -> bool {
        self.mcr & MCR_LOOP != 0
    }
}

/// The device.
pub(crate) type Serial = Uart<Registers>;

impl Serial {
    fn read_register(&self, register: u16) -> u8 {
        let mut r = self.access();
        match register {
            0 if r.lcr & LCR_DLAB != 0 => r.divider as u8,
            0 => r.pop(),
            1 if r.lcr & LCR_DLAB != 0 => (r.divider >> 8) as u8,
            1 => r.ier,
            2 => {
                let iir = r.iir();
                if iir & IIR_ID == IIR_TRANSMITTER_EMPTY {
                    r.transmitter_pending = false;
                }
                iir
            }
            3 => r.lcr,
            4 => r.mcr,
            5 => {
                let lsr = r.lsr;
                r.lsr &= !LSR_ERRORS;
                lsr
            }
            6 => {
                let msr = r.msr;
                r.msr &= !MSR_DELTAS;
                msr
            }
            _ => r.scr,
        }
    }

    fn write_register(&self, register: u16, value: u8) {
        let mut r = self.access();
        match register {
            0 if r.lcr & LCR_DLAB != 0 => r.divider = r.divider & 0xff00 | u16::from(value),
            0 => {
                r.send(value);
                // The line falls and rises again: an edge-triggered pin must see each byte's end.
                r.transmitter_pending = false;
                r.settle();
                r.transmitter_pending = true;
            }
            1 if r.lcr & LCR_DLAB != 0 => r.divider = r.divider & 0x00ff | u16::from(value) << 8,
            1 => r.set_ier(value),
            2 => r.set_fcr(value),
            3 => r.lcr = value,
            4 => r.set_mcr(value),
            5 | 6 => {}
            _ => r.scr = value,
        }
    }
}

impl PortDevice for Serial {
    fn read(&self, offset: u16, data: &mut [u8]) {
        for (register, byte) in (offset..).zip(data) {
            *byte = if register < PORTS { self.read_register(register) } else { 0xff };
        }
    }

    fn write(&self, offset: u16, data: &[u8]) {
        for (register, byte) in (offset..PORTS).zip(data) {
            self.write_register(register, *byte);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use super::*;
    use crate::chardev::Receiver;
    use crate::uart::tests::running;

    #[test]
    fn a_received_byte_interrupts_once_and_reads_back() {
        let (serial, edges) = running::<Registers>();
        serial.write_register(1, IER_RECEIVED);
        assert_eq!(serial.receive(b"ab"), 1, "without FIFO there is room for one");
        assert_eq!(edges.load(Ordering::SeqCst), 1);
        assert_eq!(serial.read_register(2), IIR_RECEIVED);
        assert_eq!(serial.read_register(0), b'a');
        assert_eq!(serial.read_register(2), IIR_NONE);
    }

    #[test]
    fn a_byte_below_the_trigger_level_times_out_at_once() {
        let (serial, edges) = running::<Registers>();
        serial.write_register(2, 0xc1);
        serial.write_register(1, IER_RECEIVED);
        assert_eq!(serial.receive(&[1; 13]), 13);
        assert_eq!(serial.read_register(2), IIR_FIFO | IIR_TIMEOUT);
        assert_eq!(serial.receive(&[1; 9]), 3, "the FIFO holds 16");
        assert_eq!(serial.read_register(2), IIR_FIFO | IIR_RECEIVED);
        assert_eq!(edges.load(Ordering::SeqCst), 1, "the line stayed high");
    }

    #[test]
    fn each_sent_byte_is_an_edge_for_a_driver_that_waits_for_the_transmitter() {
        let (serial, edges) = running::<Registers>();
        serial.write_register(1, IER_TRANSMITTER_EMPTY);
        assert_eq!(edges.load(Ordering::SeqCst), 1, "it is empty already");
        assert_eq!(serial.read_register(2), IIR_TRANSMITTER_EMPTY);
        for sent in 1..=3 {
            serial.write_register(0, b'x');
            assert_eq!(edges.load(Ordering::SeqCst), 1 + sent);
        }
    }

    #[test]
    fn loopback_returns_what_was_sent_and_mirrors_the_modem_lines() {
        let (serial, _) = running::<Registers>();
        serial.write_register(4, MCR_LOOP | MCR_RTS | MCR_OUT1);
        serial.write_register(0, 0x5a);
        assert_eq!(serial.read_register(0), 0x5a);
        assert_eq!(serial.read_register(6) & 0xf0, MSR_CTS | MSR_RI);
    }

    #[test]
    fn a_stopped_device_takes_no_input() {
        let (serial, _) = running::<Registers>();
        serial.set_running(false);
        assert_eq!(serial.receive(b"a"), 0);
    }
}
