//! `cpu_common`: what QEMU keeps of every kind of CPU.

use whimbrel_vmstate::{Result, Visitor, VmState, Vmsd};

const EXCEPTION_INDEX: Vmsd = Vmsd::new("cpu_common/exception_index", 1);
const CRASH_OCCURRED: Vmsd = Vmsd::new("cpu_common/crash_occurred", 1);

/// Common state of a CPU. With KVM `halted` may be 0 for a halted vCPU: what counts is the MP state in `cpu`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CpuCommon {
    /// 1: waits for an interrupt.
    pub halted: u32,
    /// Pending requests, as QEMU's bits.
    pub interrupt_request: u32,
    /// Exception being delivered by an emulator; −1: none.
    pub exception_index: i32,
    /// The guest told of a crash.
    pub crash_occurred: bool,
}

impl Default for CpuCommon {
    fn default() -> Self {
        CpuCommon { halted: 0, interrupt_request: 0, exception_index: -1, crash_occurred: false }
    }
}

impl VmState for CpuCommon {
    fn vmsd(&self) -> Vmsd {
        Vmsd::new("cpu_common", 1)
    }

    fn fields(&mut self, v: &mut dyn Visitor) -> Result<()> {
        v.u32("halted", &mut self.halted)?;
        v.u32("interrupt_request", &mut self.interrupt_request)?;
        v.optional(EXCEPTION_INDEX, "exception_index", &mut self.exception_index, -1)?;
        v.optional(CRASH_OCCURRED, "crash_occurred", &mut self.crash_occurred, false)?;
        Ok(())
    }
}
