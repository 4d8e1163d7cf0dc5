//! `whimbrel stop`, `cont`, `quit`: one command to one machine, and what it is then.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::bail;
use serde_json::Value;
use whimbrel_qmp::{Endpoint, QmpError};

use crate::monitor::{Monitor, PATIENCE};

/// How long a machine may take to end after `quit`.
const ENDS: Duration = Duration::from_secs(30);

/// Stops a machine's guest.
#[derive(Debug, clap::Args)]
pub(crate) struct Stop {
    /// The machine's monitor: unix:PATH, a path, or tcp:HOST:PORT.
    qmp: Endpoint,
}

/// Lets a machine's guest run on.
///
/// A guest that was handed over to another machine (run state `postmigrate`) is started only with --destination-is-dead:
/// two copies that run corrupt what both write to.
#[derive(Debug, clap::Args)]
pub(crate) struct Cont {
    /// The machine's monitor: unix:PATH, a path, or tcp:HOST:PORT.
    qmp: Endpoint,

    /// You know that no other machine has the guest, and none will.
    #[arg(long)]
    destination_is_dead: bool,
}

/// Ends a machine, and waits until it has ended.
#[derive(Debug, clap::Args)]
pub(crate) struct Quit {
    /// The machine's monitor: unix:PATH, a path, or tcp:HOST:PORT.
    qmp: Endpoint,
}

pub(crate) fn stop(args: &Stop) -> anyhow::Result<ExitCode> {
    execute(&mut Monitor::connect(&args.qmp, PATIENCE)?, "stop")
}

pub(crate) fn cont(args: &Cont) -> anyhow::Result<ExitCode> {
    let mut monitor = Monitor::connect(&args.qmp, PATIENCE)?;
    if monitor.run_state()? == "postmigrate" && !args.destination_is_dead {
        bail!(
            "{}: its guest was handed over (run state 'postmigrate'); if no other machine has it, say --destination-is-dead",
            args.qmp
        );
    }
    execute(&mut monitor, "cont")
}

pub(crate) fn quit(args: &Quit) -> anyhow::Result<ExitCode> {
    let mut monitor = Monitor::connect(&args.qmp, PATIENCE)?;
    match monitor.execute("quit", Value::Null) {
        Ok(_) | Err(QmpError::Closed { .. }) => {}
        Err(error) => return Err(error.into()),
    }
    let deadline = Instant::now() + ENDS;
    while Instant::now() < deadline {
        // The connection ends with the machine.
        if monitor.next_event(Duration::from_millis(100)).is_err() {
            return Ok(ExitCode::SUCCESS);
        }
    }
    bail!("{}: it was told to end, and has not after {} s", args.qmp, ENDS.as_secs())
}

/// Executes a command without arguments and prints the run state after it.
fn execute(monitor: &mut Monitor, command: &str) -> anyhow::Result<ExitCode> {
    monitor.execute(command, Value::Null)?;
    println!("{}", monitor.run_state()?);
    Ok(ExitCode::SUCCESS)
}
