//! How the machine is stopped and started: clocks, vCPUs and every state-change callback, in order.
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
use std::sync::atomic::Ordering;
use std::time::Duration;

use whimbrel_proto::run_state::RunState;

use super::{Arbiter, Turn};
use crate::events::EngineEvent;
use crate::faults::Fault;
use crate::handlers::Change;
use crate::machine::MachineError;
use crate::tables::Tables;

/// How long the guest works on after tables were saved too early, by a fault switch.
const TOO_EARLY: Duration = Duration::from_millis(20);

/// Why the guest stops, which decides what a refusal does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stop {
    /// To be moved. Whatever refuses undoes it, tables that cannot be saved too.
    Switchover,
    /// Somebody wants it to. A callback that refuses undoes it. Tables do not: a guest can see to it that they cannot be saved, and
    /// must not become one that nobody can stop. The next switchover saves them again.
    Pause,
    /// It is off, or KVM cannot run it: nothing undoes it.
    End,
}

impl Stop {
    /// To be in this state.
    pub(super) fn to(state: RunState) -> Self {
        if matches!(state, RunState::Shutdown | RunState::InternalError) { Self::End } else { Self::Pause }
    }
}

/// The callbacks that a stop or a start has reached, by their places in starting order.
#[derive(Default)]
struct Reached {
    prepared: Range<usize>,
    changed: Range<usize>,
}

impl Arbiter {
    /// Stops what runs in state `before`. If a refusal undoes it, what was stopped is started again, and the run state is `before`.
    pub(super) fn stop_machine(
        &self,
        turn: &mut Turn<'_>,
        before: RunState,
        stop: Stop,
    ) -> Result<(), MachineError> {
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
    pub(super) fn start_machine(&self, turn: &mut Turn<'_>, before: RunState) -> Result<(), MachineError> {
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
        self.stops.fetch_add(1, Ordering::AcqRel);
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
    pub(super) fn stand_still(&self) -> Result<(), MachineError> {
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
