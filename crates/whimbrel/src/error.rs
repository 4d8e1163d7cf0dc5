//! What can go wrong: one enum for the stream, one type for refused commands.

use std::io;

use thiserror::Error;
use whimbrel_wire::WireError;

use crate::channel::plain;
use crate::machine::MachineError;

/// A stream that cannot be written or read any further.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum StreamError {
    /// The bytes are not a stream, or not one for this machine.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// A device section's content.
    #[error(transparent)]
    State(#[from] whimbrel_vmstate::Error),
    /// A section that this machine does not have, or has in another version.
    #[error("{text} (stream offset {offset:#x})")]
    Section {
        /// What about it.
        text: String,
        /// Where it starts.
        offset: u64,
    },
    /// RAM that does not fit.
    #[error("section 'ram': {text} (stream offset {offset:#x})")]
    Ram {
        /// What about it.
        text: String,
        /// Where.
        offset: u64,
    },
    /// A device could not be saved, or refused what was loaded.
    #[error("device '{section}': {source}")]
    Device {
        /// Its section.
        section: String,
        /// Why.
        source: MachineError,
    },
    /// Tables in guest RAM that cannot be decoded, where they were just saved.
    #[error("{0}")]
    Tables(MachineError),
    /// A live-state handler's own error; the engine adds its section.
    #[error("{0}")]
    Live(#[from] MachineError),
    /// The channel.
    #[error("{context}: {}", plain(source))]
    Link {
        /// Doing what, with whom.
        context: String,
        /// Why.
        source: io::Error,
        /// Whether a byte of the last send can have left.
        sent: bool,
    },
    /// The dirty log: the migration must not go on.
    #[error("dirty log: {0}")]
    DirtyLog(io::Error),
}

impl StreamError {
    /// The same, with its section's name if it is a live-state handler's own.
    pub(crate) fn of_section(self, idstr: &str) -> Self {
        match self {
            Self::Live(source) => Self::Device { section: idstr.to_owned(), source },
            other => other,
        }
    }

    /// The channel failed, not what it carried.
    pub(crate) fn is_channel(&self) -> bool {
        matches!(self, Self::Link { .. } | Self::Wire(WireError::Io { .. } | WireError::Truncated { .. }))
    }
}

/// QMP's classes of errors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorClass {
    /// Nearly everything.
    GenericError,
    /// No such command, or not now.
    CommandNotFound,
    /// The device is not active.
    DeviceNotActive,
    /// No such device.
    DeviceNotFound,
    /// KVM lacks something.
    KvmMissingCap,
}

/// A refused command; nothing was changed.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{desc}")]
pub struct CommandError {
    /// QMP's class.
    pub class: ErrorClass,
    /// Why, and what to do.
    pub desc: String,
}

impl CommandError {
    /// A GenericError.
    pub fn generic(desc: impl Into<String>) -> Self {
        Self { class: ErrorClass::GenericError, desc: desc.into() }
    }
}
