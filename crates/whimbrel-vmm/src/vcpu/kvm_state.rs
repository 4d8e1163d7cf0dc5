//! All of a vCPU as KVM's own structs: read and written whole, in the order KVM needs. Knows nothing of the stream.
//!
//! | order of writing | because |
//! |---|---|
//! | CPUID | once, when the vCPU is made: it decides what the rest may hold |
//! | general registers | writing them drops a pending exception |
//! | segments, control registers, APIC base | the LAPIC's format depends on the base |
//! | XCR0, XSAVE area | |
//! | MSRs but the TSC and its deadline | the TSC is set before all this, for all vCPUs at once (`tsc`) |
//! | LAPIC | its timer mode decides what a deadline means |
//! | TSC deadline | |
//! | debug registers, MP state | |
//! | events | last: pending exceptions, interrupts and NMIs survive only if nothing follows |

use std::mem::size_of;

use kvm_bindings::{
    KVM_VCPUEVENT_VALID_NMI_PENDING, KVM_VCPUEVENT_VALID_PAYLOAD, KVM_VCPUEVENT_VALID_SHADOW,
    KVM_VCPUEVENT_VALID_SIPI_VECTOR, KVM_VCPUEVENT_VALID_SMM, KVM_VCPUEVENT_VALID_TRIPLE_FAULT, Msrs,
    kvm_debugregs, kvm_lapic_state, kvm_mp_state, kvm_msr_entry, kvm_regs, kvm_sregs2, kvm_vcpu_events,
    kvm_xcrs, kvm_xsave,
};
use kvm_ioctls::VcpuFd;
use vmm_sys_util::ioctl::{ioctl_with_mut_ref, ioctl_with_ref};
use vmm_sys_util::{ioctl_ior_nr, ioctl_iow_nr};
use whimbrel::machine::MachineError;

use super::msrs::TSC;

/// The TSC deadline, which goes in after the LAPIC.
const TSC_DEADLINE: u32 = 0x6e0;

ioctl_ior_nr!(KVM_GET_SREGS2, 0xAE, 0xcc, kvm_sregs2);
ioctl_iow_nr!(KVM_SET_SREGS2, 0xAE, 0xcd, kvm_sregs2);

/// A vCPU's state but its LAPIC.
#[derive(Clone)]
pub(super) struct KvmState {
    /// General registers.
    pub(super) regs: kvm_regs,
    /// Segments, control registers, EFER, APIC base, PDPTRs.
    pub(super) sregs: kvm_sregs2,
    /// The XSAVE area in its standard format.
    pub(super) xsave: XsaveArea,
    /// XCR0.
    pub(super) xcrs: kvm_xcrs,
    /// Debug registers.
    pub(super) debug: kvm_debugregs,
    /// Model-specific registers.
    pub(super) msrs: Vec<(u32, u64)>,
    /// Running, halted, waiting for INIT or SIPI.
    pub(super) mp: kvm_mp_state,
    /// Exceptions, interrupts, NMIs, SMIs on their way.
    pub(super) events: kvm_vcpu_events,
}

/// Bytes of the XSAVE area this host's vCPUs have.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct XsaveArea(pub(super) Box<[u8; XSAVE_SIZE]>);

/// KVM_GET_XSAVE's area. Larger ones exist only for features the guest's CPUID hides (AMX).
pub(super) const XSAVE_SIZE: usize = size_of::<kvm_xsave>();

impl KvmState {
    /// Reads everything. `msrs` are those to read; all must be readable.
    ///
    /// # Errors
    /// Names the ioctl or the MSR.
    pub(super) fn read(fd: &VcpuFd, msrs: &[u32]) -> Result<Self, MachineError> {
        // MP state first: reading it takes in an INIT or SIPI that has arrived, which changes the rest.
        let mp = fd.get_mp_state().map_err(failed("KVM_GET_MP_STATE"))?;
        Ok(Self {
            mp,
            regs: fd.get_regs().map_err(failed("KVM_GET_REGS"))?,
            sregs: read_sregs(fd)?,
            xsave: read_xsave(fd)?,
            xcrs: fd.get_xcrs().map_err(failed("KVM_GET_XCRS"))?,
            debug: fd.get_debug_regs().map_err(failed("KVM_GET_DEBUGREGS"))?,
            msrs: read_msrs(fd, msrs)?,
            events: fd.get_vcpu_events().map_err(failed("KVM_GET_VCPU_EVENTS"))?,
        })
    }

    /// Writes everything, with the LAPIC in its place if one is given.
    ///
    /// # Errors
    /// Names the ioctl or the MSR that was refused.
    pub(super) fn write(&self, fd: &VcpuFd, lapic: Option<&kvm_lapic_state>) -> Result<(), MachineError> {
        fd.set_regs(&self.regs).map_err(failed("KVM_SET_REGS"))?;
        write_sregs(fd, &self.sregs)?;
        fd.set_xcrs(&self.xcrs).map_err(failed("KVM_SET_XCRS"))?;
        write_xsave(fd, &self.xsave)?;
        let msrs = self.msrs.iter().filter(|(index, _)| *index != TSC);
        let (late, early): (Vec<_>, Vec<_>) = msrs.partition(|(index, _)| *index == TSC_DEADLINE);
        write_msrs(fd, &early)?;
        if let Some(lapic) = lapic {
            fd.set_lapic(lapic).map_err(failed("KVM_SET_LAPIC"))?;
        }
        write_msrs(fd, &late)?;
        fd.set_debug_regs(&self.debug).map_err(failed("KVM_SET_DEBUGREGS"))?;
        fd.set_mp_state(self.mp).map_err(failed("KVM_SET_MP_STATE"))?;
        let mut events = self.events;
        events.flags =
            KVM_VCPUEVENT_VALID_NMI_PENDING | KVM_VCPUEVENT_VALID_SIPI_VECTOR | KVM_VCPUEVENT_VALID_SHADOW;
        // Valid where KVM said so when it was asked: which of them it takes depends on the capabilities enabled.
        events.flags |= self.events.flags
            & (KVM_VCPUEVENT_VALID_PAYLOAD | KVM_VCPUEVENT_VALID_TRIPLE_FAULT | KVM_VCPUEVENT_VALID_SMM);
        fd.set_vcpu_events(&events).map_err(failed("KVM_SET_VCPU_EVENTS"))
    }

    /// The value of an MSR, if it was read.
    pub(super) fn msr(&self, index: u32) -> Option<u64> {
        self.msrs.iter().find(|(known, _)| *known == index).map(|(_, value)| *value)
    }
}

/// Those of `wanted` that can be read on this vCPU.
pub(super) fn readable_msrs(fd: &VcpuFd, wanted: impl IntoIterator<Item = u32>) -> Vec<u32> {
    let mut wanted: Vec<u32> = wanted.into_iter().collect();
    wanted.sort_unstable();
    wanted.dedup();
    wanted.retain(|index| read_msrs(fd, &[*index]).is_ok());
    wanted
}

pub(super) fn read_msrs(fd: &VcpuFd, indices: &[u32]) -> Result<Vec<(u32, u64)>, MachineError> {
    let entries: Vec<_> =
        indices.iter().map(|index| kvm_msr_entry { index: *index, ..Default::default() }).collect();
    let mut msrs = Msrs::from_entries(&entries).map_err(|_| "more MSRs than KVM takes")?;
    let count = fd.get_msrs(&mut msrs).map_err(failed("KVM_GET_MSRS"))?;
    if let Some(index) = indices.get(count) {
        return Err(format!("MSR {index:#x} cannot be read").into());
    }
    Ok(msrs.as_slice().iter().map(|entry| (entry.index, entry.data)).collect())
}

fn write_msrs(fd: &VcpuFd, values: &[&(u32, u64)]) -> Result<(), MachineError> {
    let entry =
        |(index, data): &&(u32, u64)| kvm_msr_entry { index: *index, data: *data, ..Default::default() };
    let entries: Vec<_> = values.iter().map(entry).collect();
    let msrs = Msrs::from_entries(&entries).map_err(|_| "more MSRs than KVM takes")?;
    let count = fd.set_msrs(&msrs).map_err(failed("KVM_SET_MSRS"))?;
    match values.get(count) {
        Some((index, value)) => Err(format!("MSR {index:#x}: KVM refuses the value {value:#x}").into()),
        None => Ok(()),
    }
}

fn read_sregs(fd: &VcpuFd) -> Result<kvm_sregs2, MachineError> {
    let mut sregs = kvm_sregs2::default();
    // SAFETY: KVM fills the struct it defines, and keeps no pointer to it.
    if unsafe { ioctl_with_mut_ref(fd, KVM_GET_SREGS2(), &mut sregs) } != 0 {
        return Err(failed("KVM_GET_SREGS2")(kvm_ioctls::Error::last()));
    }
    Ok(sregs)
}

fn write_sregs(fd: &VcpuFd, sregs: &kvm_sregs2) -> Result<(), MachineError> {
    // SAFETY: KVM reads the struct it defines, and keeps no pointer to it.
    if unsafe { ioctl_with_ref(fd, KVM_SET_SREGS2(), sregs) } != 0 {
        return Err(failed("KVM_SET_SREGS2")(kvm_ioctls::Error::last()));
    }
    Ok(())
}

pub(super) fn read_xsave(fd: &VcpuFd) -> Result<XsaveArea, MachineError> {
    let xsave = fd.get_xsave().map_err(failed("KVM_GET_XSAVE"))?;
    let mut bytes = Box::new([0; XSAVE_SIZE]);
    for (bytes, word) in bytes.chunks_exact_mut(4).zip(xsave.region) {
        bytes.copy_from_slice(&word.to_le_bytes());
    }
    Ok(XsaveArea(bytes))
}

fn write_xsave(fd: &VcpuFd, area: &XsaveArea) -> Result<(), MachineError> {
    let mut xsave = kvm_xsave::default();
    for (word, bytes) in xsave.region.iter_mut().zip(area.0.chunks_exact(4)) {
        *word = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    }
    // SAFETY: KVM reads exactly 4096 bytes, for no dynamically enabled feature is in the guest's CPUID.
    unsafe { fd.set_xsave(&xsave) }.map_err(failed("KVM_SET_XSAVE"))
}

pub(super) fn failed(ioctl: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> MachineError {
    move |error| MachineError(format!("{ioctl}: {error}"))
}
