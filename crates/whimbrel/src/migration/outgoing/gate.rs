//! The race between a cancel and the commit: one of them is first, and the other one hears it.
//!
//! ```text
//! Open ─ cancel ─▶ Cancelled     the commit is refused
//!   │
//!   └─── commit ─▶ Committed     a cancel is refused …
//!   ▲                  │
//!   └──── reopen ──────┘         … unless not a byte of it has left
//! ```

use std::sync::{Arc, Mutex};

use crate::channel::Link;
use crate::lock;

/// Held for moments only: nothing waits while it is locked.
#[derive(Default)]
pub(super) struct Gate(Mutex<Inner>);

#[derive(Default)]
struct Inner {
    state: State,
    link: Option<Arc<Link>>,
}

#[derive(Default, PartialEq, Eq, Clone, Copy)]
enum State {
    #[default]
    Open,
    Cancelled,
    Committed,
}

impl Gate {
    /// A cancel ends this link from now on, as it does at once if it has come already.
    pub(super) fn guard(&self, link: Arc<Link>) {
        let mut inner = lock(&self.0);
        if inner.state == State::Cancelled {
            link.give_up();
        }
        inner.link = Some(link);
    }

    /// Cancels, unless it is committed: then false. `tell` is done before whoever tries to commit can see the cancel.
    pub(super) fn cancel(&self, tell: impl FnOnce()) -> bool {
        let mut inner = lock(&self.0);
        if inner.state == State::Committed {
            return false;
        }
        inner.state = State::Cancelled;
        tell();
        if let Some(link) = &inner.link {
            link.give_up();
        }
        true
    }

    /// From now on a cancel is refused; false if one was first.
    pub(super) fn commit(&self) -> bool {
        let mut inner = lock(&self.0);
        if inner.state == State::Cancelled {
            return false;
        }
        inner.state = State::Committed;
        true
    }

    /// The commit has failed before a byte of it had left: a cancel may come again.
    pub(super) fn reopen(&self) {
        lock(&self.0).state = State::Open;
    }

    /// The attempt is over; its link.
    pub(super) fn release(&self) -> Option<Arc<Link>> {
        lock(&self.0).link.take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_is_first_wins() {
        let gate = Gate::default();
        assert!(gate.cancel(|| {}) && !gate.commit());
        assert!(gate.cancel(|| {}), "once more is no harm");

        let gate = Gate::default();
        assert!(gate.commit() && !gate.cancel(|| panic!("nobody is told of a cancel that is refused")));
    }

    #[test]
    fn a_commit_of_which_nothing_left_can_be_cancelled() {
        let gate = Gate::default();
        assert!(gate.commit());
        gate.reopen();
        assert!(gate.cancel(|| {}) && !gate.commit());
    }
}
