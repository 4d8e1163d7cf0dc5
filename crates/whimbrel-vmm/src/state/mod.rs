//! Saved state of the machine's devices: a frozen contract with the peer, QEMU's `microvm` section for section.
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

use whimbrel_vmstate::VmState;

mod acpi_ged;
mod apic;
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
mod serial;
mod timer;

pub use acpi_ged::AcpiGed;
pub use apic::{Apic, SipiWait};
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
pub use serial::{Fifo8, IsaSerial, ModemPoll, Serial, TransmitRetry};
pub use timer::Timer;

/// A blank state for the section named `idstr`, if it is one of the machine's.
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
