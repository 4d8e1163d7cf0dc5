//! The control surface: QEMU's monitor protocol (QMP), as a [`Server`] over the engine and as a [`Client`].
//!
//! ```text
//! socket ─▶ json (framing) ─▶ session (negotiation, envelopes) ─▶ command table ─▶ arguments, typed ─▶ engine
//!    ▲                                                                                                   │
//!    └───────────────────────── connection's outbox ◀── answers, events ◀────────────────────────────────┘
//! ```
//!
//! The surface is QEMU 10.0's, whatever the compatibility level of the stream; the level shows in `query-version` only. No client
//! can hang or exhaust the machine: input is bounded, a client that doesn't read is disconnected, and no thread but a connection's
//! own ever waits for its client.
#![forbid(unsafe_code)]

mod arguments;
mod client;
mod command;
mod commands;
mod connection;
mod endpoint;
mod events;
mod json;
mod server;
mod session;
mod texts;

#[cfg(test)]
#[path = "../tests/machine/mod.rs"]
mod test_machine;

pub use client::{ANSWER_TIMEOUT, Client, Event, QmpError};
pub use endpoint::{BadEndpoint, Endpoint};
pub use server::{Host, Server, ServerError};
