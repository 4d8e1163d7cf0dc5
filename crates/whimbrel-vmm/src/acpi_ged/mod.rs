//! ACPI's generic event device (ACPI0013), with the registers by which a guest without other ACPI hardware sleeps and resets.
//!
//! | address | register |
//! |---|---|
//! | [`map::GED_EVENT`](crate::map::GED_EVENT) | 32 bits: what happened since last read; reading clears it |
//! | [`map::GED_REGISTERS`](crate::map::GED_REGISTERS) + 0 | sleep control: bit 5 sleeps, bits 2–4 how deep; 5 is off |
//! | + 1 | sleep status: 0 |
//! | + 2 | reset: 0x42 resets |
//!
//! Nothing on this machine happens by itself: events are those that came with a guest.

use std::sync::{Arc, Mutex};

use whimbrel::downcast;
use whimbrel::handlers::Device;
use whimbrel::machine::MachineError;
use whimbrel_vmstate::VmState;

use crate::bus::{Asked, MmioDevice};
use crate::lock;
use crate::state;

pub(crate) const SLEEP_CONTROL: u64 = 0;
pub(crate) const SLEEP_STATUS: u64 = 1;
pub(crate) const RESET: u64 = 2;
const SLEEP_ENABLE: u8 = 1 << 5;
const SLEEP_TYPE_SHIFT: u8 = 2;
const SLEEP_TYPE_MASK: u8 = 7;
/// S5, as the tables name it.
pub(crate) const SOFT_OFF: u8 = 5;
/// What the tables say to write.
pub(crate) const RESET_VALUE: u8 = 0x42;

/// The device.
#[derive(Default)]
pub struct AcpiGed(Mutex<state::AcpiGed>);

impl AcpiGed {
    /// At power-on.
    pub fn new() -> Self {
        Self(Mutex::new(power_on()))
    }

    /// Back to power-on.
    pub fn reset(&self) {
        *lock(&self.0) = power_on();
    }
}

/// The selector of events.
pub struct Selector(pub Arc<AcpiGed>);

impl MmioDevice for Selector {
    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if let (0, [a, b, c, d]) = (offset, data) {
            let happened = std::mem::take(&mut lock(&self.0.0).sel);
            [*a, *b, *c, *d] = happened.to_le_bytes();
        }
    }

    fn write(&self, _: u64, _: &[u8]) -> Asked {
        Asked::Nothing
    }
}

/// The sleep and reset registers.
pub struct SleepAndReset;

impl MmioDevice for SleepAndReset {
    fn read(&self, _: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&self, offset: u64, data: &[u8]) -> Asked {
        match (offset, data) {
            (SLEEP_CONTROL, [value]) if value & SLEEP_ENABLE != 0 => {
                match value >> SLEEP_TYPE_SHIFT & SLEEP_TYPE_MASK {
                    SOFT_OFF => Asked::Shutdown,
                    other => {
                        tracing::warn!(sleep_type = other, "the guest asks for a sleep that is not there");
                        Asked::Nothing
                    }
                }
            }
            (RESET, [RESET_VALUE]) => Asked::Reset,
            _ => Asked::Nothing,
        }
    }
}

impl Device for AcpiGed {
    fn save(&self) -> Result<Box<dyn VmState>, MachineError> {
        Ok(Box::new(lock(&self.0).clone()))
    }

    fn blank(&self) -> Box<dyn VmState> {
        Box::new(state::AcpiGed::default())
    }

    /// Taken at once: the machine is stopped.
    fn load(&self, state: Box<dyn VmState>) -> Result<(), MachineError> {
        *lock(&self.0) = *downcast(state)?;
        Ok(())
    }
}

/// The selector of memory that can be plugged in is there, although there is no such memory: QEMU sends it.
fn power_on() -> state::AcpiGed {
    state::AcpiGed { sel: 0, memhp_selector: Some(0) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_happened_is_read_once() {
        let device = Arc::new(AcpiGed::new());
        let happened = state::AcpiGed { sel: 0x0102, memhp_selector: Some(3) };
        device.load(Box::new(happened.clone())).unwrap();
        assert_eq!(*downcast::<state::AcpiGed>(device.save().unwrap()).unwrap(), happened);
        let mut read = [9; 4];
        let selector = Selector(Arc::clone(&device));
        for expected in [[2, 1, 0, 0], [0; 4]] {
            selector.read(0, &mut read);
            assert_eq!(read, expected);
        }
    }

    #[test]
    fn a_guest_can_switch_itself_off_and_reset_itself() {
        for (offset, value, asked) in [
            (SLEEP_CONTROL, 0x34, Asked::Shutdown),
            (SLEEP_CONTROL, 0x14, Asked::Nothing),
            (SLEEP_CONTROL, 0x24, Asked::Nothing),
            (RESET, 0x42, Asked::Reset),
            (RESET, 0x41, Asked::Nothing),
        ] {
            assert_eq!(SleepAndReset.write(offset, &[value]), asked, "{offset} {value:#x}");
        }
    }
}
