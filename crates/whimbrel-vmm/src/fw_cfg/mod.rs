//! QEMU's firmware configuration device: a few items, read byte by byte or by DMA.

mod device;

pub use device::{FIRST_PORT, FwCfg, PORTS};
