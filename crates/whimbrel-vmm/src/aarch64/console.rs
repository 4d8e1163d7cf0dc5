//! The debug console as a register in memory: whatever the width of a write, its lowest byte goes out.

use std::sync::Arc;

use crate::bus::{Asked, MmioDevice, PortDevice};
use crate::debugcon::Debugcon;

/// The device at its address.
pub(super) struct ConsoleRegister(pub(super) Arc<Debugcon>);

impl MmioDevice for ConsoleRegister {
    fn read(&self, _: u64, data: &mut [u8]) {
        self.0.read(0, data);
    }

    fn write(&self, _: u64, data: &[u8]) -> Asked {
        self.0.write(0, &data[..data.len().min(1)]);
        Asked::Nothing
    }
}
