//! What every vCPU must agree on: time goes forward, for all clocks alike.

use std::sync::atomic::{AtomicU64, Ordering};

/// Clocks that nobody sets keep their distance to this, in ns.
const APART: u64 = 1_000_000;
/// Tries to read two clocks at the same instant.
const TRIES: u32 = 100;

/// The clocks, as all threads together have seen them.
pub(crate) struct Clocks {
    /// The latest monotonic time that any thread has read, in ns.
    latest: AtomicU64,
    /// The latest value of the CPU's own counter that any thread has read.
    latest_counter: AtomicU64,
    /// Wall time less monotonic time at the start, in ns.
    offset: u64,
    backwards: AtomicU64,
    drifted: AtomicU64,
    gap: AtomicU64,
}

impl Clocks {
    pub(crate) fn new() -> Self {
        let closest = (0..TRIES).map(|_| together()).min_by_key(|(before, _, after)| after - before);
        let offset = closest.map_or(0, |(before, wall, _)| wall.wrapping_sub(before));
        let zero = || AtomicU64::new(0);
        Self {
            latest: zero(),
            latest_counter: zero(),
            offset,
            backwards: zero(),
            drifted: zero(),
            gap: zero(),
        }
    }

    /// Looks at all clocks from the vCPU this thread is on; `last` is what the thread's last look returned, 0 at first.
    pub(crate) fn look(&self, last: u64) -> u64 {
        let before = self.latest_counter.load(Ordering::SeqCst);
        let count = counter();
        self.latest_counter.fetch_max(count, Ordering::SeqCst);
        if count < before {
            self.backwards.fetch_add(1, Ordering::Relaxed);
        }
        let before = self.latest.load(Ordering::SeqCst);
        let (now, wall, after) = together();
        self.latest.fetch_max(now, Ordering::SeqCst);
        if now < before {
            self.backwards.fetch_add(1, Ordering::Relaxed);
        }
        if last > 0 {
            self.gap.fetch_max(now.saturating_sub(last), Ordering::Relaxed);
        }
        let wall = wall.wrapping_sub(self.offset);
        if wall + APART < now || wall > after + APART {
            self.drifted.fetch_add(1, Ordering::Relaxed);
        }
        now
    }

    /// Looks that found a time before one that had been read before.
    pub(crate) fn backwards(&self) -> u64 {
        self.backwards.load(Ordering::Relaxed)
    }

    /// Looks that found wall time and monotonic time apart.
    pub(crate) fn drifted(&self) -> u64 {
        self.drifted.load(Ordering::Relaxed)
    }

    /// The largest step between two looks of one thread since this was last called, in ns.
    pub(crate) fn take_gap(&self) -> u64 {
        self.gap.swap(0, Ordering::Relaxed)
    }
}

/// Monotonic time in ns.
pub(crate) fn monotonic() -> u64 {
    read(libc::CLOCK_MONOTONIC)
}

/// The CPU's own counter: what the kernel's clock is made from, without the kernel. It must go on over a move, too.
#[cfg(target_arch = "x86_64")]
pub(crate) fn counter() -> u64 {
    use std::arch::x86_64::{_mm_lfence, _rdtsc};
    // SAFETY: every x86-64 CPU has both. The fence keeps the reading from being done before what comes before it.
    unsafe {
        _mm_lfence();
        _rdtsc()
    }
}

/// The CPU's own counter: what the kernel's clock is made from, without the kernel. It must go on over a move, too.
#[cfg(target_arch = "aarch64")]
pub(crate) fn counter() -> u64 {
    let count;
    // SAFETY: Linux lets every program read the virtual counter. The barrier keeps the reading from being done early.
    unsafe { std::arch::asm!("isb", "mrs {}, cntvct_el0", out(reg) count, options(nomem, nostack)) };
    count
}

/// Monotonic time, wall time, and monotonic time again.
fn together() -> (u64, u64, u64) {
    (monotonic(), read(libc::CLOCK_REALTIME), monotonic())
}

fn read(clock: libc::clockid_t) -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the clock exists in every Linux, and the result goes into our own variable.
    unsafe { libc::clock_gettime(clock, &mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// Keeps the calling thread on one vCPU. Where it must not, it goes on wherever it is.
pub(crate) fn pin(cpu: usize) {
    // SAFETY: a set of CPUs is plain bits; the kernel reads ours for the length of the call.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(cpu, &mut set);
        libc::sched_setaffinity(0, size_of_val(&set), &set);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_another_thread_saw_ahead_has_gone_backwards() {
        let clocks = Clocks::new();
        let first = clocks.look(0);
        assert_eq!((clocks.backwards(), clocks.drifted(), clocks.take_gap()), (0, 0, 0));
        clocks.latest.store(first + 3_600_000_000_000, Ordering::SeqCst);
        clocks.look(first);
        assert_eq!((clocks.backwards(), clocks.drifted()), (1, 0));
        assert!(clocks.take_gap() > 0 && clocks.take_gap() == 0);
    }

    #[test]
    fn clocks_that_part_are_found() {
        let mut clocks = Clocks::new();
        clocks.offset -= 2 * APART;
        clocks.look(0);
        assert_eq!(clocks.drifted(), 1);
    }
}
