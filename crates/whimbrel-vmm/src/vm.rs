//! The whole machine, as the engine sees it.

use std::sync::Arc;
use std::time::Duration;

use whimbrel::dirty::DirtySource;
use whimbrel::handlers::{Device, DeviceHandler, Priority, Registry, StateChange};
use whimbrel::machine::{AnnouncedBlock, Machine, MachineError};
use whimbrel::memory::RamBlock;

use crate::boot::{Boot, Entry};
use crate::bus::Bus;
use crate::config::VmConfig;
use crate::cpuid::CpuProfile;
use crate::devices::Devices;
use crate::error::Error;
use crate::events::{EventSlot, GuestEvents};
use crate::kvm::KvmVm;
use crate::kvmclock::KvmClockDevice;
use crate::memory::GuestRam;
use crate::roms;
use crate::timer::{TimerDevice, VirtualClock};
use crate::vcpu::{self, CpuSection, CpuUnit, Exits, Part, Rehearsal, Running, UnitContext, Vcpu};

/// APIC ids are 8 bits wide in the stream, and the last is for broadcasts.
const MAX_CPUS: u32 = 254;

/// A machine. Built stopped: [`Machine::resume_vcpus`] lets it run.
pub struct Vm {
    vcpus: Vec<Arc<CpuUnit>>,
    clock: Arc<VirtualClock>,
    kvmclock: Arc<KvmClockDevice>,
    devices: Devices,
    rehearsal: Rehearsal,
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
        if config.cpus == 0 || config.cpus > MAX_CPUS {
            return Err(Error::Config(format!("{} vCPUs: 1 to {MAX_CPUS}", config.cpus)));
        }
        if config.msi.is_some() {
            return Err(Error::Config("no MSI test device on x86-64: it is virt's".into()));
        }
        let ram = Arc::new(GuestRam::new(&config)?);
        let kvm = Arc::new(KvmVm::new(&ram, config.machine.pic, config.cpu.pmu(), config.dirty)?);
        let profile = CpuProfile::new(&kvm.kvm, &config.cpu, config.level, config.cpus)?;
        let boot = Boot::new(&config)?;
        let clock = Arc::new(VirtualClock::default());
        let events = Arc::new(EventSlot::default());

        let mut bus = Bus::default();
        let devices = Devices::new(&config, &kvm, &ram, &clock, &mut bus)?;

        let context =
            UnitContext { clock: Arc::clone(&clock), level: config.level, faults: config.faults.clone() };
        let vcpus = (0..config.cpus)
            .map(|index| CpuUnit::new(&kvm, &profile, index, context.clone()).map(Arc::new))
            .collect::<Result<Vec<_>, _>>()?;
        let text = |error: MachineError| Error::Config(error.0);
        let this = Self {
            kvmclock: Arc::new(KvmClockDevice::new(
                Arc::clone(&kvm),
                vcpus.clone(),
                Arc::clone(&clock),
                Arc::clone(&events) as _,
            )),
            devices,
            rehearsal: Rehearsal::default(),
            running: Running::default(),
            vcpus,
            clock,
            boot,
            events,
            kvm,
            ram,
        };
        if !config.incoming {
            let entry = this.load_images()?;
            this.power_on(entry).map_err(text)?;
        }
        let exits = Arc::new(Exits {
            bus,
            events: Arc::clone(&this.events) as Arc<dyn GuestEvents>,
            dirty: this.kvm.dirty_log().clone(),
        });
        for unit in &this.vcpus {
            unit.vcpu().start(Arc::clone(&exits))?;
        }
        let registry = this.registry();
        Ok((Arc::new(this), registry))
    }

    /// Runs this machine's state-change callbacks; for those who drive it without an engine. Call it where the engine does: after
    /// [`Machine::pause_vcpus`], before [`Machine::thaw_clocks`].
    ///
    /// # Errors
    /// If KVM's clock cannot be read or set.
    pub fn state_changed(&self, running: bool) -> Result<(), MachineError> {
        self.kvmclock.changed(running)?;
        self.devices.state_changed(running)
    }

    /// QEMU's order of sections for this machine. `globalstate`, the last, is the engine's.
    fn registry(&self) -> Registry {
        let mut registry = Registry::new();
        let mut add = |idstr: &str, instance_id: u32, device: Arc<dyn Device>| {
            let idstr = idstr.to_owned();
            registry.device(DeviceHandler {
                idstr,
                instance_id,
                priority: Priority::Default,
                early: false,
                device,
            });
        };
        add("timer", 0, Arc::new(TimerDevice::new(Arc::clone(&self.clock))));
        self.devices.register_before_cpus(&mut add);
        for unit in &self.vcpus {
            let index = unit.vcpu().index();
            add("cpu_common", index, Arc::new(CpuSection::new(unit, Part::Common)));
            add("cpu", index, Arc::new(CpuSection::new(unit, Part::Cpu)));
            if index == 0 {
                add("kvm-tpr-opt", 0, self.devices.tpr_opt());
            }
            add("apic", index, Arc::new(CpuSection::new(unit, Part::Apic)));
        }
        self.devices.register_behind_cpus(Arc::clone(&self.kvmclock) as _, &mut add);
        registry.state_change(0, Arc::clone(&self.kvmclock) as _);
        self.devices.register_changes(&mut registry);
        registry
    }

    /// Images into RAM; where to enter the kernel, if there is one.
    fn load_images(&self) -> Result<Option<Entry>, Error> {
        self.boot.as_ref().map(|boot| boot.load(&self.ram)).transpose()
    }

    /// vCPUs and devices to power-on, the first vCPU to `entry`.
    fn power_on(&self, entry: Option<Entry>) -> Result<(), MachineError> {
        self.devices.reset()?;
        vcpu::reset_all(&self.vcpus, entry)
    }

    pub(crate) fn vcpus(&self) -> impl Iterator<Item = &Vcpu> + Clone {
        self.vcpus.iter().map(|unit| unit.vcpu())
    }
}

impl Machine for Vm {
    fn ram(&self) -> &[RamBlock] {
        self.ram.blocks()
    }

    fn blocks_announced(&self, blocks: &[AnnouncedBlock]) -> Result<(), MachineError> {
        roms::adopt(&self.ram, blocks)
    }

    fn dirty_source(&self) -> Result<Box<dyn DirtySource>, MachineError> {
        Ok(self.kvm.dirty_source(&self.ram).map_err(|error| format!("dirty log: {error}"))?)
    }

    fn pause_vcpus(&self) -> Result<(), MachineError> {
        self.running.pause(self.vcpus(), || self.devices.set_running(false))
    }

    fn resume_vcpus(&self) -> Result<(), MachineError> {
        self.devices.set_running(true);
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

    /// The clock first (vCPUs refer to it), then vCPUs, then devices.
    fn apply(&self) -> Result<(), MachineError> {
        self.kvmclock.apply()?;
        vcpu::apply_all(&self.vcpus)?;
        self.devices.apply()
    }

    fn reset(&self) -> Result<(), MachineError> {
        let entry = self.load_images().map_err(|error| MachineError(error.to_string()))?;
        self.power_on(entry)
    }

    fn blockers(&self) -> Vec<String> {
        self.rehearsal.blockers(&self.vcpus)
    }

    /// The last pause, and twice what capturing and applying all vCPUs took when they were built: once here, once there.
    fn fixed_pause(&self) -> Duration {
        let cpus: Duration = self.vcpus.iter().map(|unit| unit.rehearsed()).sum();
        self.running.last_pause() + cpus * 2
    }
}
