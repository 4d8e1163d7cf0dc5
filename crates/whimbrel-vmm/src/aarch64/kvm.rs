//! The VM's file descriptor.

use std::io;

use kvm_ioctls::{Cap, Kvm, VcpuFd, VmFd};
use whimbrel::dirty::DirtySource;

use crate::config::DirtyTracking;
use crate::dirty::DirtyLog;
use crate::error::Error;
use crate::memory::GuestRam;
use crate::slots::MemorySlots;

/// Bits of `KVM_IRQ_LINE`'s number that say: a shared peripheral interrupt.
const IRQ_TYPE_SPI: u32 = 1 << 24;

/// A VM without vCPUs.
pub(super) struct KvmVm {
    pub(super) vm: VmFd,
    slots: MemorySlots,
}

impl KvmVm {
    /// Creates the VM and maps `ram`, writes to which are to be tracked as `dirty` says.
    ///
    /// # Errors
    /// If KVM is not there or lacks something this machine stands on.
    pub(super) fn new(ram: &GuestRam, dirty: DirtyTracking) -> Result<Self, Error> {
        let kvm = Kvm::new().map_err(|error| Error::NoKvm(error.into()))?;
        let vm = kvm.create_vm().map_err(Error::kvm("KVM_CREATE_VM"))?;
        let needed = [
            (Cap::ArmPsci02, "PSCI"),
            (Cap::OneReg, "access to registers by number"),
            (Cap::DeviceCtrl, "in-kernel devices"),
            (Cap::ImmediateExit, "immediate exit"),
            (Cap::VcpuEvents, "vCPU events"),
        ];
        for (cap, what) in needed {
            if !vm.check_extension(cap) {
                return Err(Error::Config(format!("this host's KVM has no {what}")));
            }
        }
        let slots = MemorySlots::map(&vm, ram, dirty)?;
        Ok(Self { vm, slots })
    }

    /// Makes vCPU `index`.
    ///
    /// # Errors
    /// If KVM refuses it.
    pub(super) fn create_vcpu(&self, index: u32) -> Result<VcpuFd, Error> {
        self.slots.create_vcpu(&self.vm, index)
    }

    /// The dirty log, for vCPUs whose ring is full.
    pub(super) fn dirty_log(&self) -> &DirtyLog {
        self.slots.dirty_log()
    }

    /// A source of dirty pages for a migration.
    ///
    /// # Errors
    /// If file descriptors run out.
    pub(super) fn dirty_source(&self, ram: &GuestRam) -> io::Result<Box<dyn DirtySource>> {
        self.slots.dirty_source(&self.vm, ram)
    }

    /// Drives the input line of interrupt `intid`, a shared one.
    pub(super) fn set_line(&self, intid: u32, level: bool) {
        if let Err(error) = self.vm.set_irq_line(IRQ_TYPE_SPI | intid, level) {
            tracing::error!(%error, intid, "KVM_IRQ_LINE");
        }
    }
}
