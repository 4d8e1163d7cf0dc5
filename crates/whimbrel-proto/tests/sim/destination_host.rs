//! The destination's host: an engine that executes the machine's actions in simulated time.

use std::time::Duration;

use whimbrel_proto::Violation;
use whimbrel_proto::action::{Channel, DestinationAction};
use whimbrel_proto::destination::Destination;
use whimbrel_proto::event::{DestinationEvent, ElementHeader};
use whimbrel_proto::outcome::Outcome;
use whimbrel_proto::run_state::RunState;
use whimbrel_proto::source::FENCE;
use whimbrel_proto::status::{MigrationStatus, Side};
use whimbrel_wire::command::Command;
use whimbrel_wire::return_path::ReturnPathMessage;

use crate::guest::Guest;
use crate::link::Message;
use crate::world::{At, Broken, MS, Moment, Note, World};

/// The engine's deadline for a read: long, since a source may wait in pre-switchover.
const READ_DEADLINE: Duration = Duration::from_secs(300);

#[derive(Debug, Clone)]
pub enum Work {
    Idle,
    Busy {
        until: Duration,
        answers: Vec<DestinationEvent>,
    },
    Accepting,
    /// A reply is held back until then.
    Holding {
        until: Duration,
        message: ReturnPathMessage,
    },
    Reading {
        header: bool,
        deadline: Duration,
    },
    Over,
}

pub struct DestinationHost {
    pub machine: Option<Destination>,
    pub work: Work,
    pub guest: Guest,
    pub state: RunState,
    pub running: bool,
    /// It has run the guest, or settled in the state that the source told.
    pub started: bool,
    pub outcome: Option<Outcome>,
    pub steps: usize,
    /// The section whose header was reported.
    section: Option<Message>,
    loaded_register: u64,
    starting: bool,
    /// A `stop` or `cont` that came during the start.
    after_start: Option<bool>,
    applying: bool,
    eof: bool,
}

impl DestinationHost {
    pub fn new(machine: Destination, guest: Guest) -> Self {
        Self {
            machine: Some(machine),
            work: Work::Idle,
            guest,
            state: RunState::Inmigrate,
            running: false,
            started: false,
            outcome: None,
            steps: 0,
            section: None,
            loaded_register: u64::MAX,
            starting: false,
            after_start: None,
            applying: false,
            eof: false,
        }
    }

    pub fn is_over(&self) -> bool {
        matches!(self.work, Work::Over)
    }

    pub fn due(&self) -> Option<Duration> {
        match &self.work {
            Work::Busy { until, .. } | Work::Holding { until, .. } => Some(*until),
            Work::Reading { deadline, .. } => Some(*deadline),
            Work::Idle | Work::Accepting | Work::Over => None,
        }
    }
}

impl World {
    pub fn tell_destination(&mut self, event: DestinationEvent) {
        let now = self.now;
        if let Some(machine) = &mut self.destination.machine {
            let told = machine.handle(now, event);
            told.unwrap_or_else(|violation| panic!("{violation}: {}", self.story()));
        }
    }

    /// `stop` or `cont` while incoming.
    pub fn autostart(&mut self, on: bool) {
        let now = self.now;
        let Some(machine) = &mut self.destination.machine else { return };
        match machine.handle(now, DestinationEvent::Autostart(on)) {
            Err(Violation::Starting) => self.destination.after_start = Some(on),
            told => told.unwrap(),
        }
    }

    pub fn destination_connected(&mut self) {
        if !self.destination.is_over() {
            self.tell_destination(DestinationEvent::Connected { bidirectional: true });
            if matches!(self.destination.work, Work::Accepting) {
                self.destination.work = Work::Idle;
            }
        }
    }

    pub fn destination_guest_becomes(&mut self, state: RunState) {
        assert!(state == self.destination.state || self.destination.state.may_become(state));
        self.destination.state = state;
        self.destination.running = state == RunState::Running;
        self.check_runners();
    }

    pub fn kill_destination(&mut self) {
        self.destination.work = Work::Over;
        self.destination.machine = None;
        self.destination.running = false;
        self.link.closed = true;
        self.link.forward.clear();
    }

    pub fn quit_destination(&mut self) {
        let now = self.now;
        let Some(machine) = &mut self.destination.machine else { return };
        if machine.handle(now, DestinationEvent::Cancel) == Err(Violation::Committed)
            || self.destination.is_over()
        {
            return self.kill_destination();
        }
        // The socket is shut down, so that a read or an accept ends.
        if let Work::Reading { .. } | Work::Accepting = self.destination.work {
            self.destination.work = Work::Busy {
                until: now,
                answers: vec![DestinationEvent::ChannelLost(Channel::Main, "shut down".into())],
            };
        }
    }

    pub fn destination_turn(&mut self) -> bool {
        let now = self.now;
        match std::mem::replace(&mut self.destination.work, Work::Idle) {
            Work::Busy { until, answers } if until <= now => self.destination_done(answers),
            Work::Holding { until, message } if until <= now => self.reply(message),
            Work::Idle => self.destination_acts(),
            Work::Reading { header, deadline } => return self.read(header, deadline),
            // A listener whose peer is gone for good gives up with it.
            Work::Accepting if self.source.is_over() || self.link.closed => {
                let lost = DestinationEvent::ChannelLost(Channel::Main, "nobody connected".into());
                self.tell_destination(lost);
            }
            later => {
                self.destination.work = later;
                return false;
            }
        }
        true
    }

    fn read(&mut self, header: bool, deadline: Duration) -> bool {
        if self.link.forward.front().is_some_and(|(time, _)| *time <= self.now) {
            let (_, message) = self.link.forward.pop_front().unwrap();
            self.arrives(header, message);
            return true;
        }
        let lost = self.link.closed && self.link.forward.is_empty();
        if lost || deadline <= self.now {
            let reason = if lost { "end of stream" } else { "nothing came in time" };
            self.tell_destination(DestinationEvent::ChannelLost(Channel::Main, reason.into()));
            return true;
        }
        self.destination.work = Work::Reading { header, deadline };
        false
    }

    fn arrives(&mut self, header: bool, message: Message) {
        if header {
            assert!(matches!(message, Message::Header));
            return self.tell_destination(DestinationEvent::Announced);
        }
        let element = message.header();
        self.destination.eof |= element == ElementHeader::Eof;
        if element == ElementHeader::Command(Command::Ping(FENCE))
            && self.scenario.broken == Broken::AnswersBeforeApply
        {
            self.link.answer(self.now, ReturnPathMessage::Pong(FENCE));
        }
        self.destination.section = Some(message);
        self.tell_destination(DestinationEvent::Element(element));
    }

    /// An action ends: its effect, then its answer.
    fn destination_done(&mut self, answers: Vec<DestinationEvent>) {
        let failed =
            matches!(answers[..], [DestinationEvent::ApplyFailed(_) | DestinationEvent::StartFailed(_)]);
        if std::mem::take(&mut self.destination.applying) && !failed {
            self.destination.guest.memory.register = self.destination.loaded_register;
            if self.scenario.broken == Broken::StartsBeforeEof {
                self.destination_starts();
            }
        }
        if std::mem::take(&mut self.destination.starting) && !failed && !self.destination.started {
            self.destination_starts();
        }
        for answer in answers {
            self.tell_destination(answer);
        }
    }

    fn destination_starts(&mut self) {
        let state = self.destination.machine.as_ref().unwrap().final_run_state();
        assert!(RunState::Inmigrate.may_become(state));
        self.destination.state = state;
        self.destination.running = state == RunState::Running;
        self.destination.started = true;
        self.note(Note::Start(state));
        self.check_runners();
        assert!(self.destination.eof, "started before the commit: {}", self.story());
        assert_eq!(
            self.destination.guest.memory.register,
            self.source.guest.memory.register,
            "registers differ: {}",
            self.story()
        );
        let differs = |(page, value): (usize, &u64)| self.source.guest.memory.pages[page] != *value;
        let stale =
            self.destination.guest.memory.pages.iter().enumerate().filter(|&item| differs(item)).count();
        assert_eq!(stale, 0, "pages lost: {}", self.story());
        match (self.destination.after_start.take(), self.destination.state) {
            (Some(false), state) if state.is_live() => self.destination_guest_becomes(RunState::Paused),
            (Some(true), RunState::Paused) => self.destination_guest_becomes(RunState::Running),
            _ => {}
        }
    }

    fn destination_acts(&mut self) {
        let now = self.now;
        let Some(machine) = &mut self.destination.machine else { return };
        let action = machine.next(now);
        let step = self.destination.steps;
        self.destination.steps += 1;
        self.strike(|at| *at == At::Destination(step, Moment::Before));
        if self.destination.is_over() {
            return;
        }
        self.destination_does(action);
        self.strike(|at| *at == At::Destination(step, Moment::After));
    }

    fn destination_does(&mut self, action: DestinationAction) {
        let now = self.now;
        let busy = |span: Duration, answer| Work::Busy { until: now + span, answers: vec![answer] };
        let deadline = now + READ_DEADLINE;
        match action {
            DestinationAction::Status(status) => self.destination_publishes(status),
            DestinationAction::Accept => self.destination.work = Work::Accepting,
            DestinationAction::ReadHeader => {
                self.destination.work = Work::Reading { header: true, deadline };
            }
            DestinationAction::ReadElement => {
                self.destination.work = Work::Reading { header: false, deadline };
            }
            DestinationAction::Load => self.load(),
            DestinationAction::Apply => {
                self.destination.applying = true;
                let answer = if self.scenario.apply_fails {
                    DestinationEvent::ApplyFailed("KVM_SET_SREGS: EINVAL".into())
                } else {
                    DestinationEvent::Applied
                };
                self.destination.work = busy(self.scenario.apply_time, answer);
            }
            DestinationAction::Reply(message) => self.hold_or_reply(message),
            DestinationAction::Start { run } => {
                let state = self.destination.machine.as_ref().unwrap().final_run_state();
                assert_eq!(run, state.is_live());
                self.destination.starting = true;
                let answer = if self.scenario.start_fails {
                    DestinationEvent::StartFailed("image is locked".into())
                } else {
                    DestinationEvent::Started
                };
                self.destination.work = busy(self.scenario.start_time, answer);
            }
            // Only a broken source leaves its destination to ask for this.
            DestinationAction::Tell(message) => {
                self.reply(message);
                let heard = !self.link.reverse_vanishes || self.scenario.broken == Broken::CommitsUnasked;
                let unheard = DestinationEvent::Unheard("nobody says that it arrived".into());
                let answer = if heard { DestinationEvent::Heard } else { unheard };
                self.destination.work = busy(self.link.latency * 2, answer);
            }
            DestinationAction::Drain => self.destination.work = busy(MS, DestinationEvent::Drained),
            DestinationAction::Finish(outcome) => {
                let completed = outcome == Outcome::Completed;
                assert_eq!(completed, self.destination.started, "{}", self.story());
                self.destination.outcome = Some(outcome);
                self.destination.work = Work::Over;
                self.link.closed = true;
            }
            other => panic!("not expected: {other:?}: {}", self.story()),
        }
    }

    fn destination_publishes(&mut self, status: MigrationStatus) {
        let before = self.notes.iter().rev().find_map(|(_, note)| match note {
            Note::Destination(status) => Some(*status),
            _ => None,
        });
        self.note_status(Side::Destination, before.unwrap_or(MigrationStatus::None), status);
    }

    fn load(&mut self) {
        let section = self.destination.section.take();
        let mut answers = Vec::new();
        match section {
            Some(Message::Live { pages, .. }) => {
                for (page, content) in pages {
                    self.destination.guest.memory.pages[page] = content;
                }
            }
            Some(Message::Registers(value)) => self.destination.loaded_register = value,
            Some(Message::GlobalState(state)) => answers.push(DestinationEvent::SourceState(state)),
            other => panic!("nothing to load: {other:?}"),
        }
        answers.push(DestinationEvent::Loaded);
        self.destination.work = Work::Busy { until: self.now + MS / 50, answers };
    }

    fn hold_or_reply(&mut self, message: ReturnPathMessage) {
        let delay = match message {
            ReturnPathMessage::Pong(FENCE) => self.scenario.pong_delay,
            ReturnPathMessage::SwitchoverAck => self.scenario.ack_delay,
            _ => Duration::ZERO,
        };
        if delay.is_zero() {
            return self.reply(message);
        }
        if message == ReturnPathMessage::SwitchoverAck {
            // A device that needs time: loading goes on meanwhile.
            self.link.answer(self.now + delay, message);
        } else {
            self.destination.work = Work::Holding { until: self.now + delay, message };
        }
    }

    fn reply(&mut self, message: ReturnPathMessage) {
        if self.scenario.swallows_shut && matches!(message, ReturnPathMessage::Shut(_)) {
            return;
        }
        if self.link.closed {
            let lost = DestinationEvent::ChannelLost(Channel::ReturnPath, "write: broken pipe".into());
            return self.tell_destination(lost);
        }
        self.link.answer(self.now, message);
    }
}
