//! The repository's chores, as `cargo xtask …`: its tests by tier, what they need fetched, soaks. It builds nothing that
//! is shipped, and whimbrel never calls it.

mod cross;
mod dependencies;
mod fetch;
mod licence;
mod report;
mod runner;
mod soak;
mod test;
mod tiers;

use std::process::ExitCode;

const USAGE: &str = "\
usage: cargo xtask test [--no-skips] [TIER…]     run the tests, all tiers or some; ends with what was skipped and how to get it
                                                 --no-skips: a skipped test is a failure
       cargo xtask fetch qemu10                  unpack QEMU 10.0 of Debian's backports beside the system's own
       cargo xtask fetch qemu-qmp                QEMU's own QMP client of PyPI, in a Python environment of its own
       cargo xtask fetch nested [x86|arm]        kernels, busybox and a Rust compiler, for Linux in Linux and for aarch64
       cargo xtask cross aarch64|x86_64 CARGO…   cargo with these words, for static programs of that architecture
       cargo xtask soak NAME [--rounds N]        what CI does a few rounds of, many times over
       cargo xtask matrix                        every combination of machine, RAM, vCPUs, QEMU version and direction, as a table
       cargo xtask dependencies                  check licences, versions and sources of every dependency

what is fetched is kept in $WHIMBREL_CACHE, by default ~/.cache/whimbrel";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let outcome = match words.as_slice() {
        ["test", rest @ ..] => test::run(rest),
        ["fetch", "qemu10"] => fetch::qemu10(),
        ["fetch", "qemu-qmp"] => fetch::qemu_qmp(),
        ["fetch", "nested"] => fetch::nested(None),
        ["fetch", "nested", wanted @ ("x86" | "arm")] => fetch::nested(Some(wanted)),
        ["cross", architecture, words @ ..] => cross::run(architecture, words),
        ["soak", rest @ ..] => soak::run(rest),
        ["matrix"] => soak::matrix(),
        ["dependencies"] => dependencies::check(),
        ["help" | "--help" | "-h"] => {
            println!("{}", help());
            Ok(())
        }
        _ => Err(help()),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(reason) => {
            // Nothing after the closing line of a test run: it says enough.
            if !reason.is_empty() {
                eprintln!("{reason}");
            }
            ExitCode::FAILURE
        }
    }
}

fn help() -> String {
    format!("{USAGE}\n\ntiers:\n{}\nsoaks:\n{}", tiers::list(), soak::list())
}
