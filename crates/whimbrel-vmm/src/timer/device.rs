//! A running virtual clock, and its section `timer`.

use std::sync::{Arc, Mutex};
use std::time::Instant;

use whimbrel::downcast;
use whimbrel::handlers::Device;
use whimbrel::machine::MachineError;
use whimbrel_vmstate::VmState;

use crate::arch::ticks;
use crate::lock;
use crate::state;

/// Nanoseconds and ticks of the CPU's counter for which the guest has run.
#[derive(Debug, Default)]
pub struct VirtualClock(Mutex<Counts>);

#[derive(Debug, Default, Clone, Copy)]
struct Counts {
    ns: i64,
    ticks: i64,
    since: Option<(Instant, u64)>,
}

impl VirtualClock {
    /// Its value now, in nanoseconds.
    pub fn now(&self) -> i64 {
        lock(&self.0).now().0
    }

    /// Stops it. Idempotent.
    pub fn freeze(&self) {
        let mut counts = lock(&self.0);
        let (ns, ticks) = counts.now();
        *counts = Counts { ns, ticks, since: None };
    }

    /// Lets it go on. Idempotent.
    pub fn thaw(&self) {
        let mut counts = lock(&self.0);
        counts.since.get_or_insert_with(|| (Instant::now(), ticks()));
    }

    fn set(&self, ns: i64, ticks: i64) {
        *lock(&self.0) = Counts { ns, ticks, since: None };
    }
}

impl Counts {
    fn now(&self) -> (i64, i64) {
        let Some((instant, tsc)) = self.since else { return (self.ns, self.ticks) };
        let ns = i64::try_from(instant.elapsed().as_nanos()).unwrap_or(i64::MAX);
        let elapsed = ticks().saturating_sub(tsc);
        (self.ns.saturating_add(ns), self.ticks.saturating_add_unsigned(elapsed))
    }
}

/// The section.
pub struct TimerDevice {
    clock: Arc<VirtualClock>,
}

impl TimerDevice {
    /// Of this clock.
    pub fn new(clock: Arc<VirtualClock>) -> Self {
        Self { clock }
    }
}

impl Device for TimerDevice {
    fn save(&self) -> Result<Box<dyn VmState>, MachineError> {
        let (ns, ticks) = lock(&self.clock.0).now();
        Ok(Box::new(state::Timer { cpu_ticks_offset: ticks, cpu_clock_offset: ns }))
    }

    fn blank(&self) -> Box<dyn VmState> {
        Box::new(state::Timer::default())
    }

    /// Taken at once: the machine is stopped, and later sections' times are relative to it.
    fn load(&self, state: Box<dyn VmState>) -> Result<(), MachineError> {
        let timer = downcast::<state::Timer>(state)?;
        self.clock.set(timer.cpu_clock_offset, timer.cpu_ticks_offset);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::thread::sleep;
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_clock_counts_only_while_the_guest_runs() {
        let clock = VirtualClock::default();
        sleep(Duration::from_millis(2));
        assert_eq!(clock.now(), 0);
        clock.thaw();
        clock.thaw();
        sleep(Duration::from_millis(2));
        clock.freeze();
        let stopped = clock.now();
        assert!(stopped >= 2_000_000);
        sleep(Duration::from_millis(2));
        clock.freeze();
        assert_eq!(clock.now(), stopped);
    }

    #[test]
    fn the_clock_goes_on_from_what_was_loaded() {
        let source = TimerDevice::new(Arc::default());
        source.clock.set(5_000, 7_000);
        let destination = TimerDevice::new(Arc::default());
        destination.load(source.save().unwrap()).unwrap();
        assert_eq!(destination.clock.now(), 5_000);
        destination.clock.thaw();
        assert!(destination.clock.now() >= 5_000);
    }
}
