//! Pre-copy over a socket, pipe or fd. The commit is the EOF byte; without a return path there is no fence before it,
//! and nobody says how it went after it.

use super::Step::{self, *};
use crate::status::MigrationStatus::{Active, Setup as SetupStatus};

pub(crate) const STEPS: &[Step] = &[
    Status(SetupStatus),
    Connect,
    Announce,
    OpenReturnPath,
    EarlyDevices,
    Setup,
    FirstSync,
    Measure,
    Status(Active),
    Iterate,
    Predict,
    Stop,
    PauseBeforeSwitchover,
    LastSync,
    SwitchoverStart,
    Drain,
    Complete,
    Device,
    SaveDevices,
    Fence,
    Commit,
    AwaitShut,
];
