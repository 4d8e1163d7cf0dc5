//! `acpi-ged`: ACPI's generic event device.

use whimbrel_vmstate::{Result, Visitor, VmState, Vmsd};

const MEMHP: Vmsd = Vmsd::new("acpi-ged/memhp", 1);

/// The generic event device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AcpiGed {
    /// Events to be read by the guest.
    pub sel: u32,
    /// Memory hotplug: the selected slot.
    pub memhp_selector: Option<u32>,
}

impl VmState for AcpiGed {
    fn vmsd(&self) -> Vmsd {
        Vmsd::new("acpi-ged", 1)
    }

    fn fields(&mut self, v: &mut dyn Visitor) -> Result<()> {
        v.structure("ged_state", Vmsd::new("acpi-ged-state", 1), &mut |v| v.u32("sel", &mut self.sel))?;
        v.option(MEMHP, &mut self.memhp_selector, |selector, v| {
            v.structure("memhp_state", Vmsd::new("memory hotplug state", 1), &mut |v| {
                v.u32("selector", selector)
            })
        })
    }
}
