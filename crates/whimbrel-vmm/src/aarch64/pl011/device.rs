//! A running PL011 (Arm DDI 0183).
//!
//! Bytes leave the moment they are written, so the transmit queue is always empty; a byte that has come interrupts at once. Both
//! are what a driver sees of an infinitely fast line. Nothing changes while the machine is stopped: input is not taken.

use std::collections::VecDeque;

use crate::bus::{Asked, MmioDevice};
use crate::uart::{self, Registers as _, Uart};

/// Bytes the receive queue holds, when it is on.
pub(super) const FIFO: usize = 16;

/// Register offsets.
mod at {
    pub(super) const DR: u64 = 0x00;
    pub(super) const RSR: u64 = 0x04;
    pub(super) const FR: u64 = 0x18;
    pub(super) const ILPR: u64 = 0x20;
    pub(super) const IBRD: u64 = 0x24;
    pub(super) const FBRD: u64 = 0x28;
    pub(super) const LCR_H: u64 = 0x2c;
    pub(super) const CR: u64 = 0x30;
    pub(super) const IFLS: u64 = 0x34;
    pub(super) const IMSC: u64 = 0x38;
    pub(super) const RIS: u64 = 0x3c;
    pub(super) const MIS: u64 = 0x40;
    pub(super) const ICR: u64 = 0x44;
    pub(super) const DMACR: u64 = 0x48;
    /// Eight identification registers of a byte.
    pub(super) const IDENTIFICATION: u64 = 0xfe0;
}

const IDENTIFICATION: [u8; 8] = [0x11, 0x10, 0x14, 0x00, 0x0d, 0xf0, 0x05, 0xb1];

/// UARTFR.
pub(super) const FR_TRANSMIT_EMPTY: u32 = 0x80;
pub(super) const FR_RECEIVE_FULL: u32 = 0x40;
pub(super) const FR_RECEIVE_EMPTY: u32 = 0x10;
/// UARTLCR_H: queues are on.
const LCR_FIFO: u32 = 0x10;
/// UARTCR: transmitter and receiver on.
const CR_POWER_ON: u32 = 0x300;
/// UARTCR: what is sent is received.
const CR_LOOP: u32 = 0x80;
/// UARTIFLS: both at half.
const IFLS_POWER_ON: u32 = 0x12;
/// UARTRIS and its kin.
pub(super) const INT_TRANSMIT: u32 = 0x20;
pub(super) const INT_RECEIVE: u32 = 0x10;

/// Everything the guest can see, and the queue behind it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::aarch64) struct Registers {
    pub(super) lcr: u32,
    pub(super) rsr: u32,
    pub(super) cr: u32,
    pub(super) dmacr: u32,
    pub(super) imsc: u32,
    pub(super) ris: u32,
    pub(super) ilpr: u32,
    pub(super) ibrd: u32,
    pub(super) fbrd: u32,
    pub(super) ifls: u32,
    /// With the error bits above the byte.
    pub(super) received: VecDeque<u32>,
}

impl Registers {
    pub(super) fn flags(&self) -> u32 {
        let mut flags = FR_TRANSMIT_EMPTY;
        if self.received.is_empty() {
            flags |= FR_RECEIVE_EMPTY;
        }
        if self.room() == 0 {
            flags |= FR_RECEIVE_FULL;
        }
        flags
    }

    fn pop(&mut self) -> u32 {
        let value = self.received.pop_front().unwrap_or(0);
        if self.received.is_empty() {
            self.ris &= !INT_RECEIVE;
        }
        self.rsr = value >> 8;
        value
    }
}

impl uart::Registers for Registers {
    fn power_on() -> Self {
        Self {
            lcr: 0,
            rsr: 0,
            cr: CR_POWER_ON,
            dmacr: 0,
            imsc: 0,
            ris: 0,
            ilpr: 0,
            ibrd: 0,
            fbrd: 0,
            ifls: IFLS_POWER_ON,
            received: VecDeque::with_capacity(FIFO),
        }
    }

    fn interrupt(&self) -> bool {
        self.ris & self.imsc != 0
    }

    fn room(&self) -> usize {
        let capacity = if self.lcr & LCR_FIFO != 0 { FIFO } else { 1 };
        capacity.saturating_sub(self.received.len())
    }

    fn push(&mut self, byte: u8) {
        if self.room() > 0 {
            self.received.push_back(byte.into());
            self.ris |= INT_RECEIVE;
        }
    }

    fn loops_back(&self) -> bool {
        self.cr & CR_LOOP != 0
    }
}

/// The device.
pub(in crate::aarch64) type Pl011 = Uart<Registers>;

impl Pl011 {
    fn read_register(&self, offset: u64) -> u32 {
        let mut r = self.access();
        match offset {
            at::DR => r.pop(),
            at::RSR => r.rsr,
            at::FR => r.flags(),
            at::ILPR => r.ilpr,
            at::IBRD => r.ibrd,
            at::FBRD => r.fbrd,
            at::LCR_H => r.lcr,
            at::CR => r.cr,
            at::IFLS => r.ifls,
            at::IMSC => r.imsc,
            at::RIS => r.ris,
            at::MIS => r.ris & r.imsc,
            at::DMACR => r.dmacr,
            _ => {
                let index = (offset.saturating_sub(at::IDENTIFICATION) / 4) as usize;
                let known = offset >= at::IDENTIFICATION;
                IDENTIFICATION.get(index).filter(|_| known).copied().unwrap_or(0).into()
            }
        }
    }

    fn write_register(&self, offset: u64, value: u32) {
        let mut r = self.access();
        match offset {
            at::DR => {
                r.send(value as u8);
                r.ris |= INT_TRANSMIT;
            }
            at::RSR => r.rsr = 0,
            at::ILPR => r.ilpr = value,
            at::IBRD => r.ibrd = value,
            at::FBRD => r.fbrd = value,
            at::LCR_H => {
                if (value ^ r.lcr) & LCR_FIFO != 0 {
                    r.received.clear();
                    r.ris &= !INT_RECEIVE;
                }
                r.lcr = value;
            }
            at::CR => r.cr = value,
            at::IFLS => r.ifls = value,
            at::IMSC => r.imsc = value,
            at::ICR => r.ris &= !value,
            at::DMACR => r.dmacr = value,
            _ => {}
        }
    }
}

impl MmioDevice for Pl011 {
    fn read(&self, offset: u64, data: &mut [u8]) {
        // A register is 32 bits wide at most; drivers read the low half or byte of one, too.
        let value = self.read_register(offset & !3).to_le_bytes();
        let within = (offset & 3) as usize;
        for (index, byte) in data.iter_mut().enumerate() {
            *byte = value.get(within + index).copied().unwrap_or(0);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) -> Asked {
        let mut value = [0; 4];
        for (to, from) in value.iter_mut().zip(data) {
            *to = *from;
        }
        if offset & 3 == 0 {
            self.write_register(offset, u32::from_le_bytes(value));
        }
        Asked::Nothing
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use super::*;
    use crate::chardev::Receiver;
    use crate::uart::tests::running;

    #[test]
    fn a_received_byte_interrupts_until_it_is_read() {
        let (uart, edges) = running::<Registers>();
        uart.write_register(at::IMSC, INT_RECEIVE);
        assert_eq!(uart.receive(b"ab"), 1, "without queue there is room for one");
        assert_eq!(edges.load(Ordering::SeqCst), 1);
        assert_eq!(uart.read_register(at::FR), FR_TRANSMIT_EMPTY | FR_RECEIVE_FULL);
        assert_eq!(uart.read_register(at::MIS), INT_RECEIVE);
        assert_eq!(uart.read_register(at::DR), u32::from(b'a'));
        assert_eq!(uart.read_register(at::MIS), 0);
        assert_eq!(uart.read_register(at::FR), FR_TRANSMIT_EMPTY | FR_RECEIVE_EMPTY);
    }

    #[test]
    fn the_queue_holds_sixteen_and_a_switch_empties_it() {
        let (uart, _) = running::<Registers>();
        uart.write_register(at::LCR_H, LCR_FIFO);
        assert_eq!(uart.receive(&[1; 20]), FIFO);
        uart.write_register(at::LCR_H, 0);
        assert_eq!(uart.read_register(at::FR) & FR_RECEIVE_EMPTY, FR_RECEIVE_EMPTY);
        assert_eq!(uart.read_register(at::RIS) & INT_RECEIVE, 0);
    }

    #[test]
    fn sending_interrupts_a_driver_that_waits_for_room_until_it_says_so() {
        let (uart, edges) = running::<Registers>();
        uart.write_register(at::IMSC, INT_TRANSMIT);
        uart.write_register(at::DR, b'x'.into());
        assert_eq!(edges.load(Ordering::SeqCst), 1);
        uart.write_register(at::ICR, INT_TRANSMIT);
        assert_eq!(uart.read_register(at::RIS), 0);
    }

    #[test]
    fn it_says_what_it_is_and_takes_nothing_while_stopped() {
        let (uart, _) = running::<Registers>();
        let id = |n: u64| uart.read_register(at::IDENTIFICATION + n * 4);
        assert_eq!([id(0), id(1), id(2), id(7)], [0x11, 0x10, 0x14, 0xb1]);
        assert_eq!(uart.read_register(0x100), 0);
        uart.set_running(false);
        assert_eq!(uart.receive(b"a"), 0);
    }
}
