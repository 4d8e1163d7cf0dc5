//! `cpu` of an Arm machine: the core registers as fields, every other register as a pair of KVM's number and value.

use whimbrel_vmstate::{Result, Visitor, VmState, Vmsd};

const VFP: Vmsd = Vmsd::new("cpu/vfp", 3);
const IRQ_LINE_STATE: Vmsd = Vmsd::new("cpu/irq-line-state", 1);

/// More registers than any CPU has.
const REGISTERS_MAX: i32 = 4096;

/// An Arm vCPU.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CpuArm {
    /// AArch32 registers of the current mode; unused while in AArch64.
    pub regs: [u32; 16],
    /// X0 to X30, and the stack pointer in use.
    pub xregs: [u64; 32],
    /// Program counter.
    pub pc: u64,
    /// PSTATE, laid out as in SPSR_ELx.
    pub cpsr: u32,
    /// AArch32's SPSR of the current mode.
    pub spsr: u32,
    /// SPSRs by bank: user, SVC (which is SPSR_EL1), ABT, UND, IRQ, FIQ, HYP (SPSR_EL2), MON.
    pub banked_spsr: [u64; 8],
    /// AArch32's banked R13.
    pub banked_r13: [u32; 8],
    /// AArch32's banked R14.
    pub banked_r14: [u32; 8],
    /// AArch32's R8 to R12 outside of FIQ mode.
    pub usr_regs: [u32; 5],
    /// AArch32's R8 to R12 of FIQ mode.
    pub fiq_regs: [u32; 5],
    /// ELR_EL0 (none) to ELR_EL3.
    pub elr_el: [u64; 4],
    /// SP_EL0 to SP_EL3.
    pub sp_el: [u64; 4],
    /// All other registers: number, value; ascending.
    pub registers: Vec<(u64, u64)>,
    /// An emulator's exclusive monitor.
    pub exclusive_addr: u64,
    /// Its value.
    pub exclusive_val: u64,
    /// And the high half of a pair's.
    pub exclusive_high: u64,
    /// An exception that an emulator is about to take.
    pub exception: ArmException,
    /// Expiry of the physical timer in an emulator, in ns; −1: not armed.
    pub gt_phys: i64,
    /// And of the virtual timer.
    pub gt_virt: i64,
    /// Off, by PSCI: 1; on its way: 2.
    pub power_state: u8,
    /// SIMD and floating point.
    pub vfp: Option<ArmVfp>,
    /// Interrupt lines as an emulator sees them; `None` in a stream older than it.
    pub irq_line_state: Option<u32>,
}

/// An exception's syndrome.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ArmException {
    /// Syndrome.
    pub syndrome: u32,
    /// AArch32's fault status.
    pub fsr: u32,
    /// Address.
    pub vaddress: u64,
}

/// SIMD and floating point registers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ArmVfp {
    /// V0 to V31, low word first.
    pub v: [[u64; 2]; 32],
    /// AArch32's FPSID.
    pub fpsid: u32,
    /// AArch32's further registers, 1 to 14.
    pub xregs: [u32; 14],
    /// FPSR and FPCR in one word, as AArch32 sees them.
    pub fpscr: u32,
}

impl VmState for CpuArm {
    fn vmsd(&self) -> Vmsd {
        Vmsd::new("cpu", 22)
    }

    fn fields(&mut self, v: &mut dyn Visitor) -> Result<()> {
        v.array("env.regs", &mut self.regs)?;
        v.array("env.xregs", &mut self.xregs)?;
        v.u64("env.pc", &mut self.pc)?;
        v.typed("cpsr", "cpsr", std::slice::from_mut(&mut self.cpsr))?;
        v.u32("env.spsr", &mut self.spsr)?;
        v.array("env.banked_spsr", &mut self.banked_spsr)?;
        v.array("env.banked_r13", &mut self.banked_r13)?;
        v.array("env.banked_r14", &mut self.banked_r14)?;
        v.array("env.usr_regs", &mut self.usr_regs)?;
        v.array("env.fiq_regs", &mut self.fiq_regs)?;
        v.array("env.elr_el", &mut self.elr_el)?;
        v.array("env.sp_el", &mut self.sp_el)?;
        self.registers(v)?;
        v.u64("env.exclusive_addr", &mut self.exclusive_addr)?;
        v.u64("env.exclusive_val", &mut self.exclusive_val)?;
        v.u64("env.exclusive_high", &mut self.exclusive_high)?;
        v.unused(8)?;
        v.u32("env.exception.syndrome", &mut self.exception.syndrome)?;
        v.u32("env.exception.fsr", &mut self.exception.fsr)?;
        v.u64("env.exception.vaddress", &mut self.exception.vaddress)?;
        v.timer("gt_timer[GTIMER_PHYS]", &mut self.gt_phys)?;
        v.timer("gt_timer[GTIMER_VIRT]", &mut self.gt_virt)?;
        v.typed("power_state", "powered_off", std::slice::from_mut(&mut self.power_state))?;
        v.option(VFP, &mut self.vfp, ArmVfp::fields)?;
        v.option(IRQ_LINE_STATE, &mut self.irq_line_state, |state, v| v.u32("env.irq_line_state", state))
    }
}

impl CpuArm {
    fn registers(&mut self, v: &mut dyn Visitor) -> Result<()> {
        let mut count = i32::try_from(self.registers.len()).unwrap_or(i32::MAX);
        v.i32_at_most("cpreg_vmstate_array_len", &mut count, REGISTERS_MAX)?;
        let count = usize::try_from(count).unwrap_or_default();
        let (mut numbers, mut values): (Vec<u64>, Vec<u64>) = self.registers.iter().copied().unzip();
        v.varray("cpreg_vmstate_indexes", &mut numbers, count, REGISTERS_MAX as usize)?;
        v.varray("cpreg_vmstate_values", &mut values, count, REGISTERS_MAX as usize)?;
        self.registers = numbers.into_iter().zip(values).collect();
        Ok(())
    }
}

impl ArmVfp {
    fn fields(&mut self, v: &mut dyn Visitor) -> Result<()> {
        for (number, value) in self.v.iter_mut().enumerate() {
            v.array(&format!("env.vfp.zregs[{number}].d"), value)?;
        }
        v.u32("env.vfp.xregs[0]", &mut self.fpsid)?;
        v.array("env.vfp.xregs", &mut self.xregs)?;
        v.typed("fpscr", "fpscr", std::slice::from_mut(&mut self.fpscr))
    }
}
