//! A small machine on KVM: QEMU's `microvm` on x86-64, with its memory map, block names and section layout.
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
//! | [`dirty`] | which of KVM's dirty logs the VM has |
//! | [`vcpu`] | vCPU threads, the gate that stops them, and all of a vCPU's state |
//! | [`boot`] | a kernel without firmware, by PVH or as bzImage: images, command line, ACPI tables |
//! | [`bus`] | port and MMIO exits to devices |
//! | `serial`, `i8259`, `i8254`, `ioapic`, `acpi_ged`, `rtc`, `fw_cfg`, … | one folder a device |
//! | [`devices`] | the devices of one machine, wired |
//! | [`state`] | saved-state types: frozen, in QEMU's layout, without KVM |
//! | [`vm`] | all of it together, as a `Machine` |

pub mod acpi_ged;
pub mod boot;
pub mod bus;
pub mod chardev;
pub mod config;
pub mod cpuid;
pub mod debugcon;
pub mod devices;
pub mod dirty;
mod error;
pub mod fw_cfg;
pub mod i8254;
pub mod i8259;
pub mod ioapic;
pub mod kvm;
pub mod kvmclock;
pub mod lapic;
pub mod map;
pub mod memory;
pub mod roms;
pub mod rtc;
pub mod serial;
pub mod state;
pub mod timer;
pub mod tpr_opt;
pub mod vcpu;
pub mod vm;

use std::sync::{Mutex, MutexGuard, PoisonError};

pub use config::{CharBackend, Debugcon, DirtyTracking, Image, MachineOptions, MemoryBackend, VmConfig};
pub use error::Error;
pub use vm::{GuestEvents, Vm};

/// Locks. A thread that panicked with the lock held left whole values behind: nothing here is changed in two steps.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
