//! The handler registry: everything of a machine that is saved and loaded, in the order of the stream.
//!
//! Two kinds of state sit in one order (priority descending, then registration): *device state*, versioned fields saved
//! once at the end (or early), and *live state*, which is sent while the guest runs: RAM, which the engine registers itself, and
//! what a VMM adds.
//!
//! ```text
//! stream   early devices ─▶ live state: START of each ─▶ PARTs ─▶ guest stopped ─▶ END of each ─▶ all other devices
//! ```

use std::sync::Arc;

use whimbrel_vmstate::VmState;

use crate::machine::MachineError;
use crate::tables::Tables;

pub use crate::live::{Incoming, LiveDestination, LiveHandler, LivePart, LiveSource, LiveState, Quota};
pub use crate::outgoing::Outgoing;
pub use crate::tables::{Digest, RamTables};

/// Order of a handler in the stream: higher first. QEMU's classes, by name.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Priority {
    /// Everything without a reason to be elsewhere.
    #[default]
    Default,
    /// IOMMUs, before the devices behind them.
    Iommu,
    /// PCI buses, before their devices.
    PciBus,
    /// virtio-mem, before RAM users.
    VirtioMem,
    /// The ITS: after the GIC, before all users of MSIs.
    GicV3Its,
    /// The GIC.
    GicV3,
}

/// One device's state, as the engine sees it. The runtime type implements it; the saved-state type is another one.
pub trait Device: Send + Sync {
    /// Captures the state. Called with the machine stopped.
    ///
    /// # Errors
    /// Names what could not be read or cannot be carried; the switchover is abandoned and the guest resumes.
    fn save(&self) -> Result<Box<dyn VmState>, MachineError>;

    /// A state to load into, of the same type as [`save`](Device::save) gives.
    fn blank(&self) -> Box<dyn VmState>;

    /// Takes a loaded state. It is checked here and put into KVM by [`Machine::apply`](crate::machine::Machine::apply).
    ///
    /// # Errors
    /// Names the field that cannot be held here.
    fn load(&self, state: Box<dyn VmState>) -> Result<(), MachineError>;

    /// The stream ended without this device's section. Called after everything was loaded, before
    /// [`Machine::apply`](crate::machine::Machine::apply). A device whose state follows from others' takes it from them here.
    ///
    /// # Errors
    /// Why there is no going on without; the load fails.
    fn absent(&self) -> Result<(), MachineError> {
        Err("both machines must have the same devices".into())
    }
}

/// Where and as what a device's section stands in the stream. Name and version come from the state's `vmsd()`.
#[derive(Clone)]
pub struct DeviceHandler {
    /// Section name: the device path prefix and "/" if the device sits on a bus that has one, then the vmsd name.
    pub idstr: String,
    /// Number among equal names; the vCPU index for CPU sections.
    pub instance_id: u32,
    /// Order.
    pub priority: Priority,
    /// Sent with the setup sections, before any page.
    pub early: bool,
    /// The device.
    pub device: Arc<dyn Device>,
}

/// A callback for every stop and start of the machine, in QEMU's order: ascending priority on start, descending on stop,
/// equal priorities by registration (reversed on stop); all prepare callbacks before all main ones.
///
/// A stop that fails is undone: the callbacks it has reached, the one that refused included, are called for a start, in a start's
/// order; the others are not called at all. A start that fails is undone by a stop in the same manner.
pub trait StateChange: Send + Sync {
    /// Runs before any [`changed`](StateChange::changed) of this transition.
    ///
    /// # Errors
    /// Fails the transition: it is undone. Not the stop of a guest that is off or cannot go on, which only tells of it.
    fn prepare(&self, running: bool) -> Result<(), MachineError> {
        let _ = running;
        Ok(())
    }

    /// The machine stopped (all vCPUs are paused) or is about to start (none runs yet).
    ///
    /// # Errors
    /// Fails the transition: it is undone. Not the stop of a guest that is off or cannot go on, which only tells of it.
    fn changed(&self, running: bool) -> Result<(), MachineError>;
}

/// What is called at stops and starts.
pub(crate) enum Change {
    /// At each.
    Callback(Arc<dyn StateChange>),
    /// At each stop, to be saved.
    Tables(Tables),
}

/// All handlers of one machine. Built once, before the machine runs.
#[derive(Default)]
pub struct Registry {
    live: Vec<LiveHandler>,
    devices: Vec<DeviceHandler>,
    changes: Vec<(i32, Change)>,
}

impl Registry {
    /// An empty one.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a device's section. `idstr` defaults to the vmsd name where the device has no bus path.
    pub fn device(&mut self, handler: DeviceHandler) {
        self.devices.push(handler);
        self.devices.sort_by_key(|handler| std::cmp::Reverse(handler.priority));
    }

    /// Adds live state beside RAM.
    pub fn live(&mut self, handler: LiveHandler) {
        self.live.push(handler);
        self.live.sort_by_key(|handler| std::cmp::Reverse(handler.priority));
    }

    /// RAM is registered before everything else.
    pub(crate) fn ram(&mut self, handler: LiveHandler) {
        self.live.insert(0, handler);
        self.live.sort_by_key(|handler| std::cmp::Reverse(handler.priority));
    }

    /// Adds a state-change callback; lower priorities start first and stop last.
    pub fn state_change(&mut self, priority: i32, callback: Arc<dyn StateChange>) {
        self.change(priority, Change::Callback(callback));
    }

    /// Adds a device that writes tables into guest RAM at each stop, with a place among the state-change callbacks: those that
    /// still change the tables when they stop (devices that signal MSIs) need a higher priority. `name` is for messages and for
    /// the digest's section; it is the device's idstr (an instance number after it where there are several), at most 200 bytes.
    pub fn ram_tables(&mut self, priority: i32, name: impl Into<String>, device: Arc<dyn RamTables>) {
        self.change(priority, Change::Tables(Tables::new(name.into(), device)));
    }

    fn change(&mut self, priority: i32, change: Change) {
        self.changes.push((priority, change));
        self.changes.sort_by_key(|(priority, _)| *priority);
    }

    /// The live states in stream order.
    pub(crate) fn live_handlers(&self) -> &[LiveHandler] {
        &self.live
    }

    /// The devices in stream order.
    pub fn devices(&self) -> &[DeviceHandler] {
        &self.devices
    }

    /// What is called at stops and starts, in starting order.
    pub(crate) fn changes(&self) -> &[(i32, Change)] {
        &self.changes
    }

    /// The tables in guest RAM.
    pub(crate) fn tables(&self) -> impl DoubleEndedIterator<Item = &Tables> {
        self.changes.iter().filter_map(|(_, change)| match change {
            Change::Tables(tables) => Some(tables),
            Change::Callback(_) => None,
        })
    }
}
