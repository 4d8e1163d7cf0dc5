//! What a source is told when a migration is accepted.

use std::time::Duration;

use crate::action::HandlerId;
use crate::capabilities::Capabilities;
use crate::parameters::Parameters;
use crate::run_state::RunState;

/// Where the stream goes: it decides the plan, and so the commit point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Transport {
    /// A socket, pipe or fd: something alive may stand behind it. The commit is the EOF byte.
    Socket,
    /// A file. The commit is its fsync.
    File,
}

/// How long the source waits for a peer that owes an answer. Writes to a peer that doesn't read are the engine's to
/// end (by `migrate_cancel`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deadlines {
    /// For the PONG before the commit: the guest is stopped meanwhile. The wait is this or twice the downtime limit,
    /// whichever is longer; then the guest resumes.
    pub pong: Duration,
    /// For SHUT after the commit; then the outcome is unknown.
    pub shut: Duration,
}

impl Default for Deadlines {
    fn default() -> Self {
        Self { pong: Duration::from_secs(10), shut: Duration::from_secs(60) }
    }
}

/// What a [`Source`](super::Source) starts with.
#[derive(Debug, Clone)]
pub struct SourceConfig {
    /// Where the stream goes.
    pub transport: Transport,
    /// The live handlers in their order.
    pub handlers: Vec<HandlerId>,
    /// Some devices must be sent before RAM.
    pub has_early_devices: bool,
    /// The capabilities, already checked.
    pub capabilities: Capabilities,
    /// The parameters; changes come by [`Event::Parameters`](crate::event::Event::Parameters).
    pub parameters: Parameters,
    /// The guest's run state now; changes come by [`Event::Guest`](crate::event::Event::Guest).
    pub guest: RunState,
    /// Send SWITCHOVER_START (peers before 10.0 refuse it).
    pub send_switchover_start: bool,
    /// How long to wait for the peer.
    pub deadlines: Deadlines,
    /// The destination's address, for messages.
    pub peer: String,
    /// Bytes of RAM that take part.
    pub ram_total: u64,
    /// Bytes of a page.
    pub page_size: u64,
}

impl Default for SourceConfig {
    /// A running guest without RAM, handler 0, over a socket, as for QEMU 10.0.
    fn default() -> Self {
        Self {
            transport: Transport::Socket,
            handlers: vec![HandlerId(0)],
            has_early_devices: false,
            capabilities: Capabilities::NONE,
            parameters: Parameters::default(),
            guest: RunState::Running,
            send_switchover_start: true,
            deadlines: Deadlines::default(),
            peer: String::from("the destination"),
            ram_total: 0,
            page_size: 4096,
        }
    }
}
