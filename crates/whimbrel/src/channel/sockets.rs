//! Stream sockets by address: connecting, listening and accepting, cancellable at any moment. What goes through them is
//! not looked at here, so that a program that only carries channels has them too.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, sockopt};
use whimbrel_wire::qemu_texts;

use super::connect::{plain, retold};
use super::vsock::VsockAddress;
use super::{Address, Inet, inet};
use crate::cancel::Cancel;

/// A connection that does not stand by then fails.
pub(super) const CONNECT_PATIENCE: Duration = Duration::from_secs(30);
/// A listener with a full queue is asked again after so long.
const RETRY: Duration = Duration::from_millis(20);

/// Connects a stream socket, until it stands, fails, or `cancel` is raised. Reads and writes on it wait.
///
/// # Errors
/// `Failed to connect to 'host:port': Connection refused`; an address that is no socket's is refused.
pub fn connect(address: &Address, cancel: &Cancel) -> io::Result<OwnedFd> {
    let connected = match address {
        Address::Tcp { inet, .. } if inet.to.is_some() => {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "'to' is an option for listening only"));
        }
        Address::Tcp { host, port, inet } => {
            let candidates = inet::resolve(host, port, *inet, cancel)?;
            first(candidates, |candidate| connect_to(family(&candidate), &candidate, cancel))
        }
        Address::Unix(_) | Address::Abstract { .. } => {
            unix_name(address).and_then(|name| connect_to(AddressFamily::UNIX, &name, cancel))
        }
        Address::Vsock { cid, port } => {
            connect_to(AddressFamily::VSOCK, &VsockAddress::new(cid, port)?, cancel)
        }
        _ => Err(no_socket()),
    };
    connected.map_err(|error| failed_to_connect(address, &error))
}

/// A listening socket. Dropping it frees the address.
#[derive(Debug)]
pub struct SocketListener {
    fd: OwnedFd,
    /// The socket's file.
    unlink: Option<PathBuf>,
}

impl SocketListener {
    /// Listens; also tells the address it got, with the port the kernel chose for port 0. A name is looked up, until `cancel` is
    /// raised. `backlog`: how many connections may wait to be accepted.
    ///
    /// # Errors
    /// `cannot listen on 'ADDRESS': …`; an address that is no socket's is refused.
    pub fn bind(address: &Address, backlog: i32, cancel: &Cancel) -> io::Result<(Self, Address)> {
        match (Self::bind_at_once(address, backlog)?, address) {
            (Some(bound), _) => Ok(bound),
            (None, Address::Tcp { host, port, inet }) => {
                Self::bind_tcp(address, inet::resolve(host, port, *inet, cancel)?, backlog)
            }
            (None, _) => Err(no_socket()),
        }
    }

    /// As [`bind`](Self::bind); `None` for a name that would have to be looked up.
    pub(super) fn bind_at_once(address: &Address, backlog: i32) -> io::Result<Option<(Self, Address)>> {
        let (fd, unlink) = match address {
            Address::Tcp { host, port, inet } => {
                let candidates = inet::numbers(host, port, *inet)?;
                return candidates.map(|candidates| Self::bind_tcp(address, candidates, backlog)).transpose();
            }
            Address::Unix(path) => {
                remove_stale_socket(path);
                let fd = unix_name(address).and_then(|here| listen(AddressFamily::UNIX, &here, backlog));
                (fd, Some(path.clone()))
            }
            Address::Abstract { .. } => {
                (unix_name(address).and_then(|here| listen(AddressFamily::UNIX, &here, backlog)), None)
            }
            Address::Vsock { cid, port } => {
                (listen(AddressFamily::VSOCK, &VsockAddress::new(cid, port)?, backlog), None)
            }
            _ => (Err(no_socket()), None),
        };
        let fd = fd.map_err(|error| cannot_listen(address, &error))?;
        Ok(Some((Self { fd, unlink }, address.clone())))
    }

    fn bind_tcp(address: &Address, candidates: Vec<SocketAddr>, backlog: i32) -> io::Result<(Self, Address)> {
        let Address::Tcp { host, port, inet } = address else { return Err(no_socket()) };
        let ports = |candidate: SocketAddr| {
            let last = inet.to.unwrap_or(candidate.port());
            (candidate.port()..=last).map(move |port| SocketAddr::new(candidate.ip(), port))
        };
        let candidates = candidates.into_iter().flat_map(ports);
        let fd = first(candidates, |here| listen(family(&here), &here, backlog))
            .map_err(|error| cannot_listen(address, &error))?;
        let port = local_port(&fd).map_or_else(|| port.clone(), |port| port.to_string());
        let bound = Address::Tcp { host: host.clone(), port, inet: Inet { to: None, ..*inet } };
        Ok((Self { fd, unlink: None }, bound))
    }

    /// Waits for a connection; with it its peer's address, where it has one.
    ///
    /// # Errors
    /// The kernel's, or that `cancel` was raised.
    pub fn accept(&self, cancel: &Cancel) -> io::Result<(OwnedFd, Option<String>)> {
        wait(&self.fd, PollFlags::IN, None, cancel)?;
        let (connection, peer) = rustix::net::acceptfrom_with(&self.fd, SocketFlags::CLOEXEC)?;
        let peer = peer.and_then(|peer| SocketAddr::try_from(peer).ok());
        Ok((connection, peer.map(|peer| format!("tcp:{peer}"))))
    }
}

impl Drop for SocketListener {
    fn drop(&mut self) {
        if let Some(path) = &self.unlink {
            let _someone_elses_now = std::fs::remove_file(path);
        }
    }
}

fn no_socket() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, "it is not the address of a socket")
}

/// The address of a unix socket, in the file system or not.
fn unix_name(address: &Address) -> io::Result<SocketAddrUnix> {
    /// Bytes of a name, after the zero byte that says it is no path.
    const LONGEST: usize = 107;
    match address {
        Address::Unix(path) => Ok(SocketAddrUnix::new(path)?),
        Address::Abstract { name, tight } => {
            let mut name = name.as_bytes().to_vec();
            if !tight && name.len() < LONGEST {
                name.resize(LONGEST, 0);
            }
            Ok(SocketAddrUnix::new_abstract_name(&name)?)
        }
        _ => Err(io::ErrorKind::InvalidInput.into()),
    }
}

/// Tries one after the other; the last error, if all fail.
fn first(
    candidates: impl IntoIterator<Item = SocketAddr>,
    mut attempt: impl FnMut(SocketAddr) -> io::Result<OwnedFd>,
) -> io::Result<OwnedFd> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "no address");
    for candidate in candidates {
        match attempt(candidate) {
            Ok(fd) => return Ok(fd),
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn family(address: &SocketAddr) -> AddressFamily {
    if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 }
}

fn connect_to(
    family: AddressFamily,
    peer: &impl rustix::net::addr::SocketAddrArg,
    cancel: &Cancel,
) -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let fd = rustix::net::socket_with(family, SocketType::STREAM, flags, None)?;
    let deadline = Instant::now() + CONNECT_PATIENCE;
    loop {
        match rustix::net::connect(&fd, peer) {
            Ok(()) => break,
            Err(rustix::io::Errno::INPROGRESS) => {
                wait(&fd, PollFlags::OUT, Some(deadline), cancel)?;
                sockopt::socket_error(&fd)??;
                break;
            }
            // The queue of a Unix listener is full, and the kernel does not go on by itself.
            Err(rustix::io::Errno::AGAIN) if Instant::now() < deadline => cancel.sleep(RETRY)?,
            Err(error) => return Err(error.into()),
        }
    }
    rustix::io::ioctl_fionbio(&fd, false)?;
    Ok(fd)
}

fn listen(
    family: AddressFamily,
    here: &impl rustix::net::addr::SocketAddrArg,
    backlog: i32,
) -> io::Result<OwnedFd> {
    let fd = rustix::net::socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    if family != AddressFamily::UNIX {
        sockopt::set_socket_reuseaddr(&fd, true)?;
    }
    rustix::net::bind(&fd, here)?;
    rustix::net::listen(&fd, backlog)?;
    Ok(fd)
}

fn local_port(fd: &OwnedFd) -> Option<u16> {
    SocketAddr::try_from(rustix::net::getsockname(fd).ok()?).ok().map(|address| address.port())
}

/// A socket file that nobody listens on any more is in the way; a live one is left, and binding fails.
fn remove_stale_socket(path: &Path) {
    if std::os::unix::net::UnixStream::connect(path)
        .is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
    {
        let _in_use_after_all = std::fs::remove_file(path);
    }
}

/// Waits until `fd` is ready, `cancel` is raised or the deadline passes.
pub(super) fn wait(
    fd: &OwnedFd,
    ready: PollFlags,
    deadline: Option<Instant>,
    cancel: &Cancel,
) -> io::Result<()> {
    loop {
        let timeout = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let timespec = timeout.and_then(|timeout| Timespec::try_from(timeout).ok());
        let mut fds = [PollFd::new(fd, ready), PollFd::from_borrowed_fd(cancel.as_fd(), PollFlags::IN)];
        match poll(&mut fds, timespec.as_ref()) {
            Ok(0) => return Err(io::ErrorKind::TimedOut.into()),
            Ok(_) if !fds[1].revents().is_empty() => return Err(Cancel::error()),
            Ok(_) => return Ok(()),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

fn failed_to_connect(address: &Address, error: &io::Error) -> io::Error {
    let text = qemu_texts::connect_failed(&address.endpoint(), &plain(error));
    io::Error::new(error.kind(), text)
}

fn cannot_listen(address: &Address, error: &io::Error) -> io::Error {
    retold(error, |why| format!("cannot listen on '{address}': {why}"))
}
