//! The first I/O APIC, which is KVM's: its section. [`second`] is another.

pub mod second;

use std::sync::{Arc, Mutex};

use kvm_bindings::{KVM_IRQCHIP_IOAPIC, kvm_ioapic_state, kvm_irqchip};
use whimbrel::downcast;
use whimbrel::faults::{Fault, Faults};
use whimbrel::handlers::Device;
use whimbrel::machine::MachineError;
use whimbrel_vmstate::VmState;

use crate::kvm::KvmVm;
use crate::lock;
use crate::state;

/// The device.
pub struct IoApicDevice {
    kvm: Arc<KvmVm>,
    faults: Faults,
    loaded: Mutex<Option<state::IoApic>>,
}

impl IoApicDevice {
    /// Of this VM.
    pub fn new(kvm: Arc<KvmVm>, faults: Faults) -> Self {
        Self { kvm, faults, loaded: Mutex::default() }
    }

    /// Puts a loaded state into KVM.
    ///
    /// # Errors
    /// If KVM refuses it.
    pub fn apply(&self) -> Result<(), MachineError> {
        let Some(state) = lock(&self.loaded).take() else { return Ok(()) };
        let mut chip = read(&self.kvm)?;
        let mut registers = kvm_ioapic_state {
            ioregsel: state.ioregsel.into(),
            id: state.id.into(),
            irr: if self.faults.has(Fault::PendingInterrupt) { 0 } else { state.irr },
            ..registers(&chip)
        };
        for (entry, bits) in registers.redirtbl.iter_mut().zip(state.ioredtbl) {
            entry.bits = bits;
        }
        chip.chip.ioapic = registers;
        self.kvm.vm.set_irqchip(&chip).map_err(|error| format!("ioapic: KVM_SET_IRQCHIP: {error}").into())
    }
}

impl Device for IoApicDevice {
    fn save(&self) -> Result<Box<dyn VmState>, MachineError> {
        let registers = registers(&read(&self.kvm)?);
        // SAFETY: every view of an entry is plain bits of the same size.
        let ioredtbl = registers.redirtbl.map(|entry| unsafe { entry.bits });
        let state = state::IoApic {
            id: registers.id as u8,
            ioregsel: registers.ioregsel as u8,
            irr: registers.irr,
            ioredtbl,
        };
        Ok(Box::new(state))
    }

    fn blank(&self) -> Box<dyn VmState> {
        Box::new(state::IoApic::default())
    }

    fn load(&self, state: Box<dyn VmState>) -> Result<(), MachineError> {
        *lock(&self.loaded) = Some(*downcast(state)?);
        Ok(())
    }
}

/// The chip as KVM has it.
///
/// # Errors
/// If KVM doesn't tell.
pub fn read(kvm: &KvmVm) -> Result<kvm_irqchip, MachineError> {
    let mut chip = kvm_irqchip { chip_id: KVM_IRQCHIP_IOAPIC, ..Default::default() };
    kvm.vm.get_irqchip(&mut chip).map_err(|error| format!("ioapic: KVM_GET_IRQCHIP: {error}"))?;
    Ok(chip)
}

fn registers(chip: &kvm_irqchip) -> kvm_ioapic_state {
    // SAFETY: `chip_id` says that this is the member KVM has filled; all of it is plain numbers.
    unsafe { chip.chip.ioapic }
}
