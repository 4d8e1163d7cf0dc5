//! The run-state arbiter: every stop and start of the machine goes through it, one at a time, from whichever thread.
//!
//! Its lock guards a few words and is never held while a vCPU, a peer or a thread is waited for: a transition marks itself
//! as under way, works unlocked, and settles the new state at its end.
//!
//! Here is who may change the run state, and to what; how the machine is stopped and started, and what a refusal does then, is in
//! [`transition`].

mod transition;

use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use whimbrel_proto::run_state::RunState;
use whimbrel_wire::qemu_texts;

use crate::events::{EngineEvent, Events};
use crate::faults::Faults;
use crate::handlers::Registry;
use crate::lock;
use crate::machine::{Machine, MachineError};
use transition::Stop;

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
        } else {
            self.stand_still().inspect_err(|_| turn.put_back(before))
        };
        let stopped = stopped.and_then(|()| self.serve_stopped(&mut turn, before));
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

    /// The guest asked for something just before it was stopped, for the switchover or by an operator: it is served here, so that
    /// the destination gets a guest that was reset, or one that is off.
    fn serve_stopped(&self, turn: &mut Turn<'_>, before: RunState) -> Result<(), MachineError> {
        if !matches!(before, RunState::Running | RunState::Paused) {
            return Ok(());
        }
        let Some(request) = lock(&self.inner).request.take() else { return Ok(()) };
        let settled = match request {
            GuestRequest::Stop => RunState::Paused,
            GuestRequest::Reset => {
                self.machine.reset().map_err(|error| {
                    // Half of it may have been reset.
                    turn.put_back(RunState::InternalError);
                    MachineError(format!("it asked for a reset, which failed: {error}"))
                })?;
                self.events.emit(EngineEvent::Reset { guest: true, reason: "guest-reset" });
                if before.is_live() { before } else { RunState::Prelaunch }
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
