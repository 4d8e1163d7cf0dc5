//! `cargo xtask test`: the tiers, one after another, to the end whatever fails.

use std::process::Command;
use std::time::Instant;

use crate::cross;
use crate::report::{self, Row};
use crate::runner::{self, Tally};
use crate::tiers::{self, LeftOut, Step, TIERS, Tier};

/// Runs the tiers that are named, or all.
///
/// # Errors
/// What is wrong with the arguments; or nothing, if a test failed: the report has said it.
pub(crate) fn run(arguments: &[&str]) -> Result<(), String> {
    let (flags, names): (Vec<&str>, Vec<&str>) = arguments.iter().partition(|word| word.starts_with("--"));
    if let Some(unknown) = flags.iter().find(|flag| **flag != "--no-skips") {
        return Err(format!("no option {unknown}; there is --no-skips"));
    }
    if let Some(unknown) = names.iter().find(|name| TIERS.iter().all(|tier| tier.name != **name)) {
        return Err(format!("no tier {unknown}; there are\n{}", tiers::list()));
    }
    let no_skips = !flags.is_empty();
    let chosen = TIERS.iter().filter(|tier| names.is_empty() || names.contains(&tier.name));
    let rows: Vec<Row> = chosen.map(|tier| run_tier(tier, no_skips)).collect();
    println!("{}", report::text(&rows, no_skips));
    if report::good(&rows, no_skips) { Ok(()) } else { Err(String::new()) }
}

fn run_tier(tier: &Tier, no_skips: bool) -> Row {
    println!("\n== {}: {}", tier.name, tier.about);
    let start = Instant::now();
    let mut tally = Tally::default();
    for step in tier.steps {
        tally.add(run_step(step, no_skips));
    }
    Row { tier: tier.name, tally, took: start.elapsed() }
}

fn run_step(step: &Step, no_skips: bool) -> Tally {
    match step {
        Step::Cargo(words) => cargo(Command::new(env!("CARGO")), words, no_skips),
        Step::Aarch64(words) => aarch64(words, no_skips),
        Step::Emulated(words, left_out) => {
            let skips: String = left_out.iter().map(|tests| format!(" --skip {}", tests.name)).collect();
            // One at a time: in the emulator a process may hang that starts another while its threads are busy.
            let mut tally = aarch64(&format!("{words} -- --test-threads=1{skips}"), no_skips);
            tally.add(announced(left_out));
            tally
        }
        Step::Check(name, check) => {
            println!("\n$ cargo xtask {name}");
            let mut tally = Tally::default();
            if let Err(reason) = check() {
                println!("{reason}");
                tally.failures.push((*name).to_owned());
            }
            tally
        }
    }
}

fn aarch64(words: &str, no_skips: bool) -> Tally {
    match cross::cargo("aarch64") {
        Ok(command) => cargo(command, words, no_skips),
        Err(missing) => missing_compiler(missing, no_skips),
    }
}

/// What a step leaves out is counted and named as a test is that skips itself, and allowed: it runs elsewhere.
fn announced(left_out: &[LeftOut]) -> Tally {
    let mut tally = Tally::default();
    for LeftOut { name, why } in left_out {
        println!("left out: {name}: {why}");
        // A skipped test has been counted as passed by its runner: so are these.
        tally.passed += 1;
        tally.optional.push(((*name).to_owned(), format!("{name}: {why}")));
    }
    tally
}

fn cargo(mut command: Command, words: &str, no_skips: bool) -> Tally {
    command.args(words.split(' '));
    if words.starts_with("doc ") {
        command.env("RUSTDOCFLAGS", "-D warnings");
    }
    if no_skips {
        command.env("WHIMBREL_NO_SKIP", "1");
    }
    runner::run(&mut command)
}

/// A whole step that cannot run is skipped by name, as a test would be.
fn missing_compiler(reason: String, no_skips: bool) -> Tally {
    println!("{reason}");
    let mut tally = Tally::default();
    if no_skips {
        tally.failures.push(reason);
    } else {
        // A skipped test has been counted as passed by its runner: so is this one.
        tally.passed = 1;
        tally.skipped.push(("aarch64".to_owned(), reason));
    }
    tally
}
