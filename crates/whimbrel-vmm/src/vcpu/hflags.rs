//! `hflags` and `hflags2`: the summary of a CPU's mode that QEMU's section carries beside the registers.
//!
//! A QEMU destination checks and uses it, so it must be what QEMU itself would have written. Worked out by decoding streams of
//! real QEMU 7.2 and 10.0 under KVM (the tests hold the values seen), in every mode the beacon passes through:
//!
//! | bit | meaning |
//! |---|---|
//! | 0–1 | privilege level: the DPL of SS |
//! | 3 | interrupts are inhibited for one instruction (after STI or a load of SS) |
//! | 4, 5 | code, stack are 32 bits wide (both 1 in 64-bit code) |
//! | 6 | segment bases must be added: real and virtual-8086 mode, 16-bit code, or a base of DS, ES or SS that isn't 0 |
//! | 7 | CR0.PE |
//! | 8 | EFLAGS.TF |
//! | 9–11 | CR0.MP, EM, TS |
//! | 12–13 | EFLAGS.IOPL |
//! | 14, 15 | long mode active; 64-bit code |
//! | 17 | EFLAGS.VM |
//! | 22 | CR4.OSFXSR |
//!
//! In `hflags2` bits 0 and 8 (global interrupts on, real and virtual) are always 1 with KVM; bit 2: NMIs are masked.

use crate::state::{CpuX86, Segment};

/// Interrupts are inhibited.
pub(super) const INHIBIT: u32 = 1 << 3;
/// A CPU in system management mode, which is not carried.
pub(super) const SMM: u32 = 1 << 19;
/// A CPU in a nested guest under SVM, which is not carried.
pub(super) const SVM_GUEST: u32 = 1 << 21;
/// `hflags2`: NMIs are masked.
pub(super) const NMI_MASKED: u32 = 1 << 2;
const ALWAYS2: u32 = 1 << 0 | 1 << 8;

const CS32: u32 = 1 << 4;
const SS32: u32 = 1 << 5;
const ADD_SEGMENT: u32 = 1 << 6;
const LMA: u32 = 1 << 14;
const CS64: u32 = 1 << 15;
const OSFXSR: u32 = 1 << 22;

const CR0_PE: u64 = 1;
const CR4_OSFXSR: u64 = 1 << 9;
const EFER_LMA: u64 = 1 << 10;
/// TF, IOPL and VM, at the same bits in both words.
const EFLAGS_COPIED: u64 = 1 << 8 | 3 << 12 | 1 << 17;
const EFLAGS_VM: u64 = 1 << 17;
const SEGMENT_B: u32 = 1 << 22;
const SEGMENT_L: u32 = 1 << 21;

/// `hflags` of a CPU whose registers are in the section.
pub(super) fn hflags(cpu: &CpuX86, inhibited: bool) -> u32 {
    let [es, cs, ss, ds, ..] = &cpu.segs;
    let protected = cpu.cr0 & CR0_PE != 0;
    let mut flags = (ss.flags >> 13) & 3;
    flags |= (cpu.cr0 as u32 & 1) << 7;
    flags |= (cpu.cr0 as u32 & 0b1110) << 8;
    flags |= (cpu.eflags & EFLAGS_COPIED) as u32;
    flags |= if cpu.cr4 & CR4_OSFXSR != 0 { OSFXSR } else { 0 };
    flags |= if inhibited { INHIBIT } else { 0 };
    let long = cpu.efer & EFER_LMA != 0;
    flags |= if long { LMA } else { 0 };
    if long && cs.flags & SEGMENT_L != 0 {
        return flags | CS32 | SS32 | CS64;
    }
    let wide = |segment: &Segment| segment.flags & SEGMENT_B != 0;
    flags |= if wide(cs) { CS32 } else { 0 };
    flags |= if wide(ss) { SS32 } else { 0 };
    let based = [ds, es, ss].iter().any(|segment| segment.base != 0);
    if !protected || cpu.eflags & EFLAGS_VM != 0 || !wide(cs) || based {
        flags |= ADD_SEGMENT;
    }
    flags
}

/// `hflags2`.
pub(super) fn hflags2(nmi_masked: bool) -> u32 {
    ALWAYS2 | if nmi_masked { NMI_MASKED } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segment(flags: u32) -> Segment {
        Segment { flags, ..Segment::default() }
    }

    fn cpu(cr0: u64, cr4: u64, efer: u64, eflags: u64, [cs, ss, ds]: [u32; 3]) -> CpuX86 {
        let [cs, ss, ds] = [segment(cs), segment(ss), segment(ds)];
        CpuX86 { cr0, cr4, efer, eflags, segs: [ds, cs, ss, ds, ds, ds], ..CpuX86::default() }
    }

    /// Register values and the hflags real QEMU wrote with them.
    #[test]
    fn hflags_are_those_of_real_streams() {
        let reset = cpu(0x6000_0010, 0, 0, 2, [0x9b00, 0x9300, 0x9300]);
        assert_eq!(hflags(&reset, false), 0x40);
        let kernel = cpu(0x8001_0033, 0x4_0620, 0x500, 0x20_0002, [0xa0_9b00, 0, 0xc0_9300]);
        assert_eq!(hflags(&kernel, false), 0x40_c2b0);
        let user = cpu(0x8001_0033, 0x4_0620, 0x500, 0x20_0697, [0xa0_fb00, 0xc0_f300, 0xc0_9300]);
        assert_eq!(hflags(&user, false), 0x40_c2b3);
        assert_eq!(hflags2(false), 0x101);
    }
}
