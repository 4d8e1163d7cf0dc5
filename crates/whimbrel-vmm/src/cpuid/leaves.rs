//! Every leaf of a vCPU, as QEMU lays it out. [`super`] has the table.

use std::arch::x86_64::{__cpuid, __cpuid_count, CpuidResult};

use kvm_bindings::{KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};

use super::features::{self, Bits, Register, WORDS};
use super::register;

/// EBX, EDX, ECX of "AuthenticAMD".
const AMD: [u32; 3] = [0x6874_7541, 0x6974_6e65, 0x444d_4163];
/// Bits of 8000_0001h EDX that on AMD repeat those of leaf 1.
const AMD_ALIASES: u32 = 0x0183_f3ff;
/// Family 15, model 107, stepping 1.
const QEMU64_SIGNATURE: u32 = 0x0006_0fb1;
const QEMU64_NAME: &[u8; 48] = b"QEMU Virtual CPU version 2.5+\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
const HTT: u32 = 1 << 28;
const CMP_LEGACY: u32 = 1 << 1;
const LA57: u32 = 1 << 16;
const XSAVE: u32 = 1 << 26;
const ERMS: u32 = 1 << 9;
const FSRM: u32 = 1 << 4;
/// XSAVE components that sections carry: x87, SSE, AVX, opmask, the two of AVX-512, PKRU.
const CARRIED_COMPONENTS: u32 = 0x2e7;

/// What CPUID says on the host itself.
pub(super) struct Host {
    vendor: [u32; 3],
    signature: u32,
    name: [u32; 12],
    physical_bits: u32,
    /// EBX and EDX of leaf 7: fast string operations, which work for a guest whether KVM offers them or not.
    pub(super) fast_strings: [u32; 2],
}

impl Host {
    /// This one.
    pub(super) fn this() -> Self {
        let CpuidResult { ebx, ecx, edx, .. } = __cpuid(0);
        let limit = __cpuid(0x8000_0000).eax;
        let mut name = [0; 12];
        if limit >= 0x8000_0004 {
            for (leaf, words) in (0x8000_0002..).zip(name.chunks_exact_mut(4)) {
                let CpuidResult { eax, ebx, ecx, edx } = __cpuid(leaf);
                words.copy_from_slice(&[eax, ebx, ecx, edx]);
            }
        }
        let physical_bits = if limit >= 0x8000_0008 { __cpuid(0x8000_0008).eax & 0xff } else { 36 };
        let seventh = __cpuid_count(7, 0);
        let fast_strings = [seventh.ebx & ERMS, seventh.edx & FSRM];
        Self { vendor: [ebx, edx, ecx], signature: __cpuid(1).eax, name, physical_bits, fast_strings }
    }

    pub(super) fn is_amd(&self) -> bool {
        self.vendor == AMD
    }

    #[cfg(test)]
    pub(super) fn made_up(amd: bool, signature: u32, name: &[u8; 48], physical_bits: u32) -> Self {
        let vendor = if amd { AMD } else { [0x756e_6547, 0x4965_6e69, 0x6c65_746e] };
        Self { vendor, signature, name: words(name), physical_bits, fast_strings: [ERMS, FSRM] }
    }
}

/// What the leaves follow from.
pub(super) struct Layout<'a> {
    /// The host.
    pub(super) host: &'a Host,
    /// KVM's own table.
    pub(super) supported: &'a [kvm_cpuid_entry2],
    /// The features given.
    pub(super) bits: &'a Bits,
    /// Model `qemu64`, else `host`.
    pub(super) qemu64: bool,
    /// As QEMU 7.2 has them.
    pub(super) v7_2: bool,
    /// The guest has performance counters.
    pub(super) pmu: bool,
    /// How many vCPUs there are.
    pub(super) cpus: u32,
}

impl Layout<'_> {
    /// The table of vCPU `index`.
    pub(super) fn leaves(&self, index: u32) -> Vec<kvm_cpuid_entry2> {
        let mut leaves = self.basic(index);
        leaves.extend(self.xsave());
        leaves.extend(self.extended(index));
        leaves.extend([
            leaf(0x4000_0000, [0x4000_0001, 0x4b4d_564b, 0x564b_4d56, 0x4d]),
            leaf(0x4000_0001, [self.bits[features::KVM_EAX], 0, 0, 0]),
        ]);
        leaves
    }

    fn basic(&self, index: u32) -> Vec<kvm_cpuid_entry2> {
        let (bits, n) = (self.bits, self.cpus);
        let [b, d, c] = self.host.vendor;
        let many = u32::from(n > 1);
        let signature = if self.qemu64 { QEMU64_SIGNATURE } else { self.host.signature };
        let mut leaves = vec![
            leaf(0, [self.basic_limit(), b, c, d]),
            leaf(
                1,
                [
                    signature,
                    (index << 24) | (many * (n << 16)) | (8 << 8),
                    bits[features::LEAF1_ECX],
                    bits[features::LEAF1_EDX] | (many * HTT),
                ],
            ),
            // MWAIT's, whether there is MWAIT or not.
            leaf(5, [0, 0, 3, 0]),
            subleaf(0xb, 0, [0, 1, 0x100, index]),
            subleaf(0xb, 1, [width(n), n, 0x201, index]),
            subleaf(0xb, 2, [0, 0, 2, index]),
        ];
        if !self.host.is_amd() {
            leaves.push(leaf(2, [1, 0, 0x4d, 0x002c_307d]));
            let cores = if self.v7_2 { n - 1 } else { (1 << width(n)) - 1 } << 26;
            let package = ((1 << width(n)) - 1) << 14;
            leaves.extend([
                subleaf(4, 0, [cores | 0x121, 0x01c0_003f, 0x3f, 1]),
                subleaf(4, 1, [cores | 0x122, 0x01c0_003f, 0x3f, 1]),
                subleaf(4, 2, [cores | 0x143, 0x03c0_003f, 0xfff, 1]),
                subleaf(4, 3, [cores | package | 0x163, 0x03c0_003f, 0x3fff, 6]),
            ]);
        }
        if self.pmu && register(self.supported, 0xa, 0, Register::Eax) != 0 {
            let kvms = |which| register(self.supported, 0xa, 0, which);
            leaves.push(leaf(0xa, [Register::Eax, Register::Ebx, Register::Ecx, Register::Edx].map(kvms)));
        }
        leaves.push(leaf(6, self.words(6, 0)));
        // Sub-leaves beyond the last in use are absent: some KVMs add the host's bits to those that are there.
        let mut seventh = [0, 1, 2].map(|index| self.words(7, index));
        let last = seventh.iter().rposition(|words| *words != [0; 4]).unwrap_or(0);
        seventh[0][0] = last as u32;
        leaves.extend((0..).zip(&seventh[..=last]).map(|(index, words)| subleaf(7, index, *words)));
        leaves
    }

    /// The components of the features given. A KVM that cannot hide XSAVE has it in leaf 0dh only: its components are there all the
    /// same, or the registers that such a guest can use would not be moved.
    fn xsave(&self) -> Vec<kvm_cpuid_entry2> {
        let supported = register(self.supported, 0xd, 0, Register::Eax) & CARRIED_COMPONENTS;
        let kvm_hides_xsave = register(self.supported, 1, 0, Register::Ecx) & XSAVE != 0;
        let given = self.bits[features::LEAF1_ECX] & XSAVE != 0;
        if supported == 0 || kvm_hides_xsave && !given {
            return Vec::new();
        }
        let components = if given { supported & self.components() } else { supported };
        let entry = |index: u32| {
            let of = |which| register(self.supported, 0xd, index, which);
            (of(Register::Eax), of(Register::Ebx), of(Register::Ecx))
        };
        let mut size = 0x240;
        let mut leaves = Vec::new();
        for index in (2..32).filter(|index| components >> index & 1 != 0) {
            let (bytes, offset, flags) = entry(index);
            size = size.max(offset.saturating_add(bytes));
            leaves.push(subleaf(0xd, index, [bytes, offset, flags, 0]));
        }
        let features = if given { self.bits[features::XSAVE_EAX] } else { entry(1).0 };
        leaves.push(subleaf(0xd, 0, [components, size, size, 0]));
        leaves.push(subleaf(0xd, 1, [features, if features & 0b1010 != 0 { size } else { 0 }, 0, 0]));
        leaves
    }

    /// Components that belong to the features given.
    fn components(&self) -> u32 {
        let avx = self.bits[features::LEAF1_ECX] >> 28 & 1;
        let avx512 = self.words(7, 0)[1] >> 16 & 1;
        let pku = self.bits[features::LEAF7_ECX] >> 3 & 1;
        0b11 | (avx << 2) | (avx512 * (0b111 << 5)) | (pku << 9)
    }

    fn extended(&self, index: u32) -> Vec<kvm_cpuid_entry2> {
        let (bits, n) = (self.bits, self.cpus);
        let [b, d, c] = self.host.vendor;
        let amd = self.host.is_amd();
        let signature = if self.qemu64 { QEMU64_SIGNATURE } else { self.host.signature };
        let aliases = if amd { bits[features::LEAF1_EDX] & AMD_ALIASES } else { 0 };
        let legacy = if amd && n > 1 { CMP_LEGACY } else { 0 };
        let name = if self.qemu64 { words(QEMU64_NAME) } else { self.host.name };
        let linear = if bits[features::LEAF7_ECX] & LA57 != 0 { 57 } else { 48 };
        let threads = if n > 1 { width(n) << 12 | (n - 1) } else { 0 };
        let limit = self.extended_limit();
        let mut leaves = vec![
            leaf(0x8000_0000, [limit, b, c, d]),
            leaf(
                0x8000_0001,
                [
                    signature,
                    0,
                    bits[features::EXT1_ECX] | legacy,
                    bits[features::EXT1_EDX] & !AMD_ALIASES | aliases,
                ],
            ),
            leaf(0x8000_0005, [0x01ff_01ff, 0x01ff_01ff, 0x4002_0140, 0x4002_0140]),
            leaf(0x8000_0006, [0, 0x4200_4200, 0x0200_8140, 0x0080_8140]),
            leaf(0x8000_0007, self.words(0x8000_0007, 0)),
            leaf(
                0x8000_0008,
                [linear << 8 | self.host.physical_bits, self.words(0x8000_0008, 0)[1], threads, 0],
            ),
        ];
        for (function, part) in (0x8000_0002..).zip(name.chunks_exact(4)) {
            leaves.push(leaf(function, [part[0], part[1], part[2], part[3]]));
        }
        if limit >= 0x8000_001d {
            let sharing = if self.v7_2 { n - 1 } else { (1 << width(n)) - 1 } << 14;
            leaves.extend([
                subleaf(0x8000_001d, 0, [0x121, 0x0040_003f, 0x1ff, 1]),
                subleaf(0x8000_001d, 1, [0x122, 0x0040_003f, 0x1ff, 1]),
                subleaf(0x8000_001d, 2, [0x043, 0x03c0_003f, 0x1ff, 0]),
                subleaf(
                    0x8000_001d,
                    3,
                    [sharing | 0x163, 0x03c0_003f, 0x3fff, if self.v7_2 { 6 } else { 2 }],
                ),
            ]);
        }
        if limit >= 0x8000_001e {
            leaves.push(leaf(0x8000_001e, [index, index, 0, 0]));
        }
        for function in [0x8000_0021, 0x8000_0022] {
            leaves.push(leaf(function, self.words(function, 0)));
        }
        leaves
    }

    fn basic_limit(&self) -> u32 {
        if self.qemu64 { 0xd } else { register(self.supported, 0, 0, Register::Eax) }
    }

    /// Raised to what a feature added to the model needs.
    fn extended_limit(&self) -> u32 {
        let model =
            if self.qemu64 { 0x8000_000a } else { register(self.supported, 0x8000_0000, 0, Register::Eax) };
        let used = WORDS.iter().zip(self.bits).filter(|(_, bits)| **bits != 0).map(|(word, _)| word.leaf);
        used.max().unwrap_or(0).max(model)
    }

    /// The feature bits of a leaf.
    fn words(&self, leaf: u32, index: u32) -> [u32; 4] {
        let mut words = [0; 4];
        for (word, bits) in
            WORDS.iter().zip(self.bits).filter(|(word, _)| (word.leaf, word.index) == (leaf, index))
        {
            words[word.register as usize] = *bits;
        }
        words
    }
}

fn leaf(function: u32, [eax, ebx, ecx, edx]: [u32; 4]) -> kvm_cpuid_entry2 {
    kvm_cpuid_entry2 { function, eax, ebx, ecx, edx, ..Default::default() }
}

fn subleaf(function: u32, index: u32, registers: [u32; 4]) -> kvm_cpuid_entry2 {
    kvm_cpuid_entry2 { index, flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX, ..leaf(function, registers) }
}

/// Bits that number `n` things.
fn width(n: u32) -> u32 {
    n.next_power_of_two().trailing_zeros()
}

fn words(text: &[u8; 48]) -> [u32; 12] {
    std::array::from_fn(|word| u32::from_le_bytes(std::array::from_fn(|byte| text[4 * word + byte])))
}
