//! `cargo xtask soak NAME`: an end-to-end test that CI runs a few rounds of, many times over, on release builds.

use std::process::Command;

use crate::runner;

/// A test of `whimbrel-e2e` that goes by rounds.
struct Soak {
    name: &'static str,
    about: &'static str,
    /// Rounds if the user says nothing.
    rounds: &'static str,
    /// The test's binary, and what its name begins with.
    binary: &'static str,
    test: &'static str,
}

const SOAKS: &[Soak] = &[
    Soak {
        name: "moves",
        about: "consecutive live moves under load between fresh whimbrel processes",
        rounds: "200",
        binary: "kvm",
        test: "soak_moves",
    },
    Soak {
        name: "hops",
        about: "one guest, never restarted, QEMU 7.2 → whimbrel → QEMU 10.0 → whimbrel → whimbrel → QEMU 7.2, each round",
        rounds: "20",
        binary: "interop",
        test: "soak_hops",
    },
    Soak {
        name: "cuts",
        about: "the link cut at every boundary of moves between whimbrel and QEMU, both ways; each round all of them",
        rounds: "1",
        binary: "interop",
        test: "soak_cuts",
    },
    Soak {
        name: "its",
        about: "an aarch64 guest moved in an emulated host while MSIs come, its writes tracked by the dirty ring: each arrives once",
        rounds: "20",
        binary: "nested",
        test: "its::every_msi_arrives_exactly_once",
    },
    Soak {
        name: "linux",
        about: "Linux in L1, of the kinds and on the machines that CI leaves out; each moved so often in a row; and a counter left behind",
        rounds: "2",
        binary: "nested",
        test: "soak::",
    },
];

/// Runs the soak of that name, for its usual number of rounds or as many as said.
///
/// # Errors
/// If there is none of that name, the number is none, or a round failed.
pub(crate) fn run(arguments: &[&str]) -> Result<(), String> {
    let (name, rounds) = match arguments {
        [name] => (*name, None),
        [name, "--rounds", rounds] => (*name, Some(*rounds)),
        _ => return Err(format!("usage: cargo xtask soak NAME [--rounds N]\n{}", list())),
    };
    let soak = SOAKS.iter().find(|soak| soak.name == name);
    let soak = soak.ok_or_else(|| format!("no soak {name}; there are\n{}", list()))?;
    let rounds = rounds.unwrap_or(soak.rounds);
    rounds.parse::<u32>().map_err(|_| format!("not a number of rounds: {rounds}"))?;
    release(soak.binary, soak.test, &[("WHIMBREL_ROUNDS", rounds)])
}

/// Every line of the table of moves to and from QEMU, printed as docs/protocol.md has it.
///
/// # Errors
/// If one failed.
pub(crate) fn matrix() -> Result<(), String> {
    release("interop", "matrix::", &[("WHIMBREL_MATRIX", "all")])
}

/// Runs end-to-end tests, one at a time, on release builds.
fn release(binary: &str, test: &str, variables: &[(&str, &str)]) -> Result<(), String> {
    let mut command = Command::new(env!("CARGO"));
    command
        .args(["test", "--release", "--package", "whimbrel-e2e", "--test", binary, test, "--"])
        .args(["--nocapture", "--test-threads=1"])
        .envs(variables.iter().copied())
        .env("WHIMBREL_NO_SKIP", "1");
    let tally = runner::run(&mut command);
    match (tally.failures.as_slice(), tally.passed) {
        ([], 1..) => Ok(()),
        ([], 0) => Err("there is no test of that name".to_owned()),
        (failures, _) => Err(format!("failed: {}", failures.join(", "))),
    }
}

/// Their names and subjects, a line each.
pub(crate) fn list() -> String {
    SOAKS.iter().map(|soak| format!("  {:<8} {} (× {})\n", soak.name, soak.about, soak.rounds)).collect()
}
