//! The `whimbrel` command: thin. It reads arguments, puts the crates together and prints for people.

mod backend;
mod beacon_guest;
mod completions;
mod control;
mod demo;
mod inspect;
mod interrupt;
mod machine;
mod man;
mod migrate;
mod monitor;
mod progress;
mod prompt;
mod qemu_spelling;
mod relay;
mod replay;
mod run;
mod status;
mod without_kvm;

use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{CommandFactory, Parser, Subcommand};
use tracing_subscriber::EnvFilter;

/// Moves running KVM virtual machines between hosts.
///
/// Start with `whimbrel demo`: it boots a guest, moves it live between two processes over TCP while it works, and proves
/// that nothing was lost. Then `whimbrel run` two machines, and `whimbrel migrate` the guest of one to the other.
#[derive(Debug, Parser)]
#[command(name = "whimbrel", version, propagate_version = true, max_term_width = 110)]
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
    Migrate(migrate::Args),
    Status(status::Args),
    Stop(control::Stop),
    Cont(control::Cont),
    Quit(control::Quit),
    Qmp(prompt::Args),
    Inspect(inspect::Args),
    Relay(relay::Args),
    Replay(replay::Args),
    Demo(demo::Args),
    Beacon(beacon_guest::Args),
    Completions(completions::Args),
    Man(man::Args),
    #[command(hide = true)]
    WithoutKvm(without_kvm::Args),
}

fn main() -> ExitCode {
    let arguments = qemu_spelling::translate(std::env::args_os())
        .unwrap_or_else(|why| Cli::command().error(ErrorKind::InvalidValue, why).exit());
    let cli = Cli::parse_from(arguments);
    log_to_stderr(cli.verbose);
    let result = match cli.command {
        Command::Run(args) => run::run(&args),
        Command::Migrate(args) => migrate::run(&args),
        Command::Status(args) => status::run(&args),
        Command::Stop(args) => control::stop(&args),
        Command::Cont(args) => control::cont(&args),
        Command::Quit(args) => control::quit(&args),
        Command::Qmp(args) => prompt::run(&args),
        Command::Inspect(args) => inspect::run(&args),
        Command::Relay(args) => relay::run(&args),
        Command::Replay(args) => replay::run(&args),
        Command::Demo(args) => demo::demo(&args),
        Command::Beacon(args) => beacon_guest::run(&args),
        Command::Completions(args) => completions::run(&args, Cli::command()),
        Command::Man(args) => man::run(&args, Cli::command()),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definitions_of_every_subcommand_hold_together() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_command_line_of_qemu_is_parsed_as_ours() {
        let machine = if cfg!(target_arch = "aarch64") {
            "virt,gic-version=3,its=on"
        } else {
            "microvm,acpi=off,pic=off,pit=off,rtc=off"
        };
        let line = format!(
            "whimbrel run -M {machine} -accel kvm -nodefaults -display none -m 1G -smp 2 -kernel @beacon -append x=1 \
             -serial none -qmp unix:/q,server=on,wait=off -incoming defer -S -no-reboot"
        );
        let words = qemu_spelling::translate(line.split_whitespace().map(Into::into)).unwrap();
        assert!(matches!(Cli::try_parse_from(words).unwrap().command, Command::Run(_)));
    }
}
