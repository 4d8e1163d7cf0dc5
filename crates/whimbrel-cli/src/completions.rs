//! `whimbrel completions`: what a shell needs to complete this command, from the definitions that parse it.

use std::io::Write;
use std::process::ExitCode;

use anyhow::Context;
use clap_complete::Shell;

/// Writes completions for a shell to standard output.
///
/// Examples:
///   whimbrel completions bash > /etc/bash_completion.d/whimbrel
///   whimbrel completions zsh  > /usr/local/share/zsh/site-functions/_whimbrel
///   whimbrel completions fish > ~/.config/fish/completions/whimbrel.fish
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct Args {
    /// The shell.
    shell: Shell,
}

pub(crate) fn run(args: &Args, mut command: clap::Command) -> anyhow::Result<ExitCode> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut command, "whimbrel", &mut script);
    std::io::stdout().write_all(&script).context("cannot write the completions")?;
    Ok(ExitCode::SUCCESS)
}
