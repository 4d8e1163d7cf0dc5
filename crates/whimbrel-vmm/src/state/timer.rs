//! `timer`: the offsets of the VM's clocks.

use whimbrel_vmstate::{Result, Visitor, VmState, Vmsd};

/// The clocks of a stopped VM. 24 bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Timer {
    /// Offset of the tick counter (the TSC where there is no better).
    pub cpu_ticks_offset: i64,
    /// The virtual clock, in ns: its value while the VM is stopped.
    pub cpu_clock_offset: i64,
}

impl VmState for Timer {
    fn vmsd(&self) -> Vmsd {
        Vmsd::new("timer", 2)
    }

    fn fields(&mut self, v: &mut dyn Visitor) -> Result<()> {
        v.i64("cpu_ticks_offset", &mut self.cpu_ticks_offset)?;
        v.unused(8)?;
        v.i64("cpu_clock_offset", &mut self.cpu_clock_offset)
    }
}
