//! What the machines ask for: every [`Action`] is one thing for the engine to do, and names the one
//! [`Event`](crate::event::Event) that answers it. The machines never do anything themselves.

use std::time::Duration;

use whimbrel_wire::command::Command;
use whimbrel_wire::return_path::ReturnPathMessage;

use crate::outcome::Outcome;
use crate::status::MigrationStatus;

/// A time that never comes: no deadline. Small enough to be added to any `Instant`.
pub const NEVER: Duration = Duration::from_secs(u32::MAX as u64);

/// A connection of a migration, by what it carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Channel {
    /// The main stream.
    Main,
    /// The destination's answers: the reverse direction of the main stream.
    ReturnPath,
}

/// A live-state handler (RAM, a block device), by its place in the registry's order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HandlerId(pub u32);

/// Where saved device state goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sink {
    /// Straight into the main stream.
    Stream,
    /// Into a memory buffer that a later [`Action::SendBuffered`] sends (background snapshot, post-copy package).
    Buffer,
}

/// One thing for the source's engine to do. The engine does it, then reports the event named here; other events may be
/// reported at any time before it.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Action {
    /// Publish this status (and a MIGRATION event). Answer: none; ask [`next`](crate::source::Source::next) again.
    Status(MigrationStatus),
    /// Connect (or create the file), without holding any lock. Answer: `Connected` or `ChannelLost`.
    Connect(Channel),
    /// Write the file header and the configuration section. Answer: `Done`.
    Announce,
    /// Write a command. Answer: `Done`.
    Command(Command),
    /// Start the handler's dirty tracking and write its SECTION_START. Answer: `Done`.
    Setup(HandlerId),
    /// Tell how much is dirty by what is already known. Answer: one `Pending { exact: false }` a handler, then `Done`.
    Estimate,
    /// Synchronise the dirty log. `last`: the guest is stopped and every writer has been told to stop.
    /// Answer: one `Pending { exact: true }` a handler, then `Done`.
    SyncDirty {
        /// The guest is stopped.
        last: bool,
    },
    /// Send dirty pages as one SECTION_PART, at most so many bytes and not past `until`. Answer: `Progress`.
    ///
    /// A page once begun is finished, so a turn may pass `at_most` by a page; and it sends at least one page even if
    /// `until` has passed, so that no limit can keep it from going on.
    Iterate {
        /// Whose state.
        handler: HandlerId,
        /// Bytes, at least 1; `u64::MAX` is no limit.
        at_most: u64,
        /// Stop at this time; [`NEVER`] is no limit.
        until: Duration,
    },
    /// The guest is stopped: send what is left. SECTION_END if everything went before `until` (or if nothing was left
    /// to begin with), else a SECTION_PART. Answer: `Progress`; `left` is 0 exactly if SECTION_END was written.
    Complete {
        /// Whose state.
        handler: HandlerId,
        /// Bytes; `u64::MAX` is no limit.
        at_most: u64,
        /// Stop at this time with what is left unsent; [`NEVER`] is no limit.
        until: Duration,
    },
    /// Build the vmdesc and measure the device state, while the guest runs. Answer: `Measured`.
    Measure,
    /// Save device state: the early kind, or all the rest. Answer: `DevicesSaved`.
    SaveDevices {
        /// The handlers flagged early (sent in setup).
        early: bool,
        /// Where to.
        into: Sink,
    },
    /// Send what [`Sink::Buffer`] gathered. Answer: `Flushed`.
    SendBuffered,
    /// Hand every byte written so far to the kernel. Answer: `Flushed`.
    Barrier,
    /// Publish what the pause is predicted to take, just before it. Answer: none.
    Predict(Duration),
    /// Stop the guest for the switchover (run state finish-migrate): clocks, vCPUs, state-change handlers.
    /// Answer: `Stopped` or `StopFailed`.
    StopVm,
    /// Undo [`Action::StopVm`]: the guest goes on as before the switchover. Answer: `Resumed` or `ResumeFailed`.
    ResumeVm,
    /// Wait for an event, until this time if one is given. Answer: any event, or `Tick` at that time.
    /// Also given if `next` is asked while an action's answer is still missing; `until` is then `None`.
    Await {
        /// Wake up then.
        until: Option<Duration>,
    },
    /// **The commit.** Sockets: EOF and vmdesc in one send. `file:`: EOF, vmdesc, fsync. Answer: `Committed`, or
    /// `ChannelLost` only if not one byte of it can have left (or, for a file, if the file is not whole on disk).
    Commit,
    /// The attempt is over. Run state, dirty tracking, channels: clean up, then publish the last status it carries.
    /// Answer: none; nothing follows.
    Finish(Outcome),
}

/// One thing for the destination's engine to do.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum DestinationAction {
    /// Publish this status. Answer: none.
    Status(MigrationStatus),
    /// Wait until all channels that are needed stand. Not given if `Connected` was reported before.
    /// Answer: `Connected`, or `ChannelLost`/`Refused`.
    Accept,
    /// Read the file header and the configuration section. Answer: `Announced` or `ChannelLost`/`Refused`.
    ReadHeader,
    /// Read the next element's header. Answer: `Element` or `ChannelLost`/`Refused`.
    ReadElement,
    /// Read the body and footer of the section whose header was last reported. Answer: `Loaded` or `ChannelLost`/`Refused`.
    Load,
    /// Put every loaded register and device into KVM; open and lock images. Nothing runs yet. Answer: `Applied` or `ApplyFailed`.
    Apply,
    /// Send a message on the return path. Answer: none (a lost return path is reported as `ChannelLost`).
    Reply(ReturnPathMessage),
    /// Send the message, and wait until the source's host has it: a source that is not fenced resumes its guest unless it
    /// hears it. Answer: `Heard`, `Unheard`, or `ChannelLost` of the return path if the source cannot have got it.
    Tell(ReturnPathMessage),
    /// Start the vCPUs, or, if not `run`, settle in the run state that the source told. Answer: `Started` or `StartFailed`.
    Start {
        /// Unblock the vCPUs (autostart, and the source's guest was running).
        run: bool,
    },
    /// Wait: an action's answer is still missing.
    Await,
    /// Drain what follows the EOF byte (the vmdesc) as far as the peer sends it. Answer: `Drained`; or `ChannelLost`
    /// if the source is gone, which counts only before the commit.
    Drain,
    /// The attempt is over; its last status was published before. Answer: none; nothing follows.
    Finish(Outcome),
}
