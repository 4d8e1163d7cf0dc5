//! `ioapic`: one I/O APIC.

use whimbrel_vmstate::{Result, Visitor, VmState, Vmsd};

/// An I/O APIC of 24 pins. 206 bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IoApic {
    /// APIC id.
    pub id: u8,
    /// Selected register.
    pub ioregsel: u8,
    /// Pins with a pending request.
    pub irr: u32,
    /// Redirection table.
    pub ioredtbl: [u64; 24],
}

impl VmState for IoApic {
    fn vmsd(&self) -> Vmsd {
        Vmsd::new("ioapic", 3).since(1)
    }

    fn fields(&mut self, v: &mut dyn Visitor) -> Result<()> {
        v.u8("id", &mut self.id)?;
        v.u8("ioregsel", &mut self.ioregsel)?;
        v.since(2, &mut |v| {
            v.unused(8)?;
            v.u32("irr", &mut self.irr)
        })?;
        v.array("ioredtbl", &mut self.ioredtbl)
    }
}
