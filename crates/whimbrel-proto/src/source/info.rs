//! Accounting: what `query-migrate` shows, and the sums behind it.

use std::time::Duration;

use crate::bandwidth::{Measurement, per_second};
use crate::event::Pages;
use crate::status::MigrationStatus;

/// Dirty-page rate is evaluated over periods longer than this.
const RATE_PERIOD: Duration = Duration::from_secs(1);
/// A window that carried no more than this says nothing about the downtime.
const LEAST_SAMPLE: u64 = 10_000;

/// The source's state, for `query-migrate`. Members that QEMU leaves out in a status are `None` in it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Info {
    /// As last published.
    pub status: MigrationStatus,
    /// Since the migration was accepted; final once it ended.
    pub total_time: Option<Duration>,
    /// Until all setup sections were written.
    pub setup_time: Option<Duration>,
    /// QEMU's figure: RAM only. The downtime limit until there is a measurement.
    pub expected_downtime: Option<Duration>,
    /// From the order to stop the guest until the attempt ended, the wait for SHUT included.
    pub downtime: Option<Duration>,
    /// RAM's figures.
    pub ram: Option<RamInfo>,
    /// The commit waits for the destination's word that it has applied everything.
    pub fenced: bool,
    /// The pause that is predicted now: fixed costs and RAM.
    pub predicted_downtime: Option<Duration>,
    /// The last pause by part; it may be unfinished.
    pub pause: Option<Pause>,
    /// Pauses that took too long and were given up, the guest going on.
    pub overruns: u32,
    /// Rounds made beyond what the threshold asked for.
    pub extra_rounds: u32,
    /// Why it failed.
    pub error: Option<String>,
}

/// RAM's figures, as QEMU's MigrationStats.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct RamInfo {
    /// Bytes written on all channels.
    pub transferred: u64,
    /// Bytes dirty and unsent; 0 when completed.
    pub remaining: u64,
    /// Bytes that take part.
    pub total: u64,
    /// Zero pages.
    pub duplicate: u64,
    /// Pages sent with their content.
    pub normal: u64,
    /// The same in bytes.
    pub normal_bytes: u64,
    /// Pages a second, over the last period of a second or more; 0 when completed.
    pub dirty_pages_rate: u64,
    /// Megabits (10^6) a second: the last window's; over all but the setup when completed.
    pub mbps: f64,
    /// Synchronisations of the dirty log.
    pub dirty_sync_count: u64,
    /// Bytes of a page.
    pub page_size: u64,
    /// In the last window.
    pub pages_per_second: u64,
    /// RAM bytes sent while the guest ran.
    pub precopy_bytes: u64,
    /// RAM bytes sent while it stood still.
    pub downtime_bytes: u64,
}

/// A pause, by part. Parts not reached are zero.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Pause {
    /// Stopping the guest, as the engine measured it.
    pub stop: Duration,
    /// Waiting for `migrate-continue`.
    pub user: Duration,
    /// The last synchronisation and the rest of RAM.
    pub ram: Duration,
    /// Device state.
    pub devices: Duration,
    /// From PING to PONG.
    pub confirm: Duration,
    /// The commit itself.
    pub commit: Duration,
    /// From the commit to SHUT.
    pub shut: Duration,
}

/// A part of a pause, while it is under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    User,
    Ram,
    Devices,
    Confirm,
    Commit,
    Shut,
}

/// The sums.
#[derive(Debug, Clone, Default)]
pub(crate) struct Accounts {
    pub(crate) status: MigrationStatus,
    pub(crate) setup_time: Duration,
    pub(crate) transferred: u64,
    pub(crate) pages: Pages,
    pub(crate) precopy_bytes: u64,
    pub(crate) downtime_bytes: u64,
    pub(crate) syncs: u64,
    pub(crate) dirty_after_sync: u64,
    pub(crate) dirty_pages_rate: u64,
    pub(crate) bandwidth: u64,
    pub(crate) window_bits_per_second: f64,
    pub(crate) pages_per_second: u64,
    pub(crate) expected_downtime: Duration,
    pub(crate) predicted: Option<Duration>,
    pub(crate) overruns: u32,
    pub(crate) stop_asked: Option<Duration>,
    pub(crate) ended: Option<Duration>,
    pub(crate) pause: Option<Pause>,
    part: Option<(Part, Duration)>,
    evaluated: Duration,
    newly: u64,
}

impl Accounts {
    /// Nothing measured yet: the downtime limit is what is expected.
    pub(crate) fn new(downtime_limit: Duration) -> Self {
        Self { expected_downtime: downtime_limit, ..Self::default() }
    }

    /// Counts a turn of a live handler.
    pub(crate) fn progress(&mut self, bytes: u64, pages: Pages, guest_runs: bool) {
        self.transferred = self.transferred.saturating_add(bytes);
        self.pages.normal = self.pages.normal.saturating_add(pages.normal);
        self.pages.zero = self.pages.zero.saturating_add(pages.zero);
        let phase = if guest_runs { &mut self.precopy_bytes } else { &mut self.downtime_bytes };
        *phase = phase.saturating_add(bytes);
    }

    /// Counts a finished synchronisation that left `dirty` bytes, `newly` of them found by it.
    pub(crate) fn synced(&mut self, now: Duration, dirty: u64, newly: u64, page_size: u64) {
        self.syncs = self.syncs.saturating_add(1);
        self.dirty_after_sync = dirty;
        self.newly = self.newly.saturating_add(newly);
        let period = now.saturating_sub(self.evaluated);
        if period > RATE_PERIOD {
            self.dirty_pages_rate = per_second(self.newly.checked_div(page_size).unwrap_or(0), period);
            self.begin_rate_period(now);
        }
    }

    /// The first synchronisation finds all of RAM: that says nothing about the guest.
    pub(crate) fn begin_rate_period(&mut self, now: Duration) {
        self.evaluated = now;
        self.newly = 0;
    }

    /// Takes a finished window over.
    pub(crate) fn window(&mut self, measured: Measurement) {
        self.window_bits_per_second = bits_per_second(measured.bytes, measured.span);
        self.pages_per_second = measured.pages_per_second;
        if !measured.idle {
            self.bandwidth = measured.bandwidth;
        }
    }

    /// Updates QEMU's expected downtime after a window that carried `bytes`.
    pub(crate) fn expect(&mut self, bytes: u64, expected_bandwidth: u64) {
        if self.dirty_pages_rate != 0
            && bytes > LEAST_SAMPLE
            && let Some(time) = crate::bandwidth::time_for(self.dirty_after_sync, expected_bandwidth)
        {
            self.expected_downtime = time;
        }
    }

    /// Begins a part of the pause (none: the pause is over) and ends the one before.
    pub(crate) fn part(&mut self, now: Duration, next: Option<Part>) {
        let before = std::mem::replace(&mut self.part, next.map(|part| (part, now)));
        if let (Some(pause), Some((part, since))) = (&mut self.pause, before) {
            let place = match part {
                Part::User => &mut pause.user,
                Part::Ram => &mut pause.ram,
                Part::Devices => &mut pause.devices,
                Part::Confirm => &mut pause.confirm,
                Part::Commit => &mut pause.commit,
                Part::Shut => &mut pause.shut,
            };
            *place = place.saturating_add(now.saturating_sub(since));
        }
    }

    /// What `query-migrate` shows.
    pub(crate) fn info(&self, now: Duration, remaining: u64, ram_total: u64, page_size: u64) -> Info {
        use MigrationStatus::{Active, Cancelling, Completed, Device, PreSwitchover};
        let completed = self.status == Completed;
        let shown = matches!(self.status, Active | Cancelling | PreSwitchover | Device | Completed);
        let total = self.ended.unwrap_or(now);
        let paused = self.stop_asked.map(|asked| total.saturating_sub(asked));
        let mbps = if completed {
            bits_per_second(self.transferred, total.saturating_sub(self.setup_time))
        } else {
            self.window_bits_per_second
        };
        let ram = RamInfo {
            transferred: self.transferred,
            remaining: if completed { 0 } else { remaining },
            total: ram_total,
            duplicate: self.pages.zero,
            normal: self.pages.normal,
            normal_bytes: self.pages.normal.saturating_mul(page_size),
            dirty_pages_rate: if completed { 0 } else { self.dirty_pages_rate },
            mbps: mbps / 1e6,
            dirty_sync_count: self.syncs,
            page_size,
            pages_per_second: self.pages_per_second,
            precopy_bytes: self.precopy_bytes,
            downtime_bytes: self.downtime_bytes,
        };
        Info {
            status: self.status,
            total_time: shown.then_some(total),
            setup_time: shown.then_some(self.setup_time),
            expected_downtime: (shown && !completed).then_some(self.expected_downtime),
            downtime: paused.filter(|_| completed),
            ram: shown.then_some(ram),
            fenced: false,
            predicted_downtime: self.predicted,
            pause: self.pause,
            overruns: self.overruns,
            extra_rounds: 0,
            error: None,
        }
    }
}

fn bits_per_second(bytes: u64, span: Duration) -> f64 {
    let seconds = span.as_secs_f64();
    if seconds > 0.0 { bytes as f64 * 8.0 / seconds } else { 0.0 }
}
