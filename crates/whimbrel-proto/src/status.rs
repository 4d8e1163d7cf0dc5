//! `MigrationStatus`: its names and every transition each side may take.
//!
//! The tables are QEMU 10.0's. Rows that only 7.2 takes are among them, since a peer's events show them; whimbrel's
//! machines take 10.0's. What whimbrel adds is marked.

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
    /// Every status.
    pub const ALL: [Self; 15] = [
        Self::None,
        Self::Setup,
        Self::Cancelling,
        Self::Cancelled,
        Self::Active,
        Self::PostcopyActive,
        Self::PostcopyPaused,
        Self::PostcopyRecoverSetup,
        Self::PostcopyRecover,
        Self::Completed,
        Self::Failed,
        Self::Colo,
        Self::PreSwitchover,
        Self::Device,
        Self::WaitUnplug,
    ];

    /// The status with this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|status| status.name() == name)
    }

    /// An attempt is under way: another may not begin, capabilities may not change.
    pub fn is_running(self) -> bool {
        !matches!(self, Self::None | Self::Completed | Self::Failed | Self::Cancelled)
    }

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

/// A side of a migration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// Sends.
    Source,
    /// Receives.
    Destination,
}

/// Rows of a transition table: from here, to any of these.
pub type Transitions = &'static [(MigrationStatus, &'static [MigrationStatus])];

/// The source's transitions.
pub const SOURCE: Transitions = {
    use MigrationStatus::*;
    &[
        (None, &[Setup]),
        (Completed, &[Setup]),
        (Failed, &[Setup]),
        (Cancelled, &[Setup]),
        (Setup, &[WaitUnplug, Active, Cancelling, Failed]),
        (WaitUnplug, &[Active, Cancelling, Failed]),
        // To completed: 7.2, and a background snapshot. To postcopy-active: 7.2.
        (Active, &[Device, PreSwitchover, Completed, PostcopyActive, Colo, Cancelling, Failed]),
        (PreSwitchover, &[Device, Cancelling, Failed]),
        (Device, &[Completed, PostcopyActive, Cancelling, Failed]),
        (Cancelling, &[Cancelled]),
        (PostcopyActive, &[Completed, PostcopyPaused, Failed]),
        // Straight to recover: 7.2.
        (PostcopyPaused, &[PostcopyRecoverSetup, PostcopyRecover]),
        (PostcopyRecoverSetup, &[PostcopyRecover, PostcopyPaused]),
        (PostcopyRecover, &[PostcopyActive, PostcopyPaused]),
    ]
};

/// The destination's transitions.
pub const DESTINATION: Transitions = {
    use MigrationStatus::*;
    &[
        // Straight to active: 7.2.
        (None, &[Setup, Active]),
        // To failed: whimbrel's, when nobody connects or the user gives up.
        (Setup, &[Active, Failed]),
        (Active, &[PostcopyActive, Completed, Failed]),
        (PostcopyActive, &[Completed, PostcopyPaused]),
        (PostcopyPaused, &[PostcopyRecover]),
        (PostcopyRecover, &[PostcopyActive, PostcopyPaused]),
    ]
};

/// May `side` go from one status to the other?
pub fn may_become(from: MigrationStatus, to: MigrationStatus, side: Side) -> bool {
    let table = match side {
        Side::Source => SOURCE,
        Side::Destination => DESTINATION,
    };
    table.iter().any(|(row, targets)| *row == from && targets.contains(&to))
}

impl fmt::Display for MigrationStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::MigrationStatus::*;
    use super::*;

    fn source(from: MigrationStatus, to: MigrationStatus) -> bool {
        may_become(from, to, Side::Source)
    }

    #[test]
    fn a_source_never_returns_to_active_once_it_was_in_device() {
        for from in MigrationStatus::ALL {
            let may = matches!(from, Setup | WaitUnplug);
            assert_eq!(source(from, Active), may, "{from}");
        }
    }

    #[test]
    fn every_status_before_the_commit_can_be_cancelled() {
        for from in [Setup, WaitUnplug, Active, PreSwitchover, Device] {
            assert!(source(from, Cancelling) && source(from, Failed), "{from}");
        }
        assert!(source(Cancelling, Cancelled));
        assert!(!source(Cancelling, Failed) && !source(PostcopyActive, Cancelling));
    }

    #[test]
    fn every_ended_attempt_lets_a_new_one_begin() {
        for from in MigrationStatus::ALL {
            let may = matches!(from, None | Completed | Failed | Cancelled);
            assert_eq!(source(from, Setup), may, "{from}");
        }
    }

    #[test]
    fn a_failed_destination_stays_failed() {
        for to in MigrationStatus::ALL {
            assert!(!may_become(Failed, to, Side::Destination), "{to}");
            assert!(!may_become(Completed, to, Side::Destination), "{to}");
        }
    }

    #[test]
    fn names_are_read_back() {
        for status in MigrationStatus::ALL {
            assert_eq!(MigrationStatus::from_name(status.name()), Some(status));
        }
        assert_eq!(MigrationStatus::from_name("postcopy"), Option::None);
    }
}
