//! The command behind an `exec:` channel: started with one end of a pipe, ended when the migration is given up, reaped always.
//!
//! | the migration | the command |
//! |---|---|
//! | completed | sees the end of its input (or a closed output), and may take its time |
//! | failed or was cancelled | is asked to end (SIGTERM), and killed if it hasn't after [`GRACE`] |
//!
//! Signals go to the command's whole process group: a shell's pipeline ends with its shell. Nobody ever waits for it but a
//! thread of its own.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};
use whimbrel_wire::qemu_texts;

use super::connect::plain;
use crate::descriptors::Access;

/// A command that was asked to end is killed after so long.
const GRACE: Duration = Duration::from_secs(2);
/// How often such a one is looked at.
const LOOK: Duration = Duration::from_millis(20);

/// A running command. Dropping it hands it to a thread that reaps it.
pub(super) struct Process {
    child: Option<Child>,
    name: String,
    given_up: AtomicBool,
}

impl Process {
    /// Starts `arguments[0]`; the pipe's end that is ours.
    ///
    /// # Errors
    /// QEMU's text if it cannot be executed.
    pub(super) fn start(arguments: &[String], access: Access) -> io::Result<(OwnedFd, Self)> {
        let (program, rest) = arguments.split_first().ok_or_else(|| {
            io::Error::new(io::ErrorKind::InvalidInput, "'exec' needs a program to execute")
        })?;
        let (theirs, ours) = match access {
            Access::Read => (Stdio::null(), Stdio::piped()),
            Access::Write => (Stdio::piped(), Stdio::inherit()),
        };
        let started = Command::new(program).args(rest).stdin(theirs).stdout(ours).process_group(0).spawn();
        let mut child = started.map_err(|error| {
            io::Error::new(error.kind(), qemu_texts::execute_failed(program, &plain(&error)))
        })?;
        let end = match access {
            Access::Read => child.stdout.take().map(OwnedFd::from),
            Access::Write => child.stdin.take().map(OwnedFd::from),
        };
        let end = end.ok_or_else(|| io::Error::other("the command has no pipe"))?;
        let name = arguments.last().unwrap_or(program).clone();
        Ok((end, Self { child: Some(child), name, given_up: AtomicBool::new(false) }))
    }

    /// The migration is given up: the command is asked to end.
    pub(super) fn give_up(&self) {
        if !self.given_up.swap(true, Ordering::AcqRel) {
            self.signal(Signal::TERM);
        }
    }

    fn signal(&self, signal: Signal) {
        if let Some(child) = &self.child {
            signal_group(child, signal);
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let Some(child) = self.child.take() else { return };
        let (name, given_up) = (std::mem::take(&mut self.name), self.given_up.load(Ordering::Acquire));
        let reaper = std::thread::Builder::new().name("exec-reap".into());
        if let Err(error) = reaper.spawn(move || reap(child, &name, given_up)) {
            tracing::warn!(%error, "no thread to reap a command with");
        }
    }
}

/// Waits for it; one that doesn't go when asked to is killed.
fn reap(mut child: Child, command: &str, given_up: bool) {
    if given_up {
        let deadline = Instant::now() + GRACE;
        while !has_ended(&child) && Instant::now() < deadline {
            std::thread::sleep(LOOK);
        }
        // Also what a shell has left behind.
        signal_group(&child, Signal::KILL);
    }
    match child.wait() {
        Ok(status) if status.success() || given_up => tracing::debug!(command, %status, "the command ended"),
        Ok(status) => tracing::warn!(command, %status, "the command failed: what it was sent may be lost"),
        Err(error) => tracing::warn!(command, %error, "the command cannot be reaped"),
    }
}

/// Whether it has ended; it stays to be reaped, so that its number is nobody else's.
fn has_ended(child: &Child) -> bool {
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    let Some(pid) = Pid::from_raw(child.id().cast_signed()) else { return true };
    !matches!(waitid(WaitId::Pid(pid), options), Ok(None))
}

/// The child must not be reaped yet: its number would be somebody else's.
fn signal_group(child: &Child, signal: Signal) {
    if let Some(group) = Pid::from_raw(child.id().cast_signed()) {
        let _already_gone = kill_process_group(group, signal);
    }
}
