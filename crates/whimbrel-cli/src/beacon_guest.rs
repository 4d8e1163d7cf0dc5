//! `whimbrel beacon`: the test guest in this binary, and the host's check of its memory.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, anyhow};
use beacon::check::{Report, check};
use beacon::{DumpFile, NATIVE};

/// The test guest: writes its image to a file, or checks a dump of its memory.
///
/// The guest boots here (`whimbrel run --kernel @beacon`) and in QEMU (`-M microvm -kernel beacon`, on aarch64 `-M virt`). A page's
/// content is a function of its number and generation, so that a dump (QMP `pmemsave` of a stopped guest) proves itself.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// Writes the guest's image.
    Write {
        /// Where to.
        path: PathBuf,
    },
    /// Recomputes every page of a memory dump.
    Check {
        /// What `pmemsave` wrote.
        dump: PathBuf,
        /// The guest-physical address at which the dump begins. RAM begins at 1073741824 on aarch64.
        #[arg(long, value_name = "ADDRESS", default_value_t = 0)]
        from: u64,
    },
}

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    match &args.action {
        Action::Write { path } => {
            std::fs::write(path, image()?).with_context(|| format!("cannot write '{}'", path.display()))?;
            Ok(ExitCode::SUCCESS)
        }
        Action::Check { dump, from } => {
            let report = verify(dump, *from)?;
            println!("{} pages verified, {} mismatches", report.pages_verified, report.mismatch_count);
            for line in findings(&report) {
                println!("{line}");
            }
            Ok(if report.is_clean() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }
    }
}

/// The guest's image, or why there is none and what to do.
pub(crate) fn image() -> anyhow::Result<&'static [u8]> {
    NATIVE.map_err(|reason| anyhow!("the test guest is not in this binary: {reason}"))
}

/// Recomputes the guest's memory from a dump that begins at guest-physical address `from`.
pub(crate) fn verify(dump: &std::path::Path, from: u64) -> anyhow::Result<Report> {
    let file = std::fs::File::open(dump).with_context(|| format!("cannot open '{}'", dump.display()))?;
    Ok(check(&DumpFile::new(file, from))?)
}

/// What the guest and the host found wrong, a line each.
pub(crate) fn findings(report: &Report) -> Vec<String> {
    let host = report.mismatches.iter().map(|mismatch| format!("host's check: {mismatch}"));
    let faults = report.control.vcpus.iter().enumerate();
    let guest = faults.flat_map(|(index, vcpu)| {
        vcpu.first_faults.iter().map(move |fault| format!("guest, vCPU {index}: {fault:?}"))
    });
    host.chain(guest).take(20).collect()
}
