//! Feature bits of CPUID by name, and which of them QEMU's CPU models have.
//!
//! A *word* is one register of one leaf. The masks were taken from the running programs: QEMU 7.2 and 10.0 were told that KVM supports
//! every bit of every word, and the leaves they then gave to a vCPU of model `host` were read back. Names are those of `-cpu help`; a
//! dot is a bit without one. Bits whose state no section of ours carries are left out of every model (`uncarried`): SVM, VMX,
//! SGX, MPX, Intel PT, architectural LBR, AMX and FRED.

use whimbrel_vmstate::Level;

/// A register of a CPUID leaf.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Register {
    /// EAX.
    Eax,
    /// EBX.
    Ebx,
    /// ECX.
    Ecx,
    /// EDX.
    Edx,
}

/// 32 feature bits.
pub(super) struct Word {
    /// The leaf.
    pub(super) leaf: u32,
    /// The sub-leaf.
    pub(super) index: u32,
    /// The register.
    pub(super) register: Register,
    /// Names of the bits, from bit 0.
    names: &'static str,
    /// Bits that QEMU 7.2, and 10.0, pass on from the host.
    known: [u32; 2],
    /// Bits that model `qemu64` asks for.
    pub(super) qemu64: u32,
    /// Bits whose state is not carried.
    uncarried: u32,
}

/// Places of words that rules of their own refer to.
pub(super) const LEAF1_EDX: usize = 0;
pub(super) const LEAF1_ECX: usize = 1;
pub(super) const LEAF7_EBX: usize = 2;
pub(super) const LEAF7_ECX: usize = 3;
pub(super) const LEAF7_EDX: usize = 4;
pub(super) const XSAVE_EAX: usize = 8;
pub(super) const EXT1_EDX: usize = 10;
pub(super) const EXT1_ECX: usize = 11;
pub(super) const EXT7_EBX: usize = 12;
pub(super) const EXT22_EAX: usize = 15;
pub(super) const KVM_EAX: usize = 16;

/// All words.
pub(super) const WORDS: [Word; 17] = [
    Word {
        leaf: 1,
        index: 0,
        register: Register::Edx,
        names: "fpu vme de pse tsc msr pae mce cx8 apic . sep mtrr pge mca cmov pat pse36 pn clflush . ds acpi mmx fxsr \
                sse sse2 ss ht tm ia64 pbe",
        known: [0xffef_fbff, 0xefef_fbff],
        qemu64: 0x078b_fbfd,
        uncarried: 0,
    },
    Word {
        leaf: 1,
        index: 0,
        register: Register::Ecx,
        names: "pni pclmulqdq dtes64 monitor ds-cpl vmx smx est tm2 ssse3 cid . fma cx16 xtpr pdcm . pcid dca sse4.1 \
                sse4.2 x2apic movbe popcnt tsc-deadline aes xsave . avx f16c rdrand hypervisor",
        known: [0xf7fe_f7ff, 0xf7fe_f7ff],
        qemu64: 0x8020_2001,
        uncarried: 1 << 5,
    },
    Word {
        leaf: 7,
        index: 0,
        register: Register::Ebx,
        names: "fsgsbase tsc-adjust sgx bmi1 hle avx2 fdp-excptn-only smep bmi2 erms invpcid rtm . zero-fcs-fds mpx . \
                avx512f avx512dq rdseed adx smap avx512ifma pcommit clflushopt clwb intel-pt avx512pf avx512er \
                avx512cd sha-ni avx512bw avx512vl",
        known: [0xfdff_4fbf, 0xfdff_6ffb],
        qemu64: 0,
        uncarried: 1 << 2 | 1 << 14 | 1 << 25,
    },
    Word {
        leaf: 7,
        index: 0,
        register: Register::Ecx,
        names: ". avx512vbmi umip pku ospke waitpkg avx512vbmi2 . gfni vaes vpclmulqdq avx512vnni avx512bitalg . \
                avx512-vpopcntdq . la57 . . . . . rdpid . bus-lock-detect cldemote . movdiri movdir64b . sgxlc pks",
        known: [0xdb41_5f6e, 0x9b41_5f6e],
        qemu64: 0,
        uncarried: 1 << 30,
    },
    Word {
        leaf: 7,
        index: 0,
        register: Register::Edx,
        names: ". . avx512-4vnniw avx512-4fmaps fsrm . . . avx512-vp2intersect . md-clear . . . serialize . tsx-ldtrk . . \
                arch-lbr . . amx-bf16 avx512-fp16 amx-tile amx-int8 spec-ctrl stibp flush-l1d arch-capabilities \
                core-capability ssbd",
        known: [0xefc9_451c, 0xffc9_451c],
        qemu64: 0,
        uncarried: 1 << 19 | 1 << 22 | 1 << 24 | 1 << 25,
    },
    Word {
        leaf: 7,
        index: 1,
        register: Register::Eax,
        names: "sha512 sm3 sm4 . avx-vnni avx512-bf16 . cmpccxadd . . fzrm fsrs fsrc . . . . fred lkgs wrmsrns . amx-fp16 . \
                avx-ifma . . lam",
        known: [0x0000_0030, 0x04ae_1cb7],
        qemu64: 0,
        uncarried: 1 << 17 | 1 << 21,
    },
    Word {
        leaf: 7,
        index: 1,
        register: Register::Edx,
        names: ". . . . avx-vnni-int8 avx-ne-convert . . amx-complex . avx-vnni-int16 . . . prefetchiti",
        known: [0, 0x0000_4530],
        qemu64: 0,
        uncarried: 1 << 8,
    },
    Word {
        leaf: 7,
        index: 2,
        register: Register::Edx,
        names: "intel-psfd ipred-ctrl rrsba-ctrl ddpd-u bhi-ctrl mcdt-no",
        known: [0, 0x0000_003f],
        qemu64: 0,
        uncarried: 0,
    },
    Word {
        leaf: 0xd,
        index: 1,
        register: Register::Eax,
        names: "xsaveopt xsavec xgetbv1 xsaves xfd",
        known: [0x1f, 0x1f],
        qemu64: 0,
        uncarried: 1 << 4,
    },
    Word {
        leaf: 6,
        index: 0,
        register: Register::Eax,
        names: ". . arat",
        known: [4, 4],
        qemu64: 0,
        uncarried: 0,
    },
    Word {
        leaf: 0x8000_0001,
        index: 0,
        register: Register::Edx,
        names: ". . . . . . . . . . . syscall . . . . . . . mp nx . mmxext . . fxsr-opt pdpe1gb rdtscp . lm 3dnowext 3dnow",
        known: [0xefd3_fbff, 0xefd3_fbff],
        qemu64: 0x2010_0800,
        uncarried: 0,
    },
    Word {
        leaf: 0x8000_0001,
        index: 0,
        register: Register::Ecx,
        names: "lahf-lm cmp-legacy svm extapic cr8legacy abm sse4a misalignsse 3dnowprefetch osvw ibs xop skinit wdt . lwp \
                fma4 tce . nodeid-msr . tbm topoext perfctr-core perfctr-nb",
        known: [0x01ab_bfff, 0x01ab_bfff],
        qemu64: 1,
        uncarried: 1 << 2,
    },
    Word {
        leaf: 0x8000_0007,
        index: 0,
        register: Register::Ebx,
        names: "overflow-recov succor",
        known: [0, 3],
        qemu64: 0,
        uncarried: 0,
    },
    Word {
        leaf: 0x8000_0008,
        index: 0,
        register: Register::Ebx,
        names: "clzero . xsaveerptr . . . . . . wbnoinvd . . ibpb . ibrs amd-stibp . stibp-always-on . . . . . . amd-ssbd \
                virt-ssbd amd-no-ssb . amd-psfd",
        known: [0x0700_d205, 0x1702_d205],
        qemu64: 0,
        uncarried: 0,
    },
    Word {
        leaf: 0x8000_0021,
        index: 0,
        register: Register::Eax,
        names: "no-nested-data-bp . lfence-always-serializing . . . null-sel-clr-base . auto-ibrs",
        known: [0, 0x7900_0145],
        qemu64: 0,
        uncarried: 0,
    },
    Word {
        leaf: 0x8000_0022,
        index: 0,
        register: Register::Eax,
        names: "perfmon-v2",
        known: [0, 1],
        qemu64: 0,
        uncarried: 0,
    },
    Word {
        leaf: 0x4000_0001,
        index: 0,
        register: Register::Eax,
        names: "kvmclock kvm-nopiodelay kvm-mmu kvmclock kvm-asyncpf kvm-steal-time kvm-pv-eoi kvm-pv-unhalt . \
                kvm-pv-tlb-flush kvm-asyncpf-vmexit kvm-pv-ipi kvm-poll-control kvm-pv-sched-yield kvm-asyncpf-int \
                kvm-msi-ext-dest-id . . . . . . . . kvmclock-stable-bit",
        known: [0x0100_faff, 0x0100_feff],
        qemu64: 0x0100_807b,
        uncarried: 0,
    },
];

/// Bits by word, in the order of [`WORDS`].
pub(super) type Bits = [u32; WORDS.len()];

impl Word {
    /// Bits that QEMU of this level gives a guest where the host has them, and whose state is carried.
    pub(super) fn known(&self, level: Level) -> u32 {
        // Between the two QEMU was not measured; 9.0 is taken for what 10.0 is.
        let version = usize::from(level > Level::V7_2);
        self.known[version] & !self.uncarried
    }

    /// The bits of that name.
    fn named(&self, name: &str) -> u32 {
        let bits = self
            .names
            .split_ascii_whitespace()
            .enumerate()
            .filter(|(_, known)| *known == name && name != ".");
        bits.fold(0, |bits, (bit, _)| bits | 1 << bit)
    }

    /// The names of bits; those without one by their place.
    fn names(&self, bits: u32) -> impl Iterator<Item = String> + '_ {
        let mut names = self.names.split_ascii_whitespace();
        (0..32)
            .map(move |bit| (bit, names.next().unwrap_or(".")))
            .filter(move |(bit, _)| bits >> bit & 1 != 0)
            .map(|(bit, name)| match name {
                "." => format!("CPUID {:#x}.{} {:?} bit {bit}", self.leaf, self.index, self.register),
                name => name.to_owned(),
            })
    }
}

/// Where a feature lies: its word and its bits; `None` if no CPU of ours can have one of that name.
pub(super) fn find(name: &str) -> Option<(usize, u32)> {
    let places = WORDS.iter().enumerate().map(|(word, at)| (word, at.named(name) & !at.uncarried));
    places.into_iter().find(|(_, bits)| *bits != 0)
}

/// The names of all these bits.
pub(super) fn names(bits: &Bits) -> Vec<String> {
    WORDS.iter().zip(bits).flat_map(|(word, bits)| word.names(*bits)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_places_of_words_are_those_of_the_table() {
        let at = |place: usize| (WORDS[place].leaf, WORDS[place].index, WORDS[place].register);
        assert_eq!(at(LEAF1_EDX), (1, 0, Register::Edx));
        assert_eq!(at(LEAF1_ECX), (1, 0, Register::Ecx));
        assert_eq!(at(LEAF7_EBX), (7, 0, Register::Ebx));
        assert_eq!(at(LEAF7_ECX), (7, 0, Register::Ecx));
        assert_eq!(at(LEAF7_EDX), (7, 0, Register::Edx));
        assert_eq!(at(XSAVE_EAX), (0xd, 1, Register::Eax));
        assert_eq!(at(EXT1_EDX), (0x8000_0001, 0, Register::Edx));
        assert_eq!(at(EXT1_ECX), (0x8000_0001, 0, Register::Ecx));
        assert_eq!(at(EXT7_EBX), (0x8000_0007, 0, Register::Ebx));
        assert_eq!(at(EXT22_EAX), (0x8000_0022, 0, Register::Eax));
        assert_eq!(at(KVM_EAX), (0x4000_0001, 0, Register::Eax));
    }

    /// A name a bit further on would give a guest another feature than the one asked for.
    #[test]
    fn names_lie_where_the_architecture_has_them() {
        let bit = |name: &str| find(name).map(|(word, bits)| (WORDS[word].leaf, bits)).unwrap();
        assert_eq!(bit("hypervisor"), (1, 1 << 31));
        assert_eq!(bit("sse2"), (1, 1 << 26));
        assert_eq!(bit("ht"), (1, 1 << 28));
        assert_eq!(bit("avx512vl"), (7, 1 << 31));
        assert_eq!(bit("pks"), (7, 1 << 31));
        assert_eq!(bit("rdpid"), (7, 1 << 22));
        assert_eq!(bit("ssbd"), (7, 1 << 31));
        assert_eq!(bit("arch-capabilities"), (7, 1 << 29));
        assert_eq!(bit("lam"), (7, 1 << 26));
        assert_eq!(bit("3dnow"), (0x8000_0001, 1 << 31));
        assert_eq!(bit("perfctr-core"), (0x8000_0001, 1 << 23));
        assert_eq!(bit("amd-psfd"), (0x8000_0008, 1 << 28));
        assert_eq!(bit("kvmclock"), (0x4000_0001, 0b1001));
        assert_eq!(bit("kvmclock-stable-bit"), (0x4000_0001, 1 << 24));
        assert_eq!(find("svm"), None);
        assert_eq!(find("."), None);
    }
}
