//! A relay between the source and the destination of a migration, whatever programs these are: it carries every
//! connection and both directions, and on the way shows, records, slows, holds, corrupts or cuts them; and it replays
//! what it recorded to another destination.
//!
//! ```text
//! source ──▶ listen ─▶ Flow forward ─▶ Scanner ─▶ rules ─▶ pace ─▶ recording ──▶ destination
//!        ◀──────────── Flow back    ◀─ Answers ◀─ rules ◀─ pace ◀─ recording ◀──
//! ```
//!
//! | module | is |
//! |---|---|
//! | [`scan`] | where the pieces of a stream begin and end, found while it passes |
//! | [`rule`] | what is to happen where, and how a command line says it |
//! | [`relay`] | the sockets and threads |
//! | [`recording`] | the file, written and read |
//! | [`mod@replay`] | a recording sent to a destination |
//!
//! It carries sockets only, and what it does not understand (TLS, multifd's packets) it carries unread. It never answers for
//! either end, and never decides anything about a migration.

#![forbid(unsafe_code)]
#![cfg_attr(
    not(test),
    deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)
)]

mod error;
pub mod recording;
pub mod relay;
pub mod replay;
pub mod rule;
pub mod scan;

pub use error::RelayError;
pub use relay::{Config, Relay};
pub use rule::Rule;

use std::fmt;

use whimbrel::channel::Address;

/// The address of a socket: `tcp:HOST:PORT`, `unix:PATH`, `vsock:CID:PORT`.
///
/// # Errors
/// It is none, or that of something else.
pub fn address(uri: &str) -> Result<Address, RelayError> {
    let refused = |why: String| RelayError::Address { uri: uri.to_owned(), why };
    match Address::parse(uri).map_err(|error| refused(error.desc))? {
        address @ (Address::Tcp { .. } | Address::Unix(_) | Address::Vsock { .. }) => Ok(address),
        _ => Err(refused("only sockets are relayed: tcp:HOST:PORT, unix:PATH, vsock:CID:PORT".to_owned())),
    }
}

/// Which way bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Direction {
    /// From source to destination: the stream.
    Forward,
    /// From destination to source: the return path.
    Back,
}

impl fmt::Display for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Forward => "forward",
            Self::Back => "back",
        })
    }
}
