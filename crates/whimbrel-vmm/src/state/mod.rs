//! Saved state of the machines' devices: a frozen contract with the peer, QEMU's `microvm` and `virt` section for section.
//!
//! Names, versions, order, types and sizes are those of the description that real QEMU 7.2 and 10.0 attach to a stream; the tests compare
//! them with captures of both. The types are plain data. They are never the types that devices run on and know nothing of KVM: each
//! device converts to and from its own. `Default` is the state a device has after a reset as far as an absent
//! subsection means it; the rest is zero.
//!
//! | section | instances | type |
//! |---|---|---|
//! | `timer` | 1 | [`Timer`] |
//! | `fw_cfg` | 1 | [`FwCfg`] |
//! | `cpu_common`, `cpu` | one a vCPU, by index | [`CpuCommon`], [`CpuX86`] |
//! | `kvm-tpr-opt` | 1, after the first vCPU | [`KvmTprOpt`] |
//! | `apic` | one a vCPU, by initial APIC id | [`Apic`] |
//! | `ioapic` | 1, with ACPI 2 | [`IoApic`] |
//! | `kvmclock` | 1 | [`KvmClock`] |
//! | `acpi-ged` | with ACPI 1 | [`AcpiGed`] |
//! | `i8259` | with `pic` 2: master, slave | [`I8259`] |
//! | `i8254` | with `pit` 1 | [`I8254`] |
//! | `mc146818rtc` | with `rtc` 1 | [`Mc146818Rtc`] |
//! | `serial` | with `isa-serial` 1 | [`IsaSerial`] |
//! | `globalstate` | 1, always the last | the engine's [`GlobalState`](whimbrel::GlobalState) |
//!
//! `virt` shares `timer`, `cpu_common` and `globalstate`, and has its own:
//!
//! | section | instances | type |
//! |---|---|---|
//! | `arm_gicv3` | 1, the first | [`GicV3`] |
//! | `arm_gicv3_its` | 1, the second | [`GicV3Its`] |
//! | `cpu` | one a vCPU, by index | [`CpuArm`] |
//! | `pl011` | 1 | [`Pl011`] |

use whimbrel_vmstate::VmState;

mod acpi_ged;
mod apic;
mod arm_gicv3;
mod arm_gicv3_its;
mod cpu_arm;
mod cpu_common;
mod cpu_x86;
mod cpu_x86_msrs;
mod fw_cfg;
mod i8254;
mod i8259;
mod ioapic;
mod kvm_tpr_opt;
mod kvmclock;
mod mc146818rtc;
mod pl011;
mod serial;
mod timer;

pub use acpi_ged::AcpiGed;
pub use apic::{Apic, SipiWait};
pub use arm_gicv3::{GIC_IRQS, GIC_WORDS, GicV3, GicV3Cpu, SRE_ALL};
pub use arm_gicv3_its::GicV3Its;
pub use cpu_arm::{ArmException, ArmVfp, CpuArm};
pub use cpu_common::CpuCommon;
pub use cpu_x86::{CpuEvents, CpuX86, FpReg, MtrrVar, Segment, Svm};
pub use cpu_x86_msrs::{AmxTiles, Avx512, CpuMsrs, ExceptionInfo, FpuLastOp, Pmu};
pub use fw_cfg::{FwCfg, FwCfgAcpi};
pub use i8254::{I8254, PitChannel};
pub use i8259::I8259;
pub use ioapic::IoApic;
pub use kvm_tpr_opt::{KvmTprOpt, TprHandlers, TprRom};
pub use kvmclock::KvmClock;
pub use mc146818rtc::Mc146818Rtc;
pub use pl011::{PL011_FIFO, Pl011};
pub use serial::{Fifo8, IsaSerial, ModemPoll, Serial, TransmitRetry};
pub use timer::Timer;

/// A blank state for the section named `idstr`, if it is one of a `microvm`.
pub fn for_section(idstr: &str) -> Option<Box<dyn VmState>> {
    Some(match idstr {
        "timer" => Box::new(Timer::default()),
        "fw_cfg" => Box::new(FwCfg::default()),
        "cpu_common" => Box::new(CpuCommon::default()),
        "cpu" => Box::new(CpuX86::default()),
        "kvm-tpr-opt" => Box::new(KvmTprOpt::default()),
        "apic" => Box::new(Apic::default()),
        "ioapic" => Box::new(IoApic::default()),
        "kvmclock" => Box::new(KvmClock::default()),
        "acpi-ged" => Box::new(AcpiGed::default()),
        "i8259" => Box::new(I8259::default()),
        "i8254" => Box::new(I8254::default()),
        "mc146818rtc" => Box::new(Mc146818Rtc::default()),
        "serial" => Box::new(IsaSerial::default()),
        "globalstate" => Box::new(whimbrel::GlobalState::default()),
        _ => return None,
    })
}

/// As [`for_section`], of a `virt` machine with `cpus` vCPUs.
pub fn for_virt_section(idstr: &str, cpus: usize) -> Option<Box<dyn VmState>> {
    Some(match idstr {
        "arm_gicv3" => Box::new(GicV3::new(cpus)),
        "arm_gicv3_its" => Box::new(GicV3Its::default()),
        "timer" => Box::new(Timer::default()),
        "cpu_common" => Box::new(CpuCommon::default()),
        "cpu" => Box::new(CpuArm::default()),
        "pl011" => Box::new(Pl011::default()),
        "globalstate" => Box::new(whimbrel::GlobalState::default()),
        _ => return None,
    })
}
