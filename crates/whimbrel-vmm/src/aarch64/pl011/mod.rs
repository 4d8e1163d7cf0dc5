//! The serial port: a PL011 with its interrupt.

mod device;
mod section;

pub(super) use device::Pl011;
