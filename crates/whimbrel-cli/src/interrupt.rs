//! Ctrl-C (and SIGTERM) as a request that is looked at, never as the end of the process.

use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::Context;
use libc::{c_int, c_void, siginfo_t};
use vmm_sys_util::signal::register_signal_handler;

static ASKED: AtomicUsize = AtomicUsize::new(0);

/// From now on Ctrl-C only counts.
pub(crate) fn watch() -> anyhow::Result<()> {
    for signal in [libc::SIGINT, libc::SIGTERM] {
        register_signal_handler(signal, count)
            .map_err(std::io::Error::from)
            .context("cannot watch for Ctrl-C")?;
    }
    Ok(())
}

/// How often it was pressed.
pub(crate) fn asked() -> usize {
    ASKED.load(Ordering::Relaxed)
}

/// Adding to an atomic is among the few things that a signal handler may do.
extern "C" fn count(_: c_int, _: *mut siginfo_t, _: *mut c_void) {
    ASKED.fetch_add(1, Ordering::Relaxed);
}
