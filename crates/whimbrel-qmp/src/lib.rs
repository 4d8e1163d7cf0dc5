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
//!
//! What differs from QEMU's monitor, and why:
//!
//! | here | there | because |
//! |---|---|---|
//! | several clients at a time | one | a tool can watch what another drives |
//! | 1 MiB, 65 536 tokens, 64 levels a message; then the rest of the line is skipped | 1024 levels; beyond, the rest is parsed as new messages | a client must not exhaust the machine, and one bad message gets one error |
//! | a number beyond all floats is refused | read as infinity, and echoed as what is no JSON | |
//! | `pmemsave` refuses addresses without memory | succeeds | nobody should take such a file for the guest's |
//! | descriptors of `getfd` are the machine's | the monitor's | there are several monitors |
//! | at most 128 descriptors are held | no bound | a client must not exhaust the machine |
//! | `fd:NUMBER` takes inherited descriptors only | any number | nobody should have a stream written into what is ours |
//! | `migrate_cancel` ends the command of `exec:` | waits for it, status `cancelling` | a cancel answers at once |
//! | options of a `tcp:` address are followed or refused by name | unknown ones are ignored | nothing is ignored silently |
//! | `query-migrate` has a member `whimbrel` | | our own figures, where none can be taken for QEMU's |
//! | capabilities of what isn't built are refused, commands are absent | | rather than accepted and not done |
#![forbid(unsafe_code)]

mod arguments;
mod client;
mod command;
mod commands;
mod connection;
mod endpoint;
mod events;
mod json;
mod outbox;
mod server;
mod session;
mod texts;

#[cfg(test)]
#[path = "../tests/machine/mod.rs"]
mod test_machine;

pub use client::{ANSWER_TIMEOUT, Client, Event, QmpError};
pub use endpoint::{BadEndpoint, Endpoint};
pub use server::{Host, Server, ServerError};
