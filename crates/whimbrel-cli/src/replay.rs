//! `whimbrel replay`: sends what `whimbrel relay` recorded to a destination.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use whimbrel::channel::Address;
use whimbrel_relay::replay::{Options, Outcome, replay};

/// For `--help`.
const EXIT_CODES: &str = "\
Exit codes:
    0  the destination says that it took the guest
    1  it did not; or the recording is damaged, or the destination cannot be reached
    3  nobody says: the recorded move had no return path, or the destination left without its last word";

/// Sends a recorded migration to a destination, as its source did.
///
/// The destination must be as the recorded one was. A guest that it runs then is a copy: start it stopped (-S) unless the
/// recorded guest is certainly gone. What was encrypted cannot be replayed.
#[derive(Debug, clap::Args)]
#[command(after_help = EXIT_CODES)]
pub(crate) struct Args {
    /// The file that `whimbrel relay --record` wrote.
    recording: PathBuf,

    /// Where the destination listens: tcp:HOST:PORT, unix:PATH, vsock:CID:PORT.
    #[arg(value_name = "URI", value_parser = whimbrel_relay::address)]
    to: Address,

    /// Everything at the time at which it was recorded; else as fast as it goes.
    #[arg(long)]
    timing: bool,

    /// How long the destination may take to read on, and for its last word, seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    wait: u32,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let options = Options { timing: args.timing, wait: Duration::from_secs(args.wait.max(1).into()) };
    let replayed = replay(&args.recording, &args.to, &options)?;
    if replayed.breaks_off {
        println!("the recording breaks off: its relay was ended before the move was");
    }
    let connections = if replayed.connections == 1 { "connection" } else { "connections" };
    println!(
        "sent {} of {} bytes over {} {connections}",
        replayed.sent, replayed.recorded, replayed.connections
    );
    let (text, code) = match replayed.outcome {
        Outcome::Taken => ("taken: the destination has the guest".to_owned(), 0),
        Outcome::Refused(why) => (format!("not taken: {why}"), 1),
        Outcome::Unknown(why) => (format!("unknown: {why}"), 3),
    };
    println!("{text}");
    Ok(ExitCode::from(code))
}
