//! Where the GIC's registers are (Arm IHI 0069), and how KVM names them (linux: Documentation/virt/kvm/devices/arm-vgic-v3).
//!
//! Distributor and redistributors are read and written in words of 32 bits, a 64-bit register in two halves. What KVM's user
//! sees differs from the guest's view where that is needed to restore it: ISPENDR is the latch alone, without the line's level.

use kvm_bindings::{
    KVM_DEV_ARM_VGIC_GRP_CPU_SYSREGS, KVM_DEV_ARM_VGIC_GRP_DIST_REGS, KVM_DEV_ARM_VGIC_GRP_LEVEL_INFO,
    KVM_DEV_ARM_VGIC_GRP_REDIST_REGS,
};
use whimbrel::machine::MachineError;

use crate::aarch64::attributes::KvmDevice;

/// Offsets that distributor and redistributors share; in the latter counted from the SGI frame.
pub(super) const IGROUPR: u64 = 0x80;
pub(super) const ISENABLER: u64 = 0x100;
pub(super) const ICENABLER: u64 = 0x180;
pub(super) const ISPENDR: u64 = 0x200;
pub(super) const ICPENDR: u64 = 0x280;
pub(super) const ISACTIVER: u64 = 0x300;
pub(super) const ICACTIVER: u64 = 0x380;
pub(super) const IPRIORITYR: u64 = 0x400;
pub(super) const ICFGR: u64 = 0xc00;

/// Of the distributor.
pub(super) const GICD_CTLR: u64 = 0x0;
pub(super) const GICD_STATUSR: u64 = 0x10;
pub(super) const GICD_IROUTER: u64 = 0x6000;

/// Of a redistributor.
pub(super) const GICR_CTLR: u64 = 0x0;
pub(super) const GICR_STATUSR: u64 = 0x10;
pub(super) const GICR_WAKER: u64 = 0x14;
pub(super) const GICR_PROPBASER: u64 = 0x70;
pub(super) const GICR_PENDBASER: u64 = 0x78;
pub(super) const GICR_SGI_FRAME: u64 = 0x1_0000;

/// GICR_CTLR: LPIs are on.
pub(super) const ENABLE_LPIS: u32 = 1;

/// CPU interface registers, as MRS encodes them.
pub(super) const ICC_PMR_EL1: u64 = system(4, 6, 0);
pub(super) const ICC_BPR0_EL1: u64 = system(12, 8, 3);
pub(super) const ICC_BPR1_EL1: u64 = system(12, 12, 3);
pub(super) const ICC_CTLR_EL1: u64 = system(12, 12, 4);
pub(super) const ICC_SRE_EL1: u64 = system(12, 12, 5);
pub(super) const ICC_IGRPEN0_EL1: u64 = system(12, 12, 6);
pub(super) const ICC_IGRPEN1_EL1: u64 = system(12, 12, 7);

/// Active priorities of group 0, four registers.
pub(super) const fn icc_ap0r(n: u64) -> u64 {
    system(12, 8, 4 + n)
}

/// Active priorities of group 1.
pub(super) const fn icc_ap1r(n: u64) -> u64 {
    system(12, 9, n)
}

const fn system(crn: u64, crm: u64, op2: u64) -> u64 {
    3 << 14 | crn << 7 | crm << 3 | op2
}

/// A part of the GIC whose registers are accessed alike.
#[derive(Clone, Copy)]
pub(super) enum Part {
    Distributor,
    /// Of the vCPU of this affinity.
    Redistributor(u64),
}

impl Part {
    fn attribute(self, offset: u64) -> (u32, u64) {
        match self {
            Self::Distributor => (KVM_DEV_ARM_VGIC_GRP_DIST_REGS, offset),
            Self::Redistributor(affinity) => (KVM_DEV_ARM_VGIC_GRP_REDIST_REGS, of_cpu(affinity) | offset),
        }
    }

    pub(super) fn get(self, device: &KvmDevice, offset: u64) -> Result<u32, MachineError> {
        let (group, attr) = self.attribute(offset);
        device.get_u32(group, attr)
    }

    pub(super) fn set(self, device: &KvmDevice, offset: u64, value: u32) -> Result<(), MachineError> {
        let (group, attr) = self.attribute(offset);
        device.set_u32(group, attr, value)
    }

    pub(super) fn get_wide(self, device: &KvmDevice, offset: u64) -> Result<u64, MachineError> {
        Ok(u64::from(self.get(device, offset)?) | u64::from(self.get(device, offset + 4)?) << 32)
    }

    pub(super) fn set_wide(self, device: &KvmDevice, offset: u64, value: u64) -> Result<(), MachineError> {
        self.set(device, offset, value as u32)?;
        self.set(device, offset + 4, (value >> 32) as u32)
    }

    /// Levels of the 32 input lines from `intid` on.
    pub(super) fn levels(self, device: &KvmDevice, intid: u64) -> Result<u32, MachineError> {
        device.get_u32(KVM_DEV_ARM_VGIC_GRP_LEVEL_INFO, self.of_this_cpu() | intid)
    }

    pub(super) fn set_levels(self, device: &KvmDevice, intid: u64, levels: u32) -> Result<(), MachineError> {
        device.set_u32(KVM_DEV_ARM_VGIC_GRP_LEVEL_INFO, self.of_this_cpu() | intid, levels)
    }

    fn of_this_cpu(self) -> u64 {
        match self {
            Self::Distributor => 0,
            Self::Redistributor(affinity) => of_cpu(affinity),
        }
    }
}

/// A CPU interface register.
pub(super) fn get_icc(device: &KvmDevice, affinity: u64, register: u64) -> Result<u64, MachineError> {
    device.get_u64(KVM_DEV_ARM_VGIC_GRP_CPU_SYSREGS, of_cpu(affinity) | register)
}

/// Sets one.
pub(super) fn set_icc(
    device: &KvmDevice,
    affinity: u64,
    register: u64,
    value: u64,
) -> Result<(), MachineError> {
    device.set_u64(KVM_DEV_ARM_VGIC_GRP_CPU_SYSREGS, of_cpu(affinity) | register, value)
}

/// A vCPU in an attribute's number: affinities 3 to 0 in bytes 7 to 4, of which MPIDR_EL1 has the highest elsewhere.
fn of_cpu(affinity: u64) -> u64 {
    (affinity >> 32 & 0xff) << 56 | (affinity & 0xff_ffff) << 32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vcpu_is_named_by_its_four_affinities() {
        assert_eq!(of_cpu(0x44_0033_2211), 0x4433_2211_0000_0000);
        assert_eq!((ICC_PMR_EL1, ICC_SRE_EL1), (0xc230, 0xc665));
        assert_eq!((icc_ap0r(3), icc_ap1r(0)), (0xc647, 0xc648));
    }
}
