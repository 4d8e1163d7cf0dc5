//! `MigrationStatus`: its names and every transition each side may take.

use std::fmt;

/// QEMU's migration status, by its QMP name.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum MigrationStatus {
    /// Nothing ever happened.
    #[default]
    None,
    /// Connecting and announcing (source); listening (destination).
    Setup,
    /// `migrate_cancel` was accepted; cleaning up.
    Cancelling,
    /// Cancelled; the guest is as it was.
    Cancelled,
    /// Pages flow.
    Active,
    /// The destination runs, pages still flow.
    PostcopyActive,
    /// The link broke in post-copy.
    PostcopyPaused,
    /// Reconnecting.
    PostcopyRecoverSetup,
    /// Reconnected, agreeing on what is missing.
    PostcopyRecover,
    /// Done.
    Completed,
    /// Failed.
    Failed,
    /// COLO (never entered by whimbrel).
    Colo,
    /// Stopped before the switchover, waiting for `migrate-continue`.
    PreSwitchover,
    /// Device state flows; the guest is stopped.
    Device,
    /// Waiting for a device to be unplugged (never entered by whimbrel).
    WaitUnplug,
}

impl MigrationStatus {
    /// The name QMP uses.
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Setup => "setup",
            Self::Cancelling => "cancelling",
            Self::Cancelled => "cancelled",
            Self::Active => "active",
            Self::PostcopyActive => "postcopy-active",
            Self::PostcopyPaused => "postcopy-paused",
            Self::PostcopyRecoverSetup => "postcopy-recover-setup",
            Self::PostcopyRecover => "postcopy-recover",
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Colo => "colo",
            Self::PreSwitchover => "pre-switchover",
            Self::Device => "device",
            Self::WaitUnplug => "wait-unplug",
        }
    }
}

impl fmt::Display for MigrationStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
