//! Between a running PL011 and its section `pl011`.

use whimbrel::downcast;
use whimbrel::handlers::Device;
use whimbrel::machine::MachineError;
use whimbrel_vmstate::VmState;

use super::device::{FIFO, Pl011, Registers};
use crate::state;
use crate::uart::Registers as _;

/// Number of received bytes at which QEMU's device interrupts.
const TRIGGER: i32 = 1;
/// QEMU's `virt` connects no clock to it.
const PERIOD: u64 = 0;

impl Device for Pl011 {
    fn save(&self) -> Result<Box<dyn VmState>, MachineError> {
        Ok(Box::new(save(&self.registers())))
    }

    fn blank(&self) -> Box<dyn VmState> {
        Box::new(save(&Registers::power_on()))
    }

    fn load(&self, state: Box<dyn VmState>) -> Result<(), MachineError> {
        self.restore(load(&*downcast(state)?), Vec::new());
        Ok(())
    }
}

fn save(r: &Registers) -> state::Pl011 {
    let mut read_fifo = [0; FIFO];
    for (to, from) in read_fifo.iter_mut().zip(&r.received) {
        *to = *from;
    }
    state::Pl011 {
        flags: r.flags(),
        lcr: r.lcr,
        rsr: r.rsr,
        cr: r.cr,
        dmacr: r.dmacr,
        int_enabled: r.imsc,
        int_level: r.ris,
        read_fifo,
        ilpr: r.ilpr,
        ibrd: r.ibrd,
        fbrd: r.fbrd,
        ifl: r.ifls,
        read_pos: 0,
        read_count: r.received.len().min(FIFO) as i32,
        read_trigger: TRIGGER,
        clock: Some(PERIOD),
    }
}

/// Flags follow from the rest; the trigger and the clock are always ours. Position and number were checked when they were read.
fn load(s: &state::Pl011) -> Registers {
    let received = (0..s.read_count).map(|n| s.read_fifo[(s.read_pos + n) as usize % FIFO]).collect();
    Registers {
        lcr: s.lcr,
        rsr: s.rsr,
        cr: s.cr,
        dmacr: s.dmacr,
        imsc: s.int_enabled,
        ris: s.int_level,
        ilpr: s.ilpr,
        ibrd: s.ibrd,
        fbrd: s.fbrd,
        ifls: s.ifl,
        received,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn received_bytes_and_registers_come_back() {
        let registers = Registers {
            lcr: 0x70,
            imsc: 0x10,
            ris: 0x30,
            received: [1, 2, 0x103].into(),
            ..Registers::power_on()
        };
        assert_eq!(load(&save(&registers)), registers);
    }

    #[test]
    fn a_ring_that_has_wrapped_is_read_in_order() {
        let mut saved = save(&Registers::power_on());
        (saved.read_fifo[15], saved.read_fifo[0]) = (7, 8);
        (saved.read_pos, saved.read_count) = (15, 2);
        assert_eq!(load(&saved).received, [7, 8]);
    }
}
