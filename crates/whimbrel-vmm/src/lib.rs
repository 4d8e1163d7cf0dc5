//! A small machine on KVM: QEMU's `microvm` on x86-64, its `virt` on aarch64, with memory map, block names and section layout.
//!
//! It exists to prove the engine on real guests, and to be read by those who bring the engine to a machine of their own. It knows
//! nothing of migration but what [`Machine`](whimbrel::machine::Machine) and [`Device`](whimbrel::handlers::Device) ask of it.
//!
//! | module | holds |
//! |---|---|
//! | [`config`] | what to build |
//! | [`memory`] | guest RAM: blocks, regions, the map with its hole below 4 GiB |
//! | [`kvm`] | the VM file descriptor: capabilities, interrupt controllers, memory slots |
//! | [`vcpu`] | vCPU threads, the gate that stops them, and all of a vCPU's state |
//! | [`boot`] | PVH: image, command line, start info |
//! | [`bus`] | port and MMIO exits to devices |
//! | `serial`, `debugcon`, `fw_cfg`, `ioapic`, `kvmclock`, … | one folder a device |
//! | [`state`] | saved-state types: frozen, in QEMU's layout, without KVM |
//! | [`vm`] | all of it together, as a `Machine` |

#[cfg(target_arch = "aarch64")]
pub mod aarch64;
#[cfg(target_arch = "x86_64")]
pub mod boot;
pub mod bus;
pub mod chardev;
pub mod config;
#[cfg(target_arch = "x86_64")]
pub mod cpuid;
pub mod debugcon;
mod error;
mod events;
#[cfg(target_arch = "x86_64")]
pub mod fw_cfg;
#[cfg(target_arch = "x86_64")]
pub mod ioapic;
#[cfg(target_arch = "x86_64")]
pub mod kvm;
#[cfg(target_arch = "x86_64")]
pub mod kvmclock;
#[cfg(target_arch = "x86_64")]
pub mod lapic;
pub mod memory;
#[cfg(target_arch = "x86_64")]
pub mod serial;
mod slots;
pub mod state;
pub mod timer;
#[cfg(target_arch = "x86_64")]
pub mod tpr_opt;
pub mod vcpu;
#[cfg(target_arch = "x86_64")]
pub mod vm;
#[cfg(target_arch = "x86_64")]
mod x86_64;

#[cfg(target_arch = "aarch64")]
use aarch64 as arch;
#[cfg(target_arch = "x86_64")]
use x86_64 as arch;

use std::sync::{Mutex, MutexGuard, PoisonError};

pub use arch::{RAM_START, TARGET_PAGE_BITS, machine_name};
pub use config::{CharBackend, Debugcon, Image, MemoryBackend, VmConfig};
pub use error::Error;
pub use events::GuestEvents;

#[cfg(target_arch = "aarch64")]
pub use aarch64::Vm;
#[cfg(target_arch = "x86_64")]
pub use vm::Vm;

/// Locks. A thread that panicked with the lock held left whole values behind: nothing here is changed in two steps.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
