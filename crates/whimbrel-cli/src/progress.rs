//! How a move goes, for a person: the figures of `query-migrate`, and the line that shows them.
//!
//! On a terminal the line is rewritten in place; elsewhere there is one a second.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// How often a line is written where it cannot be rewritten.
const LINE_EVERY: Duration = Duration::from_secs(1);
const MIB: f64 = (1 << 20) as f64;

/// What `query-migrate` tells of a move under way.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Figures {
    status: String,
    pass: u64,
    /// Bytes.
    transferred: u64,
    remaining: u64,
    /// Bytes per second, in the last window.
    rate: f64,
    dirty_rate: f64,
    /// Milliseconds.
    expected_downtime: Option<u64>,
}

impl Figures {
    /// `None` in statuses that tell no figures.
    pub(crate) fn of(info: &Value) -> Option<Self> {
        let ram = info.get("ram")?;
        let count = |member: &str| ram[member].as_u64().unwrap_or(0);
        let page = ram["page-size"].as_f64().unwrap_or(4096.0);
        Some(Self {
            status: info["status"].as_str()?.to_owned(),
            pass: count("dirty-sync-count"),
            transferred: count("transferred"),
            remaining: count("remaining"),
            rate: ram["mbps"].as_f64().unwrap_or(0.0) * 1e6 / 8.0,
            dirty_rate: ram["dirty-pages-rate"].as_f64().unwrap_or(0.0) * page,
            expected_downtime: info["expected-downtime"].as_u64(),
        })
    }

    /// Time until nothing is left, if both rates stay; `None` if the guest dirties memory as fast as it is sent.
    pub(crate) fn eta(&self) -> Option<Duration> {
        let gain = self.rate - self.dirty_rate;
        if gain <= 0.0 {
            return None;
        }
        Duration::try_from_secs_f64(self.remaining as f64 / gain).ok()
    }

    /// The line.
    pub(crate) fn line(&self) -> String {
        format!(
            "{:<10} pass {:>2}  sent {:>6} MiB  left {:>6} MiB  {:>6} MiB/s  dirty {:>5} MiB/s  downtime {:>7}  ETA {}",
            self.status,
            self.pass,
            mib(self.transferred as f64),
            mib(self.remaining as f64),
            mib(self.rate),
            mib(self.dirty_rate),
            self.expected_downtime.map_or("-".into(), |ms| format!("{ms} ms")),
            self.eta().map_or("-".into(), rough),
        )
    }

    /// The same for programs.
    pub(crate) fn json(&self) -> Value {
        json!({
            "event": "progress",
            "status": self.status,
            "pass": self.pass,
            "transferred-bytes": self.transferred,
            "remaining-bytes": self.remaining,
            "bytes-per-second": self.rate.round() as u64,
            "dirty-bytes-per-second": self.dirty_rate.round() as u64,
            "expected-downtime-ms": self.expected_downtime,
            "eta-ms": self.eta().map(|eta| u64::try_from(eta.as_millis()).unwrap_or(u64::MAX)),
        })
    }
}

/// Whole MiB, rounded: the same wherever a person reads them.
pub(crate) fn mib(bytes: f64) -> String {
    format!("{:.0}", bytes / MIB)
}

/// Two digits are enough for a guess.
fn rough(time: Duration) -> String {
    match time.as_secs() {
        0 if time.as_millis() < 950 => format!("{:.1} s", time.as_secs_f64()),
        seconds @ 0..=99 => format!("{} s", seconds + u64::from(time.subsec_millis() >= 500)),
        seconds @ 100..=5999 => format!("{} min", (seconds + 30) / 60),
        seconds => format!("{} h", (seconds + 1800) / 3600),
    }
}

/// Who reads what is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reader {
    Terminal,
    Pipe,
    Program,
}

/// Standard output, for what comes and goes and for what stays. A reader who leaves ends nothing: what can't be written
/// is dropped, and the move goes on.
#[derive(Debug)]
pub(crate) struct Screen {
    reader: Reader,
    last: Option<Instant>,
    open: bool,
}

impl Screen {
    /// For programs: one JSON object a line; else for people.
    pub(crate) fn new(json: bool) -> Self {
        let reader = match json {
            true => Reader::Program,
            false if std::io::stdout().is_terminal() => Reader::Terminal,
            false => Reader::Pipe,
        };
        Self { reader, last: None, open: false }
    }

    /// Shows how far the move is.
    pub(crate) fn progress(&mut self, info: &Value) {
        let Some(figures) = Figures::of(info) else { return };
        self.show(|| figures.line(), || figures.json());
    }

    /// Shows what will be shown anew: a line to people, its object to programs. Elsewhere than on a terminal not too often.
    pub(crate) fn show(&mut self, line: impl FnOnce() -> String, object: impl FnOnce() -> Value) {
        let terminal = self.reader == Reader::Terminal;
        if !terminal && self.last.is_some_and(|last| last.elapsed() < LINE_EVERY) {
            return;
        }
        self.last = Some(Instant::now());
        match self.reader {
            Reader::Terminal => {
                let line: String = line().chars().take(width()).collect();
                put(&format!("\r{line}\x1b[K"));
                self.open = true;
            }
            Reader::Pipe => put(&format!("{}\n", line())),
            Reader::Program => put(&format!("{}\n", object())),
        }
    }

    /// Says something to people, and its object to programs.
    pub(crate) fn say(&mut self, text: &str, object: &Value) {
        self.close();
        match self.reader {
            Reader::Program => put(&format!("{object}\n")),
            _ => put(&format!("{text}\n")),
        }
    }

    /// Ends a line that is being rewritten.
    pub(crate) fn close(&mut self) {
        if std::mem::take(&mut self.open) {
            put("\n");
        }
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        self.close();
    }
}

/// Columns that a line can fill without wrapping: a wrapped line could not be rewritten.
fn width() -> usize {
    let columns = rustix::termios::tcgetwinsize(std::io::stdout()).map_or(0, |size| size.ws_col);
    if columns == 0 { 79 } else { usize::from(columns) - 1 }
}

fn put(text: &str) {
    let mut out = std::io::stdout().lock();
    let _reader_left = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn active() -> Value {
        json!({"status": "active", "expected-downtime": 12, "ram": {
            "transferred": 812 << 20, "remaining": 90 << 20, "mbps": 1258.2912, "dirty-pages-rate": 15_360,
            "page-size": 4096, "dirty-sync-count": 3}})
    }

    #[test]
    fn the_line_names_rates_pass_downtime_and_eta() {
        let figures = Figures::of(&active()).unwrap();
        assert_eq!(
            figures.line(),
            "active     pass  3  sent    812 MiB  left     90 MiB     150 MiB/s  dirty    60 MiB/s  downtime   12 ms  ETA 1 s"
        );
        assert_eq!(figures.eta(), Some(Duration::from_secs(1)), "90 MiB at 150 − 60 MiB/s");
    }

    #[test]
    fn there_is_no_eta_while_the_guest_dirties_memory_as_fast_as_it_is_sent() {
        let mut info = active();
        info["ram"]["dirty-pages-rate"] = json!(38_400);
        let figures = Figures::of(&info).unwrap();
        assert_eq!(figures.eta(), None);
        assert!(figures.line().ends_with("ETA -"), "{}", figures.line());
        assert_eq!(figures.json()["eta-ms"], Value::Null);
    }

    #[test]
    fn members_that_a_version_does_not_have_are_left_out_not_invented() {
        let mut info = active();
        info.as_object_mut().unwrap().remove("expected-downtime");
        assert!(Figures::of(&info).unwrap().line().contains("downtime       -"));
        assert_eq!(Figures::of(&json!({"status": "setup"})), None);
    }

    #[test]
    fn programs_get_bytes_and_milliseconds() {
        let json = Figures::of(&active()).unwrap().json();
        assert_eq!(json["event"], "progress");
        assert_eq!(json["bytes-per-second"], 157_286_400);
        assert_eq!(json["eta-ms"], 1000);
    }

    #[test]
    fn a_guess_has_two_digits() {
        for (millis, text) in
            [(0, "0.0 s"), (340, "0.3 s"), (960, "1 s"), (59_600, "60 s"), (150_000, "3 min")]
        {
            assert_eq!(rough(Duration::from_millis(millis)), text);
        }
        assert_eq!(rough(Duration::from_secs(7200)), "2 h");
    }
}
