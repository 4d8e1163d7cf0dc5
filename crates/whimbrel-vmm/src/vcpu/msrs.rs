//! Which model-specific registers a vCPU's state is made of.

use kvm_ioctls::VcpuFd;

use super::kvm_state::readable_msrs;

/// Not in KVM's list, yet part of the state: machine-check banks, fixed and variable MTRRs.
const EXTRA: [std::ops::RangeInclusive<u32>; 6] =
    [0x200..=0x20f, 0x250..=0x250, 0x258..=0x259, 0x268..=0x26f, 0x2ff..=0x2ff, 0x400..=0x427];

/// Not state: KVM's clock by its older names, which stand for the same registers.
const ALIASES: [u32; 2] = [0x11, 0x12];

/// Every MSR of this vCPU that is state, from KVM's list.
pub fn readable(fd: &VcpuFd, known: &[u32]) -> Vec<u32> {
    let extra = EXTRA.into_iter().flatten();
    let known = known.iter().copied().filter(|index| !ALIASES.contains(index));
    readable_msrs(fd, known.chain(extra))
}
