//! The destination's machine: it decides when to load, apply, answer and start.
//!
//! ```text
//! setup ─▶ connected: active ─▶ elements ─▶ EOF ─▶ Apply ─▶ Start ─▶ SHUT 0 ─▶ completed ─▶ drain         fenced, or one way
//!                                 │  │       └──▶ Apply ─▶ drain ─▶ SHUT 0 heard ─▶ Start ─▶ completed     QEMU's source
//!                                 │  └─ PING: Apply what was loaded, then PONG
//!                                 └─ any failure: SHUT 1, failed; nothing ever runs
//! ```
//!
//! A source that had its PING behind the last device answered has given the guest away with the EOF byte. QEMU's source asks no
//! such thing: it resumes its guest whenever SHUT 0 is missing, though EOF may have arrived. So towards it SHUT 0 is the
//! commit, and the guest starts only when the source's host has it.
//!
//! | rule | why |
//! |---|---|
//! | From a fenced source the EOF byte is the commit: nothing starts before it, and after it only a refusal of KVM keeps the guest from starting; a lost channel changes nothing | the source never resumes once that byte left, and may resume until then |
//! | A PONG is sent only when every device loaded so far is applied | it is the source's licence to commit |
//! | To a fenced source SHUT 0 is sent after the start | it is the source's proof that the guest runs |
//! | To another it is sent before, with all that can fail done; if nobody can tell whether it arrived, the guest stays here, stopped | at no instant may two run |

use std::time::Duration;

use whimbrel_wire::command::Command;
use whimbrel_wire::return_path::{ReturnPathMessage, SHUT_OK};

use crate::Violation;
use crate::action::{Channel, DestinationAction};
use crate::event::{DestinationEvent, ElementHeader};
use crate::outcome::{Outcome, Phase, Reason};
use crate::run_state::RunState;
use crate::status::MigrationStatus;

/// The value of a SHUT that says that the destination failed.
const SHUT_FAILED: u32 = 1;

/// What a [`Destination`] starts with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DestinationConfig {
    /// The guest may run when it has arrived (no `-S`, no `stop` while incoming).
    pub autostart: bool,
    /// The capability `switchover-ack` is on: tell the source that it may switch over. No device of whimbrel's needs
    /// time for that, so it is told as soon as the return path is open.
    pub switchover_ack: bool,
}

impl Default for DestinationConfig {
    fn default() -> Self {
        Self { autostart: true, switchover_ack: false }
    }
}

/// How long the parts of an arrival took. Parts not reached are zero.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Arrival {
    /// From the connection to the EOF byte, applying before the fence included.
    pub load: Duration,
    /// Applying what was loaded, every time together: a part of the source's pause.
    pub apply: Duration,
    /// Starting the guest: another.
    pub start: Duration,
}

/// The destination of one attempt.
///
/// The engine's loop: `next`, do it, `handle` its answer, until [`DestinationAction::Finish`].
#[derive(Debug, Clone)]
pub struct Destination {
    config: DestinationConfig,
    step: Step,
    asked: Asked,
    status: MigrationStatus,
    connected: bool,
    bidirectional: bool,
    return_path: bool,
    source_state: Option<RunState>,
    /// Devices were loaded that are not in KVM yet.
    unapplied: bool,
    applied: bool,
    committed: bool,
    /// SHUT 0 has been said, before the start.
    told: bool,
    /// Why nobody can tell whether the source heard it.
    unheard: Option<Reason>,
    start_ordered: bool,
    arrival: Arrival,
    /// The time of the last call, of the connection, of what was asked last.
    now: Duration,
    connected_at: Duration,
    asked_at: Duration,
    error: Option<(Phase, Reason)>,
    outcome: Option<Outcome>,
}

/// What is to be done next, whatever was asked last being answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Listen,
    Accept,
    Activate,
    ReadHeader,
    ReadElement,
    Load {
        device: bool,
    },
    Acknowledge,
    /// Apply, then PONG.
    Answer(u32),
    Pong(u32),
    Apply,
    /// SHUT 0 before the start.
    Tell,
    Start,
    Shut,
    Complete,
    Drain,
    /// SHUT 1, if anybody listens.
    Refuse,
    Fail,
    Finish,
}

/// What was asked of the engine and is not answered yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Asked {
    Nothing,
    Accept,
    ReadHeader,
    ReadElement,
    Load { device: bool },
    Apply,
    Tell,
    Start,
    Drain,
}

impl Destination {
    /// An attempt for which channels are about to be accepted.
    pub fn new(config: DestinationConfig) -> Self {
        Self {
            config,
            step: Step::Listen,
            asked: Asked::Nothing,
            status: MigrationStatus::None,
            connected: false,
            bidirectional: false,
            return_path: false,
            source_state: None,
            unapplied: false,
            applied: false,
            committed: false,
            told: false,
            unheard: None,
            start_ordered: false,
            arrival: Arrival::default(),
            now: Duration::ZERO,
            connected_at: Duration::ZERO,
            asked_at: Duration::ZERO,
            error: None,
            outcome: None,
        }
    }

    /// Tells what happened. An `Err` changes nothing: [`Violation::Committed`] answers a cancel and
    /// [`Violation::Starting`] a `stop` or `cont` that came too late; [`Violation::Unexpected`] is a fault of the engine.
    pub fn handle(&mut self, now: Duration, event: DestinationEvent) -> Result<(), Violation> {
        if self.outcome.is_some() {
            return Ok(());
        }
        self.now = now;
        match event {
            DestinationEvent::Autostart(_) if self.start_ordered => return Err(Violation::Starting),
            DestinationEvent::Autostart(on) => self.config.autostart = on,
            DestinationEvent::SwitchoverAck(on) => self.config.switchover_ack = on,
            DestinationEvent::SourceState(state) if RunState::Inmigrate.may_become(state) => {
                self.source_state = Some(state);
            }
            DestinationEvent::SourceState(state) => {
                self.fail(
                    format!("the source's guest is in run state {state}, which no guest can arrive in")
                        .into(),
                );
            }
            DestinationEvent::Cancel if self.committed || self.told => return Err(Violation::Committed),
            DestinationEvent::Cancel => self.fail("cancelled".into()),
            DestinationEvent::Connected { bidirectional } => {
                self.connected = true;
                self.connected_at = now;
                self.bidirectional = bidirectional;
                if self.asked == Asked::Accept {
                    self.asked = Asked::Nothing;
                }
            }
            DestinationEvent::ChannelLost(channel, reason) => self.lose(channel, reason),
            DestinationEvent::Refused(reason) => self.refuse(reason),
            answer => return self.answer(answer),
        }
        Ok(())
    }

    /// What to do next. After [`DestinationAction::Finish`] it is the same again.
    pub fn next(&mut self, now: Duration) -> DestinationAction {
        self.now = now;
        if self.asked != Asked::Nothing {
            return DestinationAction::Await;
        }
        loop {
            if let Some(action) = self.take_step() {
                return action;
            }
        }
    }

    /// A cancel would be taken: the source may still resume its guest.
    pub fn may_cancel(&self) -> bool {
        !self.committed && !self.told && self.outcome.is_none()
    }

    /// The status as last published.
    pub fn status(&self) -> MigrationStatus {
        self.status
    }

    /// This side owns the guest, and nothing but its own failure keeps it from starting: the EOF byte was read, or the source
    /// that was not fenced has heard SHUT 0.
    pub fn committed(&self) -> bool {
        self.committed
    }

    /// How long the parts took.
    pub fn arrival(&self) -> Arrival {
        self.arrival
    }

    /// Where the attempt stands.
    pub fn phase(&self) -> Phase {
        match self.step {
            Step::Listen | Step::Accept | Step::Activate => Phase::Connect,
            Step::ReadHeader => Phase::Setup,
            Step::Answer(_) | Step::Apply | Step::Tell => Phase::Apply,
            Step::Start | Step::Shut | Step::Complete | Step::Drain => Phase::Start,
            _ => Phase::Load,
        }
    }

    /// Why it failed, for `error-desc`; or why nobody knows whether it did.
    pub fn error(&self) -> Option<&Reason> {
        self.error.as_ref().map(|(_, reason)| reason).or(self.unheard.as_ref())
    }

    /// The run state in which the guest settles here: the source's, but for a guest that ran there and may not run here.
    pub fn final_run_state(&self) -> RunState {
        let runs = self.config.autostart && self.unheard.is_none();
        match self.source_state.unwrap_or(RunState::Running) {
            live if live.is_live() && !runs => RunState::Paused,
            state => state,
        }
    }

    /// Does the step, or goes to the next.
    fn take_step(&mut self) -> Option<DestinationAction> {
        match self.step {
            Step::Listen if self.error.is_some() => self.publish(MigrationStatus::Setup, Step::Refuse),
            Step::Listen => self.publish(MigrationStatus::Setup, Step::Accept),
            Step::Accept if self.connected => self.pass(Step::Activate),
            Step::Accept => self.ask(Asked::Accept, DestinationAction::Accept),
            Step::Activate => self.publish(MigrationStatus::Active, Step::ReadHeader),
            Step::ReadHeader => self.ask(Asked::ReadHeader, DestinationAction::ReadHeader),
            Step::ReadElement => self.ask(Asked::ReadElement, DestinationAction::ReadElement),
            Step::Load { device } => self.ask(Asked::Load { device }, DestinationAction::Load),
            Step::Acknowledge => self.reply(ReturnPathMessage::SwitchoverAck, Step::ReadElement),
            Step::Answer(value) if !self.unapplied => self.pass(Step::Pong(value)),
            Step::Answer(_) => self.ask(Asked::Apply, DestinationAction::Apply),
            Step::Pong(value) => self.reply(ReturnPathMessage::Pong(value), Step::ReadElement),
            Step::Apply if self.applied && !self.unapplied => {
                self.pass(if self.committed { Step::Start } else { Step::Drain })
            }
            Step::Apply => self.ask(Asked::Apply, DestinationAction::Apply),
            Step::Tell => {
                self.told = true;
                self.ask(Asked::Tell, DestinationAction::Tell(ReturnPathMessage::Shut(SHUT_OK)))
            }
            Step::Start => {
                self.start_ordered = true;
                self.ask(Asked::Start, DestinationAction::Start { run: self.final_run_state().is_live() })
            }
            Step::Shut => self.reply(ReturnPathMessage::Shut(SHUT_OK), Step::Complete),
            Step::Complete if self.unheard.is_some() => self.publish(MigrationStatus::Failed, Step::Finish),
            Step::Complete if self.told => self.publish(MigrationStatus::Completed, Step::Finish),
            Step::Complete => self.publish(MigrationStatus::Completed, Step::Drain),
            Step::Drain => self.ask(Asked::Drain, DestinationAction::Drain),
            Step::Refuse => self.reply(ReturnPathMessage::Shut(SHUT_FAILED), Step::Fail),
            Step::Fail => self.publish(MigrationStatus::Failed, Step::Finish),
            Step::Finish => {
                let outcome = match (&self.error, &self.unheard) {
                    (Some((phase, reason)), _) => Outcome::Failed { phase: *phase, reason: reason.clone() },
                    (None, Some(reason)) => Outcome::Unknown { reason: reason.clone() },
                    (None, None) => Outcome::Completed,
                };
                self.outcome = Some(outcome.clone());
                Some(DestinationAction::Finish(outcome))
            }
        }
    }

    fn pass(&mut self, next: Step) -> Option<DestinationAction> {
        self.step = next;
        None
    }

    fn ask(&mut self, asked: Asked, action: DestinationAction) -> Option<DestinationAction> {
        self.asked = asked;
        self.asked_at = self.now;
        Some(action)
    }

    fn publish(&mut self, status: MigrationStatus, next: Step) -> Option<DestinationAction> {
        self.status = status;
        self.step = next;
        Some(DestinationAction::Status(status))
    }

    /// Says it, if there is a return path.
    fn reply(&mut self, message: ReturnPathMessage, next: Step) -> Option<DestinationAction> {
        self.step = next;
        self.return_path.then_some(DestinationAction::Reply(message))
    }

    fn answer(&mut self, event: DestinationEvent) -> Result<(), Violation> {
        let asked = std::mem::replace(&mut self.asked, Asked::Nothing);
        let took = self.now.saturating_sub(self.asked_at);
        let next = match (asked, event) {
            // Late answers of an attempt that has failed change nothing.
            _ if self.error.is_some() => return Ok(()),
            (Asked::ReadHeader, DestinationEvent::Announced) => Step::ReadElement,
            (Asked::ReadElement, DestinationEvent::Element(header)) => return self.meet(header),
            (Asked::Load { device }, DestinationEvent::Loaded) => {
                self.unapplied |= device;
                Step::ReadElement
            }
            (Asked::Apply, DestinationEvent::Applied) => {
                self.unapplied = false;
                self.applied = true;
                self.arrival.apply = self.arrival.apply.saturating_add(took);
                self.step
            }
            (Asked::Apply, DestinationEvent::ApplyFailed(reason)) => return self.give_up(reason),
            (Asked::Start, DestinationEvent::Started) => {
                self.arrival.start = took;
                if self.told { Step::Complete } else { Step::Shut }
            }
            (Asked::Start, DestinationEvent::StartFailed(reason)) => return self.give_up(reason),
            (Asked::Tell, DestinationEvent::Heard) => {
                self.committed = true;
                Step::Start
            }
            (Asked::Tell, DestinationEvent::Unheard(reason)) => {
                self.committed = true;
                self.unheard = Some(reason);
                Step::Start
            }
            (Asked::Drain, DestinationEvent::Drained) if self.committed => Step::Finish,
            (Asked::Drain, DestinationEvent::Drained) => Step::Tell,
            (asked, event) => {
                self.asked = asked;
                return Err(Violation::Unexpected { event: name(&event), asked: asked.name() });
            }
        };
        self.step = next;
        Ok(())
    }

    fn meet(&mut self, header: ElementHeader) -> Result<(), Violation> {
        self.step = match header {
            ElementHeader::Eof => {
                let fenced = self.applied && !self.unapplied;
                self.committed = fenced || !self.return_path;
                self.arrival.load = self.now.saturating_sub(self.connected_at);
                Step::Apply
            }
            ElementHeader::Live { .. } => Step::Load { device: false },
            ElementHeader::Device { .. } => Step::Load { device: true },
            ElementHeader::Command(command) => return self.obey(command),
        };
        Ok(())
    }

    fn obey(&mut self, command: Command) -> Result<(), Violation> {
        self.step = match command {
            Command::OpenReturnPath if self.return_path => Step::ReadElement,
            Command::OpenReturnPath if !self.bidirectional => {
                return self
                    .give_up("the source wants a return path, which this channel cannot carry".into());
            }
            Command::OpenReturnPath => {
                self.return_path = true;
                if self.config.switchover_ack { Step::Acknowledge } else { Step::ReadElement }
            }
            Command::Ping(_) if !self.return_path => {
                return self.give_up("PING came before OPEN_RETURN_PATH".into());
            }
            Command::Ping(value) => Step::Answer(value),
            Command::SwitchoverStart => Step::ReadElement,
            other => {
                let name = other.name();
                return self.give_up(format!("command {name} asks for a mode that is not built").into());
            }
        };
        Ok(())
    }

    fn give_up(&mut self, reason: Reason) -> Result<(), Violation> {
        let phase = self.phase();
        self.error.get_or_insert((phase, reason));
        self.step = Step::Refuse;
        Ok(())
    }

    /// A failure before the commit; after it nothing that the source does or suffers counts, nor while it may hear SHUT 0.
    fn fail(&mut self, reason: Reason) {
        if !self.committed && !self.told && self.error.is_none() {
            let phase = self.phase();
            self.error = Some((phase, reason));
            if self.step != Step::Listen {
                self.step = Step::Refuse;
            }
        }
    }

    fn lose(&mut self, channel: Channel, reason: Reason) {
        match channel {
            Channel::ReturnPath => {
                self.return_path = false;
                if self.asked == Asked::Tell {
                    self.asked = Asked::Nothing;
                    self.told = false;
                }
            }
            Channel::Main => self.end_read(),
        }
        self.fail(reason);
    }

    fn refuse(&mut self, reason: Reason) {
        self.end_read();
        self.fail(reason);
    }

    /// Nothing more comes: what was to be read is answered. Applying and starting still have their own answers.
    fn end_read(&mut self) {
        match self.asked {
            Asked::Accept | Asked::ReadHeader | Asked::ReadElement | Asked::Load { .. } => {
                self.asked = Asked::Nothing;
            }
            Asked::Drain => {
                self.asked = Asked::Nothing;
                self.step = Step::Finish;
            }
            Asked::Nothing | Asked::Apply | Asked::Tell | Asked::Start => {}
        }
    }
}

impl Asked {
    fn name(self) -> &'static str {
        match self {
            Self::Nothing => "nothing",
            Self::Accept => "Accept",
            Self::ReadHeader => "ReadHeader",
            Self::ReadElement => "ReadElement",
            Self::Load { .. } => "Load",
            Self::Apply => "Apply",
            Self::Tell => "Tell",
            Self::Start => "Start",
            Self::Drain => "Drain",
        }
    }
}

/// The event's name, for a [`Violation`].
fn name(event: &DestinationEvent) -> &'static str {
    match event {
        DestinationEvent::Connected { .. } => "Connected",
        DestinationEvent::Announced => "Announced",
        DestinationEvent::Element(_) => "Element",
        DestinationEvent::Loaded => "Loaded",
        DestinationEvent::Applied => "Applied",
        DestinationEvent::ApplyFailed(_) => "ApplyFailed",
        DestinationEvent::Heard => "Heard",
        DestinationEvent::Unheard(_) => "Unheard",
        DestinationEvent::Started => "Started",
        DestinationEvent::StartFailed(_) => "StartFailed",
        DestinationEvent::Drained => "Drained",
        DestinationEvent::Refused(_) => "Refused",
        DestinationEvent::ChannelLost(..) => "ChannelLost",
        DestinationEvent::SourceState(_) => "SourceState",
        DestinationEvent::Autostart(_) => "Autostart",
        DestinationEvent::SwitchoverAck(_) => "SwitchoverAck",
        DestinationEvent::Cancel => "Cancel",
    }
}
