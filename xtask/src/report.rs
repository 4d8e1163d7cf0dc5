//! The end of a test run: a row a tier, what failed, what was skipped and how to get it, and one closing line of the
//! kind that cargo's own test runner prints, summed over all tiers.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::Duration;

use crate::runner::Tally;

/// What one tier did.
pub(crate) struct Row {
    pub(crate) tier: &'static str,
    pub(crate) tally: Tally,
    pub(crate) took: Duration,
}

/// Whether the run is good: nothing failed, and nothing was skipped that may not be.
pub(crate) fn good(rows: &[Row], no_skips: bool) -> bool {
    rows.iter().all(|row| row.tally.failures.is_empty() && row.tally.failed == 0)
        && !(no_skips && rows.iter().any(|row| !row.tally.skipped.is_empty()))
}

/// The whole report. Its last line is the closing line.
pub(crate) fn text(rows: &[Row], no_skips: bool) -> String {
    let mut text =
        format!("\n{:<9}{:>6}{:>8}{:>9}{:>9}{:>9}\n", "tier", "run", "failed", "skipped", "ignored", "time");
    let mut sum = Tally::default();
    let mut took = Duration::ZERO;
    for row in rows {
        let tally = &row.tally;
        let skipped = (tally.skipped.len() + tally.optional.len()) as u64;
        let run = (tally.passed + tally.failed).saturating_sub(skipped);
        let seconds = format!("{:.0} s", row.took.as_secs_f64());
        writeln!(
            text,
            "{:<9}{run:>6}{:>8}{skipped:>9}{:>9}{seconds:>9}",
            row.tier, tally.failed, tally.ignored
        )
        .expect("a string takes it");
        // A skipped test returned early, so cargo has counted it as passed; it is none, and the sum says so.
        sum.passed += tally.passed.saturating_sub(skipped);
        sum.failed += tally.failed;
        sum.ignored += tally.ignored + skipped;
        took += row.took;
    }
    text.push('\n');
    for row in rows {
        for failure in &row.tally.failures {
            writeln!(text, "failed: {}: {failure}", row.tier).expect("a string takes it");
        }
    }
    for row in rows {
        for (what, skips) in [("skipped", &row.tally.skipped), ("skipped, optional", &row.tally.optional)] {
            let mut reasons: BTreeMap<&str, u64> = BTreeMap::new();
            for (_, reason) in skips {
                *reasons.entry(reason).or_default() += 1;
            }
            for (reason, count) in reasons {
                let tests = if count == 1 { "test" } else { "tests" };
                writeln!(text, "{what}: {} ({count} {tests}): {reason}", row.tier)
                    .expect("a string takes it");
            }
        }
    }
    if rows.iter().all(|row| row.tally.skipped.is_empty() && row.tally.optional.is_empty()) {
        text.push_str("skipped: nothing\n");
    }
    let verdict = if good(rows, no_skips) { "ok" } else { "FAILED" };
    write!(
        text,
        "\ntest result: {verdict}. {} passed; {} failed; {} ignored; 0 measured; 0 filtered out; finished in {:.2}s",
        sum.passed,
        sum.failed,
        sum.ignored,
        took.as_secs_f64()
    )
    .expect("a string takes it");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(tier: &'static str, passed: u64, skipped: u64) -> Row {
        let skip = |number| (format!("test{number}"), "no qemu; get it: apt-get install qemu".to_owned());
        let tally = Tally { passed, skipped: (0..skipped).map(skip).collect(), ..Tally::default() };
        Row { tier, tally, took: Duration::from_millis(1500) }
    }

    #[test]
    fn skipped_tests_are_not_counted_as_passed() {
        let text = text(&[row("unit", 10, 0), row("interop", 7, 7)], false);
        let closing =
            "test result: ok. 10 passed; 0 failed; 7 ignored; 0 measured; 0 filtered out; finished in 3.00s";
        assert_eq!(text.lines().last(), Some(closing));
        assert!(
            text.contains("skipped: interop (7 tests): no qemu; get it: apt-get install qemu\n"),
            "{text}"
        );
    }

    #[test]
    fn a_skip_is_a_failure_where_none_is_allowed() {
        let rows = [row("interop", 1, 1)];
        assert!(good(&rows, false));
        assert!(!good(&rows, true));
        assert!(
            text(&rows, true).lines().last().is_some_and(|line| line.starts_with("test result: FAILED."))
        );
    }

    #[test]
    fn what_no_machine_must_have_may_be_skipped_and_is_told() {
        let mut rows = [row("engine", 3, 0)];
        rows[0].tally.optional.push(("one".to_owned(), "no vsock".to_owned()));
        assert!(good(&rows, true));
        let text = text(&rows, true);
        assert!(text.contains("skipped, optional: engine (1 test): no vsock\n"), "{text}");
        assert!(text.contains("test result: ok. 2 passed; 0 failed; 1 ignored;"), "{text}");
    }

    #[test]
    fn a_failed_command_fails_the_run_though_every_test_passed() {
        let mut rows = [row("lint", 0, 0)];
        rows[0].tally.failures.push("cargo fmt".to_owned());
        assert!(!good(&rows, false));
        assert!(text(&rows, false).contains("failed: lint: cargo fmt\n"));
    }
}
