//! What can go wrong with a saved state, and where it did.

use std::fmt;

use whimbrel_wire::{WireError, qemu_texts};

/// Result of visiting a state.
pub type Result<T> = std::result::Result<T, Error>;

/// A refused state: where, and why.
#[derive(Debug, thiserror::Error)]
#[error("{place}: {reason}")]
pub struct Error {
    /// Section, field and stream offset.
    pub place: Box<Place>,
    /// The cause.
    #[source]
    pub reason: Reason,
}

/// A position in a state: the section, the field in it, and the offset in the stream.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// Section name (`idstr`), with its device path.
    pub section: String,
    /// The section's instance id.
    pub instance: u32,
    /// The field, from the section's top: `rom_state.up.get_tpr`, `cpu[1].level`. Empty: the section itself.
    pub path: String,
    /// Absolute byte offset in the stream when loading; from the start of the section's body otherwise.
    pub offset: u64,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "section '{}' instance {}", self.section, self.instance)?;
        if !self.path.is_empty() {
            write!(f, ", field {}", self.path)?;
        }
        write!(f, ", offset {:#x}", self.offset)
    }
}

/// Why a state was refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Reason {
    /// The stream ended, reading it failed, or a name is too long to be written.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// The section is of a newer version than ours. QEMU's text.
    #[error("{}", qemu_texts::unsupported_version(vmsd, *received, *own))]
    TooNew {
        /// Name of the description.
        vmsd: String,
        /// Version in the stream.
        received: u32,
        /// The newest version we know.
        own: u32,
    },
    /// The section is of a version older than the oldest we accept.
    #[error("version {received} of '{vmsd}' is too old: the minimum is {minimum}")]
    TooOld {
        /// Name of the description.
        vmsd: String,
        /// Version in the stream.
        received: u32,
        /// The oldest version we accept.
        minimum: u32,
    },
    /// A subsection that begins with this description's name, but is none of it.
    #[error("unknown subsection '{0}'")]
    UnknownSubsection(String),
    /// The same subsection came twice.
    #[error("subsection '{0}' came twice")]
    RepeatedSubsection(String),
    /// Bytes follow that no field of the section takes.
    #[error("{0} bytes are left unread")]
    Unconsumed(u64),
    /// A field that must have our own value has another.
    #[error("received {received:#x}, but ours is {own:#x}")]
    NotEqual {
        /// Value in the stream.
        received: u64,
        /// Our value.
        own: u64,
    },
    /// A field is greater than its greatest value.
    #[error("received {received:#x}, more than the maximum {maximum:#x}")]
    AboveMaximum {
        /// Value in the stream.
        received: u64,
        /// The greatest value accepted.
        maximum: u64,
    },
    /// More elements than the container may hold.
    #[error("{count} elements, more than the maximum {maximum}")]
    TooMany {
        /// Number of elements received.
        count: usize,
        /// The greatest number accepted.
        maximum: usize,
    },
    /// A marker byte has no meaning here: a bool that is neither 0 nor 1, a list marker, a NULL pointer.
    #[error("marker byte {received:#04x} where {expected} was expected")]
    BadMarker {
        /// The byte received.
        received: u8,
        /// What could have stood there.
        expected: &'static str,
    },
    /// A tree's count does not match its nodes.
    #[error("a tree of {announced} nodes has {found}")]
    TreeCount {
        /// Number of nodes announced.
        announced: u32,
        /// Number of nodes found.
        found: usize,
    },
    /// The description itself is wrong: a field stands after a subsection, a length differs from its count.
    #[error("wrong description: {0}")]
    Description(&'static str),
    /// The device refuses the value.
    #[error("{0}")]
    Refused(String),
}
