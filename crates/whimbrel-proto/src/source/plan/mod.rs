//! Modes as tables: each plan is a list of [`Step`]s, one file a mode. A step knows when it has nothing to do
//! (no return path, capability off) and is then passed over.

pub(crate) mod file;
pub(crate) mod precopy;

use crate::outcome::Phase;
use crate::status::MigrationStatus;

/// One step of a plan. Each asks for one or more actions and ends when the last is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// Publish a status.
    Status(MigrationStatus),
    /// The main channel, or the file.
    Connect,
    /// File header and configuration.
    Announce,
    /// OPEN_RETURN_PATH and PING 1.
    OpenReturnPath,
    /// Device state that must arrive before RAM.
    EarlyDevices,
    /// Each live handler's SECTION_START.
    Setup,
    /// The dirty log's first synchronisation: pass 1.
    FirstSync,
    /// Device state's size and fixed costs, while the guest runs.
    Measure,
    /// Rounds over what is dirty, until the guest may be stopped.
    Iterate,
    /// Publish the expected pause.
    Predict,
    /// Stop the guest.
    Stop,
    /// pre-switchover, until `migrate-continue`.
    PauseBeforeSwitchover,
    /// The dirty log's last synchronisation.
    LastSync,
    /// The command, once.
    SwitchoverStart,
    /// With several live handlers, what each has left; like [`Step::Complete`] it may go back.
    Drain,
    /// What is left of live state; back to [`Step::Iterate`], guest running, if it takes too long.
    Complete,
    /// Status `device`: no way back to `active` from here.
    Device,
    /// All device state.
    SaveDevices,
    /// PING, and the PONG that says all was applied.
    Fence,
    /// The commit.
    Commit,
    /// The destination's word that it runs.
    AwaitShut,
}

impl Step {
    /// Where a failure in this step is placed.
    pub(crate) fn phase(self) -> Phase {
        match self {
            Self::Status(MigrationStatus::Setup) | Self::Connect => Phase::Connect,
            Self::Announce
            | Self::OpenReturnPath
            | Self::EarlyDevices
            | Self::Setup
            | Self::FirstSync
            | Self::Measure => Phase::Setup,
            Self::Status(_) | Self::Iterate | Self::Predict => Phase::Iterate,
            Self::Stop
            | Self::PauseBeforeSwitchover
            | Self::LastSync
            | Self::SwitchoverStart
            | Self::Drain
            | Self::Complete
            | Self::Device
            | Self::SaveDevices
            | Self::Fence
            | Self::Commit => Phase::Switchover,
            Self::AwaitShut => Phase::Committed,
        }
    }
}
