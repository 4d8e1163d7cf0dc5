//! The source's machine: it decides when to connect, iterate, stop the guest, commit, and when to give up.
//!
//! ```text
//!            ┌────────────── overrun: ResumeVm ◀─────────────┐
//! setup ─▶ active (iterate) ─▶ StopVm ─▶ rest of RAM ─▶ device ─▶ PING/PONG ─▶ Commit ─▶ SHUT ─▶ completed
//!   └──────────┴─ any failure or cancel: ResumeVm ─┴───────┴──────────┘           └─ trouble: outcome unknown
//! ```
//!
//! Its modes are tables of steps (`plan/`). Two rules hold in each of them:
//! - **Before the commit** every failure and every cancel ends with the guest as it was: if it was stopped,
//!   [`Action::ResumeVm`] comes first, then [`Action::Finish`].
//! - **From [`Action::Commit`] on** the guest is the destination's: a cancel is refused and the guest is never resumed
//!   from here. Only the engine's word that not one byte of the commit left ([`Event::ChannelLost`] of the main channel
//!   as its answer) takes the commit back.
//!
//! The machine never reads a clock and never waits: `now` is the time since the migration was accepted.

mod config;
mod events;
mod info;
mod iterate;
mod plan;
mod steps;

use std::time::Duration;

use crate::Violation;
use crate::action::{Action, HandlerId};
use crate::bandwidth::Window;
use crate::event::Event;
use crate::outcome::{Outcome, Phase, Reason};
use crate::run_state::RunState;
use crate::status::MigrationStatus;
use crate::switchover::ExtraRounds;

pub use config::{Deadlines, SourceConfig, Transport};
pub use info::{Info, Pause, RamInfo};

use info::Accounts;
use iterate::Turn;
use plan::Step;

/// The value of the PING whose PONG allows the commit ("whmb").
pub const FENCE: u32 = 0x7768_6d62;

/// The source of one attempt to migrate.
///
/// The engine's loop: `next`, do it, `handle` its answer (and whatever else happened), `next` …, until
/// [`Action::Finish`].
#[derive(Debug, Clone)]
pub struct Source {
    config: SourceConfig,
    plan: &'static [Step],
    /// The step, by its place in the plan, and how far within it.
    at: usize,
    within: usize,
    asked: Asked,
    commit: CommitState,
    ending: Option<Outcome>,
    finished: bool,
    /// A cancel came after the commit was asked for.
    cancel_refused: bool,
    /// What went wrong after the commit.
    trouble: Option<Reason>,

    guest: RunState,
    stopped: bool,
    bidirectional: bool,
    acked: bool,
    continued: bool,
    fence_sent: bool,
    fence_answered: bool,
    shut: Option<u32>,
    deadline: Duration,
    switchover_start_sent: bool,

    /// Bytes left of each handler, in the configuration's order.
    pending: Vec<u64>,
    newly: u64,
    turn: Turn,
    extra_round: bool,
    window: Window,
    extra: ExtraRounds,
    /// The fixed part of the pause, and when RAM's part of it must end.
    fixed: Duration,
    ram_until: Duration,
    stopped_at: Duration,
    stop_took: Duration,
    /// What the last overrun really carried a second, and when the guest went on.
    overrun_bandwidth: Option<(u64, Duration)>,
    paused_bytes: u64,
    accounts: Accounts,
}

/// What was asked of the engine and is not answered yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Asked {
    Nothing,
    Connect,
    /// Something written to the stream.
    Write,
    Pending {
        sync: bool,
    },
    Progress(HandlerId),
    Measure,
    SaveDevices,
    Barrier,
    Stop,
    Resume,
    Commit,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum CommitState {
    /// The guest is ours.
    Open,
    /// Asked for: bytes of it may have left.
    Asked,
    /// The guest is the destination's.
    Done,
}

impl Source {
    /// A migration that has just been accepted: time zero.
    pub fn new(config: SourceConfig) -> Self {
        let plan = match config.transport {
            Transport::Socket => plan::precopy::STEPS,
            Transport::File => plan::file::STEPS,
        };
        let accounts = Accounts::new(config.parameters.downtime_limit());
        Self {
            plan,
            at: 0,
            within: 0,
            asked: Asked::Nothing,
            commit: CommitState::Open,
            ending: None,
            finished: false,
            cancel_refused: false,
            trouble: None,
            guest: config.guest,
            stopped: false,
            bidirectional: false,
            acked: false,
            continued: false,
            fence_sent: false,
            fence_answered: false,
            shut: None,
            deadline: Duration::ZERO,
            switchover_start_sent: false,
            pending: vec![0; config.handlers.len()],
            newly: 0,
            turn: Turn::Begin,
            extra_round: false,
            window: Window::new(Duration::ZERO, config.parameters.max_bandwidth),
            extra: ExtraRounds::default(),
            fixed: Duration::ZERO,
            ram_until: Duration::ZERO,
            stopped_at: Duration::ZERO,
            stop_took: Duration::ZERO,
            overrun_bandwidth: None,
            paused_bytes: 0,
            accounts,
            config,
        }
    }

    /// Tells what happened. An `Err` changes nothing: [`Violation::Committed`] and [`Violation::NotWaiting`] are the
    /// user's, to be answered; [`Violation::Unexpected`] is a fault of the engine. (A cancel refused while the commit is
    /// under way is remembered: if the engine takes the commit back, the attempt ends cancelled.)
    pub fn handle(&mut self, now: Duration, event: Event) -> Result<(), Violation> {
        if self.finished {
            return Ok(());
        }
        self.take(now, event)
    }

    /// What to do next. After [`Action::Finish`] it is the same again.
    pub fn next(&mut self, now: Duration) -> Action {
        if self.asked != Asked::Nothing {
            return Action::Await { until: None };
        }
        if self.ending.is_some() {
            return self.end(now);
        }
        self.advance(now)
    }

    /// A cancel would be taken: nothing is committed.
    pub fn may_cancel(&self) -> bool {
        self.commit == CommitState::Open && !self.finished
    }

    /// The commit waits (or waited) for the destination's PONG: a return path is open.
    pub fn fenced(&self) -> bool {
        self.return_path()
    }

    /// The guest stands still, by this migration.
    pub fn has_stopped_guest(&self) -> bool {
        self.stopped
    }

    /// The status as last published.
    pub fn status(&self) -> MigrationStatus {
        self.accounts.status
    }

    /// Where the attempt stands.
    pub fn phase(&self) -> Phase {
        match self.commit {
            CommitState::Done => Phase::Committed,
            _ => self.plan.get(self.at).map_or(Phase::Committed, |step| step.phase()),
        }
    }

    /// What `query-migrate` shows.
    pub fn info(&self, now: Duration) -> Info {
        let remaining = self.pending_total();
        let info = self.accounts.info(now, remaining, self.config.ram_total, self.config.page_size);
        let error = match &self.ending {
            Some(Outcome::Failed { reason, .. } | Outcome::Unknown { reason }) => Some(reason.to_string()),
            _ => None,
        };
        Info { fenced: self.fenced(), extra_rounds: self.extra.made(), error, ..info }
    }

    fn return_path(&self) -> bool {
        use crate::capabilities::Capability;
        self.bidirectional
            && self.config.transport == Transport::Socket
            && self.config.capabilities.has(Capability::ReturnPath)
    }

    fn pending_total(&self) -> u64 {
        self.pending.iter().fold(0, |sum, &bytes| sum.saturating_add(bytes))
    }

    /// A failure: before the commit it ends the attempt, after it the outcome may be unknown. The first one counts.
    fn fail(&mut self, reason: Reason) {
        let phase = self.phase();
        match self.commit {
            CommitState::Open => {
                self.ending.get_or_insert(Outcome::Failed { phase, reason });
            }
            CommitState::Asked | CommitState::Done => {
                self.trouble.get_or_insert(reason);
            }
        }
    }

    /// The guest does not go on: a failure of its own, and one more of an attempt that has failed. A cancel stays one.
    fn resume_failed(&mut self, reason: Reason) {
        match &mut self.ending {
            Some(Outcome::Failed { reason: first, .. }) => *first = Reason(format!("{first}; and {reason}")),
            Some(_) => {}
            None => self.fail(reason),
        }
    }

    fn unknown(&self, reason: &Reason) -> Outcome {
        Outcome::Unknown { reason: format!("outcome unknown: {}: {reason}", self.config.peer).into() }
    }

    /// The way out: the statuses that lead there, the guest resumed if this side may, the outcome.
    fn end(&mut self, now: Duration) -> Action {
        let Some(outcome) = self.ending.clone() else { return Action::Await { until: None } };
        if self.finished {
            return Action::Finish(outcome);
        }
        match (self.accounts.status, &outcome) {
            (MigrationStatus::None, _) => return self.publish(MigrationStatus::Setup),
            (MigrationStatus::Cancelling, _) => {}
            (_, Outcome::Cancelled) => return self.publish(MigrationStatus::Cancelling),
            _ => {}
        }
        self.accounts.part(now, None);
        let ours = matches!(outcome, Outcome::Cancelled | Outcome::Failed { .. });
        if ours && self.stopped {
            self.asked = Asked::Resume;
            return Action::ResumeVm;
        }
        self.finished = true;
        self.accounts.ended = Some(now);
        self.accounts.status = outcome.status();
        Action::Finish(outcome)
    }

    fn publish(&mut self, status: MigrationStatus) -> Action {
        self.accounts.status = status;
        Action::Status(status)
    }
}
