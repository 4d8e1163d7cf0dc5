//! The machine's virtual clock: it counts while the guest runs, stands while it is stopped, and goes on from there on the
//! destination.

mod device;

pub use device::{TimerDevice, VirtualClock};
