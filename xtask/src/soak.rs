//! `cargo xtask soak moves`: the move under load of the end-to-end tests, many times over, on release builds.

use std::process::Command;

use crate::runner;

/// Runs the test `soak_moves` for so many rounds.
///
/// # Errors
/// If the number is none, or a round failed.
pub(crate) fn moves(rounds: &str) -> Result<(), String> {
    rounds.parse::<u32>().map_err(|_| format!("not a number of rounds: {rounds}"))?;
    let mut command = Command::new(env!("CARGO"));
    command
        .args([
            "test",
            "--release",
            "--package",
            "whimbrel-e2e",
            "--test",
            "kvm",
            "soak_moves",
            "--",
            "--nocapture",
        ])
        .env("WHIMBREL_ROUNDS", rounds)
        .env("WHIMBREL_NO_SKIP", "1");
    let tally = runner::run(&mut command);
    match (tally.failures.as_slice(), tally.passed) {
        ([], 1..) => Ok(()),
        ([], 0) => Err("there is no test of that name".to_owned()),
        (failures, _) => Err(format!("failed: {}", failures.join(", "))),
    }
}
