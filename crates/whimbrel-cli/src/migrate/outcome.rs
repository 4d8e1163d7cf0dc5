//! What became of a move: decided from what both ends say, told to a person, to a program and by the exit code.
//!
//! | source says | destination, if asked | outcome | exit code |
//! |---|---|---|---|
//! | `completed` | runs, or is stopped as the guest was; not asked | moved | 0 |
//! | `completed` | still awaits the guest, or is gone | unknown | 3 |
//! | `failed`, `cancelled` | awaits, or is gone; not asked | failed; cancelled if Ctrl-C asked for it | 1; 130 |
//! | `failed`, `cancelled` | has left `inmigrate`: it has taken the guest | unknown | 3 |
//! | `failed`, `outcome unknown: …` | whatever | unknown | 3 |
//! | nothing any more | whatever | unknown | 3 |
//! | nothing was begun | | failed; cancelled | 1; 130 |

use serde_json::{Value, json};

use crate::monitor::AWAITS;
use crate::progress::mib;

/// For `--help`.
pub(super) const EXIT_CODES: &str = "\
Exit codes:
    0  moved: the destination has the guest
    1  failed: the guest is at the source, as before
    2  the command line is wrong; nothing was done
    3  outcome unknown: look at both ends before starting the guest at either
  130  cancelled by Ctrl-C: the guest is at the source, as before";

/// How the source's `error-desc` begins when only an operator can tell where the guest is.
const UNKNOWN: &str = "outcome unknown:";

/// What became of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    Moved,
    Failed,
    Unknown,
    Cancelled,
}

impl Outcome {
    pub(super) fn exit_code(self) -> u8 {
        match self {
            Self::Moved => 0,
            Self::Failed => 1,
            Self::Unknown => 3,
            Self::Cancelled => 130,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Moved => "moved",
            Self::Failed => "failed",
            Self::Unknown => "unknown",
            Self::Cancelled => "cancelled",
        }
    }
}

/// The last that was heard of one end.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Side {
    /// `None` if its monitor does not answer any more.
    pub(super) run_state: Option<String>,
    /// What it says went wrong, or why it does not answer.
    pub(super) error: Option<String>,
}

impl Side {
    fn state(&self) -> &str {
        self.run_state.as_deref().unwrap_or("gone")
    }

    fn json(&self) -> Value {
        json!({ "run-state": self.run_state, "error": self.error })
    }
}

/// Everything known at the end of a move.
#[derive(Debug, Default)]
pub(super) struct End {
    /// `migrate` was accepted. If not, the guest was never touched.
    pub(super) begun: bool,
    /// It went into a file.
    pub(super) saved: bool,
    /// Ctrl-C was pressed.
    pub(super) interrupted: bool,
    /// Why it was not begun, or not followed to its end.
    pub(super) trouble: Option<String>,
    /// The source's last `query-migrate`; null if it never answered.
    pub(super) migration: Value,
    pub(super) source: Side,
    /// `None` if nobody asked it.
    pub(super) destination: Option<Side>,
}

impl End {
    /// See the table above.
    pub(super) fn outcome(&self) -> Outcome {
        let kept = if self.interrupted { Outcome::Cancelled } else { Outcome::Failed };
        if !self.begun {
            return kept;
        }
        let destination = self.destination.as_ref().map(|side| side.run_state.as_deref());
        let not_taken = matches!(destination, None | Some(None | Some(AWAITS)));
        let unknown = self.source.error.as_deref().is_some_and(|error| error.starts_with(UNKNOWN));
        match self.migration["status"].as_str() {
            _ if self.source.run_state.is_none() || unknown => Outcome::Unknown,
            Some("completed") if destination.is_none() || !not_taken => Outcome::Moved,
            Some("cancelled") if not_taken => kept,
            Some("failed") if not_taken => Outcome::Failed,
            _ => Outcome::Unknown,
        }
    }

    /// For a person: what happened, both ends, and what to do.
    pub(super) fn text(&self) -> String {
        let mut lines = vec![match self.outcome() {
            Outcome::Moved if self.saved => format!("saved{}", self.figures()),
            Outcome::Moved => format!("moved{}", self.figures()),
            Outcome::Failed if !self.begun => "not begun: nothing was changed at the guest".to_owned(),
            Outcome::Failed if self.migration["status"] == "cancelled" => {
                "cancelled, not from here: the guest is at the source".to_owned()
            }
            Outcome::Failed => "failed: the guest is at the source".to_owned(),
            Outcome::Cancelled => "cancelled: the guest is at the source".to_owned(),
            Outcome::Unknown => {
                "OUTCOME UNKNOWN: look at both ends before you start the guest at either".to_owned()
            }
        }];
        lines.extend(self.trouble.as_ref().map(|trouble| format!("  {trouble}")));
        let sides = [("source", Some(&self.source)), ("destination", self.destination.as_ref())];
        for (name, side) in sides {
            let Some(side) = side.filter(|side| **side != Side::default()) else { continue };
            let error = side.error.as_ref().map_or(String::new(), |error| format!(": {error}"));
            lines.push(format!("  {:<13}{}{error}", format!("{name}:"), side.state()));
        }
        let runs =
            |side: Option<&Side>| side.is_some_and(|side| side.run_state.as_deref() == Some("running"));
        if runs(Some(&self.source)) && runs(self.destination.as_ref()) {
            lines.push("  BOTH RUN: `whimbrel quit` one of them at once".into());
        } else if self.outcome() == Outcome::Unknown {
            lines.push("  the destination has the guest: `whimbrel quit` the source".into());
            lines.push(
                "  the destination is certainly dead: `whimbrel cont --destination-is-dead` the source"
                    .into(),
            );
        }
        lines.join("\n")
    }

    /// For a program.
    pub(super) fn json(&self) -> Value {
        let outcome = self.outcome();
        json!({
            "event": "end",
            "outcome": outcome.name(),
            "exit-code": outcome.exit_code(),
            "error": self.trouble,
            "source": self.source.json(),
            "destination": self.destination.as_ref().map(Side::json),
            "migration": self.migration,
        })
    }

    /// Time, passes, bytes and downtime, as far as the source tells them.
    fn figures(&self) -> String {
        let info = &self.migration;
        let mut parts = Vec::new();
        if let Some(passes) = info["ram"]["dirty-sync-count"].as_u64() {
            parts.push(format!("{passes} passes"));
        }
        if let Some(bytes) = info["ram"]["transferred"].as_u64() {
            parts.push(format!("{} MiB", mib(bytes as f64)));
        }
        if let Some(downtime) = info["downtime"].as_u64() {
            parts.push(format!("downtime {downtime} ms"));
        }
        if info["whimbrel"]["fenced"] == false && !self.saved {
            parts.push("not confirmed by the destination".into());
        }
        let time = info["total-time"].as_f64().map_or(String::new(), |ms| format!(" in {:.1} s", ms / 1e3));
        if parts.is_empty() { time } else { format!("{time}: {}", parts.join(", ")) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn side(run_state: &str) -> Side {
        Side { run_state: Some(run_state.into()), error: None }
    }

    fn gone() -> Side {
        Side { run_state: None, error: Some("closed the connection".into()) }
    }

    fn end(status: &str, source: Side, destination: Option<Side>) -> End {
        End { begun: true, migration: json!({ "status": status }), source, destination, ..End::default() }
    }

    fn code(end: &End) -> u8 {
        end.outcome().exit_code()
    }

    #[test]
    fn every_row_of_the_table_has_its_exit_code() {
        let unknown = Side { error: Some("outcome unknown: tcp:h:1: reset".into()), ..side("postmigrate") };
        for (status, source, destination, expected) in [
            ("completed", side("postmigrate"), None, 0),
            ("completed", side("postmigrate"), Some(side("running")), 0),
            ("completed", side("postmigrate"), Some(side("paused")), 0),
            ("completed", side("postmigrate"), Some(side("inmigrate")), 3),
            ("completed", side("postmigrate"), Some(gone()), 3),
            ("failed", side("running"), None, 1),
            ("failed", side("running"), Some(gone()), 1),
            ("failed", side("paused"), Some(side("inmigrate")), 1),
            ("failed", side("running"), Some(side("running")), 3),
            ("cancelled", side("running"), Some(side("running")), 3),
            ("failed", unknown.clone(), None, 3),
            ("failed", unknown, Some(gone()), 3),
            ("active", gone(), Some(side("inmigrate")), 3),
            ("active", side("running"), None, 3),
        ] {
            let end = end(status, source, destination);
            assert_eq!(code(&end), expected, "{end:?}");
        }
    }

    #[test]
    fn cancelled_is_what_ctrl_c_did_and_nothing_else() {
        let mut cancelled = end("cancelled", side("running"), None);
        assert_eq!(code(&cancelled), 1, "somebody else did it");
        cancelled.interrupted = true;
        assert_eq!(code(&cancelled), 130);
        let too_late = End { interrupted: true, ..end("completed", side("postmigrate"), None) };
        assert_eq!(code(&too_late), 0, "the move was over before");
        let failed = End { interrupted: true, ..end("failed", side("running"), None) };
        assert_eq!(code(&failed), 1);
    }

    #[test]
    fn what_was_never_begun_left_the_guest_alone() {
        assert_eq!(code(&End { trouble: Some("nobody there".into()), ..End::default() }), 1);
        assert_eq!(code(&End { interrupted: true, ..End::default() }), 130);
    }

    #[test]
    fn a_person_reads_both_ends_states_and_errors() {
        let refused = Side { error: Some("Size mismatch: ram".into()), ..side("inmigrate") };
        let failed = end(
            "failed",
            Side { error: Some("Sibling indicated error 1".into()), ..side("running") },
            Some(refused),
        );
        assert_eq!(
            failed.text(),
            "failed: the guest is at the source\n  source:      running: Sibling indicated error 1\n  \
             destination: inmigrate: Size mismatch: ram"
        );
        assert!(end("active", gone(), None).text().starts_with("OUTCOME UNKNOWN"));
    }

    #[test]
    fn two_that_run_are_told_first_of_all() {
        let both = end("failed", side("running"), Some(side("running"))).text();
        assert!(both.contains("BOTH RUN") && !both.contains("certainly dead"), "{both}");
        let one = end("failed", side("running"), Some(side("paused"))).text();
        assert!(one.contains("certainly dead") && !one.contains("BOTH RUN"), "{one}");
    }

    #[test]
    fn the_figures_shown_are_those_the_source_tells() {
        let mut moved = end("completed", side("postmigrate"), None);
        assert!(moved.text().starts_with("moved\n"), "{}", moved.text());
        moved.migration = json!({"status": "completed", "total-time": 2310, "downtime": 12,
            "ram": {"dirty-sync-count": 4, "transferred": (812 << 20) - 1}});
        assert!(
            moved.text().starts_with("moved in 2.3 s: 4 passes, 812 MiB, downtime 12 ms\n"),
            "{}",
            moved.text()
        );
    }

    #[test]
    fn a_program_reads_outcome_and_exit_code() {
        let json = end("completed", side("postmigrate"), Some(side("running"))).json();
        assert_eq!(
            (&json["event"], &json["outcome"], &json["exit-code"]),
            (&json!("end"), &json!("moved"), &json!(0))
        );
        assert_eq!(json["destination"]["run-state"], "running");
    }
}
