//! A link: one open channel. Reading and writing wake at least once a second to look at their deadline, and
//! [`Link::shut`] from any thread ends both at once, so that nobody ever waits on a stuck peer.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::FileType;
use rustix::net::sockopt;
use whimbrel_wire::qemu_texts;

use super::Gather;
use super::exec::Process;
use crate::cancel::Cancel;
use crate::descriptors::Access;

/// How often a blocked read or write looks at its deadline.
const TICK: Duration = Duration::from_secs(1);
/// The shortest wait for room that a socket can be told of.
const LEAST_WAIT: Duration = Duration::from_millis(1);
/// Unacknowledged bytes for so long mean that the link is cut (TCP_USER_TIMEOUT, and keep-alive about the same).
const TCP_PATIENCE: Duration = Duration::from_secs(30);

/// An open channel and its peer's name.
pub(crate) struct Link {
    fd: OwnedFd,
    peer: String,
    kind: Kind,
    shut: AtomicBool,
    write_deadline: Mutex<Option<Instant>>,
    /// Milliseconds that a socket waits for room now; 0: never told.
    send_wait: AtomicU64,
    /// Raised by [`shut`](Link::shut): a pipe knows no shutdown.
    wake: Cancel,
    /// Behind a pipe. After `fd`, so that it sees the end of its input when the link goes.
    process: Option<Process>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Socket,
    Pipe,
    File,
}

impl Link {
    /// Over a descriptor that somebody opened for us: what it is decides what kind of link it is.
    pub(crate) fn given(fd: OwnedFd, peer: String) -> io::Result<Self> {
        match FileType::from_raw_mode(rustix::fs::fstat(&fd)?.st_mode) {
            FileType::Socket => {
                // The flag is its other owners' too; ours is to wait.
                rustix::io::ioctl_fionbio(&fd, false)?;
                Self::socket(fd, peer)
            }
            FileType::RegularFile => Self::new(fd, peer, Kind::File),
            _ => Self::pipe(fd, peer),
        }
    }

    /// Over one end of a pipe (or a device like one), which may be the other owners' too.
    fn pipe(fd: OwnedFd, peer: String) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&fd, true)?;
        Self::new(fd, peer, Kind::Pipe)
    }

    /// Over the pipe of a command that starts now.
    pub(crate) fn exec(arguments: &[String], access: Access, peer: String) -> io::Result<Self> {
        let (fd, process) = Process::start(arguments, access)?;
        let mut link = Self::pipe(fd, peer)?;
        link.process = Some(process);
        Ok(link)
    }

    /// Over a connected stream socket.
    pub(crate) fn socket(fd: OwnedFd, peer: String) -> io::Result<Self> {
        sockopt::set_socket_timeout(&fd, sockopt::Timeout::Recv, Some(TICK))?;
        let _only_tcp = sockopt::set_tcp_nodelay(&fd, true)
            .and_then(|()| sockopt::set_socket_keepalive(&fd, true))
            .and_then(|()| sockopt::set_tcp_keepidle(&fd, Duration::from_secs(10)))
            .and_then(|()| sockopt::set_tcp_keepintvl(&fd, Duration::from_secs(5)))
            .and_then(|()| sockopt::set_tcp_user_timeout(&fd, TCP_PATIENCE.as_millis() as u32));
        Self::new(fd, peer, Kind::Socket)
    }

    /// Over a regular file (or any seekable one), at its current position.
    pub(crate) fn file(file: File, peer: String) -> io::Result<Self> {
        Self::new(file.into(), peer, Kind::File)
    }

    fn new(fd: OwnedFd, peer: String, kind: Kind) -> io::Result<Self> {
        let (shut, write_deadline) = (AtomicBool::new(false), Mutex::new(None));
        Ok(Self {
            fd,
            peer,
            kind,
            shut,
            write_deadline,
            wake: Cancel::new()?,
            process: None,
            send_wait: AtomicU64::new(0),
        })
    }

    /// Who is at the other end, for messages.
    pub(crate) fn peer(&self) -> &str {
        &self.peer
    }

    /// What is written is kept, and is on disk once it is synced: no peer reads it meanwhile.
    pub(crate) fn is_file(&self) -> bool {
        self.kind == Kind::File
    }

    /// Answers can come back.
    pub(crate) fn is_bidirectional(&self) -> bool {
        self.kind == Kind::Socket
    }

    /// What was being done when a write failed. A command's text is QEMU's, word for word.
    pub(crate) fn writing(&self, offset: u64) -> String {
        match self.process {
            Some(_) => {
                tracing::error!(peer = self.peer, offset, "the command takes no more");
                qemu_texts::WRITING_TO_COMMAND.to_owned()
            }
            None => format!("sending to '{}' at stream offset {offset:#x}", self.peer),
        }
    }

    /// As [`shut`](Link::shut), and ends a command behind it.
    pub(crate) fn give_up(&self) {
        self.shut();
        if let Some(process) = &self.process {
            process.give_up();
        }
    }

    /// Ends every read and write on it, now and later, from any thread.
    pub(crate) fn shut(&self) {
        self.shut.store(true, Ordering::Release);
        self.wake.raise();
        if self.kind == Kind::Socket {
            let _already_gone = rustix::net::shutdown(&self.fd, rustix::net::Shutdown::Both);
        }
    }

    /// Writes that are not through by then fail; `None` lifts it. The guest is stopped while one is set.
    pub(crate) fn set_write_deadline(&self, deadline: Option<Instant>) {
        *crate::lock(&self.write_deadline) = deadline;
    }

    /// Sends all of `gather`. On failure, how many bytes the kernel had taken is told beside the error.
    pub(crate) fn send(&self, gather: &Gather) -> Result<(), (usize, io::Error)> {
        self.send_until(gather, 0, None).map(drop)
    }

    /// Sends `gather` from byte `sent` on, until it would have to wait after `until`. Returns up to where it was sent.
    pub(crate) fn send_until(
        &self,
        gather: &Gather,
        mut sent: usize,
        until: Option<Instant>,
    ) -> Result<usize, (usize, io::Error)> {
        while sent < gather.len() {
            if self.shut.load(Ordering::Acquire) {
                return Err((sent, shut_error()));
            }
            let since = Instant::now();
            let wait =
                until.map_or(TICK, |until| until.saturating_duration_since(since).clamp(LEAST_WAIT, TICK));
            self.wait_to_send(wait).map_err(|error| (sent, error))?;
            match gather.write(self.fd.as_fd(), sent) {
                Ok(0) => return Err((sent, io::ErrorKind::WriteZero.into())),
                Ok(taken) => sent += taken,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if crate::lock(&self.write_deadline).is_some_and(|deadline| Instant::now() >= deadline) {
                        let text = "the peer takes no data (deadline while the guest is stopped)";
                        return Err((sent, io::Error::new(io::ErrorKind::TimedOut, text)));
                    }
                    if until.is_some_and(|until| Instant::now() >= until) {
                        return Ok(sent);
                    }
                    self.await_ready(PollFlags::OUT, since, wait);
                }
                Err(error) => return Err((sent, error)),
            }
        }
        Ok(sent)
    }

    /// Files: everything written is on disk when this returns.
    pub(crate) fn sync(&self) -> io::Result<()> {
        match self.kind {
            Kind::File => Ok(rustix::fs::fsync(&self.fd)?),
            Kind::Socket | Kind::Pipe => Ok(()),
        }
    }

    /// How long a socket waits in the kernel for room; it is told only of changes.
    fn wait_to_send(&self, wait: Duration) -> io::Result<()> {
        let millis = wait.as_millis() as u64;
        if self.kind == Kind::Socket && self.send_wait.swap(millis, Ordering::Relaxed) != millis {
            let wait = Duration::from_millis(millis);
            sockopt::set_socket_timeout(&self.fd, sockopt::Timeout::Send, Some(wait))?;
        }
        Ok(())
    }

    /// After an attempt that began at `since` would have had to wait: a socket has waited so long in the kernel, a pipe (and
    /// a socket whose other owner wants no waiting) does it here.
    fn await_ready(&self, ready: PollFlags, since: Instant, wait: Duration) {
        if since.elapsed() < wait / 2 {
            let mut fds =
                [PollFd::new(&self.fd, ready), PollFd::from_borrowed_fd(self.wake.as_fd(), PollFlags::IN)];
            let _looked_at_again = poll(&mut fds, Timespec::try_from(wait).ok().as_ref());
        }
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Reads from a link. Between elements a peer may be silent for as long as it likes (a source in pre-switchover is; a dead one
/// is noticed by TCP); inside an element every wait has the deadline.
pub struct LinkReader {
    link: std::sync::Arc<Link>,
    patience: std::sync::Arc<Patience>,
}

/// How long a reader waits for the next byte; shared with whoever knows where in the stream the reader stands.
#[derive(Debug, Default)]
pub(crate) struct Patience {
    /// Milliseconds; 0 is for ever.
    limit: AtomicU64,
}

/// The longest silence inside an element.
const INSIDE_ELEMENT: Duration = Duration::from_secs(30);

impl Patience {
    /// Inside an element: the next byte must come soon.
    pub(crate) fn inside_element(&self) {
        self.limit_to(INSIDE_ELEMENT);
    }

    /// Between elements: wait.
    pub(crate) fn between_elements(&self) {
        self.limit_to(Duration::ZERO);
    }

    /// The next byte must come within `limit`.
    pub(crate) fn limit_to(&self, limit: Duration) {
        self.limit.store(limit.as_millis() as u64, Ordering::Relaxed);
    }
}

impl LinkReader {
    pub(crate) fn new(link: std::sync::Arc<Link>) -> Self {
        Self { link, patience: std::sync::Arc::default() }
    }

    pub(crate) fn patience(&self) -> std::sync::Arc<Patience> {
        self.patience.clone()
    }
}

impl Read for LinkReader {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let start = Instant::now();
        loop {
            if self.link.shut.load(Ordering::Acquire) {
                return Err(shut_error());
            }
            let since = Instant::now();
            match rustix::io::read(self.link.fd(), &mut *buf) {
                Ok(read) => return Ok(read),
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN) => {
                    let limit = Duration::from_millis(self.patience.limit.load(Ordering::Relaxed));
                    if !limit.is_zero() && start.elapsed() >= limit {
                        let text = format!("no data for {} s inside a stream element", limit.as_secs());
                        return Err(io::Error::new(io::ErrorKind::TimedOut, text));
                    }
                    self.link.await_ready(PollFlags::IN, since, TICK);
                }
                Err(error) => return Err(error.into()),
            }
        }
    }
}

fn shut_error() -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionAborted, "the connection was shut down on this side")
}
