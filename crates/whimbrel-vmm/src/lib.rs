//! A small machine on KVM: QEMU's `microvm` on x86-64, with its memory map, block names and section layout.
//!
//! It exists to prove the engine on real guests, and to be read by those who bring the engine to a machine of their own. It knows
//! nothing of migration but what [`Machine`](whimbrel::machine::Machine) and [`Device`](whimbrel::handlers::Device) ask of it.
//!
//! | module | holds |
//! |---|---|
//! | [`config`] | what to build |
//! | [`memory`] | guest RAM: blocks, regions, the map with its hole below 4 GiB |
//! | [`kvm`] | the VM file descriptor: capabilities, interrupt controllers, memory slots |
//! | [`dirty`] | which of KVM's dirty logs the VM has |
//! | [`vcpu`] | vCPU threads, the gate that stops them, and all of a vCPU's state |
//! | [`boot`] | PVH: image, command line, start info |
//! | [`bus`] | port and MMIO exits to devices |
//! | `serial`, `debugcon`, `fw_cfg`, `ioapic`, `kvmclock`, … | one folder a device |
//! | [`state`] | saved-state types: frozen, in QEMU's layout, without KVM |
//! | [`vm`] | all of it together, as a `Machine` |

pub mod boot;
pub mod bus;
pub mod chardev;
pub mod config;
pub mod cpuid;
pub mod debugcon;
pub mod dirty;
mod error;
pub mod fw_cfg;
pub mod ioapic;
pub mod kvm;
pub mod kvmclock;
pub mod lapic;
pub mod memory;
pub mod serial;
pub mod state;
pub mod timer;
pub mod tpr_opt;
pub mod vcpu;
pub mod vm;

use std::sync::{Mutex, MutexGuard, PoisonError};

pub use config::{CharBackend, Debugcon, DirtyTracking, Image, MemoryBackend, VmConfig};
pub use error::Error;
pub use vm::{GuestEvents, Vm};

/// Locks. A thread that panicked with the lock held left whole values behind: nothing here is changed in two steps.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
