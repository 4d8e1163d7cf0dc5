//! Between a vCPU in KVM and its section `cpu`.
//!
//! Core registers are fields; every other register KVM lists is a pair of number and value. A register that arrives and is not
//! listed here is an error, one that is listed here and does not arrive keeps its power-on value.

use kvm_bindings::{KVM_MP_STATE_RUNNABLE, KVM_MP_STATE_STOPPED, kvm_mp_state};
use kvm_ioctls::VcpuFd;
use whimbrel::machine::MachineError;

use super::registers::{self, ELR_EL1, FPCR, FPSR, PC, PSTATE, SP_EL0, SP_EL1, read, spsr, write, x};
use crate::state::{ArmVfp, CpuArm};

/// PSTATE: the stack pointer of the exception level is in use, not SP_EL0.
const PSTATE_SP: u64 = 1;
/// PSTATE: AArch32.
const PSTATE_AARCH32: u64 = 1 << 4;
/// KVM's SPSRs are those of banks 1 (SVC) to 5 (FIQ).
const KVM_BANKS: std::ops::Range<usize> = 1..6;
/// The section's stack pointer in use.
const SP: usize = 31;
const POWERED_OFF: u8 = 1;

/// Bits of AArch32's FPSCR that are FPSR's and FPCR's (Arm ARM, FPSCR).
const FPSCR_OF_FPSR: u32 = 0xf800_009f;
const FPSCR_OF_FPCR: u32 = 0x07f7_9f00;

/// Captures a vCPU; `listed` are its registers that are no core ones.
///
/// # Errors
/// Names what could not be read or has no place in the section.
pub(super) fn capture(fd: &VcpuFd, listed: &[u64]) -> Result<CpuArm, MachineError> {
    let events = fd.get_vcpu_events().map_err(|error| format!("KVM_GET_VCPU_EVENTS: {error}"))?;
    if events.exception.serror_pending != 0 {
        return Err("an SError interrupt waits, and no section carries it".into());
    }
    let pstate = read(fd, PSTATE)?;
    if pstate & PSTATE_AARCH32 != 0 {
        return Err("the vCPU is in AArch32 state, which this machine does not move".into());
    }
    let mut cpu =
        CpuArm { cpsr: pstate as u32, pc: read(fd, PC)?, irq_line_state: Some(0), ..CpuArm::default() };
    for (number, value) in (0..).zip(&mut cpu.xregs[..SP]) {
        *value = read(fd, x(number))?;
    }
    cpu.sp_el[0] = read(fd, SP_EL0)?;
    cpu.sp_el[1] = read(fd, SP_EL1)?;
    cpu.xregs[SP] = cpu.sp_el[stack_pointer(pstate)];
    cpu.elr_el[1] = read(fd, ELR_EL1)?;
    for (number, value) in (0..).zip(&mut cpu.banked_spsr[KVM_BANKS]) {
        *value = read(fd, spsr(number))?;
    }
    let mut vfp = ArmVfp::default();
    for (number, value) in (0..).zip(&mut vfp.v) {
        *value = registers::read_v(fd, number)?;
    }
    vfp.fpscr = join_fpscr(read(fd, FPSR)? as u32, read(fd, FPCR)? as u32)?;
    cpu.vfp = Some(vfp);
    cpu.registers = listed.iter().map(|id| Ok((*id, read(fd, *id)?))).collect::<Result<_, MachineError>>()?;
    // Timers are in the registers.
    (cpu.gt_phys, cpu.gt_virt) = (-1, -1);
    let mp = fd.get_mp_state().map_err(|error| format!("KVM_GET_MP_STATE: {error}"))?;
    cpu.power_state = if mp.mp_state == KVM_MP_STATE_STOPPED { POWERED_OFF } else { 0 };
    Ok(cpu)
}

/// Puts a state into a vCPU that has not run since it was initialised.
///
/// # Errors
/// Names the register that this host has not, or cannot hold.
pub(super) fn put(fd: &VcpuFd, cpu: &CpuArm, listed: &[u64]) -> Result<(), MachineError> {
    if let Some((id, _)) = cpu.registers.iter().find(|(id, _)| listed.binary_search(id).is_err()) {
        return Err(format!("register {id:#x} is not known to this host's KVM").into());
    }
    let pstate = u64::from(cpu.cpsr);
    if pstate & PSTATE_AARCH32 != 0 {
        return Err("the vCPU is in AArch32 state, which this machine does not move".into());
    }
    // Those of the firmware and the identification decide what the others may hold.
    for (id, value) in &cpu.registers {
        write(fd, *id, *value)?;
    }
    for (number, value) in (0..).zip(&cpu.xregs[..SP]) {
        write(fd, x(number), *value)?;
    }
    let mut sp = [cpu.sp_el[0], cpu.sp_el[1]];
    sp[stack_pointer(pstate)] = cpu.xregs[SP];
    write(fd, SP_EL0, sp[0])?;
    write(fd, SP_EL1, sp[1])?;
    write(fd, ELR_EL1, cpu.elr_el[1])?;
    for (number, value) in (0..).zip(&cpu.banked_spsr[KVM_BANKS]) {
        write(fd, spsr(number), *value)?;
    }
    if let Some(vfp) = &cpu.vfp {
        for (number, value) in (0..).zip(vfp.v) {
            registers::write_v(fd, number, value)?;
        }
        write(fd, FPSR, (vfp.fpscr & FPSCR_OF_FPSR).into())?;
        write(fd, FPCR, (vfp.fpscr & FPSCR_OF_FPCR).into())?;
    }
    write(fd, PC, cpu.pc)?;
    write(fd, PSTATE, pstate)?;
    let mp_state = match cpu.power_state {
        0 => KVM_MP_STATE_RUNNABLE,
        POWERED_OFF => KVM_MP_STATE_STOPPED,
        other => return Err(format!("power_state {other}: 0 is on, 1 is off").into()),
    };
    fd.set_mp_state(kvm_mp_state { mp_state }).map_err(|error| format!("KVM_SET_MP_STATE: {error}").into())
}

/// Index of the SP_ELx in use.
fn stack_pointer(pstate: u64) -> usize {
    usize::from(pstate & PSTATE_SP != 0 && pstate & 0xc != 0)
}

fn join_fpscr(fpsr: u32, fpcr: u32) -> Result<u32, MachineError> {
    if fpsr & !FPSCR_OF_FPSR != 0 || fpcr & !FPSCR_OF_FPCR != 0 {
        return Err(
            format!("FPSR {fpsr:#x} and FPCR {fpcr:#x} have bits without a place in the section").into()
        );
    }
    Ok(fpsr | fpcr)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fpsr_and_fpcr_share_a_word_and_what_it_cannot_hold_is_refused() {
        assert_eq!(FPSCR_OF_FPSR & FPSCR_OF_FPCR, 0);
        assert_eq!(join_fpscr(0x9000_001f, 0x0300_0000).unwrap(), 0x9300_001f);
        assert!(join_fpscr(0, 0x4).unwrap_err().0.contains("FPCR 0x4"));
    }

    #[test]
    fn the_stack_pointer_in_use_goes_by_level_and_selection() {
        let (el0, el1_sp0, el1_sp1) = (0, 0b0100, 0b0101);
        assert_eq!([el0, el1_sp0, el1_sp1].map(stack_pointer), [0, 0, 1]);
    }
}
