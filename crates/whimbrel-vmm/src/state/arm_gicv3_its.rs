//! `arm_gicv3_its`: registers of an interrupt translation service. What it has mapped is in tables in guest memory.

use whimbrel_vmstate::{Result, Visitor, VmState, Vmsd};

/// An ITS. 96 bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GicV3Its {
    /// GITS_CTLR.
    pub ctlr: u32,
    /// GITS_IIDR; with KVM its revision names the layout of the tables.
    pub iidr: u32,
    /// GITS_CBASER: where the command queue is.
    pub cbaser: u64,
    /// GITS_CWRITER: where the guest writes commands.
    pub cwriter: u64,
    /// GITS_CREADR: where the ITS reads them.
    pub creadr: u64,
    /// GITS_BASERn: where the tables are.
    pub baser: [u64; 8],
}

impl VmState for GicV3Its {
    fn vmsd(&self) -> Vmsd {
        Vmsd::new("arm_gicv3_its", 0)
    }

    fn fields(&mut self, v: &mut dyn Visitor) -> Result<()> {
        v.u32("ctlr", &mut self.ctlr)?;
        v.u32("iidr", &mut self.iidr)?;
        v.u64("cbaser", &mut self.cbaser)?;
        v.u64("cwriter", &mut self.cwriter)?;
        v.u64("creadr", &mut self.creadr)?;
        v.array("baser", &mut self.baser)
    }
}
