//! Model-specific registers: which are part of a vCPU's state, and the field of the `cpu` section each has.

use kvm_ioctls::VcpuFd;

use super::kvm_state::readable_msrs;
use crate::state::{CpuX86, Pmu};

/// Not in KVM's list, yet part of the state: fixed and variable MTRRs, machine-check banks.
const EXTRA: [std::ops::RangeInclusive<u32>; 6] =
    [0x200..=0x20f, 0x250..=0x250, 0x258..=0x259, 0x268..=0x26f, 0x2ff..=0x2ff, MCE_FIRST..=MCE_LAST];

/// Not state: KVM's clock by its older names, which stand for the same registers.
const ALIASES: [u32; 2] = [0x11, 0x12];

/// Fixed by the host or by CPUID: a difference to power-on can't come from the guest, and writing them is not ours.
const CONSTANT: [u32; 4] = [0x8b, 0xce, 0x10a, 0x345];

/// Hyper-V's. The guest's CPUID offers none of it, so it cannot have written them; one counts the time the vCPU has run.
const HYPERV: std::ops::RangeInclusive<u32> = 0x4000_0000..=0x4000_01ff;

const MTRR_FIXED: [u32; 11] = [0x250, 0x258, 0x259, 0x268, 0x269, 0x26a, 0x26b, 0x26c, 0x26d, 0x26e, 0x26f];
/// Performance counters: general ones and their selectors, fixed ones; then what rules them, which is written last.
const PMU: [std::ops::RangeInclusive<u32>; 4] =
    [GP_COUNTERS..=0xd2, GP_SELECTORS..=0x197, FIXED..=0x30b, 0x38d..=0x390];
const GP_COUNTERS: u32 = 0xc1;
const GP_SELECTORS: u32 = 0x186;
const FIXED: u32 = 0x309;
const MCE_FIRST: u32 = 0x400;
const MCE_LAST: u32 = MCE_FIRST + 4 * 10 - 1;
/// The time-stamp counter.
pub(super) const TSC: u32 = 0x10;
/// AMD's hardware configuration, carried from QEMU 10.0 on.
pub(super) const HWCR: u32 = 0xc001_0015;
/// The masks of the variable MTRRs are 52 bits wide; in the section the bits above are set (seen in QEMU's streams).
const MTRR_MASK_HIGH: u64 = 0xfff0_0000_0000_0000;

/// Every MSR of this vCPU that is state, from KVM's list.
pub(super) fn readable(fd: &VcpuFd, known: &[u32]) -> Vec<u32> {
    let extra = EXTRA.into_iter().flatten();
    let state =
        |index: &u32| !ALIASES.contains(index) && !CONSTANT.contains(index) && !HYPERV.contains(index);
    readable_msrs(fd, known.iter().copied().filter(state).chain(extra))
}

/// The field of an MSR in the section.
struct Field {
    /// Its number.
    index: u32,
    /// Reads the field.
    get: fn(&CpuX86) -> u64,
    /// Writes the field.
    set: fn(&mut CpuX86, u64),
}

macro_rules! fields {
    ($($index:literal => $($path:ident).+ $(: $ty:ty)?;)*) => {
        &[$(Field {
            index: $index,
            get: |cpu| u64::from(cpu.$($path).+),
            set: |cpu, value| cpu.$($path).+ = fields!(@value value $(, $ty)?),
        }),*]
    };
    (@value $value:ident) => { $value };
    (@value $value:ident, $ty:ty) => { $value as $ty };
}

/// MSRs with a field of their own, in the order in which they are written.
const FIELDS: &[Field] = fields! {
    0x10 => tsc;
    0x34 => msrs.smi_count;
    0x3a => msrs.feature_control;
    0x3b => msrs.tsc_adjust;
    0x48 => msrs.spec_ctrl;
    0x9e => smbase: u32;
    0xe1 => msrs.umwait: u32;
    0x122 => msrs.tsx_ctrl: u32;
    0x174 => sysenter_cs: u32;
    0x175 => sysenter_esp;
    0x176 => sysenter_eip;
    0x17a => mcg_status;
    0x17b => mcg_ctl;
    0x1a0 => msrs.misc_enable;
    0x277 => pat;
    0x2ff => mtrr_deftype;
    0x4d0 => msrs.mcg_ext_ctl;
    0x6e0 => msrs.tsc_deadline;
    0x6e1 => msrs.pkrs: u32;
    0xda0 => msrs.xss;
    0x4b56_4d00 => wall_clock_msr;
    0x4b56_4d01 => system_time_msr;
    0x4b56_4d06 => msrs.async_pf_int;
    0x4b56_4d02 => msrs.async_pf_en;
    0x4b56_4d03 => msrs.steal_time;
    0x4b56_4d04 => msrs.pv_eoi_en;
    0x4b56_4d05 => msrs.poll_control;
    0xc000_0081 => star;
    0xc000_0082 => lstar;
    0xc000_0083 => cstar;
    0xc000_0084 => fmask;
    0xc000_0102 => kernelgsbase;
    0xc000_0103 => tsc_aux;
    0xc001_0015 => msrs.hwcr;
    0xc001_0117 => svm.vm_hsave;
    0xc001_011f => msrs.virt_ssbd;
};

/// Reads the section's value of an MSR; `None` if it has no place there.
pub(super) fn get(cpu: &CpuX86, index: u32) -> Option<u64> {
    if let Some(field) = FIELDS.iter().find(|field| field.index == index) {
        return Some((field.get)(cpu));
    }
    match index {
        0x200..=0x20f => {
            let range = &cpu.mtrr_var[(index as usize - 0x200) / 2];
            Some(if index & 1 == 0 { range.base } else { range.mask & !MTRR_MASK_HIGH })
        }
        MCE_FIRST..=MCE_LAST => Some(cpu.mce_banks.as_flattened()[(index - MCE_FIRST) as usize]),
        index if is_pmu(index) => Some(*pmu(&mut { cpu.msrs.pmu }, index)),
        0x1c4 | 0x1c5 => Some(cpu.msrs.xfd.unwrap_or_default()[(index - 0x1c4) as usize]),
        0xc000_0104 => Some(cpu.msrs.amd_tsc_scale.unwrap_or(AMD_TSC_SCALE_ONE)),
        _ => MTRR_FIXED.iter().position(|fixed| *fixed == index).map(|at| cpu.mtrr_fixed[at]),
    }
}

/// Puts an MSR's value into the section; `false` if it has no place there.
pub(super) fn set(cpu: &mut CpuX86, index: u32, value: u64) -> bool {
    if let Some(field) = FIELDS.iter().find(|field| field.index == index) {
        (field.set)(cpu, value);
        // A narrower field must not cut the value.
        return (field.get)(cpu) == value;
    }
    match index {
        0x200..=0x20f => {
            let range = &mut cpu.mtrr_var[(index as usize - 0x200) / 2];
            if index & 1 == 0 { range.base = value } else { range.mask = value | MTRR_MASK_HIGH }
        }
        MCE_FIRST..=MCE_LAST => cpu.mce_banks.as_flattened_mut()[(index - MCE_FIRST) as usize] = value,
        index if is_pmu(index) => *pmu(&mut cpu.msrs.pmu, index) = value,
        0x1c4 | 0x1c5 => cpu.msrs.xfd.get_or_insert_default()[(index - 0x1c4) as usize] = value,
        // The part is there for nested guests, which there are none of.
        0xc000_0104 => cpu.msrs.amd_tsc_scale = (value != AMD_TSC_SCALE_ONE).then_some(value),
        _ => match MTRR_FIXED.iter().position(|fixed| *fixed == index) {
            Some(at) => cpu.mtrr_fixed[at] = value,
            None => return false,
        },
    }
    true
}

fn is_pmu(index: u32) -> bool {
    PMU.iter().any(|range| range.contains(&index))
}

/// The field of one of [`PMU`].
fn pmu(pmu: &mut Pmu, index: u32) -> &mut u64 {
    match index {
        0x38d => &mut pmu.fixed_ctr_ctrl,
        0x38e => &mut pmu.global_status,
        0x38f => &mut pmu.global_ctrl,
        0x390 => &mut pmu.global_ovf_ctrl,
        FIXED.. => &mut pmu.fixed_counters[(index - FIXED) as usize],
        GP_SELECTORS.. => &mut pmu.event_select[(index - GP_SELECTORS) as usize],
        _ => &mut pmu.gp_counters[(index - GP_COUNTERS) as usize],
    }
}

/// Every MSR that has a place in the section, in the order in which they are written.
pub(super) fn all() -> impl Iterator<Item = u32> {
    let fields = FIELDS.iter().map(|field| field.index);
    let pmu = PMU.into_iter().flatten();
    fields.chain(0x200..=0x20f).chain(MTRR_FIXED).chain(MCE_FIRST..=MCE_LAST).chain(pmu).chain([
        0x1c4,
        0x1c5,
        0xc000_0104,
    ])
}

/// AMD's TSC ratio of 1, its power-on value.
const AMD_TSC_SCALE_ONE: u64 = 1 << 32;

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_msr_has_a_place_of_its_own() {
        let mut cpu = CpuX86::default();
        let indices: Vec<u32> = all().collect();
        assert_eq!(indices.iter().collect::<BTreeSet<_>>().len(), indices.len(), "one is listed twice");
        for (value, index) in (1..).zip(&indices) {
            assert!(set(&mut cpu, *index, value), "{index:#x}");
        }
        for (value, index) in (1..).zip(&indices) {
            assert_eq!(get(&cpu, *index), Some(value), "{index:#x}");
        }
    }

    #[test]
    fn a_value_too_wide_for_its_field_is_not_cut() {
        assert!(!set(&mut CpuX86::default(), 0x174, 1 << 32));
    }

    #[test]
    fn the_masks_of_empty_variable_ranges_are_as_qemu_writes_them() {
        let mut cpu = CpuX86::default();
        set(&mut cpu, 0x201, 0);
        assert_eq!(cpu.mtrr_var[0].mask, 0xfff0_0000_0000_0000);
        assert_eq!(get(&cpu, 0x201), Some(0));
    }
}
