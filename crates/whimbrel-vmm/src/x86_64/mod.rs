//! What the code for all architectures asks of x86-64.

use std::arch::x86_64::_rdtsc;

use kvm_ioctls::VcpuFd;
use whimbrel_vmstate::Level;

/// QEMU's name of the machine type: peers of every level have the same.
pub fn machine_name(_: Level) -> String {
    "microvm".into()
}

/// Where RAM begins in guest-physical memory.
pub const RAM_START: u64 = 0;

/// Bits of a page's offset, which the streams of machines with several page sizes tell; x86-64 has one.
pub const TARGET_PAGE_BITS: Option<u32> = None;

/// The host's TSC.
pub(crate) fn ticks() -> u64 {
    // SAFETY: every x86-64 CPU has the instruction.
    unsafe { _rdtsc() }
}

/// Where a vCPU stands, if KVM tells.
pub(crate) fn program_counter(fd: &VcpuFd) -> Option<u64> {
    fd.get_regs().ok().map(|regs| regs.rip)
}
