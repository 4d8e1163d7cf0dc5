//! The devices of one machine but vCPUs and clocks: made, wired to the bus and to interrupt lines, and put into QEMU's order.

use std::sync::Arc;

use kvm_bindings::kvm_irqchip;
use whimbrel::handlers::{Device, Registry, StateChange};
use whimbrel::machine::MachineError;

use crate::acpi_ged::{AcpiGed, Selector, SleepAndReset};
use crate::bus::Bus;
use crate::chardev::{self, Input, Receiver};
use crate::config::{self, CharBackend, VmConfig};
use crate::debugcon::Debugcon;
use crate::error::Error;
use crate::fw_cfg::{self, FwCfg};
use crate::i8254::Pit;
use crate::i8259::Pic;
use crate::ioapic::second::SecondIoApic;
use crate::ioapic::{self, IoApicDevice};
use crate::kvm::KvmVm;
use crate::map;
use crate::memory::GuestRam;
use crate::rtc::{self, Rtc};
use crate::serial::{self, Serial};
use crate::timer::VirtualClock;
use crate::tpr_opt::TprOptDevice;

/// All of them.
pub struct Devices {
    kvm: Arc<KvmVm>,
    fw_cfg: Arc<FwCfg>,
    tpr_opt: Arc<TprOptDevice>,
    ioapic: Arc<IoApicDevice>,
    power_on_ioapic: kvm_irqchip,
    acpi: Option<Acpi>,
    pics: Option<[Arc<Pic>; 2]>,
    pit: Option<Arc<Pit>>,
    rtc: Option<Arc<Rtc>>,
    serial: Option<Arc<Serial>>,
    _debugcon: Option<Arc<Debugcon>>,
}

/// What a machine has with ACPI only.
struct Acpi {
    ged: Arc<AcpiGed>,
    second_ioapic: Arc<SecondIoApic>,
}

impl Devices {
    /// Makes those that `config` asks for. Before any vCPU is made: KVM's timer has to be there then.
    ///
    /// # Errors
    /// If KVM lacks one, or a character device cannot be opened.
    pub fn new(
        config: &VmConfig,
        kvm: &Arc<KvmVm>,
        ram: &Arc<GuestRam>,
        clock: &Arc<VirtualClock>,
        bus: &mut Bus,
    ) -> Result<Self, Error> {
        let machine = config.machine;
        let fw_cfg = Arc::new(FwCfg::new(Arc::clone(ram), config.cpus, machine.acpi));
        bus.add(fw_cfg::FIRST_PORT, fw_cfg::PORTS, Arc::clone(&fw_cfg) as _);
        let pit =
            machine.pit.then(|| Pit::new(Arc::clone(kvm), Arc::clone(clock)).map(Arc::new)).transpose()?;
        let rtc = machine.rtc.then(|| add_rtc(ram, kvm, bus)).transpose()?;
        let serial = config.serial.as_ref().map(|backend| add_serial(backend, kvm, bus)).transpose()?;
        let debugcon = config.debugcon.as_ref().map(|wanted| add_debugcon(wanted, bus)).transpose()?;
        let power_on_ioapic = ioapic::read(kvm).map_err(|error| Error::Config(error.0))?;
        Ok(Self {
            kvm: Arc::clone(kvm),
            fw_cfg,
            tpr_opt: Arc::default(),
            ioapic: Arc::new(IoApicDevice::new(Arc::clone(kvm), config.faults.clone())),
            power_on_ioapic,
            acpi: machine.acpi.then(|| add_acpi(kvm, bus)),
            pics: machine.pic.then(|| Pic::pair(kvm)),
            pit,
            rtc,
            serial,
            _debugcon: debugcon,
        })
    }

    /// Sections that stand before the vCPUs'.
    pub fn register_before_cpus(&self, add: &mut impl FnMut(&str, u32, Arc<dyn Device>)) {
        add("fw_cfg", 0, Arc::clone(&self.fw_cfg) as _);
    }

    /// The section between the first vCPU's.
    pub fn tpr_opt(&self) -> Arc<dyn Device> {
        Arc::clone(&self.tpr_opt) as _
    }

    /// Sections behind the vCPUs', with `kvmclock` among them.
    pub fn register_behind_cpus(
        &self,
        kvmclock: Arc<dyn Device>,
        add: &mut impl FnMut(&str, u32, Arc<dyn Device>),
    ) {
        add("ioapic", 0, Arc::clone(&self.ioapic) as _);
        if let Some(acpi) = &self.acpi {
            add("ioapic", 1, Arc::clone(&acpi.second_ioapic) as _);
        }
        add("kvmclock", 0, kvmclock);
        if let Some(acpi) = &self.acpi {
            add("acpi-ged", 0, Arc::clone(&acpi.ged) as _);
        }
        for (instance, pic) in (0..).zip(self.pics.iter().flatten()) {
            add("i8259", instance, Arc::clone(pic) as _);
        }
        if let Some(pit) = &self.pit {
            add("i8254", 0, Arc::clone(pit) as _);
        }
        if let Some(rtc) = &self.rtc {
            add("mc146818rtc", 0, Arc::clone(rtc) as _);
        }
        if let Some(serial) = &self.serial {
            add("serial", 0, Arc::clone(serial) as _);
        }
    }

    /// Callbacks of stops and starts.
    pub fn register_changes(&self, registry: &mut Registry) {
        if let Some(pit) = &self.pit {
            registry.state_change(0, Arc::clone(pit) as _);
        }
    }

    /// The same for those who drive the machine without an engine.
    ///
    /// # Errors
    /// If KVM refuses.
    pub fn state_changed(&self, running: bool) -> Result<(), MachineError> {
        self.pit.as_ref().map_or(Ok(()), |pit| pit.changed(running))
    }

    /// Devices that do something by themselves begin, or end, to do so.
    pub fn set_running(&self, running: bool) {
        if let Some(serial) = &self.serial {
            serial.set_running(running);
        }
        if let Some(rtc) = &self.rtc {
            rtc.set_running(running);
        }
    }

    /// Loaded state into KVM, after the vCPUs': a controller injects what is pending, for which LAPICs must be there.
    ///
    /// # Errors
    /// Names the device that KVM refuses.
    pub fn apply(&self) -> Result<(), MachineError> {
        for pic in self.pics.iter().flatten() {
            pic.apply()?;
        }
        self.ioapic.apply()?;
        self.pit.as_ref().map_or(Ok(()), |pit| pit.apply())
    }

    /// All to power-on.
    ///
    /// # Errors
    /// Names the device that KVM refuses.
    pub fn reset(&self) -> Result<(), MachineError> {
        self.kvm
            .vm
            .set_irqchip(&self.power_on_ioapic)
            .map_err(|error| format!("ioapic: KVM_SET_IRQCHIP: {error}"))?;
        for pic in self.pics.iter().flatten() {
            pic.reset()?;
        }
        if let Some(pit) = &self.pit {
            pit.reset()?;
        }
        if let Some(acpi) = &self.acpi {
            acpi.ged.reset();
            acpi.second_ioapic.reset();
        }
        if let Some(rtc) = &self.rtc {
            rtc.reset();
        }
        if let Some(serial) = &self.serial {
            serial.reset();
        }
        self.fw_cfg.reset();
        self.tpr_opt.reset();
        Ok(())
    }
}

fn add_acpi(kvm: &Arc<KvmVm>, bus: &mut Bus) -> Acpi {
    let ged = Arc::new(AcpiGed::new());
    bus.add_mmio(map::GED_EVENT, map::GED_EVENT_LEN, Arc::new(Selector(Arc::clone(&ged))));
    bus.add_mmio(map::GED_REGISTERS, map::GED_REGISTERS_LEN, Arc::new(SleepAndReset));
    let second_ioapic = Arc::new(SecondIoApic::new(kvm));
    bus.add_mmio(map::IOAPIC2, map::IOAPIC_LEN, Arc::clone(&second_ioapic) as _);
    Acpi { ged, second_ioapic }
}

fn add_rtc(ram: &GuestRam, kvm: &Arc<KvmVm>, bus: &mut Bus) -> Result<Arc<Rtc>, Error> {
    let device = Arc::new(Rtc::new(ram.split(), line(kvm, map::RTC_GSI))?);
    bus.add(rtc::FIRST_PORT, rtc::PORTS, Arc::clone(&device) as _);
    Ok(device)
}

fn add_serial(backend: &CharBackend, kvm: &Arc<KvmVm>, bus: &mut Bus) -> Result<Arc<Serial>, Error> {
    let (output, input) = chardev::open(backend)?;
    let device = Arc::new(Serial::new(output, line(kvm, map::SERIAL_GSI)));
    bus.add(serial::FIRST_PORT, serial::PORTS, Arc::clone(&device) as _);
    start_input(input, &device);
    Ok(device)
}

fn add_debugcon(wanted: &config::Debugcon, bus: &mut Bus) -> Result<Arc<Debugcon>, Error> {
    let (output, input) = chardev::open(&wanted.backend)?;
    let device = Arc::new(Debugcon::new(output));
    bus.add(wanted.port, 1, Arc::clone(&device) as _);
    start_input(input, &device);
    Ok(device)
}

/// A line to KVM's controllers.
fn line(kvm: &Arc<KvmVm>, gsi: u32) -> Box<dyn Fn(bool) + Send + Sync> {
    let kvm = Arc::clone(kvm);
    Box::new(move |level| {
        if let Err(error) = kvm.vm.set_irq_line(gsi, level) {
            tracing::error!(%error, gsi, "an interrupt line");
        }
    })
}

fn start_input<R: Receiver + 'static>(input: Option<Input>, device: &Arc<R>) {
    if let Some(input) = input {
        let receiver: Arc<dyn Receiver> = Arc::clone(device) as _;
        input.start(Arc::downgrade(&receiver));
    }
}
