//! KVM's paravirtual clock: read when the machine stops, saved, and set again before it starts, here or there.
//!
//! | the guest was stopped | what is saved | because |
//! |---|---|---|
//! | for a switchover | the clock at the moment of saving | it is when the TSCs are read: a guest that compares the two finds them in step, and loses only the time from there to its start |
//! | by an operator (`paused`) | the clock at the stop | the time of a stop is none of the guest's |
//!
//! QEMU does the same, so the guest's time is continuous in the same way whoever is at the other end. The guest is told
//! that it was stopped (KVM_KVMCLOCK_CTRL), or its watchdogs would take the gap for a hang.

use std::sync::{Arc, Mutex};

use kvm_bindings::{KVM_CLOCK_TSC_STABLE, kvm_clock_data};
use whimbrel::downcast;
use whimbrel::handlers::{Device, StateChange};
use whimbrel::machine::MachineError;
use whimbrel_vmstate::VmState;

use crate::events::GuestEvents;
use crate::kvm::KvmVm;
use crate::lock;
use crate::state;
use crate::timer::VirtualClock;
use crate::vcpu::{CpuUnit, Vcpu};

/// The device.
pub struct KvmClockDevice {
    kvm: Arc<KvmVm>,
    vcpus: Vec<Arc<CpuUnit>>,
    events: Arc<dyn GuestEvents>,
    clock: Arc<VirtualClock>,
    frozen: Mutex<Option<Reading>>,
}

#[derive(Debug, Clone, Copy)]
struct Reading {
    ns: u64,
    reliable: bool,
    /// Goes on until it is saved.
    goes_on: bool,
}

impl KvmClockDevice {
    /// Of this VM with these vCPUs and this virtual clock. `events` knows whether a stop is an operator's.
    pub fn new(
        kvm: Arc<KvmVm>,
        vcpus: Vec<Arc<CpuUnit>>,
        clock: Arc<VirtualClock>,
        events: Arc<dyn GuestEvents>,
    ) -> Self {
        Self { kvm, vcpus, clock, events, frozen: Mutex::default() }
    }

    fn read(&self) -> Result<Reading, MachineError> {
        let clock = self.kvm.vm.get_clock().map_err(|error| format!("kvmclock: KVM_GET_CLOCK: {error}"))?;
        let reliable = clock.flags & KVM_CLOCK_TSC_STABLE != 0;
        Ok(Reading { ns: clock.clock, reliable, goes_on: !self.events.is_paused() })
    }

    /// Puts the frozen clock into KVM. It goes on at once, which no vCPU sees before it runs; so it is set again then.
    ///
    /// # Errors
    /// If KVM refuses it.
    pub fn apply(&self) -> Result<(), MachineError> {
        let Some(reading) = *lock(&self.frozen) else { return Ok(()) };
        let clock = kvm_clock_data { clock: reading.ns, ..Default::default() };
        self.kvm.vm.set_clock(&clock).map_err(|error| format!("kvmclock: KVM_SET_CLOCK: {error}").into())
    }
}

impl StateChange for KvmClockDevice {
    fn changed(&self, running: bool) -> Result<(), MachineError> {
        if !running {
            let reading = self.read()?;
            *lock(&self.frozen) = Some(reading);
            return Ok(());
        }
        self.apply()?;
        *lock(&self.frozen) = None;
        // So that the guest's watchdogs know that it was stopped, if it has a clock page at all.
        self.vcpus.iter().try_for_each(|unit| tell_paused(unit.vcpu()))
    }
}

impl Device for KvmClockDevice {
    fn save(&self) -> Result<Box<dyn VmState>, MachineError> {
        let mut frozen = lock(&self.frozen);
        let reading = match *frozen {
            Some(reading) if !reading.goes_on => reading,
            // Kept: should the guest start here again, it goes on from what it would have had there.
            Some(_) => *frozen.insert(Reading { goes_on: true, ..self.read()? }),
            None => self.read()?,
        };
        Ok(Box::new(state::KvmClock { clock: reading.ns, is_reliable: Some(reading.reliable) }))
    }

    fn blank(&self) -> Box<dyn VmState> {
        Box::new(state::KvmClock::default())
    }

    fn load(&self, state: Box<dyn VmState>) -> Result<(), MachineError> {
        let clock = downcast::<state::KvmClock>(state)?;
        let reliable = clock.is_reliable.unwrap_or(false);
        *lock(&self.frozen) = Some(Reading { ns: clock.clock, reliable, goes_on: false });
        Ok(())
    }

    /// A guest of QEMU's emulator never had this clock. It begins with the virtual clock: what KVM's counts too is how long the
    /// guest has run.
    fn absent(&self) -> Result<(), MachineError> {
        let ns = u64::try_from(self.clock.now()).unwrap_or(0);
        *lock(&self.frozen) = Some(Reading { ns, reliable: false, goes_on: false });
        Ok(())
    }
}

/// Tells the guest's clock page, if there is one, that the machine was stopped.
fn tell_paused(vcpu: &Vcpu) -> Result<(), MachineError> {
    match vcpu.fd().kvmclock_ctrl() {
        // The guest has no clock page.
        Err(error) if error.errno() == libc::EINVAL => Ok(()),
        told => told.map_err(|error| format!("vCPU {}: KVM_KVMCLOCK_CTRL: {error}", vcpu.index()).into()),
    }
}
