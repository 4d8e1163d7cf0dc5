//! The CPU a guest sees: the CPUID leaves that QEMU gives with the same model, on the same host, at the same level.
//!
//! A guest must not see its CPU change under its feet when it comes from QEMU or goes there, so the leaves are QEMU's, bit for bit,
//! including its legacy cache sizes and its topology: one package of as many cores as there are vCPUs. They were learnt by reading what
//! QEMU 7.2 and 10.0 hand to KVM_SET_CPUID2, for both models, both vendors and one to three vCPUs; the tests compare what
//! a guest sees in both programs.
//!
//! | leaf | `host` | `qemu64` |
//! |---|---|---|
//! | 0, 8000_0000h: limits | KVM's | 0dh, 8000_000ah |
//! | 1, 8000_0001h: signature | the host's | family 15, model 107, stepping 1 |
//! | features (1, 6, 7, 0dh.1, 8000_0001h, 7h, 8h, 21h, 22h, 4000_0001h) | what KVM and that QEMU know | a fixed set, where KVM has them |
//! | 2, 4, 8000_0005h, 6h, 1dh: caches | QEMU's legacy sizes; 2 and 4 for Intel, 1dh where the limit reaches it | the same |
//! | 0ah: performance counters | KVM's; with `pmu=off` none | none |
//! | 0bh, 8000_001eh: topology | by vCPU | by vCPU |
//! | 0dh: XSAVE | KVM's, for the components of the features given | the same |
//! | 8000_0002h: name | the host's | QEMU Virtual CPU version 2.5+ |
//! | 8000_0008h: widths | physical: the host's (microvm's way); linear: 57 with LA57, else 48 | the same |
//!
//! Where it cannot be QEMU's: features whose state no section of ours carries (`features.rs` lists them) are never given, so QEMU's
//! counterpart of `host` is `host,-svm,-vmx,-mpx,-intel-pt,-arch-lbr` on a host that has them. IA32_ARCH_CAPABILITIES is given
//! where KVM takes the value QEMU would write, and left out where it doesn't (QEMU then does not start).

mod features;
mod leaves;
mod model;

use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES, Msrs, kvm_cpuid_entry2, kvm_msr_entry};
use kvm_ioctls::{Cap, Kvm, VcpuFd};
use whimbrel_vmstate::Level;

use crate::error::Error;
use features::{Bits, Register, WORDS};
use leaves::Host;
use model::Base;
pub use model::CpuModel;

/// IA32_ARCH_CAPABILITIES: what the CPU is not vulnerable to.
const ARCH_CAPABILITIES: u32 = 0x10a;
/// IA32_BIOS_SIGN_ID: the microcode's revision.
const UCODE_REV: u32 = 0x8b;
/// The bits of IA32_ARCH_CAPABILITIES that QEMU has names for.
const ARCH_CAPABILITIES_KNOWN: u64 = 0x4000_0000_0eef_bbff;

/// A model on this host: all that its vCPUs have in common.
pub struct CpuProfile {
    model: CpuModel,
    bits: Bits,
    host: Host,
    supported: CpuId,
    level: Level,
    cpus: u32,
    ucode: Option<u64>,
    arch_capabilities: u64,
}

impl CpuProfile {
    /// Works out what this host's KVM can give of `model`.
    ///
    /// # Errors
    /// If KVM does not say what it supports; with `enforce`, if a feature is missing: it is named.
    pub fn new(kvm: &Kvm, model: &CpuModel, level: Level, cpus: u32) -> Result<Self, Error> {
        let supported =
            kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).map_err(Error::kvm("KVM_GET_SUPPORTED_CPUID"))?;
        let host = Host::this();
        let offered = offered(&supported, &host, level, kvm.check_extension(Cap::TscDeadlineTimer));
        let (bits, missing) = resolve(model, &offered, level);
        let missing = features::names(&missing);
        if !missing.is_empty() {
            let text = format!("CPU model '{model}': this host's KVM has no {}", missing.join(", "));
            if model.enforce {
                return Err(Error::Config(text));
            }
            tracing::warn!("{text}; the guest gets none");
        }
        let arch_capabilities = feature_msr(kvm, ARCH_CAPABILITIES).unwrap_or(0) & ARCH_CAPABILITIES_KNOWN;
        let ucode = feature_msr(kvm, UCODE_REV);
        Ok(Self { model: model.clone(), bits, host, supported, level, cpus, ucode, arch_capabilities })
    }

    /// What this host's KVM supports, whatever the model: where XSAVE components lie.
    pub(crate) fn supported(&self) -> &CpuId {
        &self.supported
    }

    /// Gives a vCPU just made its leaves and its feature MSRs; answers with the leaves.
    ///
    /// # Errors
    /// If KVM refuses them.
    pub fn give(&self, fd: &VcpuFd, index: u32) -> Result<CpuId, Error> {
        let mut bits = self.bits;
        let mut cpuid = self.set(fd, index, &bits)?;
        let bit = 1 << 29;
        if bits[features::LEAF7_EDX] & bit != 0 && !write_msr(fd, ARCH_CAPABILITIES, self.arch_capabilities) {
            tracing::info!("KVM refuses IA32_ARCH_CAPABILITIES {:#x}: left out", self.arch_capabilities);
            bits[features::LEAF7_EDX] &= !bit;
            cpuid = self.set(fd, index, &bits)?;
        }
        if let Some(ucode) = self.ucode
            && !write_msr(fd, UCODE_REV, ucode)
        {
            tracing::debug!("KVM refuses the microcode revision {ucode:#x}");
        }
        Ok(cpuid)
    }

    fn set(&self, fd: &VcpuFd, index: u32, bits: &Bits) -> Result<CpuId, Error> {
        let entries = self.leaves(index, bits);
        let cpuid = CpuId::from_entries(&entries)
            .map_err(|_| Error::Config("more CPUID leaves than KVM takes".into()))?;
        fd.set_cpuid2(&cpuid).map_err(Error::kvm("KVM_SET_CPUID2"))?;
        Ok(cpuid)
    }

    fn leaves(&self, index: u32, bits: &Bits) -> Vec<kvm_cpuid_entry2> {
        let layout = leaves::Layout {
            host: &self.host,
            supported: self.supported.as_slice(),
            bits,
            qemu64: self.model.base == Base::Qemu64,
            v7_2: self.level <= Level::V7_2,
            pmu: self.model.pmu(),
            cpus: self.cpus,
        };
        layout.leaves(index)
    }
}

/// Features that tell of performance counters: PDCM, AMD's core and northbridge ones, version 2.
const PMU: [(usize, u32); 3] =
    [(features::LEAF1_ECX, 1 << 15), (features::EXT1_ECX, 0b11 << 23), (features::EXT22_EAX, !0)];

/// A register of a leaf in a table; 0 if it isn't there.
fn register(table: &[kvm_cpuid_entry2], leaf: u32, index: u32, register: Register) -> u32 {
    let Some(entry) = table.iter().find(|entry| (entry.function, entry.index) == (leaf, index)) else {
        return 0;
    };
    match register {
        Register::Eax => entry.eax,
        Register::Ebx => entry.ebx,
        Register::Ecx => entry.ecx,
        Register::Edx => entry.edx,
    }
}

/// The bits that a guest can be given here: KVM's, and those that are KVM's without its saying so.
fn offered(supported: &CpuId, host: &Host, level: Level, deadline: bool) -> Bits {
    let mut offered = [0; WORDS.len()];
    for (bits, word) in offered.iter_mut().zip(&WORDS) {
        *bits = register(supported.as_slice(), word.leaf, word.index, word.register);
    }
    // x2APIC and the TSC deadline are those of KVM's LAPIC, the hypervisor bit is ours to give.
    offered[features::LEAF1_ECX] |= 1 << 31 | 1 << 21 | u32::from(deadline) << 24;
    // Without MWAIT exits a guest's MONITOR is none.
    offered[features::LEAF1_ECX] &= !(1 << 3);
    offered[features::KVM_EAX] |= 1 << 15;
    if host.is_amd() {
        offered[features::EXT7_EBX] |= 3;
    }
    if level > Level::V7_2 {
        offered[features::LEAF7_EBX] |= host.fast_strings[0];
        offered[features::LEAF7_EDX] |= host.fast_strings[1];
    }
    for (bits, word) in offered.iter_mut().zip(&WORDS) {
        *bits &= word.known(level);
    }
    offered
}

/// A model's bits of those offered, and those it asked for that are not.
fn resolve(model: &CpuModel, offered: &Bits, level: Level) -> (Bits, Bits) {
    let mut wanted = match model.base {
        Base::Host => *offered,
        Base::Qemu64 => std::array::from_fn(|word| WORDS[word].qemu64 & WORDS[word].known(level)),
    };
    for (word, bits, add) in &model.changes {
        if *add { wanted[*word] |= bits } else { wanted[*word] &= !bits }
    }
    if !model.pmu() {
        for (word, counters) in PMU {
            wanted[word] &= !counters;
        }
    }
    let missing = std::array::from_fn(|word| wanted[word] & !offered[word]);
    (std::array::from_fn(|word| wanted[word] & offered[word]), missing)
}

/// A feature MSR of the host's KVM, if it has it.
fn feature_msr(kvm: &Kvm, index: u32) -> Option<u64> {
    let mut msrs = Msrs::from_entries(&[kvm_msr_entry { index, ..Default::default() }]).ok()?;
    let count = kvm.get_msrs(&mut msrs).ok()?;
    msrs.as_slice().first().filter(|_| count == 1).map(|entry| entry.data)
}

fn write_msr(fd: &VcpuFd, index: u32, data: u64) -> bool {
    let msrs = Msrs::from_entries(&[kvm_msr_entry { index, data, ..Default::default() }]);
    msrs.is_ok_and(|msrs| fd.set_msrs(&msrs).is_ok_and(|count| count == 1))
}

#[cfg(test)]
mod tests;
