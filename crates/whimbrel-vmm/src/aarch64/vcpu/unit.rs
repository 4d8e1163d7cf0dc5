//! A vCPU with what it had at power-on and what was loaded for it.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use kvm_bindings::{KVM_ARM_VCPU_POWER_OFF, KVM_ARM_VCPU_PSCI_0_2, kvm_vcpu_init};
use whimbrel::downcast;
use whimbrel::faults::{Fault, Faults};
use whimbrel::handlers::Device;
use whimbrel::machine::MachineError;
use whimbrel_vmstate::VmState;

use super::registers::{self, MPIDR, PHYSICAL_CNT, TIMER_CNT, x};
use super::section;
use crate::aarch64::counter::{Counter, Counts};
use crate::aarch64::kvm::KvmVm;
use crate::error::Error;
use crate::lock;
use crate::state::{CpuArm, CpuCommon};
use crate::vcpu::Vcpu;

/// Affinity fields of MPIDR_EL1.
const AFFINITY: u64 = 0xff_00ff_ffff;
/// The register a fault switch forgets.
const FORGOTTEN: usize = 19;

/// A vCPU.
pub(in crate::aarch64) struct CpuUnit {
    vcpu: Vcpu,
    init: kvm_vcpu_init,
    /// Its registers that are no core ones.
    listed: Vec<u64>,
    affinity: u64,
    faults: Faults,
    loaded: Mutex<Option<CpuArm>>,
    /// What capturing took when it was rehearsed.
    rehearsed: Duration,
}

/// One of a vCPU's sections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::aarch64) enum Part {
    /// `cpu_common`.
    Common,
    /// `cpu`.
    Cpu,
}

/// Where the first vCPU begins, and X0 then.
#[derive(Debug, Clone, Copy)]
pub(in crate::aarch64) struct Entry {
    pub(in crate::aarch64) pc: u64,
    pub(in crate::aarch64) x0: u64,
}

impl CpuUnit {
    /// Makes vCPU `index`, at power-on: off, but for the first.
    ///
    /// # Errors
    /// If KVM refuses it or does not tell its state.
    pub(in crate::aarch64) fn new(kvm: &KvmVm, index: u32, faults: Faults) -> Result<Self, Error> {
        let fd = kvm.create_vcpu(index)?;
        let mut init = kvm_vcpu_init::default();
        kvm.vm.get_preferred_target(&mut init).map_err(Error::kvm("KVM_ARM_PREFERRED_TARGET"))?;
        init.features[0] |= 1 << KVM_ARM_VCPU_PSCI_0_2;
        if index > 0 {
            init.features[0] |= 1 << KVM_ARM_VCPU_POWER_OFF;
        }
        fd.vcpu_init(&init).map_err(Error::kvm("KVM_ARM_VCPU_INIT"))?;
        let text = |error: MachineError| Error::Vcpu { vcpu: index, text: error.0 };
        let listed = registers::listed(&fd).map_err(text)?;
        let affinity = registers::read(&fd, MPIDR).map_err(text)? & AFFINITY;
        let begin = Instant::now();
        section::capture(&fd, &listed).map_err(text)?;
        let rehearsed = begin.elapsed();
        let vcpu = Vcpu::new(index, fd);
        Ok(Self { vcpu, init, listed, affinity, faults, loaded: Mutex::default(), rehearsed })
    }

    /// The vCPU itself.
    pub(in crate::aarch64) fn vcpu(&self) -> &Vcpu {
        &self.vcpu
    }

    /// Its affinity, as in MPIDR_EL1: by which the device tree, PSCI and the GIC name it.
    pub(in crate::aarch64) fn affinity(&self) -> u64 {
        self.affinity
    }

    /// What capturing it takes, about.
    pub(in crate::aarch64) fn rehearsed(&self) -> Duration {
        self.rehearsed
    }

    /// Whether it has a register.
    pub(in crate::aarch64) fn has(&self, id: u64) -> bool {
        self.listed.binary_search(&id).is_ok()
    }

    /// Back to power-on, the first vCPU at the kernel's entry. What was loaded is forgotten.
    ///
    /// # Errors
    /// Names what KVM refused.
    pub(in crate::aarch64) fn reset(&self, entry: Option<Entry>) -> Result<(), MachineError> {
        *lock(&self.loaded) = None;
        let fd = self.vcpu.fd();
        let reset = || {
            fd.vcpu_init(&self.init).map_err(|error| format!("KVM_ARM_VCPU_INIT: {error}"))?;
            if let (0, Some(entry)) = (self.vcpu.index(), entry) {
                registers::write(&fd, registers::PC, entry.pc)?;
                registers::write(&fd, x(0), entry.x0)?;
            }
            Ok(())
        };
        self.named(reset())
    }

    /// Puts into KVM what was loaded; the counters that came with it.
    ///
    /// # Errors
    /// Names the register.
    pub(in crate::aarch64) fn apply(&self) -> Result<Option<Counts>, MachineError> {
        let Some(mut cpu) = lock(&self.loaded).take() else { return Ok(None) };
        if self.faults.has(Fault::Register) {
            cpu.xregs[FORGOTTEN] = 0;
        }
        if self.faults.has(Fault::Counter) {
            cpu.registers.retain(|(id, _)| ![TIMER_CNT, PHYSICAL_CNT].contains(id));
        }
        self.named(section::put(&self.vcpu.fd(), &cpu, &self.listed))?;
        let value = |wanted| cpu.registers.iter().find(|(id, _)| *id == wanted).map(|(_, value)| *value);
        Ok(value(TIMER_CNT).map(|virt| Counts { virt, physical: value(PHYSICAL_CNT) }))
    }

    fn named<T>(&self, result: Result<T, MachineError>) -> Result<T, MachineError> {
        result.map_err(|error| format!("vCPU {}: {error}", self.vcpu.index()).into())
    }
}

/// One section of a vCPU, for the registry.
pub(in crate::aarch64) struct CpuSection {
    unit: Arc<CpuUnit>,
    part: Part,
    counter: Arc<Counter>,
}

impl CpuSection {
    /// `part` of `unit`, whose counters are `counter`'s.
    pub(in crate::aarch64) fn new(unit: &Arc<CpuUnit>, part: Part, counter: &Arc<Counter>) -> Self {
        Self { unit: Arc::clone(unit), part, counter: Arc::clone(counter) }
    }

    fn capture(&self) -> Result<CpuArm, MachineError> {
        let mut cpu = section::capture(&self.unit.vcpu.fd(), &self.unit.listed)?;
        // KVM's go on while the machine is stopped.
        if let Some(counts) = self.counter.frozen() {
            for (id, value) in &mut cpu.registers {
                match *id {
                    TIMER_CNT => *value = counts.virt,
                    PHYSICAL_CNT => *value = counts.physical.unwrap_or(*value),
                    _ => {}
                }
            }
        }
        Ok(cpu)
    }
}

impl Device for CpuSection {
    fn save(&self) -> Result<Box<dyn VmState>, MachineError> {
        let cpu = self.unit.named(self.capture())?;
        Ok(match self.part {
            Part::Common => Box::new(CpuCommon { halted: cpu.power_state.into(), ..CpuCommon::default() }),
            Part::Cpu => Box::new(cpu),
        })
    }

    fn blank(&self) -> Box<dyn VmState> {
        match self.part {
            Part::Common => Box::new(CpuCommon::default()),
            Part::Cpu => {
                // As long as what will be saved, for those who ask how long that is.
                let registers = self.unit.listed.iter().map(|id| (*id, 0)).collect();
                let vfp = Some(crate::state::ArmVfp::default());
                Box::new(CpuArm { registers, vfp, irq_line_state: Some(0), ..CpuArm::default() })
            }
        }
    }

    fn load(&self, state: Box<dyn VmState>) -> Result<(), MachineError> {
        match self.part {
            // Off is told by `cpu`.
            Part::Common => drop(downcast::<CpuCommon>(state)?),
            Part::Cpu => *lock(&self.unit.loaded) = Some(*downcast(state)?),
        }
        Ok(())
    }
}
