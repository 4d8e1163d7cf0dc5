//! A vCPU of `virt`: every register that KVM lists, and the two sections that carry them.

mod registers;
mod section;
mod unit;

pub(super) use registers::{PC, PHYSICAL_CNT, TIMER_CNT, read, write};
pub(super) use unit::{CpuSection, CpuUnit, Entry, Part};
