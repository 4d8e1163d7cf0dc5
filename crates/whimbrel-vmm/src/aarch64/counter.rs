//! The guest's counters: they stand while the machine is stopped and go on from there, here or on the destination.
//!
//! KVM's own go on while no vCPU runs. So they are read when the machine has stopped and set again before it starts. All
//! vCPUs share one offset, so one vCPU speaks for all. The virtual counter is what guests keep time by. Of the physical one KVM lists
//! nothing before Linux 6.4: there it is the host's and jumps, and its timer (CNTP_CTL, CNTP_CVAL) does not move with the guest.

use std::sync::{Arc, Mutex};

use whimbrel::handlers::StateChange;
use whimbrel::machine::MachineError;

use super::vcpu::{self, CpuUnit, PHYSICAL_CNT, TIMER_CNT};
use crate::lock;

/// Readings of the counters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Counts {
    pub(super) virt: u64,
    pub(super) physical: Option<u64>,
}

/// The counters of a machine.
pub(super) struct Counter {
    first: Arc<CpuUnit>,
    frozen: Mutex<Option<Counts>>,
}

impl Counter {
    /// `first`: the vCPU that speaks for all.
    pub(super) fn new(first: Arc<CpuUnit>) -> Self {
        Self { first, frozen: Mutex::default() }
    }

    /// What they stand at, while the machine is stopped.
    pub(super) fn frozen(&self) -> Option<Counts> {
        *lock(&self.frozen)
    }

    /// They are to go on from here.
    pub(super) fn hold(&self, counts: Counts) {
        *lock(&self.frozen) = Some(counts);
    }

    /// They go on from wherever KVM has them: the machine was reset.
    pub(super) fn forget(&self) {
        *lock(&self.frozen) = None;
    }
}

impl StateChange for Counter {
    fn changed(&self, running: bool) -> Result<(), MachineError> {
        let fd = self.first.vcpu().fd();
        let settable = self.first.has(PHYSICAL_CNT);
        if !running {
            let virt = vcpu::read(&fd, TIMER_CNT)?;
            let physical = settable.then(|| vcpu::read(&fd, PHYSICAL_CNT)).transpose()?;
            self.hold(Counts { virt, physical });
            return Ok(());
        }
        let Some(counts) = self.frozen() else { return Ok(()) };
        vcpu::write(&fd, TIMER_CNT, counts.virt)?;
        if let Some(physical) = counts.physical.filter(|_| settable) {
            vcpu::write(&fd, PHYSICAL_CNT, physical)?;
        }
        self.forget();
        Ok(())
    }
}
