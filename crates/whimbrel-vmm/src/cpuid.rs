//! The CPU a guest sees: what this host's KVM supports, less what no section of the stream could carry.
//!
//! A function of the host alone, so two processes on one host (or on two equal ones) agree.

use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2};
use kvm_ioctls::{Cap, Kvm};

use crate::error::Error;

/// CPUID of vCPU `index`: a package of one core and one thread.
///
/// # Errors
/// If KVM does not say what it supports.
pub fn for_vcpu(kvm: &Kvm, index: u32) -> Result<CpuId, Error> {
    let supported =
        kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).map_err(Error::kvm("KVM_GET_SUPPORTED_CPUID"))?;
    let deadline = kvm.check_extension(Cap::TscDeadlineTimer);
    let entries: Vec<_> = supported
        .as_slice()
        .iter()
        .filter(|entry| !is_hidden(entry))
        .map(|entry| adapt(*entry, index, deadline))
        .collect();
    CpuId::from_entries(&entries).map_err(|_| Error::Config("more CPUID leaves than KVM takes".into()))
}

/// Leaves that describe what the guest doesn't get.
fn is_hidden(entry: &kvm_cpuid_entry2) -> bool {
    // Performance counters (Intel, AMD), SGX, processor trace, AMX tiles, memory encryption.
    matches!(entry.function, 0xa | 0x12 | 0x14 | 0x1d | 0x1e | 0x8000_001f | 0x8000_0022)
}

fn adapt(mut entry: kvm_cpuid_entry2, index: u32, deadline: bool) -> kvm_cpuid_entry2 {
    let set = |word: &mut u32, bit: u32, on: bool| *word = *word & !(1 << bit) | u32::from(on) << bit;
    match entry.function {
        0x1 => {
            entry.ebx = index << 24 | 1 << 16 | entry.ebx & 0xffff;
            set(&mut entry.edx, 28, false); // HTT: one logical processor a package
            set(&mut entry.ecx, 5, false); // VMX: nested state is not carried
            set(&mut entry.ecx, 15, false); // PDCM
            set(&mut entry.ecx, 24, deadline);
            set(&mut entry.ecx, 31, true); // hypervisor
        }
        0x4 => {
            entry.eax &= 0x3fff;
        }
        0x7 if entry.index == 0 => {
            set(&mut entry.ebx, 2, false); // SGX
            set(&mut entry.ebx, 25, false); // processor trace
            set(&mut entry.edx, 22, false); // AMX-BF16
            set(&mut entry.edx, 24, false); // AMX-TILE
            set(&mut entry.edx, 25, false); // AMX-INT8
            set(&mut entry.ecx, 7, false); // CET shadow stacks: their registers have no place in the layout
            set(&mut entry.edx, 20, false); // CET branch tracking
            set(&mut entry.edx, 19, false); // architectural LBR
        }
        0xb | 0x1f => {
            entry.eax = 0;
            entry.ebx = u32::from(entry.index < 2);
            entry.ecx = entry.index | (entry.index + 1).min(2) << 8;
            entry.edx = index;
        }
        0xd if entry.index == 0 => entry.eax &= !(0b11 << 17),
        0x8000_0001 => {
            set(&mut entry.ecx, 2, false); // SVM
            set(&mut entry.ecx, 23, false); // performance counter extensions
            set(&mut entry.ecx, 24, false);
            set(&mut entry.ecx, 28, false);
            set(&mut entry.ecx, 10, false); // IBS
            set(&mut entry.ecx, 15, false); // LWP
        }
        0x8000_0008 => entry.ecx = 0,
        0x8000_001e => {
            entry.eax = index;
            entry.ebx = index;
            entry.ecx = 0;
        }
        _ => {}
    }
    entry
}
