//! Registers by KVM's numbers (linux/kvm.h): `KVM_GET_ONE_REG`, `KVM_SET_ONE_REG`.
//!
//! | bits | |
//! |---|---|
//! | 63:60 | 6: arm64 |
//! | 55:52 | log₂ of the register's bytes |
//! | 27:16 | kind: 0x10 core, 0x11 by selector, 0x13 system register, 0x14 and 0x16 firmware's, 0x15 SVE |
//! | 15:0 | which; of a core register, where it stands in `struct kvm_regs` in words of 4 bytes |

use kvm_bindings::RegList;
use kvm_ioctls::{VcpuFd, reg_size};
use whimbrel::machine::MachineError;

const ARM64: u64 = 6 << 60;
const U32: u64 = 2 << 52;
const U64: u64 = 3 << 52;
const U128: u64 = 4 << 52;
const KIND: u64 = 0xfff << 16;
const CORE: u64 = 0x10 << 16;
const SYSTEM: u64 = 0x13 << 16;

/// Registers that a list has room for: as many as kvm-bindings takes, and Linux has listed some 250 so far.
const LIST_MAX: usize = 500;

/// Where the parts of `struct kvm_regs` begin, in bytes.
const SP_EL0_AT: u64 = 31 * 8;
const SP_EL1_AT: u64 = 34 * 8;
const SPSR_AT: u64 = 36 * 8;
/// Quadwords, so 16-byte aligned.
const V_AT: u64 = 42 * 8;
const FPSR_AT: u64 = V_AT + 32 * 16;

/// SP_EL0.
pub(crate) const SP_EL0: u64 = core(U64, SP_EL0_AT);
/// Program counter.
pub(crate) const PC: u64 = core(U64, SP_EL0_AT + 8);
/// PSTATE.
pub(crate) const PSTATE: u64 = core(U64, SP_EL0_AT + 16);
/// SP_EL1.
pub(crate) const SP_EL1: u64 = core(U64, SP_EL1_AT);
/// ELR_EL1.
pub(crate) const ELR_EL1: u64 = core(U64, SP_EL1_AT + 8);
/// FPSR.
pub(crate) const FPSR: u64 = core(U32, FPSR_AT);
/// FPCR.
pub(crate) const FPCR: u64 = core(U32, FPSR_AT + 4);

/// The virtual counter. KVM numbers it as one would CNTV_CVAL.
pub(crate) const TIMER_CNT: u64 = system(3, 3, 14, 3, 2);
/// The physical counter, where KVM lets it be set.
pub(crate) const PHYSICAL_CNT: u64 = system(3, 3, 14, 0, 1);
/// MPIDR_EL1: which vCPU this is.
pub(crate) const MPIDR: u64 = system(3, 0, 0, 0, 5);

/// A general register, X0 to X30.
pub(crate) const fn x(number: u64) -> u64 {
    core(U64, number * 8)
}

/// A SIMD register, V0 to V31.
pub(crate) const fn v(number: u64) -> u64 {
    core(U128, V_AT + number * 16)
}

/// An SPSR: of EL1 (SVC), ABT, UND, IRQ, FIQ.
pub(crate) const fn spsr(number: u64) -> u64 {
    core(U64, SPSR_AT + number * 8)
}

const fn core(size: u64, at: u64) -> u64 {
    ARM64 | size | CORE | at / 4
}

const fn system(op0: u64, op1: u64, crn: u64, crm: u64, op2: u64) -> u64 {
    ARM64 | U64 | SYSTEM | op0 << 14 | op1 << 11 | crn << 7 | crm << 3 | op2
}

/// All registers of this vCPU but the core ones, ascending: those that the section lists by number.
///
/// # Errors
/// If KVM does not tell, or has a register wider than a word, which the section cannot hold.
pub(crate) fn listed(fd: &VcpuFd) -> Result<Vec<u64>, MachineError> {
    let mut all = RegList::new(LIST_MAX).map_err(|_| "no room for a register list")?;
    fd.get_reg_list(&mut all).map_err(|error| format!("KVM_GET_REG_LIST: {error}"))?;
    let mut listed: Vec<u64> = all.as_slice().iter().copied().filter(|id| id & KIND != CORE).collect();
    if let Some(wide) = listed.iter().find(|id| reg_size(**id) > 8) {
        return Err(
            format!("register {wide:#x} is wider than 64 bits, and the section cannot hold it").into()
        );
    }
    listed.sort_unstable();
    Ok(listed)
}

/// Reads a register of at most 64 bits.
///
/// # Errors
/// Names the register.
pub(crate) fn read(fd: &VcpuFd, id: u64) -> Result<u64, MachineError> {
    let mut bytes = [0; 8];
    fd.get_one_reg(id, &mut bytes).map_err(|error| format!("register {id:#x}: KVM_GET_ONE_REG: {error}"))?;
    Ok(u64::from_le_bytes(bytes))
}

/// Writes a register of at most 64 bits.
///
/// # Errors
/// Names the register, the value, and what it holds here.
pub(crate) fn write(fd: &VcpuFd, id: u64, value: u64) -> Result<(), MachineError> {
    fd.set_one_reg(id, &value.to_le_bytes()[..reg_size(id).min(8)]).map(drop).map_err(|error| {
        let own = read(fd, id).map_or_else(|error| error.0, |own| format!("{own:#x}"));
        format!("register {id:#x} cannot be {value:#x}, here it is {own}: KVM_SET_ONE_REG: {error}").into()
    })
}

/// Reads a SIMD register, low word first.
///
/// # Errors
/// Names the register.
pub(crate) fn read_v(fd: &VcpuFd, number: u64) -> Result<[u64; 2], MachineError> {
    let mut bytes = [0; 16];
    fd.get_one_reg(v(number), &mut bytes).map_err(|error| format!("V{number}: KVM_GET_ONE_REG: {error}"))?;
    let value = u128::from_le_bytes(bytes);
    Ok([value as u64, (value >> 64) as u64])
}

/// Writes a SIMD register.
///
/// # Errors
/// Names the register.
pub(crate) fn write_v(fd: &VcpuFd, number: u64, [low, high]: [u64; 2]) -> Result<(), MachineError> {
    let value = u128::from(low) | u128::from(high) << 64;
    let set = fd.set_one_reg(v(number), &value.to_le_bytes());
    set.map(drop).map_err(|error| format!("V{number}: KVM_SET_ONE_REG: {error}").into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_those_of_the_kernels_documentation() {
        assert_eq!(
            (x(0), SP_EL0, PC, PSTATE),
            (0x6030_0000_0010_0000, 0x6030_0000_0010_003e, 0x6030_0000_0010_0040, 0x6030_0000_0010_0042)
        );
        assert_eq!(
            (SP_EL1, ELR_EL1, spsr(0)),
            (0x6030_0000_0010_0044, 0x6030_0000_0010_0046, 0x6030_0000_0010_0048)
        );
        assert_eq!((v(0), v(31)), (0x6040_0000_0010_0054, 0x6040_0000_0010_00d0));
        assert_eq!((FPSR, FPCR), (0x6020_0000_0010_00d4, 0x6020_0000_0010_00d5));
        assert_eq!(
            (TIMER_CNT, PHYSICAL_CNT, MPIDR),
            (0x6030_0000_0013_df1a, 0x6030_0000_0013_df01, 0x6030_0000_0013_c005)
        );
    }
}
