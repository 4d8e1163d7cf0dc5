//! The loop of rounds while the guest runs.
//!
//! ```text
//! Begin ── quota exceeded ─▶ Await the window's end ─▶ Begin
//!   └─ Estimate ─▶ Estimated ── pending ≥ threshold, or a round is under way ─▶ Sending
//!                     └─ SyncDirty ─▶ Synced ── pending ≥ threshold ─▶ Sending
//!                                        ├─ peer not ready, or rest after an overrun ─▶ Await the window's end ─▶ Begin
//!                                        ├─ another round is worth it ─▶ Sending
//!                                        └─ leave the loop: stop the guest
//! Sending: one SECTION_PART a handler, at most 50 ms and what the quota leaves each ─▶ Begin
//! ```

use std::time::Duration;

use super::steps::Go;
use super::{Asked, Source};
use crate::action::Action;
use crate::bandwidth::Window;
use crate::capabilities::Capability;
use crate::switchover::{expected_bandwidth, predict, ram_budget, threshold};

/// A SECTION_PART takes no longer than this.
const TURN: Duration = Duration::from_millis(50);
/// After an overrun the guest runs for so long before it is stopped again: two pauses in a row would be one long one.
const REST: Duration = Duration::from_secs(1);
/// For so long no more is expected than an overrun has really carried.
const OVERRUN_MEMORY: Duration = Duration::from_secs(10);

/// Where in the loop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Turn {
    Begin,
    Estimated,
    Synced,
    /// The handler whose turn is next.
    Sending(usize),
}

impl Source {
    pub(super) fn iterate(&mut self, now: Duration) -> Go {
        if self.within == 0 {
            self.within = 1;
            self.turn = Turn::Begin;
            self.window = Window::new(now, self.config.parameters.max_bandwidth);
        }
        match self.turn {
            Turn::Begin => self.begin_turn(now),
            Turn::Estimated => self.weigh_estimate(now),
            Turn::Synced => self.weigh_exact(now),
            Turn::Sending(handler) => self.send_turn(now, handler),
        }
    }

    fn begin_turn(&mut self, now: Duration) -> Go {
        self.roll_window(now);
        if self.window.exceeded() {
            return Go::Do(Action::Await { until: Some(self.window.end()) });
        }
        self.turn = Turn::Estimated;
        self.ask_pending(false)
    }

    fn weigh_estimate(&mut self, now: Duration) -> Go {
        let pending = self.pending_total();
        self.extra_round &= !self.extra.take_too_long(now);
        // Within an extra round everything known goes first; syncing earlier would only end the round.
        let sync = pending == 0 || (!self.extra_round && pending < self.threshold(now));
        if !sync {
            self.turn = Turn::Sending(0);
            return Go::Again;
        }
        self.turn = Turn::Synced;
        self.ask_pending(true)
    }

    fn weigh_exact(&mut self, now: Duration) -> Go {
        let pending = self.pending_total();
        let bandwidth = self.expected(now);
        self.extra_round = false;
        self.accounts.predicted = predict(self.fixed, pending, bandwidth);
        if pending != 0 && pending >= self.threshold(now) {
            self.turn = Turn::Sending(0);
            return Go::Again;
        }
        if !self.may_stop(now) {
            self.turn = Turn::Begin;
            return Go::Do(Action::Await { until: Some(self.window.end().max(now)) });
        }
        if self.guest.is_live() && self.extra.worth(now, pending, bandwidth, self.accounts.bandwidth) {
            self.extra_round = true;
            self.turn = Turn::Sending(0);
            return Go::Again;
        }
        Go::Next
    }

    fn send_turn(&mut self, now: Duration, from: usize) -> Go {
        let next = self.pending.iter().enumerate().skip(from).find(|(_, bytes)| **bytes > 0);
        let next = next.and_then(|(index, _)| Some((index, *self.config.handlers.get(index)?)));
        match next {
            Some((index, handler)) if !self.window.exceeded() => {
                self.turn = Turn::Sending(index.saturating_add(1));
                self.asked = Asked::Progress(handler);
                let at_most = self.window.allowance();
                Go::Do(Action::Iterate { handler, at_most, until: now.saturating_add(TURN) })
            }
            _ => {
                self.turn = Turn::Begin;
                Go::Again
            }
        }
    }

    fn ask_pending(&mut self, sync: bool) -> Go {
        self.newly = 0;
        self.asked = Asked::Pending { sync };
        Go::Do(if sync { Action::SyncDirty { last: false } } else { Action::Estimate })
    }

    fn roll_window(&mut self, now: Duration) {
        let Some(measured) = self.window.roll(now, self.config.parameters.max_bandwidth) else { return };
        self.accounts.window(measured);
        let expected = self.expected(now);
        self.accounts.expect(measured.bytes, expected);
        self.accounts.predicted = predict(self.fixed, self.accounts.dirty_after_sync, expected);
    }

    /// A guest that stands still anyway never waits. Another waits for the peer's switchover-ack, and for its rest after
    /// an overrun.
    fn may_stop(&self, now: Duration) -> bool {
        let ready = !self.config.capabilities.has(Capability::SwitchoverAck) || self.acked;
        let rested = self.overrun_bandwidth.is_none_or(|(_, resumed)| now >= resumed.saturating_add(REST));
        (ready && rested) || !self.guest.is_live()
    }

    /// Bytes a second that the switchover counts on.
    fn expected(&self, now: Duration) -> u64 {
        let expected = expected_bandwidth(&self.config.parameters, self.accounts.bandwidth);
        match self.overrun_bandwidth {
            Some((real, since)) if now < since.saturating_add(OVERRUN_MEMORY) => expected.min(real),
            _ => expected,
        }
    }

    fn threshold(&self, now: Duration) -> u64 {
        threshold(self.expected(now), self.ram_budget())
    }

    pub(super) fn ram_budget(&self) -> Duration {
        ram_budget(self.config.parameters.downtime_limit(), self.fixed)
    }

    pub(super) fn predicted(&self, now: Duration) -> Duration {
        predict(self.fixed, self.pending_total(), self.expected(now)).unwrap_or(self.fixed)
    }
}
