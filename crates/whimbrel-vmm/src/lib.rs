//! A small machine on KVM: QEMU's `microvm` on x86-64, its `virt` on aarch64, with memory map, block names and section layout.
//!
//! It exists to prove the engine on real guests, and to be read by those who bring the engine to a machine of their own. It knows
//! nothing of migration but what [`Machine`](whimbrel::machine::Machine) and [`Device`](whimbrel::handlers::Device) ask of it.
//!
//! | module | holds |
//! |---|---|
//! | [`config`] | what to build |
//! | [`map`] | addresses and interrupt lines of the devices |
//! | [`memory`] | guest RAM: blocks, regions, the map with its hole below 4 GiB |
//! | [`roms`] | ROM blocks: files of the firmware interface, which move with the guest |
//! | [`kvm`] | the VM file descriptor: capabilities, interrupt controllers, memory slots |
//! | [`cpuid`] | CPU models: what CPU a guest sees |
//! | [`dirty`] | which of KVM's dirty logs the VM has |
//! | [`vcpu`] | vCPU threads, the gate that stops them, and all of a vCPU's state |
//! | [`boot`] | a kernel without firmware, by PVH or as bzImage: images, command line, ACPI tables |
//! | [`bus`] | port and MMIO exits to devices |
//! | `uart` | what serial ports have in common, whichever chip |
//! | `serial`, `i8259`, `i8254`, `ioapic`, `acpi_ged`, `rtc`, `fw_cfg`, … | one folder a device |
//! | [`devices`] | the devices of one machine, wired |
//! | [`state`] | saved-state types: frozen, in QEMU's layout, without KVM |
//! | [`vm`], `access` | all of it together, as a `Machine`; what is reached beside that |
//!
//! Of these `bus`, `chardev`, `config`, `debugcon`, `memory`, `state`, `timer`, `uart` and the threads of `vcpu` serve both architectures; what is
//! aarch64's alone is in `aarch64`, the rest is x86-64's.

#[cfg(target_arch = "aarch64")]
pub mod aarch64;
mod access;
#[cfg(target_arch = "x86_64")]
pub mod acpi_ged;
#[cfg(target_arch = "x86_64")]
pub mod boot;
pub mod bus;
pub mod chardev;
pub mod config;
#[cfg(target_arch = "x86_64")]
pub mod cpuid;
pub mod debugcon;
#[cfg(target_arch = "x86_64")]
pub mod devices;
pub mod dirty;
mod error;
mod events;
#[cfg(target_arch = "x86_64")]
pub mod fw_cfg;
#[cfg(target_arch = "x86_64")]
pub mod i8254;
#[cfg(target_arch = "x86_64")]
pub mod i8259;
#[cfg(target_arch = "x86_64")]
pub mod ioapic;
#[cfg(target_arch = "x86_64")]
pub mod kvm;
#[cfg(target_arch = "x86_64")]
pub mod kvmclock;
#[cfg(target_arch = "x86_64")]
pub mod lapic;
#[cfg(target_arch = "x86_64")]
pub mod map;
pub mod memory;
#[cfg(target_arch = "x86_64")]
pub mod roms;
#[cfg(target_arch = "x86_64")]
pub mod rtc;
#[cfg(target_arch = "x86_64")]
pub mod serial;
mod slots;
pub mod state;
pub mod timer;
#[cfg(target_arch = "x86_64")]
pub mod tpr_opt;
mod uart;
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
pub use config::{CharBackend, Debugcon, DirtyTracking, Image, MachineOptions, MemoryBackend, VmConfig};
#[cfg(target_arch = "x86_64")]
pub use cpuid::CpuModel;
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
