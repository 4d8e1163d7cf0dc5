//! The serial port COM1: a 16550A with its interrupt.

mod device;
mod section;

pub(crate) use device::Serial;
pub use device::{FIRST_PORT, PORTS};
