//! Whether what was written to a socket has reached the other end's host.
//!
//! | socket | "has it" means |
//! |---|---|
//! | tcp | its kernel has acknowledged it: the peer will read it, unless it dies |
//! | unix | the peer has read it |
//! | vsock, before Linux 6.11 | not known: what was written is believed to arrive |
//!
//! Between us and the peer there may be a relay, which acknowledges in the peer's place; nobody can see that.
//!
//! One of the named modules with `unsafe`: the kernel fills in a number.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::Link;

/// How often it is looked; at first every time.
const TICK: Duration = Duration::from_micros(200);

/// What became of the bytes that were written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Delivery {
    /// The other end's host has them all.
    Done,
    /// The connection was reset before: its program never got them.
    Refused,
    /// Neither is known.
    Unknown,
}

impl Link {
    /// The peer will send nothing more: a source that waits for an answer does not do that.
    pub(crate) fn peer_left(&self) -> bool {
        let left = PollFlags::RDHUP | PollFlags::HUP | PollFlags::ERR;
        look(self.fd(), left, Duration::ZERO).intersects(left)
    }

    /// Waits until the other end's host has all that was written.
    pub(crate) fn delivered(&self, limit: Duration) -> Delivery {
        let deadline = Instant::now() + limit;
        loop {
            let arrived = matches!(outstanding(self.fd()), Some(0) | None);
            let state = look(self.fd(), PollFlags::ERR, if arrived { Duration::ZERO } else { TICK });
            // A peer that ends with something unread resets the connection, and then nothing is outstanding either.
            if state.contains(PollFlags::ERR) || (!arrived && state.contains(PollFlags::HUP)) {
                return Delivery::Refused;
            }
            if arrived {
                return Delivery::Done;
            }
            if Instant::now() >= deadline {
                return Delivery::Unknown;
            }
        }
    }
}

fn look(fd: BorrowedFd<'_>, events: PollFlags, time: Duration) -> PollFlags {
    let mut fds = [PollFd::from_borrowed_fd(fd.as_fd(), events)];
    let _looked_at_again = poll(&mut fds, Timespec::try_from(time).ok().as_ref());
    fds[0].revents()
}

/// Bytes that were written and that the other end has not; `None` where the kernel does not tell.
fn outstanding(fd: BorrowedFd<'_>) -> Option<usize> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: the descriptor is open, and TIOCOUTQ (SIOCOUTQ of sockets) writes one int to the address given.
    let told = unsafe { libc::ioctl(fd.as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) };
    usize::try_from(bytes).ok().filter(|_| told == 0)
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::net::{TcpListener, TcpStream};

    use super::*;

    const LIMIT: Duration = Duration::from_secs(60);

    fn pair() -> (Link, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (Link::socket(near.into(), "test".into()).unwrap(), listener.accept().unwrap().0)
    }

    fn write(link: &Link, bytes: &[u8]) {
        rustix::io::write(link.fd(), bytes).unwrap();
    }

    #[test]
    fn what_the_peers_kernel_has_is_delivered_though_nobody_read_it() {
        let (link, mut far) = pair();
        write(&link, b"SHUT");
        assert_eq!(link.delivered(LIMIT), Delivery::Done);
        assert!(!link.peer_left());
        far.read_exact(&mut [0; 4]).unwrap();
        drop(far);
        while !link.peer_left() {}
        assert_eq!(link.delivered(LIMIT), Delivery::Done, "an end after it changes nothing");
    }

    #[test]
    fn what_a_peer_leaves_unread_behind_is_not() {
        let (link, far) = pair();
        write(&link, b"SHUT");
        assert_eq!(link.delivered(LIMIT), Delivery::Done);
        drop(far);
        while !link.peer_left() {}
        assert_eq!(link.delivered(LIMIT), Delivery::Refused);
    }

    #[test]
    fn what_a_full_peer_does_not_take_is_unknown_in_the_end() {
        let (link, far) = pair();
        rustix::io::ioctl_fionbio(link.fd(), true).unwrap();
        while rustix::io::write(link.fd(), &[0; 65536]).is_ok() {}
        assert_eq!(link.delivered(Duration::from_millis(50)), Delivery::Unknown);
        drop(far);
        assert_eq!(link.delivered(LIMIT), Delivery::Refused);
    }

    #[test]
    fn a_unix_peer_has_it_when_it_has_read_it() {
        let (near, mut far) = std::os::unix::net::UnixStream::pair().unwrap();
        let link = Link::socket(near.into(), "test".into()).unwrap();
        write(&link, b"SHUT");
        assert_eq!(link.delivered(Duration::from_millis(20)), Delivery::Unknown);
        far.read_exact(&mut [0; 4]).unwrap();
        assert_eq!(link.delivered(LIMIT), Delivery::Done);
        write(&link, b"SHUT");
        drop(far);
        assert_eq!(link.delivered(LIMIT), Delivery::Refused);
    }
}
