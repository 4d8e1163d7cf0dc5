//! The XSAVE area in its standard format, field by field.
//!
//! The first 576 bytes are the architecture's: the FXSAVE image and the header. Where the rest lies is the CPU's own business
//! (CPUID leaf 0xd), so the section carries registers, not the area. The section's x87 fields are the FXSAVE image's as they
//! are: the tag byte with 1 = valid, registers by their place on the stack (seen in the stream of a real QEMU that ran the
//! beacon: five values on the stack, TOP 3, tags 0xf8).
//!
//! That is KVM's state. QEMU's emulator writes the same fields otherwise (seen likewise): it does not say which components are in use,
//! and the x87 registers stand by their number, not by their place on the stack. Since KVM gives what is not in use as it is
//! after a reset, values in x87 registers that are not in use tell the one from the other.

use kvm_bindings::CpuId;
use whimbrel::machine::MachineError;

use super::kvm_state::{XSAVE_SIZE, XsaveArea};
use crate::state::{CpuX86, FpReg};

const XSTATE_BV: usize = 512;
const ST: usize = 32;
const XMM: usize = 160;
const XMM_END: usize = XMM + 256;
/// Where the status word has the number of the register on top of the stack.
const TOP_SHIFT: u16 = 11;
const FCW_RESET: u16 = 0x37f;
const MXCSR_RESET: u32 = 0x1f80;
/// The host's mask of valid MXCSR bits, which it writes itself.
const MXCSR_MASK: usize = 28;

const X87: u32 = 0;
const SSE: u32 = 1;
const AVX: u32 = 2;
const OPMASK: u32 = 5;
const ZMM_HI256: u32 = 6;
const HI16_ZMM: u32 = 7;
const PKRU: u32 = 9;
const CARRIED: [u32; 7] = [X87, SSE, AVX, OPMASK, ZMM_HI256, HI16_ZMM, PKRU];

/// Where this CPU keeps the components beyond SSE.
#[derive(Debug, Clone)]
pub(super) struct XsaveLayout {
    /// Offset and size by component; `None`: the CPU doesn't have it.
    components: [Option<(usize, usize)>; 64],
}

impl XsaveLayout {
    /// From the CPUID of the guest (or the host: the layout is the same).
    pub(super) fn new(cpuid: &CpuId) -> Self {
        let mut components = [None; 64];
        components[X87 as usize] = Some((0, XMM));
        components[SSE as usize] = Some((XMM, 256));
        for leaf in
            cpuid.as_slice().iter().filter(|leaf| leaf.function == 0xd && (2..64).contains(&leaf.index))
        {
            let (size, offset) = (leaf.eax as usize, leaf.ebx as usize);
            // Bit 0 of ECX: a supervisor component, never in this area.
            if size > 0 && leaf.ecx & 1 == 0 && offset + size <= XSAVE_SIZE {
                components[leaf.index as usize] = Some((offset, size));
            }
        }
        Self { components }
    }

    /// The area's registers into the section.
    ///
    /// # Errors
    /// Names a component in use that has no place there.
    pub(super) fn save(&self, area: &XsaveArea, cpu: &mut CpuX86) -> Result<(), MachineError> {
        let bytes = &area.0[..];
        cpu.fpuc = u16_at(bytes, 0);
        cpu.fpus = u16_at(bytes, 2);
        cpu.fptag = bytes[4].into();
        cpu.msrs.fpu_last_op.opcode = u16_at(bytes, 6);
        cpu.msrs.fpu_last_op.instruction = u64_at(bytes, 8);
        cpu.msrs.fpu_last_op.data = u64_at(bytes, 16);
        cpu.mxcsr = u32_at(bytes, 24);
        for (place, st) in cpu.fpregs.iter_mut().enumerate() {
            let at = ST + 16 * place;
            *st = FpReg { mantissa: u64_at(bytes, at), exponent: u16_at(bytes, at + 8) };
        }
        words(&mut cpu.xmm, |at| u64_at(bytes, XMM + at));
        cpu.xstate_bv = u64_at(bytes, XSTATE_BV);
        let in_use = |component: &u32| cpu.xstate_bv >> component & 1 != 0;
        if let Some(component) = (0..64).filter(in_use).find(|component| !CARRIED.contains(component)) {
            return Err(
                format!("XSAVE component {component} is in use, and no section has a place for it").into()
            );
        }
        let mut component = |number, f: &mut dyn FnMut(&mut CpuX86, usize)| {
            if let Some((offset, _)) = self.components[number as usize] {
                f(cpu, offset);
            }
        };
        component(AVX, &mut |cpu, base| words(&mut cpu.ymmh, |at| u64_at(bytes, base + at)));
        component(OPMASK, &mut |cpu, base| {
            for (at, mask) in cpu.msrs.avx512.opmask.iter_mut().enumerate() {
                *mask = u64_at(bytes, base + 8 * at);
            }
        });
        component(ZMM_HI256, &mut |cpu, base| {
            words(&mut cpu.msrs.avx512.zmm_hi256, |at| u64_at(bytes, base + at))
        });
        component(HI16_ZMM, &mut |cpu, base| {
            words(&mut cpu.msrs.avx512.hi16_zmm, |at| u64_at(bytes, base + at))
        });
        component(PKRU, &mut |cpu, base| cpu.msrs.pkru = u32_at(bytes, base));
        Ok(())
    }

    /// The section's registers into an area; what the section doesn't speak of stays as in `area`.
    ///
    /// # Errors
    /// Names a component in use that this CPU doesn't have.
    pub(super) fn load(&self, cpu: &CpuX86, area: &mut XsaveArea) -> Result<(), MachineError> {
        let in_use = |component: &u32| cpu.xstate_bv >> component & 1 != 0;
        if let Some(missing) = (0..64).filter(in_use).find(|component| self.place(*component).is_none()) {
            return Err(format!("XSAVE component {missing} is in use, and this CPU does not have it").into());
        }
        let bytes = &mut area.0[..];
        let mask: [u8; 4] =
            [bytes[MXCSR_MASK], bytes[MXCSR_MASK + 1], bytes[MXCSR_MASK + 2], bytes[MXCSR_MASK + 3]];
        bytes.fill(0);
        bytes[MXCSR_MASK..MXCSR_MASK + 4].copy_from_slice(&mask);
        bytes[0..2].copy_from_slice(&cpu.fpuc.to_le_bytes());
        bytes[2..4].copy_from_slice(&cpu.fpus.to_le_bytes());
        bytes[4] = cpu.fptag as u8;
        bytes[6..8].copy_from_slice(&cpu.msrs.fpu_last_op.opcode.to_le_bytes());
        put(bytes, 8, cpu.msrs.fpu_last_op.instruction);
        put(bytes, 16, cpu.msrs.fpu_last_op.data);
        bytes[24..28].copy_from_slice(&cpu.mxcsr.to_le_bytes());
        let by_number = cpu.xstate_bv >> X87 & 1 == 0;
        let top = if by_number { usize::from(cpu.fpus >> TOP_SHIFT) % cpu.fpregs.len() } else { 0 };
        for (place, st) in cpu.fpregs.iter().cycle().skip(top).take(cpu.fpregs.len()).enumerate() {
            put(bytes, ST + 16 * place, st.mantissa);
            bytes[ST + 16 * place + 8..ST + 16 * place + 10].copy_from_slice(&st.exponent.to_le_bytes());
        }
        put_all(bytes, Some(XMM), cpu.xmm.as_flattened());
        put_all(bytes, self.place(AVX), cpu.ymmh.as_flattened());
        put_all(bytes, self.place(OPMASK), &cpu.msrs.avx512.opmask);
        put_all(bytes, self.place(ZMM_HI256), cpu.msrs.avx512.zmm_hi256.as_flattened());
        put_all(bytes, self.place(HI16_ZMM), cpu.msrs.avx512.hi16_zmm.as_flattened());
        put_all(bytes, self.place(PKRU), &[cpu.msrs.pkru.into()]);
        let in_use = cpu.xstate_bv | self.holding_values(bytes);
        put(bytes, XSTATE_BV, in_use);
        Ok(())
    }

    /// Components that are not as after a reset: for a section of KVM's nothing but what it says is in use.
    fn holding_values(&self, bytes: &[u8]) -> u64 {
        let holds = |component: u32| match component {
            X87 => {
                (u16_at(bytes, 0), u16_at(bytes, 2), bytes[4]) != (FCW_RESET, 0, 0)
                    || bytes[ST..XMM].iter().any(|byte| *byte != 0)
            }
            SSE => u32_at(bytes, 24) != MXCSR_RESET || bytes[XMM..XMM_END].iter().any(|byte| *byte != 0),
            _ => self.components[component as usize]
                .is_some_and(|(offset, size)| bytes[offset..offset + size].iter().any(|byte| *byte != 0)),
        };
        CARRIED
            .into_iter()
            .filter(|component| holds(*component))
            .fold(0, |bits, component| bits | 1 << component)
    }

    fn place(&self, component: u32) -> Option<usize> {
        self.components[component as usize].map(|(offset, _)| offset)
    }
}

/// Fills rows of words from a function of the byte offset.
fn words<const N: usize>(rows: &mut [[u64; N]], f: impl Fn(usize) -> u64) {
    for (index, word) in rows.as_flattened_mut().iter_mut().enumerate() {
        *word = f(8 * index);
    }
}

fn put(bytes: &mut [u8], at: usize, word: u64) {
    bytes[at..at + 8].copy_from_slice(&word.to_le_bytes());
}

fn put_all(bytes: &mut [u8], base: Option<usize>, words: &[u64]) {
    if let Some(base) = base {
        for (index, word) in words.iter().enumerate() {
            put(bytes, base + 8 * index, *word);
        }
    }
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from(u16_at(bytes, at)) | u32::from(u16_at(bytes, at + 2)) << 16
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The components of an AMD EPYC with AVX-512.
    fn layout() -> XsaveLayout {
        let leaf = |index, size, offset| kvm_bindings::kvm_cpuid_entry2 {
            function: 0xd,
            index,
            eax: size,
            ebx: offset,
            ..Default::default()
        };
        let leaves = [
            leaf(2, 0x100, 0x240),
            leaf(5, 0x40, 0x340),
            leaf(6, 0x200, 0x380),
            leaf(7, 0x400, 0x580),
            leaf(9, 8, 0x980),
        ];
        XsaveLayout::new(&CpuId::from_entries(&leaves).unwrap())
    }

    /// An area in which every byte the registers reach is told from every other, all seven components in use.
    fn area() -> XsaveArea {
        let mut bytes = Box::new([0; XSAVE_SIZE]);
        for (at, byte) in bytes.iter_mut().enumerate() {
            *byte = (at as u32).wrapping_mul(0x9e37_79b1).to_be_bytes()[0];
        }
        bytes[5] = 0;
        for place in 0..8 {
            bytes[ST + 16 * place + 10..ST + 16 * (place + 1)].fill(0);
        }
        bytes[416..XSTATE_BV].fill(0);
        put(&mut bytes[..], XSTATE_BV, 0b10_1110_0111);
        bytes[XSTATE_BV + 8..0x240].fill(0);
        bytes[0x984..].fill(0);
        XsaveArea(bytes)
    }

    #[test]
    fn every_register_comes_back_where_it_was() {
        let mut cpu = CpuX86::default();
        layout().save(&area(), &mut cpu).unwrap();
        let mut back = XsaveArea(Box::new([0; XSAVE_SIZE]));
        back.0[MXCSR_MASK..MXCSR_MASK + 4].copy_from_slice(&area().0[MXCSR_MASK..MXCSR_MASK + 4]);
        layout().load(&cpu, &mut back).unwrap();
        let differs = (0..XSAVE_SIZE).find(|at| area().0[*at] != back.0[*at]);
        assert_eq!(differs, None);
    }

    #[test]
    fn what_an_emulator_does_not_say_is_in_use_is_found() {
        let mut cpu = CpuX86::default();
        let in_use = |cpu: &CpuX86| {
            let mut back = XsaveArea(Box::new([0; XSAVE_SIZE]));
            layout().load(cpu, &mut back).unwrap();
            u64_at(&back.0[..], XSTATE_BV)
        };
        (cpu.fpuc, cpu.mxcsr) = (FCW_RESET, MXCSR_RESET);
        assert_eq!(in_use(&cpu), 0, "as after a reset");
        cpu.fpregs[3].exponent = 1;
        assert_eq!(in_use(&cpu), 0b1);
        cpu.mxcsr = 0xbf80;
        assert_eq!(in_use(&cpu), 0b11);
        cpu.msrs.avx512.opmask[7] = 1 << 63;
        assert_eq!(in_use(&cpu), 0b10_0011);
        layout().save(&area(), &mut cpu).unwrap();
        cpu.xstate_bv = 0;
        assert_eq!(in_use(&cpu), 0b10_1110_0111);
    }

    #[test]
    fn an_emulators_x87_registers_are_put_in_their_places() {
        let mut cpu = CpuX86::default();
        layout().save(&area(), &mut cpu).unwrap();
        cpu.fpus = 3 << TOP_SHIFT;
        let first = |cpu: &CpuX86| {
            let mut back = XsaveArea(Box::new([0; XSAVE_SIZE]));
            layout().load(cpu, &mut back).unwrap();
            u64_at(&back.0[..], ST)
        };
        assert_eq!(first(&cpu), cpu.fpregs[0].mantissa);
        cpu.xstate_bv = 0;
        assert_eq!(first(&cpu), cpu.fpregs[3].mantissa);
    }

    #[test]
    fn a_component_without_a_place_is_named() {
        let mut area = area();
        put(&mut area.0[..], XSTATE_BV, 1 << 18);
        let error = layout().save(&area, &mut CpuX86::default()).unwrap_err();
        assert!(error.0.contains("component 18"), "{error}");
    }

    #[test]
    fn a_component_this_cpu_lacks_is_named() {
        let plain = XsaveLayout::new(&CpuId::from_entries(&[]).unwrap());
        let cpu = CpuX86 { xstate_bv: 0b111, ..CpuX86::default() };
        let error = plain.load(&cpu, &mut area()).unwrap_err();
        assert!(error.0.contains("component 2"), "{error}");
    }
}
