//! The control surface: QEMU's monitor protocol (QMP), as a server over the engine and as a client.
mod client;
mod endpoint;
mod json;
mod texts;

pub use client::{ANSWER_TIMEOUT, Client, Event, QmpError};
pub use endpoint::{BadEndpoint, Endpoint};
