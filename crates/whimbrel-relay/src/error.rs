//! The crate's one error type.

use std::io;
use std::path::PathBuf;

/// What can be wrong with a relay, a rule or a recording.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RelayError {
    /// What is no socket's address.
    #[error("'{uri}': {why}")]
    Address {
        /// As it was given.
        uri: String,
        /// What is wrong, and what is right.
        why: String,
    },
    /// A socket could not be listened on or connected; the text names the address.
    #[error("{0}")]
    Socket(#[source] io::Error),
    /// The process has no descriptors or threads left.
    #[error("cannot start {what}: {source}")]
    Start {
        /// What was to be started.
        what: &'static str,
        /// The kernel's error.
        source: io::Error,
    },
    /// A rule that cannot be read.
    #[error("'{text}': {why}")]
    Rule {
        /// As it was given.
        text: String,
        /// What is wrong, and what is right.
        why: &'static str,
    },
    /// The recording could not be created, written, opened or read.
    #[error("cannot {doing} the recording '{}': {source}", path.display())]
    File {
        /// `create`, `write`, `open` or `read`.
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// The kernel's error.
        source: io::Error,
    },
    /// The file is no recording, or a damaged one.
    #[error("'{}' is no recording that can be read: {why} (file offset {offset:#x})", path.display())]
    Recording {
        /// The file.
        path: PathBuf,
        /// Where the faulty item begins.
        offset: u64,
        /// What is wrong.
        why: &'static str,
    },
    /// The recording is of fewer connections.
    #[error("'{}' has no connection {connection}, only {connections} of them, counted from 0", path.display())]
    NoConnection {
        /// The file.
        path: PathBuf,
        /// Which was asked for.
        connection: u16,
        /// How many there are.
        connections: usize,
    },
}
