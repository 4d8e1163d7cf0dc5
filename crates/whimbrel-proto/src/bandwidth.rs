//! The ≥ 100 ms window: what the stream carried in it, and what it may still carry.
//!
//! One window serves both purposes, as in QEMU: at its end the bandwidth is measured, and the rate limit's quota
//! starts anew. This module decides nothing about the switchover; see [`crate::switchover`].

use std::time::Duration;

/// The least length of a window.
pub const WINDOW: Duration = Duration::from_millis(100);

/// Quota of a window, in bytes, for a `max-bandwidth` in bytes per second; `None` (for 0) is no limit.
pub fn quota(max_bandwidth: u64) -> Option<u64> {
    (max_bandwidth != 0).then_some(max_bandwidth / 10)
}

/// What a finished window measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Measurement {
    /// Bytes of stream, urgent ones included.
    pub bytes: u64,
    /// How long the window was.
    pub span: Duration,
    /// Bytes per second.
    pub bandwidth: u64,
    /// Pages per second.
    pub pages_per_second: u64,
    /// Nothing was offered to the stream: the bandwidth says nothing about the link.
    pub idle: bool,
}

/// A window that is open.
#[derive(Debug, Clone, Copy)]
pub struct Window {
    started: Duration,
    quota: Option<u64>,
    limited: u64,
    urgent: u64,
    pages: u64,
    idle: bool,
}

impl Window {
    /// Opens a window; `max_bandwidth` (bytes per second, 0 = none) counts for the whole of it.
    pub fn new(now: Duration, max_bandwidth: u64) -> Self {
        Self { started: now, quota: quota(max_bandwidth), limited: 0, urgent: 0, pages: 0, idle: true }
    }

    /// Counts what was sent under the rate limit.
    pub fn sent(&mut self, bytes: u64, pages: u64) {
        self.limited = self.limited.saturating_add(bytes);
        self.pages = self.pages.saturating_add(pages);
        self.idle = false;
    }

    /// Counts urgent work (requested pages, the switchover), which the rate limit doesn't hold back.
    pub fn sent_urgent(&mut self, bytes: u64, pages: u64) {
        self.urgent = self.urgent.saturating_add(bytes);
        self.pages = self.pages.saturating_add(pages);
        self.idle = false;
    }

    /// More than the quota was sent: wait for [`Window::end`].
    pub fn exceeded(&self) -> bool {
        self.quota.is_some_and(|quota| self.limited > quota)
    }

    /// How many bytes the next turn may send: what is left of the quota, at least 1 (a handler sends whole pages, so
    /// the last turn passes the quota and the window is then exceeded); `u64::MAX` without a limit.
    pub fn allowance(&self) -> u64 {
        self.quota.map_or(u64::MAX, |quota| quota.saturating_sub(self.limited).saturating_add(1))
    }

    /// The earliest end.
    pub fn end(&self) -> Duration {
        self.started.saturating_add(WINDOW)
    }

    /// Closes the window if it is old enough, and opens the next with the `max_bandwidth` of now.
    pub fn roll(&mut self, now: Duration, max_bandwidth: u64) -> Option<Measurement> {
        if now < self.end() {
            return None;
        }
        let span = now.saturating_sub(self.started);
        let bytes = self.limited.saturating_add(self.urgent);
        let measurement = Measurement {
            bytes,
            span,
            bandwidth: per_second(bytes, span),
            pages_per_second: per_second(self.pages, span),
            idle: self.idle,
        };
        *self = Self::new(now, max_bandwidth);
        Some(measurement)
    }
}

/// `amount` in `span`, per second; 0 for an empty span.
pub fn per_second(amount: u64, span: Duration) -> u64 {
    let scaled = u128::from(amount).saturating_mul(1_000_000_000);
    saturate(scaled.checked_div(span.as_nanos()).unwrap_or(0))
}

/// `bandwidth` (bytes per second) over `span`, in bytes.
pub fn over(bandwidth: u64, span: Duration) -> u64 {
    saturate(u128::from(bandwidth).saturating_mul(span.as_nanos()) / 1_000_000_000)
}

/// How long `bytes` take at `bandwidth` (bytes per second); `None` if they never arrive.
pub fn time_for(bytes: u64, bandwidth: u64) -> Option<Duration> {
    if bytes == 0 {
        return Some(Duration::ZERO);
    }
    let nanos = u128::from(bytes).saturating_mul(1_000_000_000).checked_div(u128::from(bandwidth))?;
    Some(Duration::from_nanos(saturate(nanos)))
}

fn saturate(value: u128) -> u64 {
    u64::try_from(value).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn a_window_measures_nothing_before_100_ms() {
        let mut window = Window::new(MS * 7, 0);
        window.sent(4096, 1);
        assert_eq!(window.roll(MS * 106, 0), None);
        let measured = window.roll(MS * 107, 0).unwrap();
        assert_eq!((measured.bytes, measured.bandwidth, measured.pages_per_second), (4096, 40960, 10));
        assert!(!measured.idle);
    }

    #[test]
    fn a_late_end_divides_by_the_time_that_really_passed() {
        let mut window = Window::new(Duration::ZERO, 0);
        window.sent(1_000_000, 0);
        assert_eq!(window.roll(MS * 250, 0).unwrap().bandwidth, 4_000_000);
    }

    #[test]
    fn the_quota_is_a_tenth_of_max_bandwidth_and_zero_is_none() {
        assert_eq!(quota(134_217_728), Some(13_421_772));
        assert_eq!(quota(0), None);
        let mut free = Window::new(Duration::ZERO, 0);
        free.sent(u64::MAX, 1);
        assert!(!free.exceeded());
        assert_eq!(free.allowance(), u64::MAX);
    }

    #[test]
    fn only_more_than_the_quota_exceeds_it() {
        let mut window = Window::new(Duration::ZERO, 1000);
        window.sent(100, 0);
        assert!(!window.exceeded());
        assert_eq!(window.allowance(), 1);
        window.sent(1, 0);
        assert!(window.exceeded());
    }

    #[test]
    fn a_tiny_limit_still_lets_one_page_pass_in_each_window() {
        let mut window = Window::new(Duration::ZERO, 1);
        assert!(!window.exceeded() && window.allowance() > 0);
        window.sent(4096, 1);
        assert!(window.exceeded());
        window.roll(WINDOW, 1).unwrap();
        assert!(!window.exceeded() && window.allowance() > 0);
    }

    #[test]
    fn urgent_work_is_measured_but_not_limited() {
        let mut window = Window::new(Duration::ZERO, 1000);
        window.sent_urgent(1_000_000, 0);
        assert!(!window.exceeded());
        assert_eq!(window.allowance(), 101);
        assert_eq!(window.roll(WINDOW, 1000).unwrap().bytes, 1_000_000);
    }

    #[test]
    fn a_changed_max_bandwidth_counts_from_the_next_window() {
        let mut window = Window::new(Duration::ZERO, 1000);
        window.sent(60, 0);
        assert_eq!(window.allowance(), 41);
        window.roll(WINDOW, 2000).unwrap();
        assert_eq!(window.allowance(), 201);
    }

    #[test]
    fn arithmetic_never_overflows() {
        assert_eq!(per_second(u64::MAX, Duration::from_nanos(1)), u64::MAX);
        assert_eq!(per_second(1, Duration::ZERO), 0);
        assert_eq!(over(u64::MAX, Duration::MAX), u64::MAX);
        assert_eq!(time_for(1, 0), None);
        assert_eq!(time_for(0, 0), Some(Duration::ZERO));
        assert_eq!(time_for(u64::MAX, 1), Some(Duration::from_nanos(u64::MAX)));
    }
}
