//! Pre-copy into a file. The commit is the fsync of the finished file: no peer, so no fence and no answer.

use super::Step::{self, *};
use crate::status::MigrationStatus::{Active, Setup as SetupStatus};

pub(crate) const STEPS: &[Step] = &[
    Status(SetupStatus),
    Connect,
    Announce,
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
    Commit,
];
