//! `whimbrel man`: manual pages, from the definitions that parse the command line.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;

/// Writes manual pages, one for each subcommand, into a directory.
///
/// Example: whimbrel man /usr/local/share/man/man1
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The directory; it is created if it is not there.
    dir: PathBuf,
}

pub(crate) fn run(args: &Args, command: clap::Command) -> anyhow::Result<ExitCode> {
    let write = || {
        std::fs::create_dir_all(&args.dir)?;
        clap_mangen::generate_to(command, &args.dir)
    };
    write().with_context(|| format!("cannot write manual pages into '{}'", args.dir.display()))?;
    Ok(ExitCode::SUCCESS)
}
