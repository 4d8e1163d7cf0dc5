//! `RunState`: its names and every transition the arbiter may take.
//!
//! The migration's own path at the source: the state the guest is in → finish-migrate at the stop → postmigrate when it
//! has moved, or back to the state before. At the destination: inmigrate → what the source's guest was in, or paused if
//! that ran and autostart is off.

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

    /// Every transition that is allowed: from here, to any of these.
    pub const TRANSITIONS: &[(Self, &[Self])] = &[
        (Self::Prelaunch, &[Self::Running, Self::FinishMigrate, Self::Inmigrate, Self::Suspended]),
        (
            Self::Inmigrate,
            &[
                Self::Running,
                Self::Paused,
                Self::Prelaunch,
                Self::Postmigrate,
                Self::FinishMigrate,
                Self::Shutdown,
                Self::Suspended,
                Self::Watchdog,
                Self::GuestPanicked,
                Self::InternalError,
                Self::IoError,
                Self::Colo,
            ],
        ),
        (
            Self::Running,
            &[
                Self::Paused,
                Self::FinishMigrate,
                Self::SaveVm,
                Self::RestoreVm,
                Self::Shutdown,
                Self::Suspended,
                Self::Debug,
                Self::InternalError,
                Self::IoError,
                Self::Watchdog,
                Self::GuestPanicked,
                Self::Colo,
            ],
        ),
        (
            Self::Paused,
            &[
                Self::Running,
                Self::FinishMigrate,
                Self::Postmigrate,
                Self::Prelaunch,
                Self::Colo,
                Self::Suspended,
            ],
        ),
        (
            Self::FinishMigrate,
            &[
                Self::Running,
                Self::Paused,
                Self::Postmigrate,
                Self::Prelaunch,
                Self::Colo,
                Self::InternalError,
                Self::IoError,
                Self::Shutdown,
                Self::Suspended,
                Self::Watchdog,
                Self::GuestPanicked,
            ],
        ),
        (Self::Postmigrate, &[Self::Running, Self::FinishMigrate, Self::Prelaunch]),
        (
            Self::Suspended,
            &[
                Self::Running,
                Self::FinishMigrate,
                Self::Prelaunch,
                Self::Colo,
                Self::Paused,
                Self::SaveVm,
                Self::RestoreVm,
                Self::Shutdown,
            ],
        ),
        (Self::IoError, &[Self::Running, Self::FinishMigrate, Self::Prelaunch]),
        (Self::Debug, &[Self::Running, Self::FinishMigrate, Self::Prelaunch]),
        (Self::Watchdog, &[Self::Running, Self::FinishMigrate, Self::Prelaunch]),
        (Self::GuestPanicked, &[Self::Running, Self::FinishMigrate, Self::Prelaunch]),
        // Only a reset brings these back.
        (Self::InternalError, &[Self::FinishMigrate, Self::Prelaunch]),
        (Self::Shutdown, &[Self::FinishMigrate, Self::Prelaunch]),
        (Self::SaveVm, &[Self::Running]),
        (Self::RestoreVm, &[Self::Running, Self::Prelaunch]),
        (Self::Colo, &[Self::Running]),
    ];

    /// May the run state change from this one to that?
    pub fn may_become(self, to: Self) -> bool {
        Self::TRANSITIONS.iter().any(|(from, targets)| *from == self && targets.contains(&to))
    }

    /// `cont` is refused in this state until the machine was reset.
    pub fn needs_reset(self) -> bool {
        matches!(self, Self::InternalError | Self::Shutdown)
    }

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

#[cfg(test)]
mod tests {
    use super::RunState::*;
    use super::*;

    #[test]
    fn every_state_has_its_row() {
        for state in RunState::ALL {
            let rows = RunState::TRANSITIONS.iter().filter(|(from, _)| *from == state).count();
            assert_eq!(rows, 1, "{state}");
            assert!(!state.may_become(state), "{state}: that is no transition");
        }
    }

    #[test]
    fn a_guest_can_move_in_any_state_it_can_rest_in() {
        for state in RunState::ALL {
            let may = !matches!(state, FinishMigrate | SaveVm | RestoreVm | Colo);
            assert_eq!(state.may_become(FinishMigrate), may, "{state}");
        }
    }

    #[test]
    fn a_failed_move_can_put_back_what_it_stopped() {
        for state in [Running, Paused, Prelaunch, Suspended, Shutdown, InternalError, IoError, GuestPanicked]
        {
            assert!(state.may_become(FinishMigrate) && FinishMigrate.may_become(state), "{state}");
        }
    }

    #[test]
    fn a_moved_guest_stays_stopped_until_an_operator_decides() {
        let targets: Vec<_> = RunState::ALL.into_iter().filter(|&to| Postmigrate.may_become(to)).collect();
        assert_eq!(targets, [Prelaunch, FinishMigrate, Running]);
    }

    #[test]
    fn an_incoming_guest_can_settle_in_what_its_source_was_in() {
        for state in [Running, Paused, Prelaunch, Shutdown, Suspended, InternalError, IoError, GuestPanicked]
        {
            assert!(Inmigrate.may_become(state), "{state}");
        }
        assert!(!Inmigrate.may_become(Debug));
    }

    #[test]
    fn only_a_reset_brings_a_dead_guest_back() {
        for state in RunState::ALL {
            if state.needs_reset() {
                assert!(!state.may_become(Running) && state.may_become(Prelaunch), "{state}");
            }
        }
    }

    #[test]
    fn names_are_read_back() {
        for state in RunState::ALL {
            assert_eq!(RunState::from_name(state.name()), Some(state));
        }
        assert_eq!(RunState::from_name("halted"), None);
    }
}
