//! The whole machine, as the engine sees it.

use std::sync::Arc;
use std::time::Duration;

use whimbrel::dirty::DirtySource;
use whimbrel::handlers::{Device, DeviceHandler, Priority, Registry};
use whimbrel::machine::{Machine, MachineError};
use whimbrel::memory::RamBlock;

use super::boot::Boot;
use super::console::ConsoleRegister;
use super::counter::Counter;
use super::gicv3::GicV3;
use super::its::Its;
use super::kvm::KvmVm;
use super::msi::MsiSender;
use super::pl011::Pl011;
use super::vcpu::{CpuSection, CpuUnit, Entry, Part};
use super::{map, memory};
use crate::bus::Bus;
use crate::chardev;
use crate::config::{CharBackend, MachineOptions, VmConfig};
use crate::debugcon::Debugcon;
use crate::error::Error;
use crate::events::{EventSlot, GuestEvents};
use crate::memory::GuestRam;
use crate::timer::{TimerDevice, VirtualClock};
use crate::vcpu::{Exits, Running, Vcpu};

/// Priority of the callbacks at stop and start.
const CONTROLLERS: i32 = 0;

/// A machine. Built stopped: [`Machine::resume_vcpus`] lets it run.
pub struct Vm {
    vcpus: Vec<Arc<CpuUnit>>,
    clock: Arc<VirtualClock>,
    counter: Arc<Counter>,
    gic: Arc<GicV3>,
    its: Arc<Its>,
    uart: Arc<Pl011>,
    msi: Option<Arc<MsiSender>>,
    boot: Option<Boot>,
    pub(crate) events: Arc<EventSlot>,
    kvm: Arc<KvmVm>,
    pub(crate) ram: Arc<GuestRam>,
    running: Running,
}

impl Vm {
    /// Builds a machine; its sections are in the registry, in QEMU's order.
    ///
    /// # Errors
    /// If the host cannot hold it or an image cannot be booted.
    pub fn new(config: VmConfig) -> Result<(Arc<Self>, Registry), Error> {
        refuse_what_is_microvms(&config)?;
        let ram = Arc::new(memory::allocate(&config)?);
        let kvm = Arc::new(KvmVm::new(&ram, config.dirty)?);
        let vcpus = (0..config.cpus)
            .map(|index| CpuUnit::new(&kvm, index, config.faults.clone()).map(Arc::new))
            .collect::<Result<Vec<_>, _>>()?;
        let gic = Arc::new(GicV3::new(&kvm, &vcpus, Arc::clone(&ram), config.faults.clone())?);
        let its = Arc::new(Its::new(&kvm, config.cpus, Arc::clone(&ram), config.faults.clone())?);
        let affinities: Vec<u64> = vcpus.iter().map(|unit| unit.affinity()).collect();
        let boot = Boot::new(&config, &affinities)?;
        let events = Arc::new(EventSlot::default());
        let mut bus = Bus::default();
        let uart = add_uart(config.serial.as_ref(), &kvm, &mut bus)?;
        if let Some(wanted) = &config.debugcon {
            add_debugcon(&wanted.backend, &mut bus)?;
        }
        let msi = config.msi.as_ref().map(|backend| add_msi(backend, &kvm)).transpose()?;
        let this = Self {
            counter: Arc::new(Counter::new(Arc::clone(&vcpus[0]))),
            clock: Arc::new(VirtualClock::default()),
            running: Running::default(),
            vcpus,
            gic,
            its,
            uart,
            msi,
            boot,
            events,
            kvm,
            ram,
        };
        if !config.incoming {
            let entry = this.load_images()?;
            this.enter(entry).map_err(|error| Error::Config(error.0))?;
        }
        let events = Arc::clone(&this.events) as Arc<dyn GuestEvents>;
        let exits = Arc::new(Exits { bus, events, dirty: this.kvm.dirty_log().clone() });
        for unit in &this.vcpus {
            unit.vcpu().start(Arc::clone(&exits))?;
        }
        let registry = this.registry();
        Ok((Arc::new(this), registry))
    }

    /// QEMU's order of sections for this machine. `globalstate`, the last, is the engine's.
    fn registry(&self) -> Registry {
        let mut registry = Registry::new();
        let mut add = |idstr: &str, instance_id: u32, priority: Priority, device: Arc<dyn Device>| {
            let idstr = idstr.to_owned();
            registry.device(DeviceHandler { idstr, instance_id, priority, early: false, device });
        };
        add("arm_gicv3", 0, Priority::GicV3, Arc::clone(&self.gic) as _);
        add("arm_gicv3_its", 0, Priority::GicV3Its, Arc::clone(&self.its) as _);
        add("timer", 0, Priority::Default, Arc::new(TimerDevice::new(Arc::clone(&self.clock))));
        for unit in &self.vcpus {
            let index = unit.vcpu().index();
            let section = |part| Arc::new(CpuSection::new(unit, part, &self.counter));
            add("cpu_common", index, Priority::Default, section(Part::Common));
            add("cpu", index, Priority::Default, section(Part::Cpu));
        }
        add("pl011", 0, Priority::Default, Arc::clone(&self.uart) as _);
        registry.state_change(CONTROLLERS, Arc::clone(&self.counter) as _);
        registry.ram_tables(CONTROLLERS, "arm_gicv3_its", Arc::clone(&self.its) as _);
        registry.ram_tables(CONTROLLERS, "arm_gicv3", Arc::clone(&self.gic) as _);
        // Behind the tables in starting order: so a stop that fails as they are saved has reached them, and its undoing does.
        registry.state_change(CONTROLLERS, Arc::clone(&self.its) as _);
        registry.state_change(CONTROLLERS, Arc::clone(&self.gic) as _);
        registry
    }

    /// Images into RAM; where the first vCPU begins, if there is a kernel.
    fn load_images(&self) -> Result<Option<Entry>, Error> {
        self.boot.as_ref().map(|boot| boot.load(&self.ram)).transpose()
    }

    fn enter(&self, entry: Option<Entry>) -> Result<(), MachineError> {
        self.vcpus.iter().try_for_each(|unit| unit.reset(entry))
    }

    /// What sends interrupts by itself does so, or waits.
    fn let_devices_work(&self, working: bool) {
        self.uart.set_running(working);
        if let Some(msi) = &self.msi {
            msi.open(working);
        }
    }

    pub(crate) fn vcpus(&self) -> impl Iterator<Item = &Vcpu> + Clone {
        self.vcpus.iter().map(|unit| unit.vcpu())
    }
}

impl Machine for Vm {
    fn ram(&self) -> &[RamBlock] {
        self.ram.blocks()
    }

    fn dirty_source(&self) -> Result<Box<dyn DirtySource>, MachineError> {
        self.kvm.dirty_source(&self.ram).map_err(|error| format!("dirty log: {error}").into())
    }

    fn pause_vcpus(&self) -> Result<(), MachineError> {
        self.running.pause(self.vcpus(), || self.let_devices_work(false))
    }

    fn resume_vcpus(&self) -> Result<(), MachineError> {
        self.let_devices_work(true);
        self.running.resume(self.vcpus())
    }

    fn freeze_clocks(&self) -> Result<(), MachineError> {
        self.clock.freeze();
        Ok(())
    }

    fn thaw_clocks(&self) -> Result<(), MachineError> {
        self.clock.thaw();
        Ok(())
    }

    /// vCPUs, then the GIC, whose LPI tables are on before the ITS restores what is pending in them.
    fn apply(&self) -> Result<(), MachineError> {
        for (unit, is_first) in self.vcpus.iter().zip((0..).map(|index| index == 0)) {
            if let Some(counts) = unit.apply()?.filter(|_| is_first) {
                self.counter.hold(counts);
            }
        }
        self.gic.apply()?;
        self.its.apply()?;
        if let Some(msi) = &self.msi {
            msi.open(true);
        }
        Ok(())
    }

    /// The ITS first: what it has mapped keeps LPIs alive.
    fn reset(&self) -> Result<(), MachineError> {
        self.its.reset()?;
        self.gic.reset()?;
        self.uart.reset();
        self.counter.forget();
        let entry = self.load_images().map_err(|error| MachineError(error.to_string()))?;
        self.enter(entry)
    }

    /// The last pause, and twice what capturing all vCPUs took when they were built: once here, once there.
    fn fixed_pause(&self) -> Duration {
        let cpus: Duration = self.vcpus.iter().map(|unit| unit.rehearsed()).sum();
        self.running.last_pause() + cpus * 2
    }
}

fn refuse_what_is_microvms(config: &VmConfig) -> Result<(), Error> {
    if config.cpus == 0 || config.cpus > map::CPUS_MAX {
        return Err(Error::Config(format!("{} vCPUs: 1 to {}", config.cpus, map::CPUS_MAX)));
    }
    if config.machine != MachineOptions::PLAIN {
        return Err(Error::Config("acpi, pic, pit and rtc are microvm's: virt has none of them".into()));
    }
    if config.bios.is_some() {
        return Err(Error::Config("virt has no firmware here: kernels are booted directly".into()));
    }
    Ok(())
}

fn add_uart(backend: Option<&CharBackend>, kvm: &Arc<KvmVm>, bus: &mut Bus) -> Result<Arc<Pl011>, Error> {
    let (output, input) = chardev::open(backend.unwrap_or(&CharBackend::Null))?;
    let line = Arc::clone(kvm);
    let irq = Box::new(move |level| line.set_line(map::FIRST_SPI + map::UART_SPI, level));
    let device = Arc::new(Pl011::new(output, irq));
    bus.add_mmio(map::UART, map::UART_SIZE, Arc::clone(&device) as _);
    chardev::start(input, &device);
    Ok(device)
}

/// The bus owns it.
fn add_debugcon(backend: &CharBackend, bus: &mut Bus) -> Result<(), Error> {
    let (output, input) = chardev::open(backend)?;
    let device = Arc::new(Debugcon::new(output));
    bus.add_mmio(map::DEBUGCON, map::DEBUGCON_SIZE, Arc::new(ConsoleRegister(Arc::clone(&device))));
    chardev::start(input, &device);
    Ok(())
}

fn add_msi(backend: &CharBackend, kvm: &Arc<KvmVm>) -> Result<Arc<MsiSender>, Error> {
    let (output, input) = chardev::open(backend)?;
    let device = Arc::new(MsiSender::new(Arc::clone(kvm), output));
    chardev::start(input, &device);
    Ok(device)
}
