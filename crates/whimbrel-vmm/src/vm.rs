//! The whole machine, as the engine sees it.

use std::sync::{Arc, OnceLock};

use kvm_bindings::{kvm_irqchip, kvm_lapic_state};
use whimbrel::dirty::DirtySource;
use whimbrel::handlers::Registry;
use whimbrel::machine::{Machine, MachineError};
use whimbrel::memory::RamBlock;

use crate::boot::{self, Boot};
use crate::bus::Bus;
use crate::chardev::{self, Receiver};
use crate::config::VmConfig;
use crate::cpuid;
use crate::debugcon::Debugcon;
use crate::error::Error;
use crate::kvm::KvmVm;
use crate::memory::GuestRam;
use crate::serial::{self, Serial};
use crate::vcpu::{Exits, KvmState, Vcpu, msrs};

/// What the guest does to the machine as a whole. Called on vCPU threads; must not wait for one.
pub trait GuestEvents: Send + Sync {
    /// The guest asked for a reset, or a vCPU took a triple fault. That vCPU is held until it is resumed.
    fn guest_reset(&self);
    /// The guest powered off.
    fn guest_shutdown(&self);
    /// A vCPU cannot go on.
    fn guest_failed(&self, text: String);
}

/// A machine. Built stopped: [`Machine::resume_vcpus`] lets it run.
pub struct Vm {
    // Dropped first: no vCPU runs while the rest goes.
    vcpus: Vec<Vcpu>,
    power_on: PowerOn,
    serial: Option<Arc<Serial>>,
    boot: Option<Boot>,
    events: Arc<EventSlot>,
    kvm: Arc<KvmVm>,
    ram: GuestRam,
    _debugcon: Option<Arc<Debugcon>>,
}

/// What KVM gave the vCPUs and interrupt controllers when they were made: a reset puts it back.
struct PowerOn {
    vcpus: Vec<(KvmState, kvm_lapic_state)>,
    ioapic: kvm_irqchip,
}

impl Vm {
    /// Builds a machine; its sections are in the registry, in QEMU's order.
    ///
    /// # Errors
    /// If the host cannot hold it or an image cannot be booted.
    pub fn new(config: VmConfig) -> Result<(Arc<Self>, Registry), Error> {
        if config.cpus == 0 || config.cpus > 254 {
            return Err(Error::Config(format!("{} vCPUs: 1 to 254", config.cpus)));
        }
        let ram = GuestRam::new(&config)?;
        let kvm = Arc::new(KvmVm::new(&ram)?);
        let boot = if config.incoming { None } else { Boot::new(&config)? };
        let events = Arc::new(EventSlot::default());

        let mut ports = Bus::default();
        let serial =
            config.serial.as_ref().map(|backend| add_serial(backend, &kvm, &mut ports)).transpose()?;
        let debugcon = config.debugcon.as_ref().map(|wanted| add_debugcon(wanted, &mut ports)).transpose()?;

        let vcpus = (0..config.cpus).map(|index| new_vcpu(&kvm, index)).collect::<Result<Vec<_>, _>>()?;
        let power_on = PowerOn::read(&kvm, &vcpus)?;
        let this = Self { vcpus, power_on, serial, boot, events, kvm, ram, _debugcon: debugcon };
        if !config.incoming {
            this.power_on().map_err(|error| Error::Config(error.to_string()))?;
        }
        let exits = Arc::new(Exits { ports, events: Arc::clone(&this.events) as Arc<dyn GuestEvents> });
        for vcpu in &this.vcpus {
            vcpu.start(Arc::clone(&exits))?;
        }
        Ok((Arc::new(this), Registry::new()))
    }

    /// Where guest resets and failures go. The first call counts.
    pub fn attach(&self, events: impl GuestEvents + 'static) {
        if self.events.0.set(Box::new(events)).is_err() {
            tracing::warn!("the machine has its listener already");
        }
    }

    /// Reads guest-physical memory.
    ///
    /// # Errors
    /// If the range leaves guest memory.
    pub fn read_physical(&self, gpa: u64, buf: &mut [u8]) -> std::io::Result<()> {
        self.ram.read(gpa, buf)
    }

    /// Writes guest-physical memory; the dirty log sees it.
    ///
    /// # Errors
    /// If the range leaves guest memory.
    pub fn write_physical(&self, gpa: u64, buf: &[u8]) -> std::io::Result<()> {
        self.ram.write(gpa, buf)
    }

    /// Images into RAM, vCPUs and controllers to power-on, the first vCPU to the kernel's entry.
    fn power_on(&self) -> Result<(), MachineError> {
        let entry = match &self.boot {
            Some(boot) => Some(boot.load(&self.ram).map_err(|error| MachineError(error.to_string()))?),
            None => None,
        };
        self.kvm
            .vm
            .set_irqchip(&self.power_on.ioapic)
            .map_err(|error| format!("KVM_SET_IRQCHIP: {error}"))?;
        for (vcpu, (state, lapic)) in self.vcpus.iter().zip(&self.power_on.vcpus) {
            let mut state = state.clone();
            if let (0, Some(entry)) = (vcpu.index(), entry) {
                enter_pvh(&mut state, entry);
            }
            let written = state.write(&vcpu.fd(), Some(lapic));
            written.map_err(|error| format!("vCPU {}: {error}", vcpu.index()))?;
        }
        if let Some(serial) = &self.serial {
            serial.reset();
        }
        Ok(())
    }
}

impl Machine for Vm {
    fn ram(&self) -> &[RamBlock] {
        self.ram.blocks()
    }

    fn dirty_source(&self) -> Result<Box<dyn DirtySource>, MachineError> {
        let log = self.kvm.dirty_log(&self.ram).map_err(|error| format!("dirty log: {error}"))?;
        Ok(Box::new(log))
    }

    fn pause_vcpus(&self) -> Result<(), MachineError> {
        for vcpu in &self.vcpus {
            vcpu.pause();
        }
        for vcpu in &self.vcpus {
            if !vcpu.wait_paused() {
                return Err(format!("vCPU {} did not leave the guest in time", vcpu.index()).into());
            }
        }
        if let Some(serial) = &self.serial {
            serial.set_running(false);
        }
        Ok(())
    }

    fn resume_vcpus(&self) -> Result<(), MachineError> {
        if let Some(serial) = &self.serial {
            serial.set_running(true);
        }
        match self.vcpus.iter().find(|vcpu| !vcpu.resume()) {
            Some(vcpu) => Err(format!("vCPU {}: its thread is gone", vcpu.index()).into()),
            None => Ok(()),
        }
    }

    fn freeze_clocks(&self) -> Result<(), MachineError> {
        Ok(())
    }

    fn thaw_clocks(&self) -> Result<(), MachineError> {
        Ok(())
    }

    fn apply(&self) -> Result<(), MachineError> {
        Ok(())
    }

    fn reset(&self) -> Result<(), MachineError> {
        self.power_on()
    }
}

fn new_vcpu(kvm: &KvmVm, index: u32) -> Result<Vcpu, Error> {
    let fd = kvm.vm.create_vcpu(index.into()).map_err(Error::kvm("KVM_CREATE_VCPU"))?;
    let cpuid = cpuid::for_vcpu(&kvm.kvm, index)?;
    fd.set_cpuid2(&cpuid).map_err(Error::kvm("KVM_SET_CPUID2"))?;
    Ok(Vcpu::new(index, fd))
}

fn add_serial(
    backend: &crate::config::CharBackend,
    kvm: &Arc<KvmVm>,
    ports: &mut Bus,
) -> Result<Arc<Serial>, Error> {
    let (output, input) = chardev::open(backend)?;
    let line = Arc::clone(kvm);
    let irq = Box::new(move |level| {
        if let Err(error) = line.vm.set_irq_line(serial::IRQ, level) {
            tracing::error!(%error, "the serial interrupt line");
        }
    });
    let device = Arc::new(Serial::new(output, irq));
    ports.add(serial::FIRST_PORT, serial::PORTS, Arc::clone(&device) as _);
    if let Some(input) = input {
        let receiver: Arc<dyn Receiver> = Arc::clone(&device) as _;
        input.start(Arc::downgrade(&receiver));
    }
    Ok(device)
}

fn add_debugcon(wanted: &crate::config::Debugcon, ports: &mut Bus) -> Result<Arc<Debugcon>, Error> {
    let (output, input) = chardev::open(&wanted.backend)?;
    let device = Arc::new(Debugcon::new(output));
    ports.add(wanted.port, 1, Arc::clone(&device) as _);
    if let Some(input) = input {
        let receiver: Arc<dyn Receiver> = Arc::clone(&device) as _;
        input.start(Arc::downgrade(&receiver));
    }
    Ok(device)
}

fn enter_pvh(state: &mut KvmState, entry: u64) {
    let (code, data, task) = boot::entry_segments();
    state.regs = boot::entry_regs(entry);
    state.sregs.cs = code;
    (state.sregs.ds, state.sregs.es, state.sregs.ss) = (data, data, data);
    (state.sregs.fs, state.sregs.gs) = (data, data);
    state.sregs.tr = task;
    state.sregs.cr0 = 1;
    state.sregs.cr4 = 0;
    state.sregs.efer = 0;
}

impl PowerOn {
    fn read(kvm: &KvmVm, vcpus: &[Vcpu]) -> Result<Self, Error> {
        let known = kvm.kvm.get_msr_index_list().map_err(Error::kvm("KVM_GET_MSR_INDEX_LIST"))?;
        let vcpus = vcpus.iter().map(|vcpu| {
            let fd = vcpu.fd();
            let failed = |error: MachineError| Error::Vcpu { vcpu: vcpu.index(), text: error.to_string() };
            let wanted = msrs::readable(&fd, known.as_slice());
            let state = KvmState::read(&fd, &wanted).map_err(failed)?;
            let lapic = fd.get_lapic().map_err(Error::kvm("KVM_GET_LAPIC"))?;
            Ok((state, lapic))
        });
        let mut ioapic = kvm_irqchip { chip_id: kvm_bindings::KVM_IRQCHIP_IOAPIC, ..Default::default() };
        let vcpus = vcpus.collect::<Result<_, Error>>()?;
        kvm.vm.get_irqchip(&mut ioapic).map_err(Error::kvm("KVM_GET_IRQCHIP"))?;
        Ok(Self { vcpus, ioapic })
    }
}

/// The listener, once there is one.
#[derive(Default)]
struct EventSlot(OnceLock<Box<dyn GuestEvents>>);

impl GuestEvents for EventSlot {
    fn guest_reset(&self) {
        match self.0.get() {
            Some(events) => events.guest_reset(),
            None => tracing::warn!("the guest reset itself, and nobody listens"),
        }
    }

    fn guest_shutdown(&self) {
        match self.0.get() {
            Some(events) => events.guest_shutdown(),
            None => tracing::warn!("the guest powered off, and nobody listens"),
        }
    }

    fn guest_failed(&self, text: String) {
        match self.0.get() {
            Some(events) => events.guest_failed(text),
            None => tracing::error!(text, "the guest failed, and nobody listens"),
        }
    }
}
