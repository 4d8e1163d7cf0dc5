//! A cancellation that a poll can wait for.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

/// Raised once, seen by everyone who polls it, for ever.
pub(crate) struct Cancel {
    fd: OwnedFd,
}

impl Cancel {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self { fd: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)? })
    }

    pub(crate) fn raise(&self) {
        let _stays_raised = rustix::io::write(&self.fd, &1_u64.to_ne_bytes());
    }

    /// Waits so long, unless it is raised: then an error.
    pub(crate) fn sleep(&self, time: Duration) -> io::Result<()> {
        let mut fds = [PollFd::new(&self.fd, PollFlags::IN)];
        match poll(&mut fds, Timespec::try_from(time).ok().as_ref()) {
            Ok(0) | Err(rustix::io::Errno::INTR) => Ok(()),
            Ok(_) => Err(Self::error()),
            Err(error) => Err(error.into()),
        }
    }

    /// What a wait that it ended says.
    pub(crate) fn error() -> io::Error {
        io::Error::new(io::ErrorKind::Interrupted, "cancelled")
    }
}

impl AsFd for Cancel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
