//! The rate of a link that several connections share.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use super::shared::lock;

/// A part of a second in which no more than its share is passed on at once.
const QUANTUM: Duration = Duration::from_millis(10);

/// One direction's rate.
#[derive(Debug)]
pub(super) struct Pace {
    /// Bytes a second.
    rate: Option<u64>,
    /// When what was passed on will be through.
    free: Mutex<Instant>,
}

impl Pace {
    pub(super) fn new(rate: Option<u64>) -> Self {
        Self { rate: rate.filter(|rate| *rate > 0), free: Mutex::new(Instant::now()) }
    }

    /// How many bytes may pass on now; if none may, when to ask again.
    pub(super) fn room(&self, now: Instant) -> Result<usize, Instant> {
        let Some(rate) = self.rate else { return Ok(usize::MAX) };
        let free = *lock(&self.free);
        if free > now {
            return Err(free);
        }
        let share = u128::from(rate).saturating_mul(QUANTUM.as_millis()) / 1000;
        Ok(usize::try_from(share).unwrap_or(usize::MAX).max(1))
    }

    /// So many bytes were passed on.
    pub(super) fn passed(&self, now: Instant, bytes: usize) {
        let Some(rate) = self.rate else { return };
        let time = Duration::from_secs_f64(bytes as f64 / rate as f64);
        let mut free = lock(&self.free);
        // A flow that comes late may catch up by one quantum, no more.
        *free = (*free).max(now.checked_sub(QUANTUM).unwrap_or(now)) + time;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_carries_what_the_rate_says() {
        let pace = Pace::new(Some(1 << 20));
        let start = Instant::now();
        let (mut now, mut bytes) = (start, 0);
        while now < start + Duration::from_secs(1) {
            match pace.room(now) {
                Ok(room) => {
                    assert!(room <= (1 << 20) / 100);
                    pace.passed(now, room);
                    bytes += room;
                }
                Err(free) => now = free,
            }
        }
        assert!(((1 << 20)..(1 << 20) * 103 / 100).contains(&bytes), "{bytes}");
    }

    #[test]
    fn silence_is_not_saved_up() {
        let pace = Pace::new(Some(1000));
        let later = Instant::now() + Duration::from_secs(60);
        pace.passed(later, pace.room(later).unwrap());
        pace.passed(later, pace.room(later).unwrap());
        assert!(pace.room(later).is_err());
        assert_eq!(Pace::new(None).room(later), Ok(usize::MAX));
    }
}
