//! Fault switches: named ways to break a move on purpose, so that every check can be seen failing.
//!
//! They are off unless asked for by name (`--fault NAME`), and each says so in the log when it strikes.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

macro_rules! faults {
    ($($(#[$doc:meta])* $name:ident = $text:literal,)*) => {
        /// A fault.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
        #[non_exhaustive]
        pub enum Fault { $($(#[$doc])* $name,)* }

        impl Fault {
            /// Every fault.
            pub const ALL: &[Self] = &[$(Self::$name),*];

            /// Its name on the command line.
            pub fn name(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }
        }
    };
}

faults! {
    /// Source: one page that was written again is taken for clean and not sent.
    DirtyPage = "dirty-page",
    /// Source: the guest works on for 20 ms before it is stopped, and the dirty log is not read after that.
    LastSync = "last-sync",
    /// Source: the last sync is one like the others, and so misses what no vCPU wrote (KVM's bitmap beside the dirty ring).
    BackupBitmap = "backup-bitmap",
    /// Source: two RAM blocks go out under each other's name, where both reach.
    SwapBlocks = "swap-blocks",
    /// Destination: one general register keeps its power-on value.
    Register = "register",
    /// Destination: the counter that guests keep time by stays where KVM has it: TSC, or Arm's virtual and physical counter.
    Counter = "counter",
    /// Destination: the XSAVE area keeps its power-on value.
    Xsave = "xsave",
    /// Destination: the LAPIC keeps its power-on value.
    Lapic = "lapic",
    /// Destination: interrupts that were pending are forgotten.
    PendingInterrupt = "pending-interrupt",
    /// Source: saving a device fails.
    SaveFails = "save-fails",
    /// Source: stopping the guest fails, half way.
    StopFails = "stop-fails",
    /// Source: at a stop the tables that stand in guest RAM are not saved.
    TablesLeftOut = "tables-left-out",
    /// Source: they are saved before the vCPUs are paused, and not after.
    TablesTooEarly = "tables-too-early",
    /// Source: saving them fails, once.
    TablesFail = "tables-fail",
    /// Source: where the machine goes on, what a stop has written into pending tables is left there. The device's to do.
    PendingBitsLeft = "pending-bits-left",
    /// Source: and what it has written into the tables of devices and events. The device's to do.
    EntriesLeft = "entries-left",
    /// Source: what the guest unmaps stays in those tables, as with kernels before late 2024. The device's to do.
    UnmappedKept = "unmapped-kept",
    /// Source: RAM's end is sent without asking at which stop they were saved.
    NoStampCheck = "no-stamp-check",
    /// Destination: the tables are all zero when the device restores itself from them. The device's to do.
    TablesZeroed = "tables-zeroed",
    /// Destination: those of an ITS's device table are, its second level where it has two.
    DeviceTableZeroed = "device-table-zeroed",
    /// Destination: that of its collections is.
    CollectionTableZeroed = "collection-table-zeroed",
    /// Destination: those of each device's events are.
    EventTablesZeroed = "event-tables-zeroed",
    /// Destination: what they say is not compared with the source's digest.
    NoDigestCheck = "no-digest-check",
    /// Destination: KVM refuses a register.
    ApplyFails = "apply-fails",
    /// Destination: the vCPUs do not start.
    StartFails = "start-fails",
}

/// Where a process ends itself on purpose, for tests of a destination that is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum CrashPoint {
    /// After the setup sections.
    Setup,
    /// After the first SECTION_PART.
    Iterate,
    /// After the first device section: the source is stopped, no PONG was sent.
    BeforePong,
    /// After the PONG of the fence.
    AfterPong,
    /// Right after the EOF byte was read.
    AfterEof,
    /// After the guest was started.
    AfterStart,
}

impl CrashPoint {
    /// Every point, with its name on the command line.
    pub const ALL: [(Self, &str); 6] = [
        (Self::Setup, "setup"),
        (Self::Iterate, "iterate"),
        (Self::BeforePong, "before-pong"),
        (Self::AfterPong, "after-pong"),
        (Self::AfterEof, "after-eof"),
        (Self::AfterStart, "after-start"),
    ];
}

/// What a destination does at a [`CrashPoint`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Crash {
    /// The process dies as by SIGKILL.
    Kill,
    /// The link is cut; the process lives.
    Cut,
}

/// The faults of one machine. Cloning shares which one-shot faults have struck.
#[derive(Debug, Clone, Default)]
pub struct Faults {
    on: Arc<BTreeMap<Fault, AtomicBool>>,
    crash: Option<(Crash, CrashPoint)>,
}

impl Faults {
    /// Reads names: a [`Fault`]'s, or `kill@POINT`, `cut@POINT` with a [`CrashPoint`]'s.
    ///
    /// # Errors
    /// The name that is none, and those that are.
    pub fn parse<'a>(names: impl IntoIterator<Item = &'a str>) -> Result<Self, String> {
        let mut on = BTreeMap::new();
        let mut crash = None;
        for name in names {
            if let Some(fault) = Fault::ALL.iter().find(|fault| fault.name() == name) {
                on.insert(*fault, AtomicBool::new(false));
                continue;
            }
            let point =
                |name| CrashPoint::ALL.iter().find(|(_, text)| *text == name).map(|(point, _)| *point);
            crash = match name.split_once('@') {
                Some(("kill", at)) if point(at).is_some() => point(at).map(|point| (Crash::Kill, point)),
                Some(("cut", at)) if point(at).is_some() => point(at).map(|point| (Crash::Cut, point)),
                _ => {
                    let faults: Vec<_> = Fault::ALL.iter().map(|fault| fault.name()).collect();
                    let points: Vec<_> = CrashPoint::ALL.iter().map(|(_, name)| *name).collect();
                    return Err(format!(
                        "no fault '{name}'; there are {}, and kill@ or cut@ with {}",
                        faults.join(", "),
                        points.join(", ")
                    ));
                }
            };
        }
        Ok(Self { on: Arc::new(on), crash })
    }

    /// Whether a fault is on.
    pub fn has(&self, fault: Fault) -> bool {
        let on = self.on.contains_key(&fault);
        if on && !self.on[&fault].swap(true, Ordering::Relaxed) {
            tracing::warn!(fault = fault.name(), "a fault strikes, as asked for");
        }
        on
    }

    /// Whether a fault is on and strikes for the first time.
    pub fn once(&self, fault: Fault) -> bool {
        self.on.get(&fault).is_some_and(|struck| !struck.load(Ordering::Relaxed)) && self.has(fault)
    }

    /// What to do at `point`.
    pub(crate) fn crash(&self, point: CrashPoint) -> Option<Crash> {
        self.crash.filter(|(_, at)| *at == point).map(|(crash, _)| {
            tracing::warn!(?crash, ?point, "a crash, as asked for");
            crash
        })
    }
}
