//! `RunState`: its names and every transition the arbiter may take.

use std::fmt;

/// QEMU's run state, by its QMP name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum RunState {
    /// Stopped by a debugger.
    Debug,
    /// Waiting for an incoming migration.
    Inmigrate,
    /// A vCPU failed in a way KVM cannot go on from.
    InternalError,
    /// An image failed.
    IoError,
    /// Stopped by the user.
    Paused,
    /// Moved away.
    Postmigrate,
    /// Never started.
    Prelaunch,
    /// Stopped for the switchover.
    FinishMigrate,
    /// Loading a snapshot.
    RestoreVm,
    /// Runs.
    Running,
    /// Saving a snapshot.
    SaveVm,
    /// The guest powered off and was told to stay.
    Shutdown,
    /// Suspended to RAM.
    Suspended,
    /// Stopped by a watchdog.
    Watchdog,
    /// The guest said it panicked.
    GuestPanicked,
    /// COLO.
    Colo,
}

impl RunState {
    /// Every state.
    pub const ALL: [Self; 16] = [
        Self::Debug,
        Self::Inmigrate,
        Self::InternalError,
        Self::IoError,
        Self::Paused,
        Self::Postmigrate,
        Self::Prelaunch,
        Self::FinishMigrate,
        Self::RestoreVm,
        Self::Running,
        Self::SaveVm,
        Self::Shutdown,
        Self::Suspended,
        Self::Watchdog,
        Self::GuestPanicked,
        Self::Colo,
    ];

    /// The name QMP and `globalstate` use.
    pub fn name(self) -> &'static str {
        match self {
            Self::Debug => "debug",
            Self::Inmigrate => "inmigrate",
            Self::InternalError => "internal-error",
            Self::IoError => "io-error",
            Self::Paused => "paused",
            Self::Postmigrate => "postmigrate",
            Self::Prelaunch => "prelaunch",
            Self::FinishMigrate => "finish-migrate",
            Self::RestoreVm => "restore-vm",
            Self::Running => "running",
            Self::SaveVm => "save-vm",
            Self::Shutdown => "shutdown",
            Self::Suspended => "suspended",
            Self::Watchdog => "watchdog",
            Self::GuestPanicked => "guest-panicked",
            Self::Colo => "colo",
        }
    }

    /// The state with this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.name() == name)
    }

    /// A guest in this state runs at the destination when it arrives (unless autostart is off).
    pub fn is_live(self) -> bool {
        matches!(self, Self::Running | Self::Suspended)
    }
}

impl fmt::Display for RunState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
