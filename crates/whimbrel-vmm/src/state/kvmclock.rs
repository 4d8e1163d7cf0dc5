//! `kvmclock`: the paravirtual clock of the VM.

use whimbrel_vmstate::{Result, Visitor, VmState, Vmsd};

/// The clock as KVM reads it out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KvmClock {
    /// The guest's clock, in ns.
    pub clock: u64,
    /// Whether `clock` can be trusted as it is. If not (or absent: `None`), the receiver works it out from the guest's pvclock page.
    pub is_reliable: Option<bool>,
}

impl VmState for KvmClock {
    fn vmsd(&self) -> Vmsd {
        Vmsd::new("kvmclock", 1)
    }

    fn fields(&mut self, v: &mut dyn Visitor) -> Result<()> {
        v.u64("clock", &mut self.clock)?;
        let reliable = Vmsd::new("kvmclock/clock_is_reliable", 1);
        v.option(reliable, &mut self.is_reliable, |is_reliable, v| v.bool("clock_is_reliable", is_reliable))
    }
}
