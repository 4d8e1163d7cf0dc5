//! The guest's time-stamp counters, set for all vCPUs at once.
//!
//! A guest takes it for granted that its vCPUs' TSCs agree to the tick. They are captured one after the other, so counters that lie within a second
//! of each other are one counter, read at different moments (KVM itself judges so). Writing the MSR would leave the rest to that
//! judgement of KVM's, which also takes a value close to what a young vCPU counts for no change at all; so the offset to
//! the host's TSC is written instead, where KVM lets it be.

use std::sync::Arc;

use kvm_bindings::{Msrs, kvm_device_attr, kvm_msr_entry};
use kvm_ioctls::{Cap, VcpuFd, VmFd};
use vmm_sys_util::ioctl::ioctl_with_ref;
use vmm_sys_util::ioctl_iow_nr;
use whimbrel::machine::MachineError;

use super::kvm_state::failed;
use super::msrs::TSC;
use super::unit::CpuUnit;

ioctl_iow_nr!(KVM_SET_DEVICE_ATTR, 0xAE, 0xe1, kvm_device_attr);
ioctl_iow_nr!(KVM_GET_DEVICE_ATTR, 0xAE, 0xe2, kvm_device_attr);

/// KVM makes a vCPU with its TSC at 0. One that counts more than this many seconds then is the host's own, which can't be set.
const NEWBORN: u64 = 10;

/// Whether the TSC of a vCPU just made can be set at all. (KVM without hardware support lets the guest see the host's.)
///
/// # Errors
/// If KVM doesn't tell.
pub(super) fn can_be_set(fd: &VcpuFd) -> Result<bool, MachineError> {
    let khz = fd.get_tsc_khz().map_err(failed("KVM_GET_TSC_KHZ"))?;
    Ok(read(fd)? < u64::from(khz) * 1000 * NEWBORN)
}

/// Parts per million by which a frequency may differ from the host's and still be the host's: what KVM itself tolerates by default.
const TOLERANCE_PPM: u64 = 250;

/// How fast TSCs can run here.
#[derive(Debug, Clone, Copy)]
pub(super) struct Frequency {
    /// The host's, in kHz.
    host: u32,
    /// The CPU can run a guest's at another one.
    scaling: bool,
}

impl Frequency {
    /// On this host. `fd` is a vCPU just made.
    ///
    /// # Errors
    /// If KVM doesn't tell.
    pub(super) fn of(vm: &VmFd, fd: &VcpuFd) -> Result<Self, MachineError> {
        let host = fd.get_tsc_khz().map_err(failed("KVM_GET_TSC_KHZ"))?;
        Ok(Self { host, scaling: vm.check_extension(Cap::TscControl) })
    }

    /// Sets a vCPU's TSC to `khz`, as the stream tells it; 0: the stream doesn't.
    ///
    /// # Errors
    /// If it is none, or this host cannot run at it.
    pub(super) fn set(self, fd: &VcpuFd, khz: i64) -> Result<(), MachineError> {
        match self.check(khz)? {
            0 => Ok(()),
            khz => {
                fd.set_tsc_khz(khz).map_err(|error| format!("tsc_khz: KVM refuses {khz} kHz: {error}").into())
            }
        }
    }

    /// KVM itself would take a frequency above the host's without scaling, and let the guest's TSC catch up in jumps.
    fn check(self, khz: i64) -> Result<u32, MachineError> {
        let host = self.host;
        let wanted = u32::try_from(khz).ok().filter(|khz| i32::try_from(*khz).is_ok());
        let wanted = wanted.ok_or_else(|| format!("tsc_khz: {khz} kHz is no frequency"))?;
        let near = u64::from(wanted.abs_diff(host)) * 1_000_000 <= u64::from(host) * TOLERANCE_PPM;
        if wanted == 0 || near || self.scaling {
            return Ok(wanted);
        }
        Err(format!(
            "tsc_khz: the guest's TSC runs at {wanted} kHz, this host's at {host} and cannot be scaled"
        )
        .into())
    }
}

/// A vCPU and what its TSC is to be.
pub(super) type Wanted<'a> = (&'a Arc<CpuUnit>, u64);

/// Sets the TSCs of stopped vCPUs.
///
/// # Errors
/// If KVM refuses.
pub(super) fn set(wanted: &[Wanted<'_>]) -> Result<(), MachineError> {
    let Some((first, _)) = wanted.first().filter(|(unit, _)| unit.tsc_can_be_set()) else { return Ok(()) };
    let second = u64::from(first.vcpu().fd().get_tsc_khz().map_err(failed("KVM_GET_TSC_KHZ"))?) * 1000;
    let together = |tsc: u64| {
        let same = wanted.iter().map(|(_, other)| *other).filter(|other| other.abs_diff(tsc) < second);
        same.max().unwrap_or(tsc)
    };
    // What all offsets are relative to: the host's TSC at one moment, in the guest's ticks.
    let host = {
        let fd = first.vcpu().fd();
        offset(&fd).map(|offset| Ok::<_, MachineError>(read(&fd)?.wrapping_sub(offset))).transpose()?
    };
    for (unit, tsc) in wanted {
        let fd = unit.vcpu().fd();
        match host {
            Some(host) => set_offset(&fd, together(*tsc).wrapping_sub(host))?,
            None => write(&fd, together(*tsc))?,
        }
    }
    Ok(())
}

fn read(fd: &VcpuFd) -> Result<u64, MachineError> {
    let entry = kvm_msr_entry { index: TSC, ..Default::default() };
    let mut msrs = Msrs::from_entries(&[entry]).map_err(|_| "no room for one MSR")?;
    match fd.get_msrs(&mut msrs).map_err(failed("KVM_GET_MSRS"))? {
        1 => Ok(msrs.as_slice()[0].data),
        _ => Err("the TSC cannot be read".into()),
    }
}

fn write(fd: &VcpuFd, tsc: u64) -> Result<(), MachineError> {
    let entry = kvm_msr_entry { index: TSC, data: tsc, ..Default::default() };
    let msrs = Msrs::from_entries(&[entry]).map_err(|_| "no room for one MSR")?;
    match fd.set_msrs(&msrs).map_err(failed("KVM_SET_MSRS"))? {
        1 => Ok(()),
        _ => Err(format!("the TSC cannot be set to {tsc:#x}").into()),
    }
}

/// The offset to the host's TSC; `None` if this KVM (before Linux 5.16) doesn't tell.
fn offset(fd: &VcpuFd) -> Option<u64> {
    let mut offset = 0u64;
    let attribute = attribute(&raw mut offset);
    // SAFETY: KVM writes one u64 to the address in the struct, which is `offset`.
    (unsafe { ioctl_with_ref(fd, KVM_GET_DEVICE_ATTR(), &attribute) } == 0).then_some(offset)
}

fn set_offset(fd: &VcpuFd, mut offset: u64) -> Result<(), MachineError> {
    let attribute = attribute(&raw mut offset);
    // SAFETY: KVM reads one u64 from the address in the struct, which is `offset`.
    if unsafe { ioctl_with_ref(fd, KVM_SET_DEVICE_ATTR(), &attribute) } != 0 {
        return Err(failed("KVM_SET_DEVICE_ATTR, the TSC's offset")(kvm_ioctls::Error::last()));
    }
    Ok(())
}

/// KVM_VCPU_TSC_OFFSET in the group KVM_VCPU_TSC_CTRL: both are 0.
fn attribute(value: *mut u64) -> kvm_device_attr {
    kvm_device_attr { addr: value as u64, ..Default::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_frequency_needs_scaling() {
        let host = Frequency { host: 2_600_000, scaling: false };
        let taken = |frequency: Frequency, khz| frequency.check(khz).ok();
        assert_eq!(taken(host, 0), Some(0));
        assert_eq!(taken(host, 2_600_650), Some(2_600_650), "250 parts in a million");
        for khz in [2_600_651, 2_599_349, 1_000_000, 5_000_000] {
            let error = host.check(khz).unwrap_err().0;
            assert!(error.contains(&format!("{khz} kHz")) && error.contains("2600000"), "{error}");
            assert_eq!(taken(Frequency { scaling: true, ..host }, khz), Some(khz as u32));
        }
        for khz in [-1, 1 << 31, 1 << 40] {
            assert!(Frequency { scaling: true, ..host }.check(khz).is_err(), "{khz}");
        }
    }
}
