//! The kernel's ABI (linux/kvm.h), the part that dirty tracking speaks; the engine knows no other KVM.

use vmm_sys_util::{ioctl_io_nr, ioctl_iow_nr, ioctl_iowr_nr};

pub(super) const CAP_MANUAL_DIRTY_LOG_PROTECT2: u32 = 168;
pub(super) const MANUAL_PROTECT_ENABLE: u64 = 1;
/// The dirty ring; its value is how many bytes a ring may have, its argument how many it is to have.
pub(super) const CAP_DIRTY_LOG_RING: u32 = 192;
/// The same, with acquire and release on `flags`: on architectures that order memory weakly it is the only one.
pub(super) const CAP_DIRTY_LOG_RING_ACQ_REL: u32 = 223;
/// Beside the ring a bitmap of what is written while no vCPU runs.
pub(super) const CAP_DIRTY_LOG_RING_WITH_BITMAP: u32 = 225;
/// Where a vCPU's descriptor maps its ring, in pages; on x86-64 and on aarch64.
pub(super) const DIRTY_LOG_PAGE_OFFSET: u64 = 64;
/// In an entry's flags: KVM has filled it.
pub(super) const DIRTY_GFN_F_DIRTY: u32 = 1;
/// User space has read it.
pub(super) const DIRTY_GFN_F_RESET: u32 = 2;
pub(super) const MEM_LOG_DIRTY_PAGES: u32 = 1;
pub(super) const KVMIO: u32 = 0xAE;

#[repr(C)]
pub(super) struct UserspaceMemoryRegion {
    pub(super) slot: u32,
    pub(super) flags: u32,
    pub(super) guest_phys_addr: u64,
    pub(super) memory_size: u64,
    pub(super) userspace_addr: u64,
}

#[repr(C)]
pub(super) struct DirtyLog {
    pub(super) slot: u32,
    pub(super) padding: u32,
    pub(super) bitmap: u64,
}

#[repr(C)]
pub(super) struct ClearDirtyLog {
    pub(super) slot: u32,
    pub(super) num_pages: u32,
    pub(super) first_page: u64,
    pub(super) bitmap: u64,
}

#[repr(C)]
#[derive(Default)]
pub(super) struct EnableCap {
    pub(super) cap: u32,
    pub(super) flags: u32,
    pub(super) args: [u64; 4],
    pub(super) pad: [u64; 8],
}

ioctl_io_nr!(KVM_CHECK_EXTENSION, KVMIO, 0x03);
ioctl_io_nr!(KVM_RESET_DIRTY_RINGS, KVMIO, 0xc7);
ioctl_iow_nr!(KVM_SET_USER_MEMORY_REGION, KVMIO, 0x46, UserspaceMemoryRegion);
ioctl_iow_nr!(KVM_GET_DIRTY_LOG, KVMIO, 0x42, DirtyLog);
ioctl_iowr_nr!(KVM_CLEAR_DIRTY_LOG, KVMIO, 0xc0, ClearDirtyLog);
ioctl_iow_nr!(KVM_ENABLE_CAP, KVMIO, 0xa3, EnableCap);
