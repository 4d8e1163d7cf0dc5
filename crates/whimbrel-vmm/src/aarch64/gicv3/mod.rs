//! The GICv3, which is KVM's: its section, its reset, and the pending tables it writes to guest RAM when the machine stops.

mod pending;
mod registers;
mod section;

use std::sync::{Arc, Mutex};

use kvm_bindings::{
    KVM_DEV_ARM_VGIC_CTRL_INIT, KVM_DEV_ARM_VGIC_GRP_ADDR, KVM_DEV_ARM_VGIC_GRP_CTRL,
    KVM_DEV_ARM_VGIC_GRP_NR_IRQS, KVM_DEV_ARM_VGIC_SAVE_PENDING_TABLES, KVM_VGIC_V3_ADDR_TYPE_DIST,
    KVM_VGIC_V3_ADDR_TYPE_REDIST, kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_V3 as VGIC_V3,
};
use whimbrel::downcast;
use whimbrel::faults::{Fault, Faults};
use whimbrel::handlers::{Device, Digest, RamTables, StateChange};
use whimbrel::machine::MachineError;
use whimbrel_vmstate::VmState;

use super::attributes::KvmDevice;
use super::kvm::KvmVm;
use super::map;
use super::vcpu::CpuUnit;
use crate::error::Error;
use crate::lock;
use crate::memory::GuestRam;
use crate::state;
use pending::{Bits, Redistributor, Written};

/// The interrupt controller of a machine.
pub(in crate::aarch64) struct GicV3 {
    device: KvmDevice,
    /// Affinities of the vCPUs, in their order.
    cpus: Vec<u64>,
    ram: Arc<GuestRam>,
    faults: Faults,
    power_on: state::GicV3,
    loaded: Mutex<Option<state::GicV3>>,
    /// What the pending tables said when they arrived: KVM clears in them what it takes.
    arrived: Mutex<Option<Digest>>,
    /// What saves have set in the pending tables, until it is cleared.
    written: Mutex<Written>,
}

impl GicV3 {
    /// Makes it, for all vCPUs of the machine, which must exist.
    ///
    /// # Errors
    /// If this host's KVM has none.
    pub(super) fn new(
        kvm: &KvmVm,
        cpus: &[Arc<CpuUnit>],
        ram: Arc<GuestRam>,
        faults: Faults,
    ) -> Result<Self, Error> {
        let text = |error: MachineError| Error::Config(error.0);
        let device = KvmDevice::new(&kvm.vm, VGIC_V3, "arm_gicv3")?;
        let address = |kind: u32, at| device.set_u64(KVM_DEV_ARM_VGIC_GRP_ADDR, kind.into(), at);
        device.set_u32(KVM_DEV_ARM_VGIC_GRP_NR_IRQS, 0, map::GIC_IRQS).map_err(text)?;
        address(KVM_VGIC_V3_ADDR_TYPE_DIST, map::GICD).map_err(text)?;
        address(KVM_VGIC_V3_ADDR_TYPE_REDIST, map::GICR).map_err(text)?;
        device
            .command(KVM_DEV_ARM_VGIC_GRP_CTRL, KVM_DEV_ARM_VGIC_CTRL_INIT, "KVM_DEV_ARM_VGIC_CTRL_INIT")
            .map_err(text)?;
        if !device.has(KVM_DEV_ARM_VGIC_GRP_CTRL, KVM_DEV_ARM_VGIC_SAVE_PENDING_TABLES.into()) {
            return Err(Error::Config("this host's KVM cannot save the pending tables of LPIs".into()));
        }
        let cpus: Vec<u64> = cpus.iter().map(|unit| unit.affinity()).collect();
        let power_on = section::capture(&device, &cpus).map_err(text)?;
        let (loaded, arrived, written) = Default::default();
        Ok(Self { device, cpus, ram, faults, power_on, loaded, arrived, written })
    }

    /// Back to power-on. What was loaded is forgotten.
    ///
    /// # Errors
    /// Names what KVM refused.
    pub(super) fn reset(&self) -> Result<(), MachineError> {
        *lock(&self.loaded) = None;
        lock(&self.written).undo(&self.ram)?;
        section::disable_lpis(&self.device, &self.cpus)?;
        section::put(&self.device, &self.cpus, &self.power_on)
    }

    /// Puts into KVM what was loaded.
    ///
    /// # Errors
    /// Names the register.
    pub(super) fn apply(&self) -> Result<(), MachineError> {
        let Some(mut gic) = lock(&self.loaded).take() else { return Ok(()) };
        if self.faults.has(Fault::PendingInterrupt) {
            gic.pending = Default::default();
            gic.cpus.iter_mut().for_each(|cpu| cpu.ipendr0 = 0);
        }
        *lock(&self.arrived) = Some(pending::digest(&Redistributor::of(&gic), &self.ram));
        section::put(&self.device, &self.cpus, &gic)
    }
}

/// The pending tables.
impl RamTables for GicV3 {
    fn save(&self) -> Result<(), MachineError> {
        *lock(&self.arrived) = None;
        let redistributors = Redistributor::all(&self.device, &self.cpus)?;
        let before = Bits::read(&redistributors, &self.ram);
        let what = "KVM_DEV_ARM_VGIC_SAVE_PENDING_TABLES";
        let saved =
            self.device.command(KVM_DEV_ARM_VGIC_GRP_CTRL, KVM_DEV_ARM_VGIC_SAVE_PENDING_TABLES, what);
        // One that fails may have come half way.
        lock(&self.written).note(&before, &Bits::read(&redistributors, &self.ram));
        saved
    }

    fn digest(&self) -> Result<Digest, MachineError> {
        match *lock(&self.arrived) {
            Some(arrived) => Ok(arrived),
            None => Ok(pending::digest(&Redistributor::all(&self.device, &self.cpus)?, &self.ram)),
        }
    }
}

/// A machine that starts has its pending interrupts in KVM, and not in guest RAM as well.
impl StateChange for GicV3 {
    fn changed(&self, running: bool) -> Result<(), MachineError> {
        if !running || self.faults.has(Fault::PendingBitsLeft) {
            return Ok(());
        }
        lock(&self.written).undo(&self.ram)
    }
}

impl Device for GicV3 {
    fn save(&self) -> Result<Box<dyn VmState>, MachineError> {
        Ok(Box::new(section::capture(&self.device, &self.cpus)?))
    }

    fn blank(&self) -> Box<dyn VmState> {
        Box::new(state::GicV3::new(self.cpus.len()))
    }

    fn load(&self, state: Box<dyn VmState>) -> Result<(), MachineError> {
        *lock(&self.loaded) = Some(*downcast(state)?);
        Ok(())
    }
}
