//! A debug console: each byte written goes out, reads give 0xe9. It has no state. On x86-64 it is QEMU's `isa-debugcon`, a port.

use crate::bus::PortDevice;
use crate::chardev::{Output, Receiver};

/// What a read gives, by which a guest finds the device.
const PRESENT: u8 = 0xe9;

/// The device.
pub struct Debugcon {
    output: Output,
}

impl Debugcon {
    /// Writes to `output`.
    pub fn new(output: Output) -> Self {
        Self { output }
    }
}

impl PortDevice for Debugcon {
    fn read(&self, _: u16, data: &mut [u8]) {
        data.fill(PRESENT);
    }

    fn write(&self, _: u16, data: &[u8]) {
        self.output.write(data);
    }
}

impl Receiver for Debugcon {
    /// There is no input register: bytes vanish.
    fn receive(&self, bytes: &[u8]) -> usize {
        bytes.len()
    }
}
