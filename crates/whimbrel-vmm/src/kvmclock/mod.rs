//! KVM's paravirtual clock: frozen when the machine stops, saved, and set again before it starts, here or there. So it does not
//! count a pause; the guest is told of it (KVM_KVMCLOCK_CTRL), or its watchdogs would take the gap for a hang.

use std::sync::{Arc, Mutex};

use kvm_bindings::{KVM_CLOCK_TSC_STABLE, kvm_clock_data};
use whimbrel::downcast;
use whimbrel::handlers::{Device, StateChange};
use whimbrel::machine::MachineError;
use whimbrel_vmstate::VmState;

use crate::kvm::KvmVm;
use crate::lock;
use crate::state;
use crate::timer::VirtualClock;
use crate::vcpu::CpuUnit;

/// The device.
pub struct KvmClockDevice {
    kvm: Arc<KvmVm>,
    vcpus: Vec<Arc<CpuUnit>>,
    clock: Arc<VirtualClock>,
    frozen: Mutex<Option<Reading>>,
}

#[derive(Debug, Clone, Copy)]
struct Reading {
    ns: u64,
    reliable: bool,
}

impl KvmClockDevice {
    /// Of this VM with these vCPUs and this virtual clock.
    pub fn new(kvm: Arc<KvmVm>, vcpus: Vec<Arc<CpuUnit>>, clock: Arc<VirtualClock>) -> Self {
        Self { kvm, vcpus, clock, frozen: Mutex::default() }
    }

    fn read(&self) -> Result<Reading, MachineError> {
        let clock = self.kvm.vm.get_clock().map_err(|error| format!("kvmclock: KVM_GET_CLOCK: {error}"))?;
        Ok(Reading { ns: clock.clock, reliable: clock.flags & KVM_CLOCK_TSC_STABLE != 0 })
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
        self.vcpus.iter().try_for_each(|vcpu| vcpu.vcpu().tell_paused())
    }
}

impl Device for KvmClockDevice {
    fn save(&self) -> Result<Box<dyn VmState>, MachineError> {
        let frozen = *lock(&self.frozen);
        let reading = match frozen {
            Some(reading) => reading,
            None => self.read()?,
        };
        Ok(Box::new(state::KvmClock { clock: reading.ns, is_reliable: Some(reading.reliable) }))
    }

    fn blank(&self) -> Box<dyn VmState> {
        Box::new(state::KvmClock::default())
    }

    fn load(&self, state: Box<dyn VmState>) -> Result<(), MachineError> {
        let clock = downcast::<state::KvmClock>(state)?;
        *lock(&self.frozen) = Some(Reading { ns: clock.clock, reliable: clock.is_reliable.unwrap_or(false) });
        Ok(())
    }

    /// A guest of QEMU's emulator never had this clock. It begins with the virtual clock: what KVM's counts too is how long the
    /// guest has run.
    fn absent(&self) -> Result<(), MachineError> {
        let ns = u64::try_from(self.clock.now()).unwrap_or(0);
        *lock(&self.frozen) = Some(Reading { ns, reliable: false });
        Ok(())
    }
}
