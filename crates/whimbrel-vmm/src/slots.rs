//! KVM's memory slots: guest memory as KVM maps it, and the dirty log over them and the vCPUs that write to them.

use std::io;

use kvm_bindings::{KVM_MEM_READONLY, kvm_userspace_memory_region};
use kvm_ioctls::{VcpuFd, VmFd};
use vm_memory::GuestMemoryRegion;
use whimbrel::dirty::DirtySource;
use whimbrel::dirty::kvm::KvmSlot;

use crate::config::DirtyTracking;
use crate::dirty::DirtyLog;
use crate::error::Error;
use crate::memory::GuestRam;

/// The slots of one VM.
pub(crate) struct MemorySlots {
    slots: Vec<KvmSlot>,
    dirty: DirtyLog,
}

impl MemorySlots {
    /// Maps `ram`, which must live as long as the VM, in a VM that has no vCPU yet; writes to it are tracked as `wanted`.
    ///
    /// # Errors
    /// If KVM refuses a slot, or has no such log.
    pub(crate) fn map(vm: &VmFd, ram: &GuestRam, wanted: DirtyTracking) -> Result<Self, Error> {
        let dirty = DirtyLog::new(vm, wanted)?;
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
        Ok(Self { slots, dirty })
    }

    /// Makes vCPU `index`, whose writes the log sees.
    ///
    /// # Errors
    /// If KVM refuses it.
    pub(crate) fn create_vcpu(&self, vm: &VmFd, index: u32) -> Result<VcpuFd, Error> {
        let fd = vm.create_vcpu(index.into()).map_err(Error::kvm("KVM_CREATE_VCPU"))?;
        self.dirty.add_vcpu(&fd)?;
        Ok(fd)
    }

    /// The dirty log, for vCPUs whose ring is full.
    pub(crate) fn dirty_log(&self) -> &DirtyLog {
        &self.dirty
    }

    /// A source of dirty pages for a migration.
    ///
    /// # Errors
    /// If file descriptors run out.
    pub(crate) fn dirty_source(&self, vm: &VmFd, ram: &GuestRam) -> io::Result<Box<dyn DirtySource>> {
        self.dirty.source(vm, self.slots.clone(), ram.blocks())
    }
}
