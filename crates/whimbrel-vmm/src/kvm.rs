//! The VM's file descriptor: capabilities, in-kernel interrupt controllers.
//!
//! The interrupt wiring is a PC's: global interrupt n is pin n of the IOAPIC, but the timer, 0, is its pin 2; and with `pic=on`
//! 0 to 15 are also the inputs of the 8259s, of which 2 is where the second one is attached. KVM's chip has the 8259 pair
//! always: without `pic` no line is routed to it, so it never speaks.

use kvm_bindings::{
    KVM_CAP_EXCEPTION_PAYLOAD, KVM_CAP_PMU_CAPABILITY, KVM_CAP_X86_TRIPLE_FAULT_EVENT,
    KVM_IRQ_ROUTING_IRQCHIP, KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE,
    KVM_PMU_CAP_DISABLE, KvmIrqRouting, kvm_enable_cap, kvm_irq_routing_entry,
};
use kvm_ioctls::{Cap, Kvm, VcpuFd, VmFd};
use whimbrel::dirty::DirtySource;

use crate::config::DirtyTracking;
use crate::dirty::DirtyLog;
use crate::error::Error;
use crate::map::IOAPIC_PINS;
use crate::memory::GuestRam;
use crate::slots::MemorySlots;

/// Where KVM may keep an identity page table for real mode. QEMU's place.
const IDENTITY_MAP: u64 = 0xfeff_c000;
/// Three pages for a task state segment behind it.
const TSS: usize = 0xfeff_d000;
/// Inputs of one 8259.
const PIC_INPUTS: u32 = 8;
/// The master's input behind which the slave is.
const CASCADE: u32 = 2;
/// The 8254's interrupt, and where it is on the IOAPIC.
const TIMER: u32 = 0;
const TIMER_PIN: u32 = 2;

/// A VM without vCPUs.
pub struct KvmVm {
    /// KVM itself.
    pub kvm: Kvm,
    /// The VM.
    pub vm: VmFd,
    slots: MemorySlots,
}

impl KvmVm {
    /// Creates the VM with its interrupt controllers and maps `ram`. `pic`: the 8259s are wired. `pmu`: vCPUs may have performance
    /// counters. `dirty`: how writes to `ram` are to be tracked.
    ///
    /// # Errors
    /// If KVM is not there or lacks something this machine stands on.
    pub fn new(ram: &GuestRam, pic: bool, pmu: bool, dirty: DirtyTracking) -> Result<Self, Error> {
        let kvm = Kvm::new().map_err(|error| Error::NoKvm(error.into()))?;
        let vm = kvm.create_vm().map_err(Error::kvm("KVM_CREATE_VM"))?;
        let needed = [
            (Cap::Irqchip, "in-kernel interrupt controllers"),
            (Cap::ImmediateExit, "immediate exit"),
            (Cap::Xsave, "XSAVE state"),
            (Cap::Xcrs, "XCR state"),
            (Cap::VcpuEvents, "vCPU events"),
            (Cap::AdjustClock, "KVM clock"),
        ];
        for (cap, what) in needed {
            if !vm.check_extension(cap) {
                return Err(Error::Config(format!("this host's KVM has no {what}")));
            }
        }
        vm.set_identity_map_address(IDENTITY_MAP).map_err(Error::kvm("KVM_SET_IDENTITY_MAP_ADDR"))?;
        vm.set_tss_address(TSS).map_err(Error::kvm("KVM_SET_TSS_ADDR"))?;
        if !pmu {
            disable_pmu(&vm);
        }
        tell_more_events(&vm);
        vm.create_irq_chip().map_err(Error::kvm("KVM_CREATE_IRQCHIP"))?;
        route(&vm, pic)?;
        let slots = MemorySlots::map(&vm, ram, dirty)?;
        Ok(Self { kvm, vm, slots })
    }

    /// Makes vCPU `index`.
    ///
    /// # Errors
    /// If KVM refuses it.
    pub fn create_vcpu(&self, index: u32) -> Result<VcpuFd, Error> {
        self.slots.create_vcpu(&self.vm, index)
    }

    /// The dirty log, for vCPUs whose ring is full.
    pub fn dirty_log(&self) -> &DirtyLog {
        self.slots.dirty_log()
    }

    /// A source of dirty pages for a migration.
    ///
    /// # Errors
    /// If file descriptors run out.
    pub fn dirty_source(&self, ram: &GuestRam) -> std::io::Result<Box<dyn DirtySource>> {
        self.slots.dirty_source(&self.vm, ram)
    }
}

/// The guest gets no performance counters. Best effort: without the capability the guest's CPUID hides them, and a vCPU that used
/// them nevertheless is found when it is saved.
fn disable_pmu(vm: &VmFd) {
    let cap = kvm_enable_cap {
        cap: KVM_CAP_PMU_CAPABILITY,
        args: [KVM_PMU_CAP_DISABLE.into(), 0, 0, 0],
        ..Default::default()
    };
    if let Err(error) = vm.enable_cap(&cap) {
        tracing::debug!(%error, "KVM cannot switch the virtual PMU off");
    }
}

/// A vCPU's events then include an exception's payload and a triple fault that waits. Where KVM lacks it there are none to tell.
fn tell_more_events(vm: &VmFd) {
    for cap in [KVM_CAP_EXCEPTION_PAYLOAD, KVM_CAP_X86_TRIPLE_FAULT_EVENT] {
        let request = kvm_enable_cap { cap, args: [1, 0, 0, 0], ..Default::default() };
        if let Err(error) = vm.enable_cap(&request) {
            tracing::debug!(%error, cap, "KVM capability");
        }
    }
}

/// Which pins a global interrupt reaches.
fn route(vm: &VmFd, pic: bool) -> Result<(), Error> {
    let entry = |gsi, irqchip, pin| {
        let mut entry = kvm_irq_routing_entry { gsi, type_: KVM_IRQ_ROUTING_IRQCHIP, ..Default::default() };
        entry.u.irqchip.irqchip = irqchip;
        entry.u.irqchip.pin = pin;
        entry
    };
    let mut entries = Vec::new();
    for gsi in 0..IOAPIC_PINS as u32 {
        match gsi {
            CASCADE => continue,
            TIMER => entries.push(entry(gsi, KVM_IRQCHIP_IOAPIC, TIMER_PIN)),
            _ => entries.push(entry(gsi, KVM_IRQCHIP_IOAPIC, gsi)),
        }
        match gsi / PIC_INPUTS {
            0 if pic => entries.push(entry(gsi, KVM_IRQCHIP_PIC_MASTER, gsi)),
            1 if pic => entries.push(entry(gsi, KVM_IRQCHIP_PIC_SLAVE, gsi - PIC_INPUTS)),
            _ => {}
        }
    }
    let routing = KvmIrqRouting::from_entries(&entries)
        .map_err(|_| Error::Config("too many interrupt routes".into()))?;
    vm.set_gsi_routing(&routing).map_err(Error::kvm("KVM_SET_GSI_ROUTING"))
}
