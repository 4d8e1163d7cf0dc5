//! `cpu`: registers of one x86 vCPU. The optional parts, mostly MSRs, are in [`CpuMsrs`].

use whimbrel_vmstate::{Result, Visitor, VmState, Vmsd};

use super::CpuMsrs;

const VMSD: Vmsd = Vmsd::new("cpu", 12).since(11);
const SEGMENT: Vmsd = Vmsd::new("segment", 1);
const FPREG: Vmsd = Vmsd::new("fpreg", 0);
const FPREG_TMP: Vmsd = Vmsd::new("fpreg_tmp", 0);
const XMM_REG: Vmsd = Vmsd::new("xmm_reg", 1);
const YMMH_REG: Vmsd = Vmsd::new("ymmh_reg", 1);
const MTRR_VAR: Vmsd = Vmsd::new("mtrr_var", 1);

/// An x86 vCPU. 1817 bytes before the subsections.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CpuX86 {
    /// RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8 to R15.
    pub regs: [u64; 16],
    /// Instruction pointer.
    pub eip: u64,
    /// Flags.
    pub eflags: u64,
    /// QEMU's summary of the CPU's mode; derived from the registers.
    pub hflags: u32,
    /// x87 control word.
    pub fpuc: u16,
    /// x87 status word, with the top of the stack.
    pub fpus: u16,
    /// x87 tags, one bit a register by its number, 1 = in use: FXSAVE's tag byte. 0 after a reset.
    pub fptag: u16,
    /// Always 0.
    pub fpregs_format: u16,
    /// x87 registers. With KVM by their place on the stack, as FXSAVE has them.
    pub fpregs: [FpReg; 8],
    /// ES, CS, SS, DS, FS, GS.
    pub segs: [Segment; 6],
    /// Local descriptor table.
    pub ldt: Segment,
    /// Task register.
    pub tr: Segment,
    /// Global descriptor table: base and limit.
    pub gdt: Segment,
    /// Interrupt descriptor table: base and limit.
    pub idt: Segment,
    /// SYSENTER's CS.
    pub sysenter_cs: u32,
    /// SYSENTER's ESP.
    pub sysenter_esp: u64,
    /// SYSENTER's EIP.
    pub sysenter_eip: u64,
    /// CR0.
    pub cr0: u64,
    /// CR2.
    pub cr2: u64,
    /// CR3.
    pub cr3: u64,
    /// CR4.
    pub cr4: u64,
    /// DR0 to DR7.
    pub dr: [u64; 8],
    /// Address mask of the A20 gate: −1 when it is open.
    pub a20_mask: i32,
    /// SSE control and status.
    pub mxcsr: u32,
    /// Low 128 bits of the vector registers, low word first.
    pub xmm: [[u64; 2]; 16],
    /// EFER.
    pub efer: u64,
    /// STAR.
    pub star: u64,
    /// LSTAR.
    pub lstar: u64,
    /// CSTAR.
    pub cstar: u64,
    /// SYSCALL's flag mask.
    pub fmask: u64,
    /// KERNEL_GS_BASE.
    pub kernelgsbase: u64,
    /// SMBASE.
    pub smbase: u32,
    /// PAT.
    pub pat: u64,
    /// QEMU's further mode flags.
    pub hflags2: u32,
    /// SVM state of an emulated CPU.
    pub svm: Svm,
    /// Task priority as SVM's virtual one.
    pub v_tpr: u8,
    /// Fixed-range MTRRs.
    pub mtrr_fixed: [u64; 11],
    /// MTRR default type.
    pub mtrr_deftype: u64,
    /// Variable-range MTRRs.
    pub mtrr_var: [MtrrVar; 8],
    /// Interrupts and exceptions on their way.
    pub events: CpuEvents,
    /// KVM's MP state: 0 runnable, 1 uninitialized, 2 INIT received, 3 halted, 4 SIPI received.
    pub mp_state: u32,
    /// Time-stamp counter.
    pub tsc: u64,
    /// Machine check capabilities.
    pub mcg_cap: u64,
    /// Machine check status.
    pub mcg_status: u64,
    /// Machine check control.
    pub mcg_ctl: u64,
    /// Ten machine check banks: CTL, STATUS, ADDR, MISC of each.
    pub mce_banks: [[u64; 4]; 10],
    /// TSC_AUX.
    pub tsc_aux: u64,
    /// kvmclock's system time MSR.
    pub system_time_msr: u64,
    /// kvmclock's wall clock MSR.
    pub wall_clock_msr: u64,
    /// XCR0.
    pub xcr0: u64,
    /// XSTATE_BV: which components the XSAVE area holds.
    pub xstate_bv: u64,
    /// Bits 128 to 255 of the vector registers, low word first.
    pub ymmh: [[u64; 2]; 16],
    /// The optional parts.
    pub msrs: CpuMsrs,
}

/// A segment, as its hidden part.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Segment {
    /// Selector.
    pub selector: u32,
    /// Base address.
    pub base: u64,
    /// Limit, in bytes.
    pub limit: u32,
    /// Attributes where a descriptor's high word has them: type, S, DPL, P at bits 8 to 15, AVL, L, D/B, G at 20 to 23.
    pub flags: u32,
}

/// An x87 register.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FpReg {
    /// Mantissa.
    pub mantissa: u64,
    /// Sign and exponent.
    pub exponent: u16,
}

/// A variable-range MTRR.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MtrrVar {
    /// PHYSBASE.
    pub base: u64,
    /// PHYSMASK.
    pub mask: u64,
}

/// Interrupts and exceptions on their way into the guest. `Default`: none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CpuEvents {
    /// Vector of the external interrupt being injected; −1: none.
    pub interrupt_injected: i32,
    /// Exception being injected; −1: none.
    pub exception_nr: i32,
    /// The interrupt being injected is a software interrupt.
    pub soft_interrupt: u8,
    /// An NMI is being injected.
    pub nmi_injected: u8,
    /// An NMI waits.
    pub nmi_pending: u8,
    /// The exception has an error code.
    pub has_error_code: u8,
    /// Vector of a startup IPI received.
    pub sipi_vector: u32,
}

impl Default for CpuEvents {
    fn default() -> Self {
        CpuEvents {
            interrupt_injected: -1,
            exception_nr: -1,
            soft_interrupt: 0,
            nmi_injected: 0,
            nmi_pending: 0,
            has_error_code: 0,
            sipi_vector: 0,
        }
    }
}

/// SVM state of an emulated CPU; zero with KVM.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Svm {
    /// Address of the host save area.
    pub vm_hsave: u64,
    /// Address of the control block.
    pub vm_vmcb: u64,
    /// TSC offset of the nested guest.
    pub tsc_offset: u64,
    /// Intercepted events.
    pub intercept: u64,
    /// Intercepted control register reads.
    pub intercept_cr_read: u16,
    /// Intercepted control register writes.
    pub intercept_cr_write: u16,
    /// Intercepted debug register reads.
    pub intercept_dr_read: u16,
    /// Intercepted debug register writes.
    pub intercept_dr_write: u16,
    /// Intercepted exceptions.
    pub intercept_exceptions: u32,
}

impl VmState for CpuX86 {
    fn vmsd(&self) -> Vmsd {
        VMSD
    }

    fn fields(&mut self, v: &mut dyn Visitor) -> Result<()> {
        self.general(v)?;
        self.system(v)?;
        self.virtualization(v)?;
        v.u64("env.tsc_aux", &mut self.tsc_aux)?;
        v.u64("env.system_time_msr", &mut self.system_time_msr)?;
        v.u64("env.wall_clock_msr", &mut self.wall_clock_msr)?;
        v.since(12, &mut |v| {
            v.u64("env.xcr0", &mut self.xcr0)?;
            v.u64("env.xstate_bv", &mut self.xstate_bv)?;
            v.structs("env.xmm_regs", YMMH_REG, &mut self.ymmh, |[low, high], v| {
                v.u64("_q_ZMMReg[2]", low)?;
                v.u64("_q_ZMMReg[3]", high)
            })
        })?;
        self.msrs.subsections(v)
    }
}

impl CpuX86 {
    fn general(&mut self, v: &mut dyn Visitor) -> Result<()> {
        v.array("env.regs", &mut self.regs)?;
        v.u64("env.eip", &mut self.eip)?;
        v.u64("env.eflags", &mut self.eflags)?;
        v.u32("env.hflags", &mut self.hflags)?;
        v.u16("env.fpuc", &mut self.fpuc)?;
        v.u16("env.fpus_vmstate", &mut self.fpus)?;
        v.u16("env.fptag_vmstate", &mut self.fptag)?;
        v.u16("env.fpregs_format_vmstate", &mut self.fpregs_format)?;
        v.structs("env.fpregs", FPREG, &mut self.fpregs, |register, v| {
            v.tmp("tmp", FPREG_TMP, &mut |v| {
                v.u64("tmp_mant", &mut register.mantissa)?;
                v.u16("tmp_exp", &mut register.exponent)
            })
        })?;
        v.structs("env.segs", SEGMENT, &mut self.segs, Segment::fields)?;
        for (name, segment) in [
            ("env.ldt", &mut self.ldt),
            ("env.tr", &mut self.tr),
            ("env.gdt", &mut self.gdt),
            ("env.idt", &mut self.idt),
        ] {
            v.structure(name, SEGMENT, &mut |v| segment.fields(v))?;
        }
        Ok(())
    }

    fn system(&mut self, v: &mut dyn Visitor) -> Result<()> {
        v.u32("env.sysenter_cs", &mut self.sysenter_cs)?;
        v.u64("env.sysenter_esp", &mut self.sysenter_esp)?;
        v.u64("env.sysenter_eip", &mut self.sysenter_eip)?;
        v.u64("env.cr[0]", &mut self.cr0)?;
        v.u64("env.cr[2]", &mut self.cr2)?;
        v.u64("env.cr[3]", &mut self.cr3)?;
        v.u64("env.cr[4]", &mut self.cr4)?;
        v.array("env.dr", &mut self.dr)?;
        v.i32("env.a20_mask", &mut self.a20_mask)?;
        v.u32("env.mxcsr", &mut self.mxcsr)?;
        v.structs("env.xmm_regs", XMM_REG, &mut self.xmm, |[low, high], v| {
            v.u64("_q_ZMMReg[0]", low)?;
            v.u64("_q_ZMMReg[1]", high)
        })?;
        v.u64("env.efer", &mut self.efer)?;
        v.u64("env.star", &mut self.star)?;
        v.u64("env.lstar", &mut self.lstar)?;
        v.u64("env.cstar", &mut self.cstar)?;
        v.u64("env.fmask", &mut self.fmask)?;
        v.u64("env.kernelgsbase", &mut self.kernelgsbase)?;
        v.u32("env.smbase", &mut self.smbase)?;
        v.u64("env.pat", &mut self.pat)?;
        v.u32("env.hflags2", &mut self.hflags2)
    }

    fn virtualization(&mut self, v: &mut dyn Visitor) -> Result<()> {
        self.svm.fields(v)?;
        v.u8("env.v_tpr", &mut self.v_tpr)?;
        v.array("env.mtrr_fixed", &mut self.mtrr_fixed)?;
        v.u64("env.mtrr_deftype", &mut self.mtrr_deftype)?;
        v.structs("env.mtrr_var", MTRR_VAR, &mut self.mtrr_var, |range, v| {
            v.u64("base", &mut range.base)?;
            v.u64("mask", &mut range.mask)
        })?;
        v.i32("env.interrupt_injected", &mut self.events.interrupt_injected)?;
        v.u32("env.mp_state", &mut self.mp_state)?;
        v.u64("env.tsc", &mut self.tsc)?;
        v.i32("env.exception_nr", &mut self.events.exception_nr)?;
        v.u8("env.soft_interrupt", &mut self.events.soft_interrupt)?;
        v.u8("env.nmi_injected", &mut self.events.nmi_injected)?;
        v.u8("env.nmi_pending", &mut self.events.nmi_pending)?;
        v.u8("env.has_error_code", &mut self.events.has_error_code)?;
        v.u32("env.sipi_vector", &mut self.events.sipi_vector)?;
        v.u64("env.mcg_cap", &mut self.mcg_cap)?;
        v.u64("env.mcg_status", &mut self.mcg_status)?;
        v.u64("env.mcg_ctl", &mut self.mcg_ctl)?;
        v.array("env.mce_banks", self.mce_banks.as_flattened_mut())
    }
}

impl Segment {
    fn fields(&mut self, v: &mut dyn Visitor) -> Result<()> {
        v.u32("selector", &mut self.selector)?;
        v.u64("base", &mut self.base)?;
        v.u32("limit", &mut self.limit)?;
        v.u32("flags", &mut self.flags)
    }
}

impl Svm {
    fn fields(&mut self, v: &mut dyn Visitor) -> Result<()> {
        v.u64("env.vm_hsave", &mut self.vm_hsave)?;
        v.u64("env.vm_vmcb", &mut self.vm_vmcb)?;
        v.u64("env.tsc_offset", &mut self.tsc_offset)?;
        v.u64("env.intercept", &mut self.intercept)?;
        v.u16("env.intercept_cr_read", &mut self.intercept_cr_read)?;
        v.u16("env.intercept_cr_write", &mut self.intercept_cr_write)?;
        v.u16("env.intercept_dr_read", &mut self.intercept_dr_read)?;
        v.u16("env.intercept_dr_write", &mut self.intercept_dr_write)?;
        v.u32("env.intercept_exceptions", &mut self.intercept_exceptions)
    }
}
