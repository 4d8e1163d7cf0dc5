//! Why the host's check could not be made. A guest that fails the check is a report, not an error.

use std::io;

/// Why the host's check could not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Guest memory could not be read.
    #[error("guest memory at {gpa:#x} could not be read: {source}")]
    Memory {
        /// Guest-physical address of the read.
        gpa: u64,
        /// The reader's reason.
        source: io::Error,
    },
    /// There is no control block: the guest has not come that far, or its memory is not what it was.
    #[error("no control block: found {found:#x} where its magic should be")]
    NoControlBlock {
        /// The word found in the magic's place.
        found: u64,
    },
    /// The guest is of another build.
    #[error("control block of version {found}, this build reads version {expected}", expected = crate::control::VERSION)]
    Version {
        /// The version found.
        found: u32,
    },
    /// The guest is still filling its memory; the check means something from its line `ready` on.
    #[error("the guest is not ready yet: state {state}")]
    NotReady {
        /// The state found.
        state: u32,
    },
    /// The control block contradicts itself, so it was damaged.
    #[error("control block damaged: {field} is {value:#x}")]
    Damaged {
        /// The field.
        field: &'static str,
        /// Its value.
        value: u64,
    },
}
