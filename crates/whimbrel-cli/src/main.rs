//! The `whimbrel` command: thin. It reads arguments, puts the crates together and prints for people.

mod backend;
mod beacon_guest;
mod demo;
mod run;
mod without_kvm;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use tracing_subscriber::EnvFilter;

/// Moves running KVM virtual machines between hosts.
///
/// Start with `whimbrel demo`: it boots a guest, moves it live between two processes over TCP while it works, and proves
/// that nothing was lost.
#[derive(Debug, Parser)]
#[command(version, propagate_version = true, max_term_width = 110)]
struct Cli {
    #[command(subcommand)]
    command: Command,

    /// Log more: -v what is decided, -vv every event, -vvv every action. RUST_LOG overrides it.
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    verbose: u8,
}

#[derive(Debug, Subcommand)]
enum Command {
    Run(Box<run::Args>),
    Demo(demo::Args),
    Beacon(beacon_guest::Args),
    #[command(hide = true)]
    WithoutKvm(without_kvm::Args),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    log_to_stderr(cli.verbose);
    let result = match cli.command {
        Command::Run(args) => run::run(&args),
        Command::Demo(args) => demo::demo(&args),
        Command::Beacon(args) => beacon_guest::run(&args),
        Command::WithoutKvm(args) => Ok(without_kvm::run(&args)),
    };
    result.unwrap_or_else(|error| {
        eprintln!("whimbrel: {error:#}");
        ExitCode::FAILURE
    })
}

fn log_to_stderr(verbose: u8) {
    let default = match verbose {
        0 => "warn",
        1 => "info",
        2 => "debug",
        _ => "trace",
    };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(default));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
}
