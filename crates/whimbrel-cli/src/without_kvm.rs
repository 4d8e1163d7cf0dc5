//! The demo where there is no KVM: the engine's example machine, whose vCPUs are threads. It is the library's
//! `examples/minimal.rs` to the letter, so that what is shown is what a VMM author reads.

use std::process::ExitCode;

#[path = "../../whimbrel/examples/minimal.rs"]
#[allow(missing_docs, unreachable_pub, reason = "an example, written to be read on its own")]
mod minimal;

/// How the example's second process gets back here.
const COMMAND: &str = "without-kvm";

/// The machine without KVM, for its own use.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The example's own arguments.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    rest: Vec<String>,
}

pub(crate) fn run(args: &Args) -> ExitCode {
    minimal::main_with(&[COMMAND], &args.rest)
}

pub(crate) fn demo() -> ExitCode {
    minimal::main_with(&[COMMAND], &[])
}
