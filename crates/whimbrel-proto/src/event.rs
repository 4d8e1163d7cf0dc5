//! What happens: every answer to an [`Action`](crate::action::Action) and everything that comes from outside.

use std::time::Duration;

use whimbrel_wire::command::Command;
use whimbrel_wire::return_path::ReturnPathMessage;

use crate::action::{Channel, HandlerId};
use crate::outcome::Reason;
use crate::parameters::Parameters;
use crate::run_state::RunState;

/// Pages a live handler sent in one turn, by kind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Pages {
    /// Sent with their content.
    pub normal: u64,
    /// Sent as a zero record.
    pub zero: u64,
}

/// Input of [`Source`](crate::source::Source).
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Event {
    /// The action is done.
    Done,
    /// A channel stands. `bidirectional`: answers can come back on it.
    Connected {
        /// Which.
        channel: Channel,
        /// A return path is possible.
        bidirectional: bool,
    },
    /// How much a handler has left to send, in bytes.
    Pending {
        /// Whose.
        handler: HandlerId,
        /// Must be sent before the guest may run at the destination.
        must: u64,
        /// Could be sent after it.
        may_postcopy: u64,
        /// Right after a dirty sync.
        exact: bool,
        /// Bytes that the sync found newly dirty (0 for an estimate).
        newly: u64,
    },
    /// What a turn of a live handler sent.
    Progress {
        /// Whose.
        handler: HandlerId,
        /// Bytes of stream.
        bytes: u64,
        /// Pages by kind.
        pages: Pages,
        /// Bytes still dirty.
        left: u64,
    },
    /// The device state's size, and how long describing it took.
    Measured {
        /// Bytes of all device sections together.
        bytes: u64,
        /// Bytes of the vmdesc element.
        vmdesc: u64,
        /// What the stop, the capture, the apply and the resume are expected to take without any RAM: measured
        /// beforehand by the engine.
        fixed: Duration,
    },
    /// Device sections are in the stream (or buffer).
    DevicesSaved {
        /// Bytes.
        bytes: u64,
    },
    /// A device could not be saved.
    SaveFailed(Reason),
    /// All bytes so far are with the kernel; the total since the start.
    Flushed {
        /// Bytes since the start, over all channels.
        total: u64,
    },
    /// The guest stands still.
    Stopped {
        /// How long stopping took.
        took: Duration,
    },
    /// The guest could not be stopped cleanly; whatever was stopped has been started again.
    StopFailed(Reason),
    /// The guest is as it was before the switchover.
    Resumed,
    /// The guest could not be started again: it stands, and is nobody else's.
    ResumeFailed(Reason),
    /// EOF left (or the file is on disk).
    Committed,
    /// The guest's run state changed by anything but this migration.
    Guest(RunState),
    /// A message of the destination.
    Peer(ReturnPathMessage),
    /// A channel is gone.
    ChannelLost(Channel, Reason),
    /// The engine cannot go on for a reason of its own (a dirty log that cannot be read). As the answer to
    /// [`Commit`](crate::action::Action::Commit) it means that bytes of it may have left; if none can have, say
    /// [`Event::ChannelLost`] of the main channel.
    Broken(Reason),
    /// `migrate_cancel`.
    Cancel,
    /// `migrate-continue` with the state it names already checked.
    Continue,
    /// The user changed parameters.
    Parameters(Box<Parameters>),
    /// The time of an `Await` came.
    Tick,
}

/// The header of a stream element, as the destination's machine needs to see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ElementHeader {
    /// End of the stream.
    Eof,
    /// A live section's START, PART or END.
    Live {
        /// Its idstr, for messages.
        idstr: String,
        /// SECTION_END.
        end: bool,
    },
    /// A device's SECTION_FULL.
    Device {
        /// Its idstr, for messages.
        idstr: String,
    },
    /// A command.
    Command(Command),
}

/// Input of [`Destination`](crate::destination::Destination).
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum DestinationEvent {
    /// All channels needed stand. `bidirectional`: the return path can be opened.
    Connected {
        /// Answers can be sent.
        bidirectional: bool,
    },
    /// Header and configuration are read and fit.
    Announced,
    /// An element's header.
    Element(ElementHeader),
    /// The section's body and footer are read.
    Loaded,
    /// Everything loaded is in KVM.
    Applied,
    /// KVM or a device refused what was loaded.
    ApplyFailed(Reason),
    /// The source's host has what it was told.
    Heard,
    /// It was sent, and whether the source's host has it cannot be found out.
    Unheard(Reason),
    /// The vCPUs run (or the told run state stands).
    Started,
    /// They do not.
    StartFailed(Reason),
    /// Nothing more comes.
    Drained,
    /// What the source sent is not acceptable: bad framing, unknown section, wrong machine …
    Refused(Reason),
    /// A channel is gone.
    ChannelLost(Channel, Reason),
    /// The run state that `globalstate` carried: the source's before the switchover.
    SourceState(RunState),
    /// `stop` (false) or `cont` (true) while incoming. Refused with
    /// [`Violation::Starting`](crate::Violation::Starting) once the start is ordered: then it is the arbiter's, to be
    /// done right after the start.
    Autostart(bool),
    /// The capability `switchover-ack` was switched while a guest is awaited.
    SwitchoverAck(bool),
    /// The user gave up (`quit`, `migrate_cancel`).
    Cancel,
}
