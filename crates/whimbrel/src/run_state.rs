//! The run-state arbiter: every stop and start of the machine goes through it, one at a time, from whichever thread.
//!
//! Its lock guards a few words and is never held while a vCPU, a peer or a thread is waited for: a transition marks itself
//! as under way, works unlocked, and settles the new state at its end.
//!
//! ```text
//! stop     run state set ─▶ clocks frozen ─▶ vCPUs paused ─▶ prepare callbacks, last to first ─▶ callbacks, last to first ─▶ STOP
//! start    RESUME ─▶ prepare callbacks, first to last ─▶ callbacks, first to last ─▶ clocks go on ─▶ vCPUs resumed
//! ```
//!
//! A transition that fails is undone by the other one, for those callbacks that it has reached; but a guest that is off or cannot
//! go on stays stopped, whatever refuses. Each stop has a number, from the moment when its last vCPU has been paused; tables that
//! are saved into guest RAM bear it ([`crate::tables`]).

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use whimbrel_proto::run_state::RunState;
use whimbrel_wire::qemu_texts;

use crate::events::{EngineEvent, Events};
use crate::faults::{Fault, Faults};
use crate::handlers::{Change, Registry};
use crate::lock;
use crate::machine::{Machine, MachineError};
use crate::tables::Tables;

/// How long the guest works on after tables were saved too early, by a fault switch.
const TOO_EARLY: Duration = Duration::from_millis(20);

pub(crate) struct Arbiter {
    machine: Arc<dyn Machine>,
    registry: Arc<Registry>,
    events: Arc<Events>,
    faults: Faults,
    inner: Mutex<Inner>,
    settled: Condvar,
    /// The number of the last stop: counted when its last vCPU has been paused.
    stops: AtomicU64,
}

/// The callbacks that a stop or a start has reached, by their places in starting order.
#[derive(Default, PartialEq, Eq)]
struct Reached {
    prepared: Range<usize>,
    changed: Range<usize>,
}

/// Why the guest stops, which decides what a refusal does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stop {
    /// To be moved. Whatever refuses undoes it, tables that cannot be saved too.
    Switchover,
    /// Somebody wants it to. A callback that refuses undoes it. Tables do not: a guest can see to it that they cannot be saved, and
    /// must not become one that nobody can stop. The next switchover saves them again.
    Pause,
    /// It is off, or KVM cannot run it: nothing undoes it.
    End,
}

impl Stop {
    fn to(state: RunState) -> Self {
        if matches!(state, RunState::Shutdown | RunState::InternalError) { Self::End } else { Self::Pause }
    }
}

/// What the guest itself asks for. It is noted on the vCPU's thread, before that vCPU lets itself be paused, so that a
/// switchover that stops the guest never carries it away unserved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum GuestRequest {
    /// To stand still: a debugger, a watchdog, a device that cannot go on.
    Stop,
    /// A reset, or a triple fault.
    Reset,
    /// Power off; or a reset where resets end the guest. QMP's reason.
    Shutdown(&'static str),
    /// KVM cannot go on.
    Failed,
}

struct Inner {
    state: RunState,
    under_way: bool,
    request: Option<GuestRequest>,
    /// While stopped for a switchover: the state to go back to, and the one the destination is told.
    before_switchover: Option<RunState>,
}

/// The right to change the run state; one exists at a time.
struct Turn<'a> {
    arbiter: &'a Arbiter,
    state: RunState,
}

impl Arbiter {
    pub(crate) fn new(
        machine: Arc<dyn Machine>,
        registry: Arc<Registry>,
        events: Arc<Events>,
        faults: Faults,
        state: RunState,
    ) -> Self {
        let inner = Inner { state, under_way: false, request: None, before_switchover: None };
        Self {
            machine,
            registry,
            events,
            faults,
            inner: Mutex::new(inner),
            settled: Condvar::new(),
            stops: AtomicU64::new(0),
        }
    }

    /// The run state now.
    pub(crate) fn state(&self) -> RunState {
        lock(&self.inner).state
    }

    /// While stopped for a switchover: the state the guest was in; otherwise the state it is in.
    pub(crate) fn guest_state(&self) -> RunState {
        let inner = lock(&self.inner);
        inner.before_switchover.unwrap_or(inner.state)
    }

    /// A running guest stops and is in state `to` afterwards. One stopped for a switchover will go back to `to`. Any other is
    /// left as it is.
    pub(crate) fn stop(&self, to: RunState) -> Result<(), MachineError> {
        self.stop_in(&mut self.turn(), to)
    }

    fn stop_in(&self, turn: &mut Turn<'_>, to: RunState) -> Result<(), MachineError> {
        match turn.state {
            RunState::Running => {
                turn.set(to);
                self.stop_machine(turn, RunState::Running, Stop::to(to))
            }
            RunState::FinishMigrate => {
                let mut inner = lock(&self.inner);
                inner.before_switchover =
                    inner.before_switchover.map(|before| if before.is_live() { to } else { before });
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Starts a stopped guest, if it may run now. Decided here and not by the caller: a switchover may begin meanwhile.
    pub(crate) fn start(&self) -> Result<(), MachineError> {
        let mut turn = self.turn();
        match turn.state {
            RunState::Running => return Ok(()),
            RunState::FinishMigrate => return Err(qemu_texts::NOT_FINALIZED.into()),
            RunState::Shutdown | RunState::InternalError => return Err(qemu_texts::RESET_REQUIRED.into()),
            RunState::Postmigrate => {
                tracing::warn!("the guest is started where it was moved away from, by an operator's order");
            }
            _ => {}
        }
        let before = turn.state;
        turn.set(RunState::Running);
        self.start_machine(&mut turn, before)
    }

    /// Stops the guest for the switchover; how long it took.
    pub(crate) fn stop_for_switchover(&self) -> Result<Duration, MachineError> {
        let begin = Instant::now();
        let mut turn = self.turn();
        let before = turn.state;
        lock(&self.inner).before_switchover = Some(before);
        turn.set(RunState::FinishMigrate);
        let stopped = if before.is_live() {
            self.stop_machine(&mut turn, before, Stop::Switchover)
                .and_then(|()| self.serve_stopped(&mut turn))
        } else {
            self.stand_still().inspect_err(|_| turn.put_back(before))
        };
        stopped.inspect_err(|_| lock(&self.inner).before_switchover = None)?;
        Ok(begin.elapsed())
    }

    /// A vCPU's thread notes what the guest asks for; the main loop serves it. A stop does not displace anything else.
    pub(crate) fn note(&self, request: GuestRequest) {
        let mut inner = lock(&self.inner);
        if request != GuestRequest::Stop || inner.request.is_none() {
            inner.request = Some(request);
        }
    }

    /// Serves what the guest has asked for, and tells what that was and how it went. Not during a switchover, which serves
    /// what was asked for before it stopped the guest.
    pub(crate) fn serve(&self) -> Option<(GuestRequest, Result<(), MachineError>)> {
        let mut turn = self.turn();
        if turn.state == RunState::FinishMigrate {
            return None;
        }
        let request = lock(&self.inner).request.take()?;
        let result = match request {
            // At a switchover that came to nothing.
            GuestRequest::Shutdown(_) if turn.state == RunState::Shutdown => Ok(()),
            _ if !matches!(turn.state, RunState::Running | RunState::Paused) => return None,
            GuestRequest::Stop => self.stop_in(&mut turn, RunState::Paused),
            GuestRequest::Reset => self.reset_in(&mut turn).inspect(|()| {
                self.events.emit(EngineEvent::Reset { guest: true, reason: "guest-reset" });
            }),
            GuestRequest::Shutdown(reason) => {
                self.events.emit(EngineEvent::Shutdown { guest: true, reason });
                self.stop_in(&mut turn, RunState::Shutdown)
            }
            GuestRequest::Failed => self.stop_in(&mut turn, RunState::InternalError),
        };
        Some((request, result))
    }

    /// The guest asked for something just before it was stopped for the switchover: it is served here, so that the
    /// destination gets a guest that was reset, or one that is off.
    fn serve_stopped(&self, turn: &mut Turn<'_>) -> Result<(), MachineError> {
        let Some(request) = lock(&self.inner).request.take() else { return Ok(()) };
        let settled = match request {
            GuestRequest::Stop => RunState::Paused,
            GuestRequest::Reset => {
                // Half of it may have been reset.
                self.machine.reset().inspect_err(|_| turn.put_back(RunState::InternalError))?;
                self.events.emit(EngineEvent::Reset { guest: true, reason: "guest-reset" });
                return Ok(());
            }
            GuestRequest::Shutdown(reason) => {
                self.events.emit(EngineEvent::Shutdown { guest: true, reason });
                // If it stays here, the machine is to end for it.
                lock(&self.inner).request = Some(request);
                RunState::Shutdown
            }
            GuestRequest::Failed => RunState::InternalError,
        };
        lock(&self.inner).before_switchover = Some(settled);
        Ok(())
    }

    /// The switchover is off: the guest goes back to where it was (or where a `stop` meanwhile wanted it).
    pub(crate) fn resume_from_switchover(&self) -> Result<(), MachineError> {
        let mut turn = self.turn();
        let Some(before) = lock(&self.inner).before_switchover.take() else { return Ok(()) };
        turn.set(before);
        if before.is_live() {
            self.start_machine(&mut turn, RunState::InternalError)?;
        }
        Ok(())
    }

    /// The guest is (or may be) the destination's.
    pub(crate) fn leave(&self) {
        let mut turn = self.turn();
        let mut inner = lock(&self.inner);
        (inner.before_switchover, inner.request) = (None, None);
        drop(inner);
        turn.set(RunState::Postmigrate);
    }

    /// A guest has arrived: it runs, or settles in `state`.
    pub(crate) fn arrive(&self, state: RunState, run: bool) -> Result<(), MachineError> {
        let mut turn = self.turn();
        if run {
            turn.set(RunState::Running);
            self.start_machine(&mut turn, RunState::InternalError)
        } else {
            turn.set(if state.is_live() { RunState::Paused } else { state });
            Ok(())
        }
    }

    /// Resets the machine, whether it runs or not, unless a guest is on its way out of it or into it.
    pub(crate) fn reset(&self) -> Result<(), MachineError> {
        self.reset_in(&mut self.turn())
    }

    fn reset_in(&self, turn: &mut Turn<'_>) -> Result<(), MachineError> {
        let running = turn.state == RunState::Running;
        let reset = || {
            self.machine.pause_vcpus()?;
            self.machine.reset()?;
            if running { self.machine.resume_vcpus() } else { Ok(()) }
        };
        match turn.state {
            RunState::FinishMigrate => Err(qemu_texts::NOT_FINALIZED.into()),
            RunState::Inmigrate => Err(qemu_texts::WAITING_FOR_INCOMING.into()),
            // Half of it may have been reset.
            RunState::Running => reset().inspect_err(|_| turn.set(RunState::InternalError)),
            _ => reset().inspect(|()| {
                lock(&self.inner).request = None;
                turn.set(RunState::Prelaunch);
            }),
        }
    }

    fn turn(&self) -> Turn<'_> {
        let mut inner = lock(&self.inner);
        while inner.under_way {
            inner = self.settled.wait(inner).unwrap_or_else(PoisonError::into_inner);
        }
        inner.under_way = true;
        Turn { arbiter: self, state: inner.state }
    }

    /// Stops what runs in state `before`. If a refusal undoes it, what was stopped is started again, and the run state is `before`.
    fn stop_machine(&self, turn: &mut Turn<'_>, before: RunState, stop: Stop) -> Result<(), MachineError> {
        let mut done = Reached::default();
        let result = self.take_down(&self.everything(), &mut done, stop);
        let error = match result {
            Err(error) if stop != Stop::End => error,
            stopped => {
                self.events.emit(EngineEvent::Stop);
                return stopped;
            }
        };
        let undone = self.bring_up(&done, &mut Reached::default());
        turn.put_back(if undone.is_ok() { before } else { RunState::InternalError });
        Err(both(error, undone, "the guest cannot go on"))
    }

    /// Starts what stood in state `before`. On failure what was started is stopped again, and the run state is `before`.
    fn start_machine(&self, turn: &mut Turn<'_>, before: RunState) -> Result<(), MachineError> {
        self.events.emit(EngineEvent::Resume);
        let mut done = Reached::default();
        let Err(error) = self.bring_up(&self.everything(), &mut done) else { return Ok(()) };
        let undone = self.take_down(&done, &mut Reached::default(), Stop::Pause);
        self.events.emit(EngineEvent::Stop);
        turn.put_back(if undone.is_ok() { before } else { RunState::InternalError });
        Err(both(error, undone, "what was started of it does not stop"))
    }

    /// A stop of these callbacks; `done` tells which it has reached. It goes as far as `stop` lets it; the first refusal.
    fn take_down(&self, which: &Reached, done: &mut Reached, stop: Stop) -> Result<(), MachineError> {
        let changes = self.registry.changes();
        let mut refused = Ok(());
        let mut heed = |result: Result<(), MachineError>| {
            if stop != Stop::End {
                return result;
            }
            if refused.is_ok() {
                refused = result;
            }
            Ok(())
        };
        heed(self.machine.freeze_clocks())?;
        let early = self.faults.has(Fault::TablesTooEarly);
        if early {
            self.save_too_early()?;
        }
        heed(self.machine.pause_vcpus())?;
        if *which == self.everything() {
            // Else a start failed before any vCPU ran: what was saved is still what is.
            self.stops.fetch_add(1, Ordering::AcqRel);
        }
        for at in which.prepared.clone().rev() {
            done.prepared = at..which.prepared.end;
            if let Change::Callback(callback) = &changes[at].1 {
                heed(callback.prepare(false))?;
            }
        }
        if self.faults.once(Fault::StopFails) {
            heed(Err("the stop fails half way, as asked for by a fault switch".into()))?;
        }
        for at in which.changed.clone().rev() {
            done.changed = at..which.changed.end;
            match &changes[at].1 {
                Change::Callback(callback) => heed(callback.changed(false))?,
                Change::Tables(_) if early => {}
                Change::Tables(tables) => match self.save(tables) {
                    Err(error) if stop != Stop::Switchover => {
                        tracing::warn!(%error, "the guest stops nevertheless; to be moved, it needs them saved");
                    }
                    result => result?,
                },
            }
        }
        refused
    }

    /// A fault. A device in KVM refuses to be saved while a vCPU runs (EBUSY): the guest is held for it, and works on.
    fn save_too_early(&self) -> Result<(), MachineError> {
        self.machine.pause_vcpus()?;
        self.registry.tables().rev().try_for_each(|tables| self.save(tables))?;
        self.machine.resume_vcpus()?;
        std::thread::sleep(TOO_EARLY);
        Ok(())
    }

    /// The switchover of a guest that does not run is a stop for its tables, and for nothing else. They may lack what it was sent
    /// since; and where it has never run, the device may have emptied them when it took what arrived in them.
    fn stand_still(&self) -> Result<(), MachineError> {
        self.machine.pause_vcpus()?;
        self.stops.fetch_add(1, Ordering::AcqRel);
        self.registry.tables().rev().try_for_each(|tables| self.save(tables))
    }

    /// A start of these callbacks; `done` tells which it has reached.
    fn bring_up(&self, which: &Reached, done: &mut Reached) -> Result<(), MachineError> {
        let changes = self.registry.changes();
        for at in which.prepared.clone() {
            done.prepared = which.prepared.start..at + 1;
            if let Change::Callback(callback) = &changes[at].1 {
                callback.prepare(true)?;
            }
        }
        for at in which.changed.clone() {
            done.changed = which.changed.start..at + 1;
            if let Change::Callback(callback) = &changes[at].1 {
                callback.changed(true)?;
            }
        }
        self.machine.thaw_clocks()?;
        self.machine.resume_vcpus()
    }

    fn everything(&self) -> Reached {
        let all = 0..self.registry.changes().len();
        Reached { prepared: all.clone(), changed: all }
    }

    fn save(&self, tables: &Tables) -> Result<(), MachineError> {
        if self.faults.has(Fault::TablesLeftOut) {
            return Ok(());
        }
        if self.faults.once(Fault::TablesFail) {
            return Err(tables.error("EIO, as asked for by a fault switch"));
        }
        tables.save(self.stops.load(Ordering::Acquire))
    }

    /// Whether all tables in guest RAM are those of this stop.
    pub(crate) fn check_tables(&self) -> Result<(), MachineError> {
        let stop = self.stops.load(Ordering::Acquire);
        self.registry.tables().try_for_each(|tables| tables.check(stop))
    }
}

/// An error, and the one that undoing has met.
fn both(error: MachineError, undone: Result<(), MachineError>, then: &str) -> MachineError {
    match undone {
        Ok(()) => error,
        Err(again) => format!("{error}; and {then}: {again}").into(),
    }
}

impl Turn<'_> {
    fn set(&mut self, state: RunState) {
        debug_assert!(self.state == state || self.state.may_become(state), "{} → {state}", self.state);
        self.put_back(state);
    }

    /// What was to be a transition is none: the state is again what it was, or that of a guest which cannot go on.
    fn put_back(&mut self, state: RunState) {
        tracing::debug!(from = %self.state, to = %state, "run state");
        self.state = state;
        lock(&self.arbiter.inner).state = state;
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        lock(&self.arbiter.inner).under_way = false;
        self.arbiter.settled.notify_all();
    }
}
