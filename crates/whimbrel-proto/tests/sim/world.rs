//! Two hosts, a connection and a clock. Nothing here is random: a scenario runs the same each time.
//!
//! The world asserts at every change that never two hosts run the guest, and that no machine leaves its tables.

use std::time::Duration;

use whimbrel_proto::Violation;
use whimbrel_proto::capabilities::{Capabilities, Capability};
use whimbrel_proto::destination::{Destination, DestinationConfig};
use whimbrel_proto::event::Event;
use whimbrel_proto::outcome::Outcome;
use whimbrel_proto::parameters::Parameters;
use whimbrel_proto::run_state::RunState;
use whimbrel_proto::source::{Deadlines, Transport};
use whimbrel_proto::status::{MigrationStatus, Side, may_become};

use crate::destination_host::DestinationHost;
use crate::guest::{Guest, Load};
use crate::link::Link;
use crate::source_host::SourceHost;

pub const MS: Duration = Duration::from_millis(1);
pub const SECOND: Duration = Duration::from_secs(1);
pub const MIB: u64 = 1 << 20;
/// A simulation that isn't over by then hangs.
const PATIENCE: Duration = Duration::from_secs(600);

/// Everything a simulation depends on.
#[derive(Debug, Clone)]
pub struct Scenario {
    pub transport: Transport,
    pub capabilities: Capabilities,
    pub parameters: Parameters,
    pub deadlines: Deadlines,
    pub state: RunState,
    pub autostart: bool,
    pub handlers: usize,
    pub pages: usize,
    pub load: Load,
    pub bandwidth: u64,
    pub latency: Duration,
    pub buffer: u64,
    /// What stopping takes, what applying takes, what starting takes.
    pub stop_time: Duration,
    pub apply_time: Duration,
    pub start_time: Duration,
    /// What the engine believes all of that takes.
    pub fixed: Duration,
    pub early_devices: bool,
    pub stop_fails: bool,
    pub save_fails: bool,
    pub sync_fails_at: Option<usize>,
    pub apply_fails: bool,
    pub start_fails: bool,
    pub pong_delay: Duration,
    pub swallows_shut: bool,
    /// The destination's answer to `switchover-ack` comes this late.
    pub ack_delay: Duration,
    /// The user's `migrate-continue` comes this long after pre-switchover.
    pub user_continues: Option<Duration>,
    pub faults: Vec<Fault>,
    /// What is broken on purpose.
    pub broken: Broken,
}

impl Default for Scenario {
    /// 16 MiB over 200 MiB/s, dirtied at 20 MiB/s; return path on.
    fn default() -> Self {
        let parameters = Parameters { max_bandwidth: 0, ..Parameters::default() };
        Self {
            transport: Transport::Socket,
            capabilities: Capabilities::NONE.with(Capability::ReturnPath),
            parameters,
            deadlines: Deadlines::default(),
            state: RunState::Running,
            autostart: true,
            handlers: 1,
            pages: 256,
            load: Load { rate: 20 * MIB, working_set: 200 },
            bandwidth: 200 * MIB,
            latency: MS,
            buffer: MIB,
            stop_time: MS,
            apply_time: MS * 2,
            start_time: MS,
            fixed: MS * 6,
            early_devices: false,
            stop_fails: false,
            save_fails: false,
            sync_fails_at: None,
            apply_fails: false,
            start_fails: false,
            pong_delay: Duration::ZERO,
            swallows_shut: false,
            ack_delay: Duration::ZERO,
            user_continues: Some(MS * 5),
            faults: Vec::new(),
            broken: Broken::Nothing,
        }
    }
}

impl Scenario {
    pub fn with(mut self, capability: Capability) -> Self {
        self.capabilities.set(capability, true);
        self
    }

    pub fn without_return_path(mut self) -> Self {
        self.capabilities.set(Capability::ReturnPath, false);
        self
    }

    pub fn fault(mut self, at: At, what: What) -> Self {
        self.faults.push(Fault { at, what });
        self
    }

    pub fn run(self) -> World {
        let mut world = World::new(self);
        world.run();
        world
    }
}

/// Rules of the hand-over, each broken by a driver that doesn't keep it: the assertions must notice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Broken {
    Nothing,
    /// The destination starts when it has applied, without waiting for EOF.
    StartsBeforeEof,
    /// The destination answers a PING before it has applied.
    AnswersBeforeApply,
    /// The source resumes its guest when the outcome is unknown.
    ResumesWhenUnknown,
    /// The last synchronisation finds nothing.
    OmitsLastSync,
    /// One dirty page is not sent.
    DropsOnePage,
    /// The source's engine commits without asking its machine, as soon as devices are saved; and the destination's believes
    /// that whatever it says is heard.
    CommitsUnasked,
}

/// When something happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum At {
    /// The source's nth action, before or after it has had its effects.
    Source(usize, Moment),
    /// The destination's.
    Destination(usize, Moment),
    /// When the source publishes a status.
    SourceStatus(MigrationStatus),
    Time(Duration),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    Before,
    After,
}

/// What happens.
#[derive(Debug, Clone, PartialEq)]
pub enum What {
    /// The connection breaks; with `lossy` what is under way is lost.
    Cut {
        lossy: bool,
    },
    /// From now on messages vanish without anybody being told.
    ForwardVanishes,
    ReverseVanishes,
    KillSource,
    KillDestination,
    Cancel,
    SourceStop,
    SourceCont,
    SourceReset,
    SourceQuit,
    DestinationStop,
    DestinationCont,
    DestinationQuit,
    /// The guest, wherever it runs.
    Poweroff,
    TripleFault,
    InternalError,
    Parameters(Box<Parameters>),
    Bandwidth(u64),
}

#[derive(Debug, Clone, PartialEq)]
pub struct Fault {
    pub at: At,
    pub what: What,
}

/// What an observer sees, in order.
#[derive(Debug, Clone, PartialEq)]
pub enum Note {
    Source(MigrationStatus),
    Destination(MigrationStatus),
    Pass(u64),
    Stop,
    Resume,
    Predict(Duration),
    Start(RunState),
}

pub struct World {
    pub scenario: Scenario,
    pub now: Duration,
    pub link: Link,
    pub source: SourceHost,
    pub destination: DestinationHost,
    pub notes: Vec<(Duration, Note)>,
    pub refused: Vec<Violation>,
    /// What happened, and the run states it met: the source's, the destination's.
    pub struck: Vec<(Fault, RunState, RunState)>,
    pub continue_at: Option<Duration>,
}

impl World {
    pub fn new(scenario: Scenario) -> Self {
        let guest = Guest::new(scenario.pages, scenario.load);
        Self::with_guest(scenario, guest)
    }

    pub fn with_guest(scenario: Scenario, guest: Guest) -> Self {
        let link = Link::new(scenario.bandwidth, scenario.latency, scenario.buffer);
        let config = DestinationConfig {
            autostart: scenario.autostart,
            switchover_ack: scenario.capabilities.has(Capability::SwitchoverAck),
        };
        Self {
            now: Duration::ZERO,
            link,
            source: SourceHost::new(&scenario, guest),
            destination: DestinationHost::new(
                Destination::new(config),
                Guest::empty(scenario.pages, scenario.load),
            ),
            notes: Vec::new(),
            refused: Vec::new(),
            struck: Vec::new(),
            continue_at: None,
            scenario,
        }
    }

    /// The same source, after a failed attempt, with a fresh destination and no faults.
    pub fn again(&self) -> World {
        let mut scenario = Scenario {
            state: self.source.state,
            faults: Vec::new(),
            stop_fails: false,
            save_fails: false,
            sync_fails_at: None,
            apply_fails: false,
            start_fails: false,
            swallows_shut: false,
            pong_delay: Duration::ZERO,
            ..self.scenario.clone()
        };
        scenario.user_continues = Some(MS);
        let mut world = World::with_guest(scenario, self.source.guest.clone());
        world.run();
        world
    }

    /// Until both sides are done.
    pub fn run(&mut self) {
        loop {
            while self.turn() {}
            if self.is_over() {
                break;
            }
            let Some(next) = self.next_time() else { panic!("stuck: {}", self.story()) };
            assert!(next < PATIENCE, "hangs: {}", self.story());
            self.advance(next);
        }
    }

    fn is_over(&self) -> bool {
        self.source.is_over() && (self.destination.is_over() || self.scenario.transport == Transport::File)
    }

    /// Everything that is due now.
    fn turn(&mut self) -> bool {
        self.timed_faults() || self.source_turn() || self.destination_turn()
    }

    fn timed_faults(&mut self) -> bool {
        if self.continue_at.is_some_and(|at| at <= self.now) {
            self.continue_at = None;
            // The attempt may have ended meanwhile.
            let _ = self.tell_source(Event::Continue);
            return true;
        }
        let now = self.now;
        self.strike(|at| matches!(at, At::Time(time) if *time <= now))
    }

    fn next_time(&self) -> Option<Duration> {
        let faults = self.scenario.faults.iter().filter_map(|fault| match fault.at {
            At::Time(time) => Some(time),
            _ => None,
        });
        let wire = [
            self.link.reverse.front().map(|(time, _)| *time),
            self.link.forward.front().map(|(time, _)| *time),
        ];
        let others = [self.source.due(), self.destination.due(), self.continue_at];
        wire.into_iter().chain(others).flatten().chain(faults).filter(|&time| time > self.now).min()
    }

    fn advance(&mut self, to: Duration) {
        let span = to - self.now;
        if self.source.running {
            self.source.guest.run(span);
        }
        if self.destination.running {
            self.destination.guest.run(span);
        }
        self.now = to;
    }

    /// Makes happen what is due by `when`; each fault strikes once.
    pub fn strike(&mut self, when: impl Fn(&At) -> bool) -> bool {
        let Some(index) = self.scenario.faults.iter().position(|fault| when(&fault.at)) else { return false };
        let fault = self.scenario.faults.remove(index);
        self.struck.push((fault.clone(), self.source.state, self.destination.state));
        self.happen(fault.what);
        true
    }

    fn happen(&mut self, what: What) {
        match what {
            What::Cut { lossy } => {
                self.link.cut(lossy);
                if lossy {
                    self.source_write_fails();
                }
            }
            What::ForwardVanishes => self.link.forward_vanishes = true,
            What::ReverseVanishes => self.link.reverse_vanishes = true,
            What::KillSource => self.kill_source(),
            What::KillDestination => self.kill_destination(),
            What::Cancel => self.cancel(),
            What::SourceStop if self.source.state.is_live() => self.source_guest_becomes(RunState::Paused),
            What::SourceStop => {}
            What::SourceCont => {
                // The arbiter refuses in finish-migrate; from postmigrate it would be the operator's own decision.
                if matches!(self.source.state, RunState::Paused | RunState::Prelaunch) {
                    self.source_guest_becomes(RunState::Running);
                }
            }
            What::SourceReset => {
                if self.source.state == RunState::Running {
                    self.source_guest_becomes(RunState::Running);
                }
            }
            What::SourceQuit => {
                if self.source.is_over() || self.tell_source(Event::Cancel).is_err() {
                    self.kill_source();
                } else {
                    self.source.quits = true;
                    self.link.cut(false);
                    self.source_write_fails();
                }
            }
            What::DestinationStop => match self.destination.state {
                RunState::Inmigrate => self.autostart(false),
                state if state.is_live() => self.destination_guest_becomes(RunState::Paused),
                _ => {}
            },
            What::DestinationCont => match self.destination.state {
                RunState::Inmigrate => self.autostart(true),
                RunState::Paused => self.destination_guest_becomes(RunState::Running),
                _ => {}
            },
            What::DestinationQuit => self.quit_destination(),
            What::Poweroff => self.guest_becomes(RunState::Shutdown),
            What::TripleFault => self.guest_becomes(RunState::Running),
            What::InternalError => self.guest_becomes(RunState::InternalError),
            What::Parameters(parameters) => {
                let _ = self.tell_source(Event::Parameters(parameters));
            }
            What::Bandwidth(bandwidth) => self.link.bandwidth = bandwidth,
        }
    }

    /// What a guest does to itself, on the host where it runs; one that stands still can do nothing.
    fn guest_becomes(&mut self, state: RunState) {
        if self.source.running {
            self.source_guest_becomes(state);
        } else if self.destination.running {
            self.destination_guest_becomes(state);
        }
    }

    fn cancel(&mut self) {
        if !self.source.machine.as_ref().is_some_and(|machine| machine.may_cancel()) {
            // Refused after the commit; of no effect when the attempt is over.
            let _ = self.tell_source(Event::Cancel);
            return;
        }
        self.tell_source(Event::Cancel).unwrap();
        // A write to a peer that doesn't read is ended by shutting the socket down.
        self.link.cut(false);
        self.source_write_fails();
    }

    /// Never two runners: asked at every change.
    pub fn check_runners(&self) {
        assert!(!(self.source.running && self.destination.running), "two runners: {}", self.story());
        assert!(
            !(self.source.running && self.destination.started),
            "the source runs a guest that the destination has started: {}",
            self.story()
        );
    }

    pub fn note(&mut self, note: Note) {
        self.notes.push((self.now, note));
    }

    pub fn note_status(&mut self, side: Side, from: MigrationStatus, to: MigrationStatus) {
        assert!(may_become(from, to, side), "{side:?} went from {from} to {to}: {}", self.story());
        self.note(match side {
            Side::Source => Note::Source(to),
            Side::Destination => Note::Destination(to),
        });
    }

    /// The source's outcome, and the destination's; `None` for one that was killed.
    pub fn outcomes(&self) -> (Option<&Outcome>, Option<&Outcome>) {
        (self.source.outcome.as_ref(), self.destination.outcome.as_ref())
    }

    /// Source statuses in order.
    pub fn source_statuses(&self) -> Vec<MigrationStatus> {
        let statuses = self.notes.iter().filter_map(|(_, note)| match note {
            Note::Source(status) => Some(*status),
            _ => None,
        });
        statuses.collect()
    }

    /// Time of the first such note.
    pub fn time_of(&self, wanted: impl Fn(&Note) -> bool) -> Option<Duration> {
        self.notes.iter().find(|(_, note)| wanted(note)).map(|(time, _)| *time)
    }

    /// From the last stop at the source to the start at the destination.
    pub fn gap(&self) -> Duration {
        let stop = self.notes.iter().rev().find(|(_, note)| *note == Note::Stop).unwrap().0;
        self.time_of(|note| matches!(note, Note::Start(_))).unwrap() - stop
    }

    pub fn story(&self) -> String {
        format!(
            "at {:?}; source {:?} {:?} running {}; destination {:?} {:?} running {}; struck {:?}; {:?}",
            self.now,
            self.source.outcome,
            self.source.state,
            self.source.running,
            self.destination.outcome,
            self.destination.state,
            self.destination.running,
            self.struck,
            self.notes,
        )
    }
}
