//! When to stop the guest: the threshold, the prediction of the pause, and whether one more round is worth its cost.
//!
//! ```text
//! pause  = fixed + pending / expected bandwidth
//! budget = downtime limit − fixed                    what is left for RAM
//! switch when  pending < expected bandwidth × budget and no extra round is worth it
//! ```
//! `fixed` is what the stop, the capture, the round trip, the apply and the resume take without any RAM; it is measured
//! beforehand. Expected bandwidth is `avail-switchover-bandwidth` when the user gave it, else the last window's.

use std::time::Duration;

use crate::bandwidth::{over, time_for};
use crate::parameters::Parameters;

/// The rest of RAM may take so long even under a downtime limit of 0.
const LEAST_REST: Duration = Duration::from_millis(1);
/// An extra round is never made for a RAM part of the pause at or below this.
pub const FLOOR: Duration = Duration::from_millis(2);
/// At most so many extra rounds an attempt.
pub const MOST_EXTRA_ROUNDS: u32 = 8;
/// Extra rounds together may always take so long, or a quarter of the time up to the first of them if that is more.
pub const LEAST_EXTRA_TIME: Duration = Duration::from_secs(1);

/// Bytes per second that the switchover counts on.
pub fn expected_bandwidth(parameters: &Parameters, measured: u64) -> u64 {
    match parameters.avail_switchover_bandwidth {
        0 => measured,
        given => given,
    }
}

/// What of the downtime limit is left for RAM. The fixed costs come off first, but never more than nine tenths:
/// no round of RAM can shorten them, so where they alone pass the limit waiting would not keep the promise either.
pub fn ram_budget(limit: Duration, fixed: Duration) -> Duration {
    limit.saturating_sub(fixed).max(share(limit, 10))
}

/// What the rest of RAM may take at least, however long the stop took: giving up at once would gain nothing.
pub fn least_rest(limit: Duration) -> Duration {
    share(limit, 10).max(LEAST_REST)
}

/// The pending size, in bytes, below which the guest may be stopped.
pub fn threshold(bandwidth: u64, budget: Duration) -> u64 {
    over(bandwidth, budget)
}

/// How long the pause will take; `None` while no bandwidth was measured and something is pending.
pub fn predict(fixed: Duration, pending: u64, bandwidth: u64) -> Option<Duration> {
    time_for(pending, bandwidth).map(|ram| ram.saturating_add(fixed))
}

/// Invariant 6, "downtime is minimised, not spent": when the threshold would allow the switchover, is another round
/// worth it?
///
/// Yes, while the RAM part of the predicted pause is above [`FLOOR`], the last round shrank what is pending by a
/// quarter or more, fewer than [`MOST_EXTRA_ROUNDS`] were made, and all of them together, this one's expected time
/// included, stay within max([`LEAST_EXTRA_TIME`], a quarter of the time before the first).
#[derive(Debug, Clone, Copy, Default)]
pub struct ExtraRounds {
    made: u32,
    first: Option<Duration>,
    last_pending: Option<u64>,
}

impl ExtraRounds {
    /// Decides at a moment at which the switchover is allowed, `pending` exact; counts the round if it says yes.
    /// A pause would send at `expected` bytes a second, a round at `measured` (the rate limit holds it back).
    pub fn worth(&mut self, now: Duration, pending: u64, expected: u64, measured: u64) -> bool {
        let first = *self.first.get_or_insert(now);
        let last = self.last_pending.replace(pending);
        let speed = if measured == 0 { expected } else { measured };
        let (Some(ram), Some(cost)) = (time_for(pending, expected), time_for(pending, speed)) else {
            return false;
        };
        let shrank = last.is_none_or(|last| pending <= last.saturating_sub(last / 4));
        let in_time = now.saturating_add(cost) <= until(first);
        let worth = ram > FLOOR && shrank && self.made < MOST_EXTRA_ROUNDS && in_time;
        if worth {
            self.made = self.made.saturating_add(1);
        }
        worth
    }

    /// A round that is still under way now takes too long: it is ended.
    pub fn take_too_long(&self, now: Duration) -> bool {
        self.first.is_some_and(|first| now > until(first))
    }

    /// Rounds made beyond what the threshold asked for.
    pub fn made(&self) -> u32 {
        self.made
    }

    /// The guest went on after a pause that overran: what was pending before says nothing about the next round.
    pub fn start_over(&mut self) {
        self.last_pending = None;
    }
}

/// When extra rounds of which the first began then must end.
fn until(first: Duration) -> Duration {
    first.saturating_add(LEAST_EXTRA_TIME.max(share(first, 4)))
}

fn share(span: Duration, parts: u32) -> Duration {
    span.checked_div(parts).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);
    const MIB: u64 = 1 << 20;

    #[test]
    fn the_threshold_is_bandwidth_times_what_fixed_costs_leave_of_the_limit() {
        assert_eq!(threshold(1000 * MIB, ram_budget(MS * 300, MS * 50)), 250 * MIB);
        assert_eq!(threshold(0, MS * 300), 0);
        assert_eq!(threshold(1000 * MIB, Duration::ZERO), 0);
    }

    #[test]
    fn fixed_costs_above_the_limit_leave_a_tenth_for_ram() {
        assert_eq!(ram_budget(MS * 300, MS * 1000), MS * 30);
        assert_eq!(ram_budget(Duration::ZERO, MS), Duration::ZERO);
    }

    #[test]
    fn the_users_switchover_bandwidth_wins_over_the_measurement() {
        let mut parameters = Parameters::default();
        assert_eq!(expected_bandwidth(&parameters, 7), 7);
        parameters.avail_switchover_bandwidth = 1000;
        assert_eq!(expected_bandwidth(&parameters, 7), 1000);
    }

    #[test]
    fn the_prediction_adds_fixed_costs_and_ram() {
        assert_eq!(predict(MS * 5, 10 * MIB, 1000 * MIB), Some(MS * 15));
        assert_eq!(predict(MS * 5, 0, 0), Some(MS * 5));
        assert_eq!(predict(MS * 5, 1, 0), None);
    }

    #[test]
    fn rounds_go_on_while_each_shrinks_what_is_pending() {
        let mut extra = ExtraRounds::default();
        let now = Duration::from_secs(1);
        assert!(extra.worth(now, 100 * MIB, 1000 * MIB, 0));
        assert!(extra.worth(now + MS * 100, 50 * MIB, 1000 * MIB, 0));
        assert!(!extra.worth(now + MS * 150, 40 * MIB, 1000 * MIB, 0), "it shrank by a fifth only");
        assert_eq!(extra.made(), 2);
    }

    #[test]
    fn no_round_is_made_below_the_floor() {
        let mut extra = ExtraRounds::default();
        assert!(!extra.worth(MS, 2 * MIB, 1000 * MIB, 0));
        assert!(ExtraRounds::default().worth(MS, 2 * MIB + 4096, 1000 * MIB, 0));
    }

    #[test]
    fn extra_rounds_never_cost_more_than_their_share() {
        let mut extra = ExtraRounds::default();
        assert!(!extra.worth(MS * 100, 1100 * MIB, 1000 * MIB, 0), "1.1 s is more than a second");
        let mut late = ExtraRounds::default();
        let now = Duration::from_secs(100);
        assert!(late.worth(now, 20_000 * MIB, 1000 * MIB, 0), "a quarter of 100 s is 25 s");
        assert!(!late.worth(now + MS * 20_000, 6_000 * MIB, 1000 * MIB, 0));
    }

    #[test]
    fn a_round_held_back_by_the_rate_limit_counts_with_the_time_it_really_takes() {
        let mut extra = ExtraRounds::default();
        // 100 ms of pause; but 10 s of a round at 10 MiB/s.
        assert!(!extra.worth(MS * 100, 100 * MIB, 1000 * MIB, 10 * MIB));
        assert!(!extra.take_too_long(MS * 1100) && extra.take_too_long(MS * 1101));
    }

    #[test]
    fn the_number_of_extra_rounds_is_bounded() {
        let mut extra = ExtraRounds::default();
        let mut pending = 1000 * 1000 * MIB;
        let mut rounds = 0;
        while extra.worth(Duration::from_secs(100_000), pending, 1000 * MIB, 0) {
            pending /= 2;
            rounds += 1;
        }
        assert_eq!(rounds, MOST_EXTRA_ROUNDS);
    }
}
