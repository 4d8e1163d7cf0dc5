//! How an attempt ends, and why.

use std::fmt;

use crate::status::MigrationStatus;

/// Where an attempt stood when something happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Phase {
    /// Connecting.
    Connect,
    /// Announcing RAM and live devices.
    Setup,
    /// Sending dirty pages while the guest runs.
    Iterate,
    /// The guest is stopped; nothing is committed.
    Switchover,
    /// After the commit point.
    Committed,
    /// Loading, at the destination.
    Load,
    /// Applying what was loaded, at the destination.
    Apply,
    /// Starting, at the destination.
    Start,
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Connect => "connect",
            Self::Setup => "setup",
            Self::Iterate => "iterate",
            Self::Switchover => "switchover",
            Self::Committed => "committed",
            Self::Load => "load",
            Self::Apply => "apply",
            Self::Start => "start",
        })
    }
}

/// Why something failed: text for an operator, as specific as its author can be (section, offset, errno, peer).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reason(pub String);

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl<T: Into<String>> From<T> for Reason {
    fn from(text: T) -> Self {
        Self(text.into())
    }
}

/// How an attempt ended.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Outcome {
    /// The guest is the destination's. At the destination: it is ours.
    Completed,
    /// Failed before the commit: the guest is as it was. At the destination: nothing may ever run here.
    Failed {
        /// Where.
        phase: Phase,
        /// Why.
        reason: Reason,
    },
    /// Cancelled before the commit: the guest is as it was.
    Cancelled,
    /// Committed, but the destination never said how it went: the guest stays stopped until an operator decides.
    Unknown {
        /// Why.
        reason: Reason,
    },
}

impl Outcome {
    /// The last status.
    pub fn status(&self) -> MigrationStatus {
        match self {
            Self::Completed => MigrationStatus::Completed,
            Self::Failed { .. } | Self::Unknown { .. } => MigrationStatus::Failed,
            Self::Cancelled => MigrationStatus::Cancelled,
        }
    }
}
