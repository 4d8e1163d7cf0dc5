//! The two 8259s, which are KVM's: their sections.

use std::sync::{Arc, Mutex};

use kvm_bindings::{KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, kvm_irqchip, kvm_pic_state};
use whimbrel::downcast;
use whimbrel::handlers::Device;
use whimbrel::machine::MachineError;
use whimbrel_vmstate::VmState;

use crate::kvm::KvmVm;
use crate::lock;
use crate::state;

/// One of the two.
pub struct Pic {
    kvm: Arc<KvmVm>,
    /// KVM's number of it.
    chip: u32,
    loaded: Mutex<Option<state::I8259>>,
}

impl Pic {
    /// Master and slave of this VM.
    pub fn pair(kvm: &Arc<KvmVm>) -> [Arc<Self>; 2] {
        [KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE]
            .map(|chip| Arc::new(Self { kvm: Arc::clone(kvm), chip, loaded: Mutex::default() }))
    }

    /// Puts a loaded state into KVM.
    ///
    /// # Errors
    /// If KVM refuses it.
    pub fn apply(&self) -> Result<(), MachineError> {
        let Some(state) = lock(&self.loaded).take() else { return Ok(()) };
        self.write(&state)
    }

    /// Back to power-on, with which inputs can be level-triggered left as KVM has it.
    ///
    /// # Errors
    /// If KVM refuses it.
    pub fn reset(&self) -> Result<(), MachineError> {
        *lock(&self.loaded) = None;
        self.write(&state::I8259::default())
    }

    fn write(&self, state: &state::I8259) -> Result<(), MachineError> {
        let mut chip = self.read()?;
        chip.chip.pic = to_kvm(state, &registers(&chip));
        self.kvm.vm.set_irqchip(&chip).map_err(|error| format!("i8259: KVM_SET_IRQCHIP: {error}").into())
    }

    fn read(&self) -> Result<kvm_irqchip, MachineError> {
        let mut chip = kvm_irqchip { chip_id: self.chip, ..Default::default() };
        self.kvm.vm.get_irqchip(&mut chip).map_err(|error| format!("i8259: KVM_GET_IRQCHIP: {error}"))?;
        Ok(chip)
    }
}

impl Device for Pic {
    fn save(&self) -> Result<Box<dyn VmState>, MachineError> {
        Ok(Box::new(from_kvm(&registers(&self.read()?))))
    }

    fn blank(&self) -> Box<dyn VmState> {
        Box::new(state::I8259::default())
    }

    /// KVM's 8259s know neither a single chip nor level-triggering as a whole; TCG's do.
    fn load(&self, state: Box<dyn VmState>) -> Result<(), MachineError> {
        let state = downcast::<state::I8259>(state)?;
        for (name, value) in [("single_mode", state.single_mode), ("ltim", state.ltim)] {
            if value != 0 {
                return Err(format!("{name}: {value}: KVM's 8259 cannot hold it").into());
            }
        }
        *lock(&self.loaded) = Some(*state);
        Ok(())
    }
}

fn registers(chip: &kvm_irqchip) -> kvm_pic_state {
    // SAFETY: `chip_id` says that this is the member KVM has filled; all of it is plain numbers.
    unsafe { chip.chip.pic }
}

/// `own` has what is the chip's and no state.
fn to_kvm(state: &state::I8259, own: &kvm_pic_state) -> kvm_pic_state {
    kvm_pic_state {
        last_irr: state.last_irr,
        irr: state.irr,
        imr: state.imr,
        isr: state.isr,
        priority_add: state.priority_add,
        irq_base: state.irq_base,
        read_reg_select: state.read_reg_select,
        poll: state.poll,
        special_mask: state.special_mask,
        init_state: state.init_state,
        auto_eoi: state.auto_eoi,
        rotate_on_auto_eoi: state.rotate_on_auto_eoi,
        special_fully_nested_mode: state.special_fully_nested_mode,
        init4: state.init4,
        elcr: state.elcr,
        elcr_mask: own.elcr_mask,
    }
}

fn from_kvm(pic: &kvm_pic_state) -> state::I8259 {
    state::I8259 {
        last_irr: pic.last_irr,
        irr: pic.irr,
        imr: pic.imr,
        isr: pic.isr,
        priority_add: pic.priority_add,
        irq_base: pic.irq_base,
        read_reg_select: pic.read_reg_select,
        poll: pic.poll,
        special_mask: pic.special_mask,
        init_state: pic.init_state,
        auto_eoi: pic.auto_eoi,
        rotate_on_auto_eoi: pic.rotate_on_auto_eoi,
        special_fully_nested_mode: pic.special_fully_nested_mode,
        init4: pic.init4,
        single_mode: 0,
        elcr: pic.elcr,
        ltim: 0,
    }
}
