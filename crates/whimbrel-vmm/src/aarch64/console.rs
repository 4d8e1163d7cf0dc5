//! The debug console as a register in memory: whatever the width of a write, its lowest byte goes out.

use std::sync::Arc;

use crate::bus::PortDevice;
use crate::debugcon::Debugcon;

/// The device at its address.
pub(super) struct ConsoleRegister(pub(super) Arc<Debugcon>);

impl PortDevice for ConsoleRegister {
    fn read(&self, offset: u16, data: &mut [u8]) {
        self.0.read(offset, data);
    }

    fn write(&self, offset: u16, data: &[u8]) {
        self.0.write(offset, &data[..data.len().min(1)]);
    }
}
