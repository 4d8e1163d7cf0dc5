//! A vCPU as the stream sees it: its three sections `cpu_common`, `cpu` and `apic`, captured from KVM, and put into it together, for
//! KVM needs them in one order.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use kvm_bindings::{CpuId, kvm_lapic_state};
use kvm_ioctls::VcpuFd;
use vmm_sys_util::ioctl::ioctl_with_ref;
use vmm_sys_util::ioctl_iow_nr;
use whimbrel::downcast;
use whimbrel::faults::{Fault, Faults};
use whimbrel::handlers::Device;
use whimbrel::machine::MachineError;
use whimbrel_vmstate::{Level, VmState};

use super::kvm_state::{KvmState, failed, read_msrs, read_xsave};
use super::section::{Context, MP_HALTED};
use super::tsc::{self, Frequency};
use super::xsave::XsaveLayout;
use super::{Vcpu, msrs};
use crate::boot::{self, Entry};
use crate::cpuid::CpuProfile;
use crate::error::Error;
use crate::kvm::KvmVm;
use crate::lapic;
use crate::lock;
use crate::state::{Apic, CpuCommon, CpuX86};
use crate::timer::VirtualClock;

/// Machine check capabilities: ten banks, MCG_CTL, and recovery by software. QEMU's for every CPU model.
const MCG_CAP: u64 = 10 | 1 << 8 | 1 << 24;

ioctl_iow_nr!(KVM_X86_SETUP_MCE, 0xAE, 0x9c, u64);

/// What all vCPUs of a machine share.
#[derive(Clone)]
pub struct Shared {
    /// The virtual clock, on which LAPIC timers are told.
    pub clock: Arc<VirtualClock>,
    /// Whose sections to match.
    pub level: Level,
    /// Fault switches.
    pub faults: Faults,
}

/// A vCPU with its power-on state and what was loaded for it.
pub struct CpuUnit {
    vcpu: Vcpu,
    shared: Shared,
    xsave: XsaveLayout,
    power_on: KvmState,
    power_on_lapic: kvm_lapic_state,
    loaded: Mutex<Loaded>,
    tsc_can_be_set: bool,
    frequency: Frequency,
    /// What capturing and applying took when they were rehearsed.
    rehearsed: Duration,
}

#[derive(Default)]
struct Loaded {
    cpu: Option<CpuX86>,
    apic: Option<Apic>,
}

/// One of a vCPU's sections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// `cpu_common`.
    Common,
    /// `cpu`.
    Cpu,
    /// `apic`.
    Apic,
}

impl CpuUnit {
    /// Makes vCPU `index` of a machine with this CPU, at power-on.
    ///
    /// # Errors
    /// If KVM refuses it or does not tell its state.
    pub fn new(kvm: &KvmVm, profile: &CpuProfile, index: u32, shared: Shared) -> Result<Self, Error> {
        let fd = kvm.create_vcpu(index)?;
        let cpuid = profile.give(&fd, index)?;
        let text = |error: MachineError| Error::Vcpu { vcpu: index, text: error.0 };
        setup_mce(&fd, MCG_CAP).map_err(text)?;
        let tsc_can_be_set = tsc::can_be_set(&fd).map_err(text)?;
        let frequency = Frequency::of(&kvm.vm, &fd).map_err(text)?;
        let begin = Instant::now();
        let (power_on, power_on_lapic) = read_power_on(kvm, &fd, &cpuid).map_err(text)?;
        power_on.write(&fd, Some(&power_on_lapic)).map_err(text)?;
        let rehearsed = begin.elapsed();
        let xsave = XsaveLayout::new(profile.supported());
        let vcpu = Vcpu::new(index, fd);
        let loaded = Mutex::default();
        Ok(Self {
            vcpu,
            shared,
            xsave,
            power_on,
            power_on_lapic,
            loaded,
            tsc_can_be_set,
            frequency,
            rehearsed,
        })
    }

    /// The vCPU itself.
    pub fn vcpu(&self) -> &Vcpu {
        &self.vcpu
    }

    /// What capturing and applying it take, about.
    pub fn rehearsed(&self) -> Duration {
        self.rehearsed
    }

    /// Whether its TSC is its own.
    pub(super) fn tsc_can_be_set(&self) -> bool {
        self.tsc_can_be_set
    }

    fn reset(&self, entry: Option<Entry>) -> Result<(), MachineError> {
        *lock(&self.loaded) = Loaded::default();
        let mut state = self.power_on.clone();
        if let (0, Some(entry)) = (self.vcpu.index(), entry) {
            enter(&mut state, entry);
        }
        self.named(state.write(&self.vcpu.fd(), Some(&self.power_on_lapic)))
    }

    fn apply(&self) -> Result<(), MachineError> {
        let Loaded { cpu, apic } = std::mem::take(&mut *lock(&self.loaded));
        if cpu.is_some() || apic.is_some() { self.named(self.write(cpu, apic)) } else { Ok(()) }
    }

    fn write(&self, cpu: Option<CpuX86>, apic: Option<Apic>) -> Result<(), MachineError> {
        let fd = self.vcpu.fd();
        let faults = &self.shared.faults;
        let forget = faults.has(Fault::PendingInterrupt);
        let mut state = match &cpu {
            Some(cpu) => self.context().load(cpu)?,
            None => KvmState::read(&fd, &self.msrs())?,
        };
        if let Some(cpu) = cpu.as_ref().filter(|cpu| cpu.mcg_cap != MCG_CAP && cpu.mcg_cap != 0) {
            setup_mce(&fd, cpu.mcg_cap)?;
        }
        if faults.has(Fault::Register) {
            state.regs.rbx = self.power_on.regs.rbx;
        }
        if faults.has(Fault::Xsave) {
            state.xsave = self.power_on.xsave.clone();
        }
        if forget {
            state.events.interrupt.injected = 0;
        }
        let mut page = self.power_on_lapic;
        if let Some(mut apic) = apic {
            if forget {
                apic.irr = [0; 8];
            }
            state.sregs.apic_base = apic.apicbase.into();
            if !faults.has(Fault::Lapic) {
                state.sregs.cr8 = u64::from(apic.tpr) >> 4;
                page = lapic::load(&apic, page, self.shared.clock.now());
            }
        }
        state.write(&fd, Some(&page))
    }

    fn save(&self) -> Result<CpuX86, MachineError> {
        let fd = self.vcpu.fd();
        let state = KvmState::read(&fd, &self.msrs())?;
        let tsc_khz = fd.get_tsc_khz().map_err(failed("KVM_GET_TSC_KHZ"))?;
        self.context().save(&state, tsc_khz, MCG_CAP)
    }

    /// Why this vCPU cannot be moved as it is now, if it cannot. It may run. One that cannot be looked at has none.
    fn blocker(&self) -> Option<String> {
        let read = |fd: &VcpuFd| Ok((read_msrs(fd, &self.msrs())?, read_xsave(fd)?));
        let checked = self.vcpu.visit(read)?.and_then(|(msrs, xsave)| self.context().check(msrs, xsave));
        self.named(checked).err().map(|error| error.0)
    }

    fn save_apic(&self) -> Result<Apic, MachineError> {
        let fd = self.vcpu.fd();
        let page = fd.get_lapic().map_err(failed("KVM_GET_LAPIC"))?;
        let sregs = fd.get_sregs().map_err(failed("KVM_GET_SREGS"))?;
        Ok(lapic::save(&page, sregs.apic_base, self.shared.clock.now())?)
    }

    fn save_common(&self) -> Result<CpuCommon, MachineError> {
        let mp = self.vcpu.fd().get_mp_state().map_err(failed("KVM_GET_MP_STATE"))?;
        Ok(CpuCommon { halted: u32::from(mp.mp_state == MP_HALTED), ..CpuCommon::default() })
    }

    fn context(&self) -> Context<'_> {
        Context { xsave: &self.xsave, power_on: &self.power_on, level: self.shared.level }
    }

    fn msrs(&self) -> Vec<u32> {
        self.power_on.msrs.iter().map(|(index, _)| *index).collect()
    }

    fn named<T>(&self, result: Result<T, MachineError>) -> Result<T, MachineError> {
        result.map_err(|error| format!("vCPU {}: {error}", self.vcpu.index()).into())
    }
}

/// All vCPUs back to power-on; the first at a kernel's entry, if there is one. What was loaded is forgotten.
///
/// # Errors
/// Names what KVM refused.
pub fn reset_all(units: &[Arc<CpuUnit>], entry: Option<Entry>) -> Result<(), MachineError> {
    tsc::set(&units.iter().map(|unit| (unit, 0)).collect::<Vec<_>>())?;
    units.iter().try_for_each(|unit| unit.reset(entry))
}

/// Puts into KVM what was loaded.
///
/// # Errors
/// Names the vCPU, and the register that this host cannot hold.
pub fn apply_all(units: &[Arc<CpuUnit>]) -> Result<(), MachineError> {
    let mut tscs = Vec::new();
    for unit in units {
        let loaded = lock(&unit.loaded).cpu.as_ref().map(|cpu| (cpu.tsc, cpu.msrs.tsc_khz));
        let Some((tsc, khz)) = loaded else { continue };
        unit.named(unit.frequency.set(&unit.vcpu.fd(), khz))?;
        tscs.push((unit, tsc));
    }
    if !units.iter().any(|unit| unit.shared.faults.has(Fault::Counter)) {
        tsc::set(&tscs)?;
    }
    units.iter().try_for_each(|unit| unit.apply())
}

/// What of running vCPUs could not be moved, found by rehearsing their save. Whoever polls for it costs the guest no more
/// than two looks a second.
#[derive(Default)]
pub struct Rehearsal(Mutex<Option<(Instant, Vec<String>)>>);

/// How old an answer may be.
const LOOK_AGAIN: Duration = Duration::from_millis(500);

impl Rehearsal {
    /// Why these vCPUs cannot be moved as they are.
    pub fn blockers(&self, units: &[Arc<CpuUnit>]) -> Vec<String> {
        let mut last = lock(&self.0);
        match &*last {
            Some((at, blockers)) if at.elapsed() < LOOK_AGAIN => blockers.clone(),
            _ => {
                let blockers: Vec<_> = units.iter().filter_map(|unit| unit.blocker()).collect();
                *last = Some((Instant::now(), blockers.clone()));
                blockers
            }
        }
    }
}

/// One section of a vCPU, for the registry.
pub struct CpuSection {
    unit: Arc<CpuUnit>,
    part: Part,
}

impl CpuSection {
    /// `part` of `unit`.
    pub fn new(unit: &Arc<CpuUnit>, part: Part) -> Self {
        Self { unit: Arc::clone(unit), part }
    }
}

impl Device for CpuSection {
    fn save(&self) -> Result<Box<dyn VmState>, MachineError> {
        Ok(match self.part {
            Part::Common => Box::new(self.unit.save_common()?),
            Part::Cpu => Box::new(self.unit.save()?),
            Part::Apic => Box::new(self.unit.save_apic()?),
        })
    }

    fn blank(&self) -> Box<dyn VmState> {
        match self.part {
            Part::Common => Box::new(CpuCommon::default()),
            Part::Cpu => Box::new(CpuX86::default()),
            Part::Apic => Box::new(Apic::default()),
        }
    }

    fn load(&self, state: Box<dyn VmState>) -> Result<(), MachineError> {
        let mut loaded = lock(&self.unit.loaded);
        match self.part {
            // A halt is told by the MP state in `cpu`; requests pending in QEMU itself are none of KVM's.
            Part::Common => drop(downcast::<CpuCommon>(state)?),
            Part::Cpu => loaded.cpu = Some(*downcast(state)?),
            Part::Apic => loaded.apic = Some(*downcast(state)?),
        }
        Ok(())
    }
}

fn read_power_on(
    kvm: &KvmVm,
    fd: &VcpuFd,
    cpuid: &CpuId,
) -> Result<(KvmState, kvm_lapic_state), MachineError> {
    let known = kvm.kvm.get_msr_index_list().map_err(failed("KVM_GET_MSR_INDEX_LIST"))?;
    let wanted = msrs::readable(fd, known.as_slice());
    let mut state = KvmState::read(fd, &wanted)?;
    let leaf1 = cpuid.as_slice().iter().find(|leaf| leaf.function == 1);
    state.regs.rdx = leaf1.map_or(0, |leaf| leaf.eax.into());
    let page = fd.get_lapic().map_err(failed("KVM_GET_LAPIC"))?;
    Ok((state, lapic::power_on(page)))
}

fn enter(state: &mut KvmState, entry: Entry) {
    let (code, data, task) = boot::entry_segments();
    state.regs = boot::entry_regs(entry);
    let s = &mut state.sregs;
    (s.cs, s.tr) = (code, task);
    (s.ds, s.es, s.ss, s.fs, s.gs) = (data, data, data, data, data);
    s.cr0 = 1;
}

fn setup_mce(fd: &VcpuFd, capabilities: u64) -> Result<(), MachineError> {
    // SAFETY: KVM reads one u64.
    if unsafe { ioctl_with_ref(fd, KVM_X86_SETUP_MCE(), &capabilities) } != 0 {
        return Err(format!("mcg_cap: KVM refuses {capabilities:#x}: {}", kvm_ioctls::Error::last()).into());
    }
    Ok(())
}
