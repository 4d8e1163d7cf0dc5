//! The order of everything in a stop and in a start, as a machine that writes down what it is called for has seen it: when all
//! goes well, when any one of them refuses, and when it is a vCPU's thread that asks.

use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use whimbrel::engine::{Engine, MigrationInfo};
use whimbrel::events::{EngineEvent, TimedEvent};
use whimbrel::faults::Faults;
use whimbrel::handlers::StateChange;
use whimbrel::machine::MachineError;
use whimbrel::proto::parameters::ParametersPatch;
use whimbrel::proto::run_state::RunState;
use whimbrel::proto::status::MigrationStatus;

use crate::guest::{Build, Call, Guest, Runners, TCP, wait_until};

/// A stop by `stop`, call by call.
const STOP: [&str; 9] = [
    "FreezeClocks in paused",
    "PauseVcpus in paused",
    "prepare late false",
    "prepare second false",
    "prepare first false",
    "late false",
    "second false",
    "first false",
    "STOP",
];

/// A start by `cont`.
const START: [&str; 9] = [
    "RESUME",
    "prepare first true",
    "prepare second true",
    "prepare late true",
    "first true",
    "second true",
    "late true",
    "ThawClocks in running",
    "ResumeVcpus in running",
];

/// Writes down every call and event, and refuses those calls that it is told to, once each.
#[derive(Default)]
struct Recorder {
    journal: Mutex<Vec<String>>,
    events: OnceLock<Mutex<Receiver<TimedEvent>>>,
    refused: Mutex<Vec<String>>,
}

impl Recorder {
    fn note(&self, call: String) -> Result<(), MachineError> {
        self.take_events();
        self.journal.lock().unwrap().push(call.clone());
        let mut refused = self.refused.lock().unwrap();
        let Some(at) = refused.iter().position(|refused| *refused == call) else { return Ok(()) };
        Err(format!("refused: {}", refused.remove(at)).into())
    }

    fn refuse(&self, calls: &[&str]) {
        *self.refused.lock().unwrap() = calls.iter().map(ToString::to_string).collect();
    }

    fn take_events(&self) {
        let Some(events) = self.events.get() else { return };
        for event in events.lock().unwrap().try_iter() {
            let name = match event.event {
                EngineEvent::Stop => "STOP",
                EngineEvent::Resume => "RESUME",
                _ => continue,
            };
            self.journal.lock().unwrap().push(name.into());
        }
    }

    fn seen(&self, call: &str) -> bool {
        self.take_events();
        self.journal.lock().unwrap().iter().any(|noted| noted == call)
    }

    /// What was noted since the last time.
    fn take(&self) -> Vec<String> {
        self.take_events();
        std::mem::take(&mut *self.journal.lock().unwrap())
    }
}

struct Callback {
    name: &'static str,
    recorder: Arc<Recorder>,
}

impl StateChange for Callback {
    fn prepare(&self, running: bool) -> Result<(), MachineError> {
        self.recorder.note(format!("prepare {} {running}", self.name))
    }

    fn changed(&self, running: bool) -> Result<(), MachineError> {
        self.recorder.note(format!("{} {running}", self.name))
    }
}

/// A guest with three callbacks, registered out of order.
fn recorded(mut build: Build) -> (Guest, Arc<Recorder>) {
    let recorder = Arc::new(Recorder::default());
    let hook = recorder.clone();
    build.hook = Some(Arc::new(move |engine, call| match call {
        Call::Apply => Ok(()),
        call => hook.note(format!("{call:?} in {}", engine.run_state())),
    }));
    let callbacks = recorder.clone();
    let build = build.handlers(move |registry| {
        for (priority, name) in [(5, "late"), (0, "first"), (0, "second")] {
            registry.state_change(priority, Arc::new(Callback { name, recorder: callbacks.clone() }));
        }
    });
    let guest = build.source();
    // What the first start has noted is another test's.
    recorder.events.set(Mutex::new(guest.engine.events())).expect("set once");
    recorder.take();
    (guest, recorder)
}

/// What undoes the first `reached` calls of a stop in run state `state`, or of a start.
fn undone(done: &[&str], state: &str) -> Vec<String> {
    let stopping = done[0].starts_with("FreezeClocks");
    let calls = if stopping { &START[1..7] } else { &STOP[2..8] };
    let opposite = |call: &str| match call.strip_suffix("true") {
        Some(call) => format!("{call}false"),
        None => format!("{}true", call.trim_end_matches("false")),
    };
    let called = |call: &&&str| done.contains(&opposite(call).as_str());
    let callbacks = calls.iter().filter(called).map(ToString::to_string);
    let machine = |calls: [&str; 2]| calls.map(|call| format!("{call} in {state}"));
    if stopping {
        callbacks.chain(machine(["ThawClocks", "ResumeVcpus"])).collect()
    } else {
        let stop = machine(["FreezeClocks", "PauseVcpus"]).into_iter().chain(callbacks);
        stop.chain(["STOP".to_owned()]).collect()
    }
}

#[test]
fn a_stop_and_a_start_call_everything_in_order_all_prepared_first() {
    let (guest, recorder) = recorded(Build::new(&Runners::default()));
    guest.command(|engine| engine.stop()).unwrap();
    assert_eq!(recorder.take(), STOP);
    guest.command(|engine| engine.stop()).unwrap();
    assert!(recorder.take().is_empty(), "a guest that stands is not stopped again");
    guest.command(|engine| engine.cont()).unwrap();
    assert_eq!(recorder.take(), START);
}

#[test]
fn a_stop_that_is_refused_at_any_position_is_undone_as_far_as_it_came() {
    let (guest, recorder) = recorded(Build::new(&Runners::default()));
    for at in 0..STOP.len() - 1 {
        recorder.refuse(&[STOP[at]]);
        let refused = guest.command(|engine| engine.stop()).unwrap_err();
        assert_eq!(refused, format!("refused: {}", STOP[at]));
        let done = &STOP[..=at];
        let expected: Vec<_> = done.iter().map(ToString::to_string).chain(undone(done, "paused")).collect();
        assert_eq!(recorder.take(), expected);
        guest.runs();
    }
    guest.command(|engine| engine.stop()).unwrap();
    assert_eq!(recorder.take(), STOP);
    guest.stands();
}

#[test]
fn a_start_that_is_refused_at_any_position_is_undone_as_far_as_it_came() {
    let (guest, recorder) = recorded(Build::new(&Runners::default()));
    guest.command(|engine| engine.stop()).unwrap();
    recorder.take();
    for at in 1..START.len() {
        recorder.refuse(&[START[at]]);
        let refused = guest.command(|engine| engine.cont()).unwrap_err();
        assert_eq!(refused, format!("refused: {}", START[at]));
        let done = &START[..=at];
        let expected: Vec<_> = done.iter().map(ToString::to_string).chain(undone(done, "running")).collect();
        assert_eq!(recorder.take(), expected);
        assert_eq!(guest.engine.run_state(), RunState::Paused);
        guest.stands();
    }
    guest.command(|engine| engine.cont()).unwrap();
    assert_eq!(recorder.take(), START);
    guest.runs();
}

#[test]
fn a_switchover_stops_in_the_same_order_and_a_refusal_anywhere_leaves_the_guest_at_the_source() {
    let runners = Runners::default();
    let (source, recorder) = recorded(Build::new(&runners));
    let stop = STOP.map(|call| call.replace("paused", "finish-migrate"));
    for at in 0..stop.len() - 1 {
        recorder.refuse(&[&stop[at]]);
        let (_destination, address) = Build::new(&runners).destination(TCP);
        source.migrate(&address);
        assert_eq!(source.failed(), format!("the guest could not be stopped: refused: {}", stop[at]));
        let undone = undone(&STOP[..=at], "finish-migrate");
        assert_eq!(recorder.take(), [&stop[..=at], &undone].concat());
    }
    let (destination, address) = Build::new(&runners).destination(TCP);
    source.migrate(&address);
    source.moved_to(&destination);
    assert_eq!(recorder.take(), stop);
}

#[test]
fn a_stop_that_cannot_be_undone_leaves_a_guest_that_is_said_to_be_broken() {
    let (guest, recorder) = recorded(Build::new(&Runners::default()));
    recorder.refuse(&["PauseVcpus in paused", "ThawClocks in paused"]);
    let refused = guest.command(|engine| engine.stop()).unwrap_err();
    let expected = "refused: PauseVcpus in paused; and the guest cannot go on: refused: ThawClocks in paused";
    assert_eq!(refused, expected);
    assert_eq!(guest.engine.run_state(), RunState::InternalError);
}

#[test]
fn a_guest_that_cannot_go_on_stays_stopped_whatever_refuses() {
    for at in 0..STOP.len() - 1 {
        let (guest, recorder) = recorded(Build::new(&Runners::default()));
        let stop = STOP.map(|call| call.replace("paused", "internal-error"));
        recorder.refuse(&[&stop[at]]);
        guest
            .command(|engine| {
                engine.guest_failed("no entry".into());
                Ok(())
            })
            .unwrap();
        guest.wait_for_state(RunState::InternalError);
        wait_until("the stop", || recorder.seen("STOP"));
        assert_eq!(recorder.take(), stop);
        // This machine pauses none if it refuses to.
        if !stop[at].starts_with("PauseVcpus") {
            guest.stands();
        }
    }
}

#[test]
fn a_guest_that_does_not_go_on_after_a_failed_switchover_is_said_to_stand() {
    let runners = Runners::default();
    let (source, recorder) = recorded(Build::new(&runners));
    recorder.refuse(&["first false", "ResumeVcpus in finish-migrate"]);
    let (_destination, address) = Build::new(&runners).destination(TCP);
    source.migrate(&address);
    let why = source.wait_for(MigrationStatus::Failed).error.unwrap();
    let expected = "the guest could not be stopped: refused: first false; and the guest cannot go on: refused: ResumeVcpus in finish-migrate";
    assert_eq!(why, expected);
    assert_eq!(source.engine.run_state(), RunState::InternalError);
    let (source, recorder) = recorded(faulty(&runners, "save-fails"));
    recorder.refuse(&["ResumeVcpus in running"]);
    let (_destination, address) = Build::new(&runners).destination(TCP);
    source.migrate(&address);
    let why = source.wait_for(MigrationStatus::Failed).error.unwrap();
    let expected = "; and the guest, which is here, does not go on: refused: ResumeVcpus in running";
    assert!(why.ends_with(expected), "{why}");
    assert_eq!(source.engine.run_state(), RunState::InternalError);
    source.stands();
}

fn faulty(runners: &Runners, fault: &str) -> Build {
    let mut build = Build::new(runners);
    build.config.faults = Faults::parse([fault]).unwrap();
    build
}

#[test]
fn what_the_guest_asked_for_just_before_an_operators_stop_reaches_the_destination() {
    type Ask = fn(&Engine);
    let asked: [(Ask, RunState); 2] = [
        (|engine| engine.guest_shutdown(), RunState::Shutdown),
        (|engine| engine.guest_reset(), RunState::Prelaunch),
    ];
    for (ask, settled) in asked {
        let runners = Runners::default();
        let mut build = Build::new(&runners);
        build.last_act = Some(ask);
        let source = build.source();
        let (destination, address) = Build::new(&runners).destination(TCP);
        let at = |rate| ParametersPatch { max_bandwidth: Some(rate), ..ParametersPatch::default() };
        source.parameters(at(1 << 20));
        source.migrate(&address);
        source.wait_for(MigrationStatus::Active);
        // The main loop is held until the guest has moved: it cannot serve the guest before the switchover does.
        source
            .command(move |engine| {
                engine.stop()?;
                engine.set_parameters(at(0))?;
                wait_until("the move", || matches!(engine.migration_info(), MigrationInfo::Outgoing(info) if !info.status.is_running()));
                Ok(())
            })
            .unwrap();
        source.wait_for(MigrationStatus::Completed);
        destination.wait_for_state(settled);
        destination.stands();
    }
}

#[test]
fn a_guest_that_powers_off_in_a_switchover_that_fails_is_off_here() {
    for no_shutdown in [false, true] {
        let runners = Runners::default();
        let mut build = faulty(&runners, "save-fails").config(|config| config.no_shutdown = no_shutdown);
        build.last_act = Some(|engine| engine.guest_shutdown());
        let source = build.source();
        let (_destination, address) = Build::new(&runners).destination(TCP);
        source.migrate(&address);
        let ended = || source.engine.on_main(|_| ()).is_none();
        if no_shutdown {
            source.wait_for(MigrationStatus::Failed);
            assert!(!ended());
            assert_eq!(source.engine.run_state(), RunState::Shutdown);
            source.command(|engine| engine.system_reset().and_then(|()| engine.cont())).unwrap();
            source.runs();
        } else {
            wait_until("the machine's end", ended);
        }
    }
}

/// Asks for a stop on a thread that must come out of the guest for it, as a vCPU's must: were the call to wait for the stop, both
/// would wait for ever.
#[test]
fn a_stop_that_a_vcpus_thread_asks_for_returns_at_once_and_is_done_by_the_main_loop() {
    for ask in
        [(|engine| engine.request_stop()) as fn(&Engine), |engine| engine.guest_failed("no entry".into())]
    {
        let runners = Runners::default();
        let mut build = Build::new(&runners);
        let (out, is_out) = sync_channel::<()>(1);
        let is_out = Mutex::new(is_out);
        build.hook = Some(Arc::new(move |_, call| match call {
            Call::PauseVcpus => {
                let waited = is_out.lock().unwrap().recv_timeout(Duration::from_secs(30));
                waited.map_err(|_| "the vCPU does not come out".into())
            }
            _ => Ok(()),
        }));
        let guest = build.source();
        let engine = guest.engine.clone();
        // Busy until the vCPU's thread has asked: the call cannot have waited for it.
        let (asked, has_asked) = sync_channel::<()>(1);
        guest.engine.post(move |_| has_asked.recv().unwrap());
        let vcpu = std::thread::spawn(move || {
            ask(&engine);
            asked.send(()).unwrap();
            out.send(()).unwrap();
        });
        wait_until("the stop", || guest.engine.run_state() != RunState::Running);
        vcpu.join().unwrap();
        wait_until("the vCPUs are out", || runners.now() == 0);
        guest.stands();
    }
}

#[test]
fn a_stop_that_was_asked_for_just_before_a_switchover_is_what_the_destination_gets() {
    let runners = Runners::default();
    let mut build = Build::new(&runners);
    build.last_act = Some(|engine| engine.request_stop());
    let source = build.source();
    let (destination, address) = Build::new(&runners).destination(TCP);
    source.migrate(&address);
    source.wait_for(MigrationStatus::Completed);
    destination.wait_for_state(RunState::Paused);
    destination.stands();
    assert_eq!(source.engine.run_state(), RunState::Postmigrate);
}
