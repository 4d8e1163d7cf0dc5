//! The gate a vCPU thread passes before every entry to the guest.
//!
//! ```text
//!           pause                    the thread comes to the gate
//! running ─────────▶ asked to stop ──────────────────────────────▶ parked
//!    ▲                                                                │
//!    └────────────────────────── resume ──────────────────────────────┘
//! ```
//! A vCPU that cannot go on (triple fault, KVM error) *holds* itself: it parks until the next resume.

use std::sync::{Condvar, Mutex};
use std::time::{Duration, Instant};

use crate::lock;

/// One vCPU's gate.
#[derive(Debug, Default)]
pub(super) struct Gate {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    wanted: Wanted,
    held: bool,
    parked: bool,
    gone: bool,
    visitors: u32,
}

impl Default for State {
    fn default() -> Self {
        Self { wanted: Wanted::Pause, held: false, parked: false, gone: false, visitors: 0 }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wanted {
    Run,
    Pause,
    End,
}

impl Gate {
    /// Waits here while the vCPU is to be paused. `false`: the thread is to end.
    pub(super) fn pass(&self) -> bool {
        let mut state = lock(&self.state);
        loop {
            match state.wanted {
                Wanted::End => return false,
                Wanted::Run if !state.held && state.visitors == 0 => {
                    state.parked = false;
                    return true;
                }
                Wanted::Run | Wanted::Pause => {
                    state.parked = true;
                    self.changed.notify_all();
                    state = self.changed.wait(state).unwrap_or_else(std::sync::PoisonError::into_inner);
                }
            }
        }
    }

    /// Whether the vCPU must come to [`pass`](Self::pass) before it enters the guest again.
    pub(super) fn is_closed(&self) -> bool {
        let state = lock(&self.state);
        state.wanted != Wanted::Run || state.held || state.visitors > 0
    }

    /// Keeps the vCPU here for a moment, until [`leave`](Self::leave), whatever else is wanted of it. As with
    /// [`close`](Self::close), it has to be kicked.
    pub(super) fn visit(&self) {
        lock(&self.state).visitors += 1;
    }

    /// The visit is over.
    pub(super) fn leave(&self) {
        lock(&self.state).visitors -= 1;
        self.changed.notify_all();
    }

    /// The vCPU cannot go on until the next [`open`](Self::open).
    pub(super) fn hold(&self) {
        lock(&self.state).held = true;
    }

    /// Asks the vCPU to pause. Whoever asks also has to kick it out of the guest.
    pub(super) fn close(&self) {
        let mut state = lock(&self.state);
        if state.wanted == Wanted::Run {
            state.wanted = Wanted::Pause;
        }
    }

    /// Lets the vCPU run. `false`: its thread is gone.
    pub(super) fn open(&self) -> bool {
        let mut state = lock(&self.state);
        if state.gone || state.wanted == Wanted::End {
            return false;
        }
        state.wanted = Wanted::Run;
        state.held = false;
        // Not `parked` until it has parked again: a pause right after this must wait for it.
        state.parked = false;
        self.changed.notify_all();
        true
    }

    /// Ends the thread. As with [`close`](Self::close), it has to be kicked.
    pub(super) fn end(&self) {
        lock(&self.state).wanted = Wanted::End;
        self.changed.notify_all();
    }

    /// The thread has ended.
    pub(super) fn gone(&self) {
        lock(&self.state).gone = true;
        self.changed.notify_all();
    }

    /// Waits until the vCPU is parked (or its thread gone), at most until `deadline`.
    pub(super) fn wait_parked(&self, deadline: Instant) -> bool {
        let mut state = lock(&self.state);
        while !(state.parked || state.gone) {
            let left = deadline.saturating_duration_since(Instant::now());
            if left == Duration::ZERO {
                return false;
            }
            let waited = self.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(std::sync::PoisonError::into_inner).0;
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::thread;

    use super::*;

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(10)
    }

    #[test]
    fn a_pause_right_after_a_resume_waits_for_the_thread_to_park_again() {
        let gate = Arc::new(Gate::default());
        let worker = thread::spawn({
            let gate = Arc::clone(&gate);
            move || {
                let mut rounds = 0u32;
                while gate.pass() {
                    rounds += 1;
                    while !gate.is_closed() {
                        thread::yield_now();
                    }
                }
                gate.gone();
                rounds
            }
        });
        for _ in 0..1000 {
            assert!(gate.open());
            gate.close();
            assert!(gate.wait_parked(soon()));
        }
        gate.end();
        assert!(gate.wait_parked(soon()));
        assert!(worker.join().unwrap() <= 1000);
        assert!(!gate.open(), "a thread that ended cannot be resumed");
    }

    #[test]
    fn a_vcpu_that_never_comes_is_reported_at_the_deadline() {
        let gate = Gate::default();
        assert!(!gate.wait_parked(Instant::now() + Duration::from_millis(5)));
    }

    #[test]
    fn a_held_vcpu_parks_until_the_next_resume() {
        let gate = Arc::new(Gate::default());
        assert!(gate.open());
        gate.hold();
        assert!(gate.is_closed());
        let worker = thread::spawn({
            let gate = Arc::clone(&gate);
            move || gate.pass()
        });
        assert!(gate.wait_parked(soon()));
        assert!(gate.open());
        assert!(worker.join().unwrap());
    }
}
