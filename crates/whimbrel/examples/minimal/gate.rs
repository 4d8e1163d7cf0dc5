//! Where the vCPUs are stopped: between two pages, never within one.

use std::sync::{Condvar, Mutex};

use super::lock;

/// Open or closed; each worker passes it once a page.
#[derive(Default)]
pub(super) struct Gate {
    state: Mutex<GateState>,
    changed: Condvar,
}

#[derive(Default)]
struct GateState {
    open: bool,
    ended: bool,
    inside: usize,
}

impl Gate {
    /// Runs `step` when the gate is open. False: the machine is gone.
    pub(super) fn pass(&self, step: impl FnOnce()) -> bool {
        let closed = |state: &mut GateState| !state.open && !state.ended;
        let mut state = self.changed.wait_while(lock(&self.state), closed).expect("nobody panics with it");
        if state.ended {
            return false;
        }
        state.inside += 1;
        drop(state);
        step();
        lock(&self.state).inside -= 1;
        self.changed.notify_all();
        true
    }

    /// Lets everyone pass.
    pub(super) fn open(&self) {
        lock(&self.state).open = true;
        self.changed.notify_all();
    }

    /// Returns when nobody is inside.
    pub(super) fn close(&self) {
        let mut state = lock(&self.state);
        state.open = false;
        drop(self.changed.wait_while(state, |state| state.inside > 0));
    }

    /// Nobody passes any more: the threads end.
    pub(super) fn end(&self) {
        lock(&self.state).ended = true;
        self.changed.notify_all();
    }
}
