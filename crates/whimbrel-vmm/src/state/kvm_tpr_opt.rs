//! `kvm-tpr-opt`: the option ROM that spares 32-bit Windows guests the cost of TPR accesses. Every VM has the section.

use whimbrel_vmstate::{Result, Visitor, VmState, Vmsd};

/// State of the TPR patching; zero where it is not in use.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KvmTprOpt {
    /// The ROM's table.
    pub rom: TprRom,
    /// 0 inactive, 1 activated, 2 standby.
    pub state: u32,
    /// Virtual address of the TPR.
    pub real_tpr_addr: u32,
    /// Virtual address of the ROM's table.
    pub rom_state_vaddr: u32,
    /// Physical address of the page shared with KVM.
    pub vapic_paddr: u32,
    /// Physical address of the ROM's table.
    pub rom_state_paddr: u32,
}

/// The table in the ROM.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs, reason = "the ROM's own names")]
pub struct TprRom {
    pub vaddr: u32,
    pub fixup_start: u32,
    pub fixup_end: u32,
    pub vapic_vaddr: u32,
    pub vapic_size: u32,
    pub vcpu_shift: u32,
    pub real_tpr_addr: u32,
    /// Addresses for one vCPU.
    pub up: TprHandlers,
    /// Addresses for several.
    pub mp: TprHandlers,
}

/// Addresses of the routines that replace TPR accesses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs, reason = "the ROM's own names")]
pub struct TprHandlers {
    pub set_tpr: u32,
    pub set_tpr_eax: u32,
    pub get_tpr: [u32; 8],
    pub get_tpr_stack: u32,
}

impl VmState for KvmTprOpt {
    fn vmsd(&self) -> Vmsd {
        Vmsd::new("kvm-tpr-opt", 1)
    }

    fn fields(&mut self, v: &mut dyn Visitor) -> Result<()> {
        v.structure("rom_state", Vmsd::new("kvmvapic-guest-rom", 1), &mut |v| self.rom.fields(v))?;
        v.u32("state", &mut self.state)?;
        v.u32("real_tpr_addr", &mut self.real_tpr_addr)?;
        v.u32("rom_state_vaddr", &mut self.rom_state_vaddr)?;
        v.u32("vapic_paddr", &mut self.vapic_paddr)?;
        v.u32("rom_state_paddr", &mut self.rom_state_paddr)
    }
}

impl TprRom {
    fn fields(&mut self, v: &mut dyn Visitor) -> Result<()> {
        v.unused(8)?;
        v.u32("vaddr", &mut self.vaddr)?;
        v.u32("fixup_start", &mut self.fixup_start)?;
        v.u32("fixup_end", &mut self.fixup_end)?;
        v.u32("vapic_vaddr", &mut self.vapic_vaddr)?;
        v.u32("vapic_size", &mut self.vapic_size)?;
        v.u32("vcpu_shift", &mut self.vcpu_shift)?;
        v.u32("real_tpr_addr", &mut self.real_tpr_addr)?;
        let handlers = Vmsd::new("kvmvapic-handlers", 1);
        v.structure("up", handlers, &mut |v| self.up.fields(v))?;
        v.structure("mp", handlers, &mut |v| self.mp.fields(v))
    }
}

impl TprHandlers {
    fn fields(&mut self, v: &mut dyn Visitor) -> Result<()> {
        v.u32("set_tpr", &mut self.set_tpr)?;
        v.u32("set_tpr_eax", &mut self.set_tpr_eax)?;
        v.array("get_tpr", &mut self.get_tpr)?;
        v.u32("get_tpr_stack", &mut self.get_tpr_stack)
    }
}
