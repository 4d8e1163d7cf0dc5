//! What is to be seen from outside of a move of a guest that ticks, and what of it is wrong.
//!
//! ```text
//! source       tick … first tick tick … sent ┆ STOP
//! destination                                       RESUME ┆ tick tick … last
//!                            └ took ─────────┆─ pause ─────┆────────────┘
//! ```
//! The guest's clock and its counter go on by what passes here, and may leave out the pause: never back, never more.

use std::fmt;
use std::time::Duration;

use crate::guest::Tick;

/// What the scheduling of an emulated machine adds to any time.
const SLACK: Duration = Duration::from_millis(700);

/// A move, seen from outside.
#[derive(Clone, Debug)]
pub(crate) struct Sight {
    /// The tick at the source from which time is counted.
    pub(crate) first: Tick,
    /// The last tick at the source.
    pub(crate) sent: Tick,
    /// Those at the destination.
    pub(crate) arrived: Vec<Tick>,
    /// Of the guest's counter, in Hz.
    pub(crate) frequency: f64,
    /// From the source's event STOP to the destination's RESUME. From the first, if a switchover overran and the guest ran on.
    pub(crate) pause: Duration,
    /// From `first` to the last that arrived, by the host's clock.
    pub(crate) took: Duration,
}

impl Sight {
    /// All that is wrong.
    pub(crate) fn faults(&self) -> Vec<String> {
        let Self { sent, arrived, pause, took, .. } = self;
        let (Some(next), Some(last)) = (arrived.first(), arrived.last()) else {
            return vec![format!("the guest stood still: no tick came within {took:?}")];
        };
        let mut faults = Vec::new();
        let mut check = |right: bool, text: String| {
            if !right {
                faults.push(text);
            }
        };
        // The line that was being written when the guest stopped is half here and half there.
        let whole = (1..=2).contains(&next.number.wrapping_sub(sent.number));
        check(whole, format!("ticks are missing: {} came after {}", next.number, sent.number));
        for [before, after] in self.steps() {
            let numbers = [before.number, after.number];
            check(before == *sent || numbers[1] == numbers[0] + 1, format!("ticks are missing: {numbers:?}"));
            check(after.monotonic > before.monotonic, format!("the clock went back: {before:?}, {after:?}"));
            check(after.counter > before.counter, format!("the counter went back: {before:?}, {after:?}"));
        }
        let step = self.step();
        check(
            step <= *pause + SLACK,
            format!("the clock went on by {step:?} at once in a pause of {pause:?}"),
        );
        let clock = last.monotonic.saturating_sub(self.first.monotonic);
        for (name, passed) in [("clock", clock), ("counter", self.counted(&self.first, last))] {
            let text =
                format!("the {name} went on by {passed:?} in {took:?}, of which the pause was {pause:?}");
            check(passed <= *took + SLACK && passed + *pause + SLACK >= *took, text);
        }
        faults
    }

    /// The clock's largest step from one look at it to the next.
    fn step(&self) -> Duration {
        self.arrived.iter().map(|tick| tick.gap).max().unwrap_or_default()
    }

    /// From tick to tick, that from the last at the source to the first at the destination among them.
    fn steps(&self) -> impl Iterator<Item = [Tick; 2]> {
        let from = std::iter::once(&self.sent).chain(&self.arrived);
        from.zip(&self.arrived).map(|(before, after)| [*before, *after])
    }

    /// What passed by the counter.
    fn counted(&self, from: &Tick, to: &Tick) -> Duration {
        Duration::from_secs_f64(to.counter.saturating_sub(from.counter) as f64 / self.frequency)
    }
}

impl fmt::Display for Sight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let last = self.arrived.last().unwrap_or(&self.first);
        write!(
            f,
            "pause {:?}, the clock's largest step {:?}; {:?} here, {:?} by the guest's clock, {:?} by its counter of {:.1} MHz",
            self.pause,
            self.step(),
            self.took,
            last.monotonic.saturating_sub(self.first.monotonic),
            self.counted(&self.first, last),
            self.frequency / 1e6
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MHZ: u64 = 100;

    /// Tick `number`, when this many ms have passed by the guest's clock and by its counter.
    fn tick(number: u64, clock: u64, counter: u64) -> Tick {
        let gap = Duration::from_millis(2);
        Tick { number, counter: counter * MHZ * 1000, monotonic: Duration::from_millis(clock), gap }
    }

    /// Ticks 200 ms apart; a pause of 1 s in a move of 3 s, which the guest's time leaves out.
    fn good() -> Sight {
        let arrived = (0..8).map(|n| tick(13 + n, 2600 + 200 * n, 2600 + 200 * n)).collect();
        Sight {
            first: tick(10, 2000, 2000),
            sent: tick(12, 2400, 2400),
            arrived,
            frequency: MHZ as f64 * 1e6,
            pause: Duration::from_secs(1),
            took: Duration::from_secs(3),
        }
    }

    /// What is wrong if the ticks at the destination are changed so.
    fn faults(change: impl Fn(&mut Tick)) -> Vec<String> {
        let mut sight = good();
        sight.arrived.iter_mut().for_each(change);
        sight.faults()
    }

    #[track_caller]
    fn names(faults: &[String], words: &[&str]) {
        let named = |word: &&str| faults.iter().any(|fault| fault.contains(*word));
        assert!(words.iter().all(named), "{words:?} in {faults:#?}");
    }

    #[test]
    fn time_that_leaves_out_the_pause_or_goes_on_through_it_is_right() {
        assert_eq!(good().faults(), [""; 0]);
        let through = |tick: &mut Tick| {
            tick.monotonic += Duration::from_secs(1);
            tick.counter += 1000 * MHZ * 1000;
            tick.gap = Duration::from_secs(1);
        };
        assert_eq!(faults(through), [""; 0]);
        let mut torn = good();
        torn.arrived.remove(0);
        assert_eq!(torn.faults(), [""; 0], "a line half here and half there");
    }

    #[test]
    fn a_counter_or_clock_that_goes_back_or_jumps_is_wrong() {
        names(
            &faults(|tick| tick.counter -= 2_500 * MHZ * 1000),
            &["the counter went back", "the counter went on by"],
        );
        names(&faults(|tick| tick.monotonic -= Duration::from_secs(2)), &["the clock went back"]);
        names(&faults(|tick| tick.counter += 3_000 * MHZ * 1000), &["the counter went on by"]);
        names(&faults(|tick| tick.monotonic += Duration::from_secs(3)), &["the clock went on by"]);
        names(&faults(|tick| tick.gap = Duration::from_secs(2)), &["at once"]);
    }

    #[test]
    fn ticks_that_are_missing_or_never_come_are_wrong() {
        let mut sight = good();
        sight.arrived.drain(..2);
        names(&sight.faults(), &["ticks are missing"]);
        let mut sight = good();
        sight.arrived.remove(4);
        names(&sight.faults(), &["ticks are missing"]);
        let sight = Sight { arrived: Vec::new(), ..good() };
        names(&sight.faults(), &["stood still"]);
    }
}
