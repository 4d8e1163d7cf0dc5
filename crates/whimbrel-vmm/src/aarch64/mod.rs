//! QEMU's `virt` on KVM: GICv3 with ITS, PL011, PSCI, a flattened device tree.
//!
//! | module | holds |
//! |---|---|
//! | [`map`] | QEMU's addresses and interrupt numbers |
//! | `memory`, `kvm` | RAM from 1 GiB on; the VM's file descriptor |
//! | `attributes` | registers and commands of an in-kernel device |
//! | `vcpu` | a vCPU's registers, all that KVM lists; its two sections |
//! | `counter` | the virtual counter: continuous for the guest over a stop and a move |
//! | `gicv3`, `its` | interrupt controllers: their sections, and the tables KVM writes to RAM when the machine stops |
//! | `pl011` | the serial port |
//! | `msi` | a test's device that sends MSIs |
//! | `console` | the debug console as a register |
//! | `boot`, `fdt` | arm64 `Image`, initrd, device tree |
//! | `vm` | all of it together, as a `Machine` |
//!
//! The debug console, the device of all architectures, is memory-mapped here, and like `msi` no device of QEMU's.
//!
//! What it is not: flash, firmware, RTC, GPIO and PCI. A stream of QEMU's own `virt`, which has them, is not taken.

mod attributes;
mod boot;
mod console;
mod counter;
mod fdt;
mod gicv3;
mod its;
mod kvm;
pub mod map;
mod memory;
mod msi;
mod pl011;
mod vcpu;
mod vm;

use kvm_ioctls::VcpuFd;
use whimbrel_vmstate::Level;

pub use vm::Vm;

/// QEMU's name of the machine type that peers of a level have.
pub fn machine_name(level: Level) -> String {
    format!("virt-{level}")
}

/// Where RAM begins in guest-physical memory.
pub const RAM_START: u64 = map::RAM;

/// Bits of a page's offset, which the streams of machines with several page sizes tell.
pub const TARGET_PAGE_BITS: Option<u32> = Some(12);

/// The host's virtual counter.
pub(crate) fn ticks() -> u64 {
    let count: u64;
    // SAFETY: reads a register that Linux lets user space read; no memory is touched.
    unsafe { std::arch::asm!("mrs {}, cntvct_el0", out(reg) count, options(nomem, nostack)) };
    count
}

/// Where a vCPU stands, if KVM tells.
pub(crate) fn program_counter(fd: &VcpuFd) -> Option<u64> {
    vcpu::read(fd, vcpu::PC).ok()
}
