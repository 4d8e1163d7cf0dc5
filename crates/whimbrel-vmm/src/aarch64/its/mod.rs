//! The ITS, which is KVM's.
//!
//! What it has mapped (device, event → interrupt, collection → vCPU) KVM keeps to itself until it is told to write it into the
//! tables in guest RAM. The order that loses no MSI:
//!
//! ```text
//! stop     vCPUs ─▶ devices that send MSIs ─▶ SAVE_PENDING_TABLES, SAVE_TABLES ─▶ last dirty sync ─▶ RAM ─▶ sections
//! restore  RAM ─▶ vCPUs ─▶ GIC ─▶ IIDR (which layout) ─▶ CBASER ─▶ CREADR (which that resets) ─▶ CWRITER ─▶ BASERn
//!          ─▶ RESTORE_TABLES ─▶ CTLR, which switches it on
//! ```

mod entries;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use kvm_bindings::{
    KVM_DEV_ARM_ITS_CTRL_RESET, KVM_DEV_ARM_ITS_RESTORE_TABLES, KVM_DEV_ARM_ITS_SAVE_TABLES,
    KVM_DEV_ARM_VGIC_CTRL_INIT, KVM_DEV_ARM_VGIC_GRP_ADDR, KVM_DEV_ARM_VGIC_GRP_CTRL,
    KVM_DEV_ARM_VGIC_GRP_ITS_REGS, KVM_VGIC_ITS_ADDR_TYPE,
    kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_ITS as VGIC_ITS,
};
use whimbrel::downcast;
use whimbrel::faults::{Fault, Faults};
use whimbrel::handlers::{Device, Digest, RamTables, StateChange};
use whimbrel::machine::MachineError;
use whimbrel_vmstate::VmState;

use super::attributes::KvmDevice;
use super::kvm::KvmVm;
use super::map;
use super::memory::Tables;
use crate::error::Error;
use crate::lock;
use crate::memory::GuestRam;
use crate::state::GicV3Its;

const GITS_CTLR: u64 = 0x0;
const GITS_IIDR: u64 = 0x4;
const GITS_CBASER: u64 = 0x80;
const GITS_CWRITER: u64 = 0x88;
const GITS_CREADR: u64 = 0x90;
const GITS_BASER: u64 = 0x100;

/// The ITS of a machine.
pub(in crate::aarch64) struct Its {
    device: KvmDevice,
    /// How many vCPUs there are.
    cpus: u64,
    ram: Arc<GuestRam>,
    faults: Faults,
    loaded: Mutex<Option<GicV3Its>>,
    /// Tables were written, or have arrived, since the machine ran last.
    in_ram: AtomicBool,
    /// A fault's: entries of the last save that older kernels would have kept.
    kept: Mutex<Vec<(u64, [u8; 8])>>,
}

impl Its {
    /// Makes it, of a machine with so many vCPUs. The GIC must be there.
    ///
    /// # Errors
    /// If this host's KVM has none, or cannot save it.
    pub(super) fn new(kvm: &KvmVm, cpus: u32, ram: Arc<GuestRam>, faults: Faults) -> Result<Self, Error> {
        let text = |error: MachineError| Error::Config(error.0);
        let device = KvmDevice::new(&kvm.vm, VGIC_ITS, "arm_gicv3_its")?;
        device.set_u64(KVM_DEV_ARM_VGIC_GRP_ADDR, KVM_VGIC_ITS_ADDR_TYPE.into(), map::ITS).map_err(text)?;
        let (loaded, in_ram, kept) = Default::default();
        let this = Self { device, cpus: cpus.into(), ram, faults, loaded, in_ram, kept };
        this.control(KVM_DEV_ARM_VGIC_CTRL_INIT, "KVM_DEV_ARM_VGIC_CTRL_INIT").map_err(text)?;
        if !this.device.has(KVM_DEV_ARM_VGIC_GRP_CTRL, KVM_DEV_ARM_ITS_SAVE_TABLES.into()) {
            return Err(Error::Config("this host's KVM cannot save the tables of an ITS".into()));
        }
        Ok(this)
    }

    /// Back to power-on: nothing is mapped. What was loaded is forgotten.
    ///
    /// # Errors
    /// Names the command.
    pub(super) fn reset(&self) -> Result<(), MachineError> {
        *lock(&self.loaded) = None;
        self.empty_tables();
        lock(&self.kept).clear();
        self.control(KVM_DEV_ARM_ITS_CTRL_RESET, "KVM_DEV_ARM_ITS_CTRL_RESET")
    }

    /// Puts into KVM what was loaded, and lets it read its tables in guest RAM, which must be there. After the GIC.
    ///
    /// # Errors
    /// Names the register or the command.
    pub(super) fn apply(&self) -> Result<(), MachineError> {
        let Some(its) = lock(&self.loaded).take() else { return Ok(()) };
        self.set(GITS_IIDR, its.iidr.into())?;
        self.set(GITS_CBASER, its.cbaser)?;
        self.set(GITS_CREADR, its.creadr)?;
        self.set(GITS_CWRITER, its.cwriter)?;
        for (n, baser) in (0..).zip(its.baser) {
            self.set(GITS_BASER + n * 8, baser)?;
        }
        self.zero_tables(&its.baser)?;
        self.in_ram.store(true, Ordering::Relaxed);
        self.control(KVM_DEV_ARM_ITS_RESTORE_TABLES, "KVM_DEV_ARM_ITS_RESTORE_TABLES")?;
        self.set(GITS_CTLR, its.ctlr.into())
    }

    fn decode(&self, basers: &[u64; 8]) -> Result<whimbrel_its::Tables, whimbrel_its::Error> {
        whimbrel_its::decode(basers, self.cpus, &Tables(&self.ram))
    }

    /// GITS_BASER0 to 7, where their tables are laid out as is known here.
    fn known_tables(&self) -> Result<[u64; 8], MachineError> {
        let iidr = self.get(GITS_IIDR)? as u32;
        whimbrel_its::check_layout(iidr).map_err(|error| error.to_string())?;
        self.basers()
    }

    /// What was written into the tables, or has arrived in them, since the machine ran last is in KVM, and from now on nowhere else.
    fn empty_tables(&self) {
        if !self.in_ram.swap(false, Ordering::Relaxed) {
            return;
        }
        if let Err(error) = self.clear_tables() {
            tracing::warn!(%error, "not all that a stop wrote into the ITS's tables is cleared from guest RAM");
        }
    }

    fn clear_tables(&self) -> Result<(), MachineError> {
        let basers = self.known_tables()?;
        let entries = entries::all(&basers, &self.ram)?;
        if !self.faults.has(Fault::EntriesLeft) {
            entries::clear(&entries, &self.ram)?;
        }
        if self.faults.has(Fault::UnmappedKept) {
            *lock(&self.kept) = entries::words(&entries, &self.ram);
        }
        Ok(())
    }

    /// Faults: tables arrive as if nobody had written them. Of some of them nothing but KVM's silence tells.
    fn zero_tables(&self, basers: &[u64; 8]) -> Result<(), MachineError> {
        let struck = |fault| self.faults.has(Fault::TablesZeroed) || self.faults.has(fault);
        let places = || whimbrel_its::places(basers, &Tables(&self.ram)).map_err(|error| error.to_string());
        let mut zeroed = Vec::new();
        if struck(Fault::EventTablesZeroed) {
            let devices = self.decode(basers).map_err(|error| error.to_string())?.devices;
            zeroed.extend(devices.iter().map(|device| (device.table, 8 << device.event_bits)));
        }
        if struck(Fault::DeviceTableZeroed) {
            zeroed.extend(places()?.devices);
        }
        if struck(Fault::CollectionTableZeroed) {
            zeroed.extend(places()?.collections);
        }
        for (address, len) in zeroed {
            (address..address + len)
                .step_by(8)
                .try_for_each(|at| self.ram.write(at, &[0; 8]))
                .map_err(|error| error.to_string())?;
        }
        Ok(())
    }

    fn control(&self, command: u32, what: &str) -> Result<(), MachineError> {
        self.device.command(KVM_DEV_ARM_VGIC_GRP_CTRL, command, what)
    }

    fn basers(&self) -> Result<[u64; 8], MachineError> {
        let mut basers = [0; 8];
        for (n, baser) in (0..).zip(&mut basers) {
            *baser = self.get(GITS_BASER + n * 8)?;
        }
        Ok(basers)
    }

    fn get(&self, register: u64) -> Result<u64, MachineError> {
        self.device.get_u64(KVM_DEV_ARM_VGIC_GRP_ITS_REGS, register)
    }

    fn set(&self, register: u64, value: u64) -> Result<(), MachineError> {
        self.device.set_u64(KVM_DEV_ARM_VGIC_GRP_ITS_REGS, register, value)
    }
}

impl RamTables for Its {
    fn save(&self) -> Result<(), MachineError> {
        entries::put_back(&std::mem::take(&mut *lock(&self.kept)), &self.ram)?;
        self.in_ram.store(true, Ordering::Relaxed);
        self.control(KVM_DEV_ARM_ITS_SAVE_TABLES, "KVM_DEV_ARM_ITS_SAVE_TABLES")
    }

    fn digest(&self) -> Result<Digest, MachineError> {
        match self.decode(&self.known_tables()?) {
            Ok(tables) => Ok(digest(&tables)),
            // A guest may have made them so, and KVM does not mind. What else arrives has another digest.
            Err(whimbrel_its::Error::TooMuch { .. }) => Ok(too_much()),
            Err(error) => Err(error.to_string().into()),
        }
    }
}

/// A machine that starts has its mappings in KVM, and not in guest RAM as well.
impl StateChange for Its {
    /// Refuses no start: tables that cannot be read are left as they are.
    fn changed(&self, running: bool) -> Result<(), MachineError> {
        if running {
            self.empty_tables();
        }
        Ok(())
    }
}

/// Of every device, every collection and every event, in the tables' order. Entries are of one length, and each begins with its kind.
fn digest(tables: &whimbrel_its::Tables) -> Digest {
    const DEVICE: u64 = 1;
    const COLLECTION: u64 = 2;
    const EVENT: u64 = 3;
    let target = |target: Option<u64>| target.unwrap_or(u64::MAX);
    let mut digest = Digest::new();
    for device in &tables.devices {
        digest.add(&[DEVICE, device.id.into(), device.table, device.event_bits.into(), 0, 0]);
    }
    for collection in &tables.collections {
        digest.add(&[COLLECTION, collection.id.into(), target(collection.target), 0, 0, 0]);
    }
    for mapping in &tables.mappings {
        let (device, event, intid) = (mapping.device.into(), mapping.event.into(), mapping.intid.into());
        digest.add(&[EVENT, device, event, intid, mapping.collection.into(), target(mapping.target)]);
    }
    digest
}

/// Of tables that take too long to read.
fn too_much() -> Digest {
    const TOO_MUCH: u64 = 4;
    let mut digest = Digest::new();
    digest.add(&[TOO_MUCH, 0, 0, 0, 0, 0]);
    digest
}

impl Device for Its {
    fn save(&self) -> Result<Box<dyn VmState>, MachineError> {
        let its = GicV3Its {
            ctlr: self.get(GITS_CTLR)? as u32,
            iidr: self.get(GITS_IIDR)? as u32,
            cbaser: self.get(GITS_CBASER)?,
            cwriter: self.get(GITS_CWRITER)?,
            creadr: self.get(GITS_CREADR)?,
            baser: self.basers()?,
        };
        Ok(Box::new(its))
    }

    fn blank(&self) -> Box<dyn VmState> {
        Box::new(GicV3Its::default())
    }

    fn load(&self, state: Box<dyn VmState>) -> Result<(), MachineError> {
        *lock(&self.loaded) = Some(*downcast(state)?);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use whimbrel_its::{Collection, Device, Mapping};

    use super::*;

    #[test]
    fn the_digest_covers_devices_collections_and_events() {
        let device = Device { id: 3, table: 0x4000_0000, event_bits: 4 };
        let collection = Collection { id: 7, target: Some(1) };
        let mapping = Mapping { device: 3, event: 1, intid: 8200, collection: 7, target: Some(1) };
        let whole = whimbrel_its::Tables {
            devices: vec![device],
            collections: vec![collection],
            mappings: vec![mapping],
        };
        let other = |change: &dyn Fn(&mut whimbrel_its::Tables)| {
            let mut other = whole.clone();
            change(&mut other);
            assert_ne!(digest(&other), digest(&whole), "{other:?}");
        };
        assert_eq!(digest(&whole).entries(), 3);
        other(&|tables| tables.devices.clear());
        other(&|tables| tables.devices[0].id = 4);
        other(&|tables| tables.devices[0].table += 256);
        other(&|tables| tables.devices[0].event_bits = 5);
        other(&|tables| tables.collections.clear());
        other(&|tables| tables.collections[0].id = 8);
        other(&|tables| tables.collections[0].target = None);
        other(&|tables| tables.mappings.clear());
        other(&|tables| tables.mappings[0].event = 2);
        other(&|tables| tables.mappings[0].intid = 8201);
        other(&|tables| tables.mappings[0].collection = 8);
        other(&|tables| tables.mappings[0].target = Some(0));
        assert_ne!(digest(&whimbrel_its::Tables::default()), too_much());
        // The words of one kind are not another's.
        other(&|tables| {
            tables.devices = vec![Device { id: 7, table: 1, event_bits: 0 }];
            tables.collections.clear();
        });
    }
}
