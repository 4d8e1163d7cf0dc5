//! `i8259`: one of the two legacy interrupt controllers.

use whimbrel_vmstate::{Level, Result, Visitor, VmState, Vmsd};

/// An 8259. Instance 0 is the master, 1 the slave. 16 bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs, reason = "the data sheet's names")]
pub struct I8259 {
    /// Levels of the inputs when last looked at.
    pub last_irr: u8,
    pub irr: u8,
    pub imr: u8,
    pub isr: u8,
    pub priority_add: u8,
    pub irq_base: u8,
    pub read_reg_select: u8,
    pub poll: u8,
    pub special_mask: u8,
    pub init_state: u8,
    pub auto_eoi: u8,
    pub rotate_on_auto_eoi: u8,
    pub special_fully_nested_mode: u8,
    pub init4: u8,
    pub single_mode: u8,
    /// Edge or level, by input.
    pub elcr: u8,
    /// Level-triggered as a whole; QEMU 7.2 doesn't know it.
    pub ltim: u8,
}

impl VmState for I8259 {
    fn vmsd(&self) -> Vmsd {
        Vmsd::new("i8259", 1)
    }

    fn fields(&mut self, v: &mut dyn Visitor) -> Result<()> {
        v.u8("last_irr", &mut self.last_irr)?;
        v.u8("irr", &mut self.irr)?;
        v.u8("imr", &mut self.imr)?;
        v.u8("isr", &mut self.isr)?;
        v.u8("priority_add", &mut self.priority_add)?;
        v.u8("irq_base", &mut self.irq_base)?;
        v.u8("read_reg_select", &mut self.read_reg_select)?;
        v.u8("poll", &mut self.poll)?;
        v.u8("special_mask", &mut self.special_mask)?;
        v.u8("init_state", &mut self.init_state)?;
        v.u8("auto_eoi", &mut self.auto_eoi)?;
        v.u8("rotate_on_auto_eoi", &mut self.rotate_on_auto_eoi)?;
        v.u8("special_fully_nested_mode", &mut self.special_fully_nested_mode)?;
        v.u8("init4", &mut self.init4)?;
        v.u8("single_mode", &mut self.single_mode)?;
        v.u8("elcr", &mut self.elcr)?;
        let ltim_needed = self.ltim != 0 && v.level() > Level::V7_2;
        v.subsection(Vmsd::new("i8259/ltim", 1), ltim_needed, &mut |v| v.u8("ltim", &mut self.ltim))?;
        Ok(())
    }
}
