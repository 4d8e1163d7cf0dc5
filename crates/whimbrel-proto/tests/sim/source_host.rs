//! The source's host: an engine that executes the machine's actions in simulated time, and the guest's arbiter.

use std::time::Duration;

use whimbrel_proto::Violation;
use whimbrel_proto::action::{Action, Channel, HandlerId, Sink};
use whimbrel_proto::event::{ElementHeader, Event, Pages};
use whimbrel_proto::outcome::Outcome;
use whimbrel_proto::run_state::RunState;
use whimbrel_proto::source::{Info, Source, SourceConfig, Transport};
use whimbrel_proto::status::{MigrationStatus, Side};

use crate::guest::{Guest, PAGE};
use crate::link::Message;
use crate::world::{At, Broken, MS, Moment, Note, Scenario, World};

/// Bytes of framing: a section header, a command.
pub const FRAME: u64 = 32;
/// Bytes of all device state.
const DEVICES: u64 = 4096;

/// What the engine does.
#[derive(Debug, Clone)]
pub enum Work {
    Idle,
    /// Until then; these events are the answer. `writes`: a lost connection ends it.
    Busy {
        until: Duration,
        answers: Vec<Event>,
        writes: bool,
    },
    Waiting(Option<Duration>),
    Over,
}

pub struct SourceHost {
    pub machine: Option<Source>,
    pub work: Work,
    pub guest: Guest,
    pub state: RunState,
    /// The state before finish-migrate.
    pub before: RunState,
    pub running: bool,
    /// Pages that are to be sent, by the handlers' bitmap.
    pub bitmap: Vec<bool>,
    cursor: usize,
    pub outcome: Option<Outcome>,
    pub steps: usize,
    pub quits: bool,
    /// When bytes of live state were accepted, and how many.
    pub sent: Vec<(Duration, u64)>,
    /// EOF left: nothing can take the commit back.
    pub eof_left: bool,
    /// What query-migrate showed after each action was ordered.
    pub infos: Vec<Info>,
    return_path_lost: bool,
    syncs: usize,
    handlers: usize,
    stopping: bool,
    resuming: bool,
}

impl SourceHost {
    pub fn new(scenario: &Scenario, guest: Guest) -> Self {
        let config = SourceConfig {
            transport: scenario.transport,
            handlers: (0..scenario.handlers as u32).map(HandlerId).collect(),
            has_early_devices: scenario.early_devices,
            capabilities: scenario.capabilities,
            parameters: scenario.parameters.clone(),
            guest: scenario.state,
            deadlines: scenario.deadlines,
            peer: "tcp:sim:4444".into(),
            ram_total: scenario.pages as u64 * PAGE,
            page_size: PAGE,
            ..SourceConfig::default()
        };
        Self {
            machine: Some(Source::new(config)),
            work: Work::Idle,
            guest,
            state: scenario.state,
            before: scenario.state,
            running: scenario.state == RunState::Running,
            bitmap: vec![false; scenario.pages],
            cursor: 0,
            outcome: None,
            steps: 0,
            quits: false,
            sent: Vec::new(),
            eof_left: false,
            infos: Vec::new(),
            return_path_lost: false,
            syncs: 0,
            handlers: scenario.handlers,
            stopping: false,
            resuming: false,
        }
    }

    pub fn is_over(&self) -> bool {
        matches!(self.work, Work::Over)
    }

    pub fn due(&self) -> Option<Duration> {
        match &self.work {
            Work::Busy { until, .. } => Some(*until),
            Work::Waiting(until) => *until,
            Work::Idle | Work::Over => None,
        }
    }

    /// The pages of a handler.
    fn pages_of(&self, handler: HandlerId) -> std::ops::Range<usize> {
        let share = self.bitmap.len() / self.handlers;
        let index = handler.0 as usize;
        let end = if index + 1 == self.handlers { self.bitmap.len() } else { (index + 1) * share };
        index * share..end
    }

    fn left(&self, handler: HandlerId) -> u64 {
        self.bitmap[self.pages_of(handler)].iter().filter(|dirty| **dirty).count() as u64 * PAGE
    }

    fn pending(&self, exact: bool, newly: u64) -> Vec<Event> {
        let of = |index: u32| Event::Pending {
            handler: HandlerId(index),
            must: self.left(HandlerId(index)),
            may_postcopy: 0,
            exact,
            newly: if index == 0 { newly } else { 0 },
        };
        (0..self.handlers as u32).map(of).chain([Event::Done]).collect()
    }
}

impl World {
    pub fn tell_source(&mut self, event: Event) -> Result<(), Violation> {
        let Some(machine) = &mut self.source.machine else { return Ok(()) };
        let result = machine.handle(self.now, event);
        match &result {
            Err(Violation::Unexpected { .. }) => panic!("{result:?}: {}", self.story()),
            Err(refused) => self.refused.push(refused.clone()),
            Ok(()) => {}
        }
        if matches!(self.source.work, Work::Waiting(_)) {
            self.source.work = Work::Idle;
        }
        result
    }

    fn report(&mut self, event: Event) {
        self.tell_source(event).unwrap_or_else(|violation| panic!("{violation}: {}", self.story()));
    }

    /// Something changes the guest's run state, not this migration.
    pub fn source_guest_becomes(&mut self, state: RunState) {
        assert!(state == self.source.state || self.source.state.may_become(state));
        self.source.state = state;
        self.source.running = state == RunState::Running;
        self.check_runners();
        let _ = self.tell_source(Event::Guest(state));
    }

    pub fn kill_source(&mut self) {
        self.source.work = Work::Over;
        self.source.machine = None;
        self.source.running = false;
        self.link.closed = true;
        self.link.reverse.clear();
    }

    /// A write that is under way fails, but for a commit that has left.
    pub fn source_write_fails(&mut self) {
        let now = self.now;
        if let Work::Busy { until, answers, writes: true } = &mut self.source.work
            && !answers.contains(&Event::Committed)
        {
            *until = now;
            *answers = vec![Event::ChannelLost(Channel::Main, "write: connection reset".into())];
        }
    }

    pub fn source_turn(&mut self) -> bool {
        if self.source.is_over() {
            return false;
        }
        if self.link.reverse.front().is_some_and(|(time, _)| *time <= self.now) {
            let (_, message) = self.link.reverse.pop_front().unwrap();
            self.report(Event::Peer(message));
            return true;
        }
        let open = self.source.machine.as_ref().is_some_and(|machine| machine.fenced());
        if open && self.link.closed && self.link.reverse.is_empty() && !self.source.return_path_lost {
            self.source.return_path_lost = true;
            self.report(Event::ChannelLost(Channel::ReturnPath, "read: connection reset".into()));
            return true;
        }
        match std::mem::replace(&mut self.source.work, Work::Idle) {
            Work::Busy { until, answers, .. } if until <= self.now => self.source_done(answers),
            Work::Waiting(Some(until)) if until <= self.now => self.report(Event::Tick),
            Work::Idle => self.source_acts(),
            later => {
                self.source.work = later;
                return false;
            }
        }
        true
    }

    /// An action ends: its effect on the guest, then its answer.
    fn source_done(&mut self, answers: Vec<Event>) {
        if std::mem::take(&mut self.source.stopping) && !matches!(answers[..], [Event::StopFailed(_)]) {
            assert!(self.source.state.may_become(RunState::FinishMigrate));
            self.source.before = self.source.state;
            self.source.state = RunState::FinishMigrate;
            self.source.running = false;
            self.note(Note::Stop);
        }
        if std::mem::take(&mut self.source.resuming) {
            self.source_resumes();
        }
        for answer in answers {
            self.report(answer);
        }
    }

    fn source_resumes(&mut self) {
        let before = self.source.before;
        assert!(RunState::FinishMigrate.may_become(before));
        self.source.state = before;
        self.source.running = before == RunState::Running;
        self.note(Note::Resume);
        self.check_runners();
    }

    fn source_acts(&mut self) {
        let now = self.now;
        let machine = self.source.machine.as_mut().unwrap();
        let action = machine.next(now);
        let info = machine.info(now);
        self.source.infos.push(info);
        let step = self.source.steps;
        self.source.steps += 1;
        assert!(step < 100_000, "the source never comes to an end: {}", self.story());
        self.strike(|at| *at == At::Source(step, Moment::Before));
        if self.source.is_over() {
            return;
        }
        self.source_does(action);
        self.strike(|at| *at == At::Source(step, Moment::After));
    }

    fn busy(&mut self, until: Duration, answers: Vec<Event>) {
        self.source.work = Work::Busy { until, answers, writes: false };
    }

    /// Writes `bytes`, then `message`.
    fn write(&mut self, bytes: u64, message: Option<Message>, answers: Vec<Event>) {
        if self.link.closed {
            let lost = Event::ChannelLost(Channel::Main, "write: broken pipe".into());
            self.source.work = Work::Busy { until: self.now, answers: vec![lost], writes: true };
            return;
        }
        let until = self.link.occupy(self.now, bytes);
        if let Some(message) = message {
            self.link.send(message);
        }
        self.source.work = Work::Busy { until, answers, writes: true };
    }

    fn source_does(&mut self, action: Action) {
        let soon = self.now + MS / 10;
        match action {
            Action::Status(status) => self.source_publishes(status),
            Action::Connect(channel) => self.connect(channel),
            Action::Announce => self.write(256, Some(Message::Header), vec![Event::Done]),
            Action::Command(command) => {
                let message = Message::Plain(ElementHeader::Command(command));
                self.write(FRAME, Some(message), vec![Event::Done]);
            }
            Action::Setup(handler) => {
                for page in self.source.pages_of(handler) {
                    self.source.bitmap[page] = true;
                }
                let start = Message::Live { end: false, pages: Vec::new() };
                self.write(1024, Some(start), vec![Event::Done]);
            }
            Action::Estimate => {
                let answers = self.source.pending(false, 0);
                self.busy(self.now + MS / 100, answers);
            }
            Action::SyncDirty { last } => self.sync(last),
            Action::Iterate { handler, at_most, until } => self.send_pages(handler, at_most, until, false),
            Action::Complete { handler, at_most, until } => self.send_pages(handler, at_most, until, true),
            Action::Measure => {
                let fixed = self.scenario.fixed;
                self.busy(soon, vec![Event::Measured { bytes: DEVICES, vmdesc: DEVICES, fixed }]);
            }
            Action::SaveDevices { early, into } => {
                assert_eq!(into, Sink::Stream);
                self.save_devices(early);
            }
            Action::Barrier => {
                let total = self.link.total;
                self.write(0, None, vec![Event::Flushed { total }]);
            }
            Action::Predict(predicted) => self.note(Note::Predict(predicted)),
            Action::StopVm => {
                self.source.stopping = true;
                let took = self.scenario.stop_time;
                let fails = self.scenario.stop_fails;
                let answer =
                    if fails { Event::StopFailed("vCPU 1 hangs".into()) } else { Event::Stopped { took } };
                self.busy(self.now + took, vec![answer]);
            }
            Action::ResumeVm => {
                assert_eq!(self.source.state, RunState::FinishMigrate, "{}", self.story());
                self.source.resuming = true;
                self.busy(soon, vec![Event::Resumed]);
            }
            Action::Await { until } => {
                assert!(until.is_none_or(|until| until > self.now), "a busy loop: {}", self.story());
                self.source.work = Work::Waiting(until);
            }
            Action::Commit => self.commit(),
            Action::Finish(outcome) => self.source_finishes(outcome),
            other => panic!("no plan has {other:?}"),
        }
    }

    fn source_publishes(&mut self, status: MigrationStatus) {
        let from = self.last_source_status();
        self.note_status(Side::Source, from, status);
        assert_eq!(self.source.machine.as_ref().unwrap().status(), status);
        if status == MigrationStatus::PreSwitchover {
            self.continue_at = self.scenario.user_continues.map(|delay| self.now + delay);
        }
        self.strike(|at| *at == At::SourceStatus(status));
    }

    fn last_source_status(&self) -> MigrationStatus {
        self.source_statuses().last().copied().unwrap_or(MigrationStatus::None)
    }

    fn connect(&mut self, channel: Channel) {
        let file = self.scenario.transport == Transport::File;
        if self.link.closed || (!file && self.destination.is_over()) {
            let lost = Event::ChannelLost(channel, "connection refused".into());
            self.busy(self.now + MS, vec![lost]);
            return;
        }
        self.source.work = Work::Busy {
            until: self.now + self.link.latency + MS,
            answers: vec![Event::Connected { channel, bidirectional: !file }],
            writes: true,
        };
        if !file {
            self.destination_connected();
        }
    }

    fn sync(&mut self, last: bool) {
        assert!(!last || !self.source.running, "the last sync while the guest runs: {}", self.story());
        let pass = self.source.syncs;
        self.source.syncs += 1;
        if self.scenario.sync_fails_at == Some(pass) {
            self.busy(self.now + MS, vec![Event::Broken("KVM_GET_DIRTY_LOG: EIO".into())]);
            return;
        }
        let mut newly = 0;
        if !(last && self.scenario.broken == Broken::OmitsLastSync) {
            for (page, dirty) in self.source.guest.log.iter_mut().enumerate() {
                if std::mem::take(dirty) && !std::mem::replace(&mut self.source.bitmap[page], true) {
                    newly += PAGE;
                }
            }
        }
        let answers = self.source.pending(true, newly);
        self.note(Note::Pass(pass as u64 + 1));
        self.busy(self.now + MS / 10, answers);
    }

    /// Pages go until the limits; with `complete` SECTION_END is written if nothing is left.
    fn send_pages(&mut self, handler: HandlerId, at_most: u64, until: Duration, complete: bool) {
        assert!(at_most > 0);
        if self.link.closed {
            self.write(0, None, Vec::new());
            return;
        }
        let range = self.source.pages_of(handler);
        // Where the last turn ended, so that pages written again and again don't keep others waiting.
        let cursor = self.source.cursor.clamp(range.start, range.end);
        let around = (cursor..range.end).chain(range.start..cursor);
        let dirty: Vec<usize> = around.filter(|&page| self.source.bitmap[page]).collect();
        let mut pages = Vec::new();
        let mut bytes = FRAME;
        let mut accepted = self.link.occupy(self.now, FRAME);
        for page in dirty {
            // A turn sends one page at least, even past its time, but for one that completes.
            let over = bytes >= at_most || accepted >= until;
            if over && (complete || !pages.is_empty()) {
                break;
            }
            self.source.bitmap[page] = false;
            self.source.cursor = page + 1;
            let drops = self.scenario.broken == Broken::DropsOnePage && page == 3;
            if !drops {
                pages.push((page, self.source.guest.memory.pages[page]));
            }
            bytes += PAGE;
            accepted = self.link.occupy(self.now, PAGE);
        }
        let left = self.source.left(handler);
        let left_of_all = self.source.bitmap.iter().any(|dirty| *dirty);
        assert!(!(complete && left == 0 && left_of_all), "SECTION_END before all is sent: {}", self.story());
        let sent = Pages { normal: pages.len() as u64, zero: 0 };
        self.link.send(Message::Live { end: complete && left == 0, pages });
        self.source.sent.push((self.now, bytes));
        let answers = vec![Event::Progress { handler, bytes, pages: sent, left }];
        self.source.work = Work::Busy { until: accepted, answers, writes: true };
    }

    fn save_devices(&mut self, early: bool) {
        if early {
            return self.write(
                FRAME,
                Some(Message::Registers(0)),
                vec![Event::DevicesSaved { bytes: FRAME }],
            );
        }
        assert_eq!(self.source.state, RunState::FinishMigrate);
        if self.scenario.save_fails {
            let failed = Event::SaveFailed("virtio-blk 3: save refused".into());
            self.busy(self.now + MS, vec![failed]);
            return;
        }
        let registers = Message::Registers(self.source.guest.memory.register);
        self.write(DEVICES, Some(registers), Vec::new());
        if !self.link.closed {
            let state = Message::GlobalState(self.source.before);
            self.write(FRAME, Some(state), vec![Event::DevicesSaved { bytes: DEVICES }]);
            if self.scenario.broken == Broken::CommitsUnasked {
                self.link.send(Message::Plain(ElementHeader::Eof));
            }
        }
    }

    fn commit(&mut self) {
        assert!(!self.source.machine.as_ref().unwrap().may_cancel());
        self.source.eof_left = !self.link.closed;
        if self.scenario.transport == Transport::Socket {
            return self.write(DEVICES, Some(Message::Plain(ElementHeader::Eof)), vec![Event::Committed]);
        }
        if self.link.closed {
            let lost = Event::ChannelLost(Channel::Main, "fsync: no space left on device".into());
            return self.busy(self.now + MS, vec![lost]);
        }
        self.link.send(Message::Plain(ElementHeader::Eof));
        self.busy(self.now + MS * 20, vec![Event::Committed]);
    }

    fn source_finishes(&mut self, outcome: Outcome) {
        let from = self.last_source_status();
        self.note_status(Side::Source, from, outcome.status());
        match &outcome {
            Outcome::Completed | Outcome::Unknown { .. } => {
                assert_eq!(self.source.state, RunState::FinishMigrate);
                self.source.state = RunState::Postmigrate;
            }
            _ => assert_ne!(self.source.state, RunState::FinishMigrate, "{}", self.story()),
        }
        if matches!(outcome, Outcome::Unknown { .. }) && self.scenario.broken == Broken::ResumesWhenUnknown {
            self.source.running = true;
            self.check_runners();
        }
        if outcome != Outcome::Completed {
            self.link.closed = true;
        }
        self.source.outcome = Some(outcome);
        self.source.work = Work::Over;
        if self.source.quits {
            self.kill_source();
        }
    }
}
