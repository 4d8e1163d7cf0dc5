//! KVM's memory slots: guest memory as KVM maps it, and the dirty log over them.

use std::os::fd::{AsRawFd, BorrowedFd};

use kvm_bindings::{KVM_MEM_READONLY, kvm_userspace_memory_region};
use kvm_ioctls::VmFd;
use vm_memory::GuestMemoryRegion;
use whimbrel::dirty::kvm::{KvmDirtyLog, KvmSlot};

use crate::error::Error;
use crate::memory::GuestRam;

/// The slots of one VM.
pub(crate) struct MemorySlots {
    slots: Vec<KvmSlot>,
    manual_protect: bool,
}

impl MemorySlots {
    /// Maps `ram`, which must live as long as the VM.
    ///
    /// # Errors
    /// If KVM refuses a slot.
    pub(crate) fn map(vm: &VmFd, ram: &GuestRam) -> Result<Self, Error> {
        let manual_protect = KvmDirtyLog::enable_manual_protect(borrow(vm));
        let mut slots = Vec::new();
        for (number, mapping) in (0..).zip(ram.mappings()) {
            let block = &ram.blocks()[mapping.block];
            let piece = block.pieces().iter().rev().find(|piece| piece.offset <= mapping.offset);
            let piece = piece.expect("a block begins with a piece at offset 0");
            let inside = mapping.offset - piece.offset;
            assert!(inside + mapping.len <= piece.region.len(), "a mapping stays within one region");
            let slot = KvmSlot {
                slot: number,
                block: mapping.block,
                offset: mapping.offset,
                len: mapping.len,
                gpa: mapping.gpa,
                userspace_addr: piece.region.as_ptr() as u64 + inside,
                flags: if mapping.read_only { KVM_MEM_READONLY } else { 0 },
            };
            let region = kvm_userspace_memory_region {
                slot: slot.slot,
                flags: slot.flags,
                guest_phys_addr: slot.gpa,
                memory_size: slot.len,
                userspace_addr: slot.userspace_addr,
            };
            // SAFETY: the range lies in a region of `ram` (asserted above), which outlives the VM: both belong to one machine.
            unsafe { vm.set_user_memory_region(region) }.map_err(Error::kvm("KVM_SET_USER_MEMORY_REGION"))?;
            // What the guest cannot write, only the host does: the region's own bitmap sees that.
            if !mapping.read_only {
                slots.push(slot);
            }
        }
        Ok(Self { slots, manual_protect })
    }

    /// The dirty log of this VM.
    ///
    /// # Errors
    /// If file descriptors run out.
    pub(crate) fn dirty_log(&self, vm: &VmFd, ram: &GuestRam) -> std::io::Result<KvmDirtyLog> {
        KvmDirtyLog::new(borrow(vm), self.slots.clone(), ram.blocks(), self.manual_protect)
    }
}

fn borrow(vm: &VmFd) -> BorrowedFd<'_> {
    // SAFETY: the descriptor is the VM's and stays open as long as it, which the result borrows.
    unsafe { BorrowedFd::borrow_raw(vm.as_raw_fd()) }
}
