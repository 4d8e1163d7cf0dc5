//! `kvm-tpr-opt`: QEMU's option ROM that patches TPR accesses of 32-bit Windows. This machine has no such ROM; the section is carried
//! as it came, so that a guest can go on to a QEMU that has it.

use std::sync::Mutex;

use whimbrel::downcast;
use whimbrel::handlers::Device;
use whimbrel::machine::MachineError;
use whimbrel_vmstate::VmState;

use crate::lock;
use crate::state::KvmTprOpt;

/// The device.
#[derive(Default)]
pub struct TprOptDevice(Mutex<KvmTprOpt>);

impl TprOptDevice {
    /// Back to power-on.
    pub fn reset(&self) {
        *lock(&self.0) = KvmTprOpt::default();
    }
}

impl Device for TprOptDevice {
    fn save(&self) -> Result<Box<dyn VmState>, MachineError> {
        Ok(Box::new(lock(&self.0).clone()))
    }

    fn blank(&self) -> Box<dyn VmState> {
        Box::new(KvmTprOpt::default())
    }

    /// An active patch would need KVM's vAPIC page set up, which this machine cannot: such a guest would read stale priorities.
    fn load(&self, state: Box<dyn VmState>) -> Result<(), MachineError> {
        const ACTIVE: u32 = 1;
        let state = downcast::<KvmTprOpt>(state)?;
        if state.state == ACTIVE {
            return Err("state: the guest's TPR accesses are patched by an option ROM, which this machine does not have".into());
        }
        *lock(&self.0) = *state;
        Ok(())
    }
}
