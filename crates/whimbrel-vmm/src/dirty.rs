//! Which of KVM's dirty logs this VM has: chosen before its slots and vCPUs are made, used when it moves away.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::Arc;

use kvm_ioctls::{VcpuFd, VmFd};
use whimbrel::dirty::DirtySource;
use whimbrel::dirty::kvm::ring::KvmDirtyRings;
use whimbrel::dirty::kvm::{KvmDirtyLog, KvmSlot};
use whimbrel::memory::RamBlock;

use crate::config::DirtyTracking;
use crate::error::Error;

/// The dirty log of a VM. Clones are the same one.
#[derive(Clone)]
pub struct DirtyLog(Kind);

#[derive(Clone)]
enum Kind {
    Bitmap { manual_protect: bool },
    Ring(Arc<KvmDirtyRings>),
}

impl DirtyLog {
    /// Prepares what is `wanted`, in a VM that has neither a slot nor a vCPU yet.
    ///
    /// # Errors
    /// If this host's KVM has no such log.
    pub fn new(vm: &VmFd, wanted: DirtyTracking) -> Result<Self, Error> {
        Ok(Self(match wanted {
            DirtyTracking::Bitmap => {
                Kind::Bitmap { manual_protect: KvmDirtyLog::enable_manual_protect(borrow(vm)) }
            }
            DirtyTracking::Ring { entries } => {
                let rings = KvmDirtyRings::enable(borrow(vm), entries);
                Kind::Ring(Arc::new(rings.map_err(|error| Error::Config(format!("dirty ring: {error}")))?))
            }
        }))
    }

    /// Takes a new vCPU in.
    ///
    /// # Errors
    /// If its ring cannot be mapped.
    pub fn add_vcpu(&self, vcpu: &VcpuFd) -> Result<(), Error> {
        match &self.0 {
            Kind::Bitmap { .. } => Ok(()),
            Kind::Ring(rings) => rings
                .add_vcpu(borrow(vcpu))
                .map_err(|source| Error::Kvm { what: "a vCPU's dirty ring", source }),
        }
    }

    /// A vCPU left the guest because its ring is full: makes room in it.
    ///
    /// # Errors
    /// If KVM does not: the vCPU cannot go on.
    pub fn ring_full(&self) -> io::Result<()> {
        match &self.0 {
            Kind::Bitmap { .. } => Err(io::Error::other("a dirty ring is full that nobody asked for")),
            Kind::Ring(rings) => rings.collect(),
        }
    }

    /// The log over `slots`, not started.
    ///
    /// # Errors
    /// If file descriptors run out.
    pub fn source(
        &self,
        vm: &VmFd,
        slots: Vec<KvmSlot>,
        blocks: &[RamBlock],
    ) -> io::Result<Box<dyn DirtySource>> {
        Ok(match &self.0 {
            Kind::Bitmap { manual_protect } => {
                Box::new(KvmDirtyLog::new(borrow(vm), slots, blocks, *manual_protect)?)
            }
            Kind::Ring(rings) => Box::new(rings.log(slots, blocks)),
        })
    }
}

fn borrow(fd: &impl AsRawFd) -> BorrowedFd<'_> {
    // SAFETY: KVM's wrappers own their descriptor, which so stays open as long as they, which the result borrows.
    unsafe { BorrowedFd::borrow_raw(fd.as_raw_fd()) }
}
