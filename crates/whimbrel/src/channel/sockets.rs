//! Stream sockets by address: connecting, listening and accepting, cancellable at any moment. What goes through them is
//! not looked at here, so that a program that only carries channels has them too.

use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, sockopt};
use whimbrel_wire::qemu_texts;

use super::Address;
use super::connect::{plain, retold};
use super::vsock::VsockAddress;
use crate::cancel::Cancel;

/// A connection that does not stand by then fails.
const CONNECT_PATIENCE: Duration = Duration::from_secs(30);
/// A listener with a full queue is asked again after so long.
const RETRY: Duration = Duration::from_millis(20);

/// Connects a stream socket, until it stands, fails, or `cancel` is raised. Reads and writes on it wait.
///
/// # Errors
/// `Failed to connect to 'host:port': Connection refused`; an address that is no socket's is refused.
pub fn connect(address: &Address, cancel: &Cancel) -> io::Result<OwnedFd> {
    let connected = match address {
        Address::Tcp { host, port } => resolve(host, port).and_then(|candidates| {
            let mut last = io::Error::new(io::ErrorKind::NotFound, "no address");
            for candidate in candidates {
                match connect_to(family(&candidate), &candidate, cancel) {
                    Ok(fd) => return Ok(fd),
                    Err(error) => last = error,
                }
            }
            Err(last)
        }),
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
    /// Listens; also tells the address it got, with the port the kernel chose for port 0. `backlog`: how many connections
    /// may wait to be accepted.
    ///
    /// # Errors
    /// `cannot listen on 'ADDRESS': …`; an address that is no socket's is refused.
    pub fn bind(address: &Address, backlog: i32) -> io::Result<(Self, Address)> {
        let bound = match address {
            Address::Tcp { host, port } => bind_tcp(host, port, backlog),
            Address::Unix(path) => {
                remove_stale_socket(path);
                let fd = unix_name(address).and_then(|here| listen_at(AddressFamily::UNIX, &here, backlog));
                fd.map(|fd| (Self { fd, unlink: Some(path.clone()) }, address.clone()))
            }
            Address::Abstract { .. } => {
                let fd = unix_name(address).and_then(|here| listen_at(AddressFamily::UNIX, &here, backlog));
                fd.map(|fd| (Self { fd, unlink: None }, address.clone()))
            }
            Address::Vsock { cid, port } => {
                let fd = listen_at(AddressFamily::VSOCK, &VsockAddress::new(cid, port)?, backlog);
                fd.map(|fd| (Self { fd, unlink: None }, address.clone()))
            }
            _ => Err(no_socket()),
        };
        bound.map_err(|error| retold(&error, |why| format!("cannot listen on '{address}': {why}")))
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

fn bind_tcp(host: &str, port: &str, backlog: i32) -> io::Result<(SocketListener, Address)> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "no address");
    for candidate in resolve(host, port)? {
        match listen_at(family(&candidate), &candidate, backlog) {
            Ok(fd) => {
                let port = local_port(&fd).map_or_else(|| port.to_owned(), |port| port.to_string());
                let bound = Address::Tcp { host: host.to_owned(), port };
                return Ok((SocketListener { fd, unlink: None }, bound));
            }
            Err(error) => last = error,
        }
    }
    Err(last)
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

fn resolve(host: &str, port: &str) -> io::Result<Vec<SocketAddr>> {
    let port: u16 = port
        .parse()
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, format!("bad port '{port}'")))?;
    let host = if host.is_empty() { "0.0.0.0" } else { host };
    Ok((host, port).to_socket_addrs()?.collect())
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

fn listen_at(
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
fn wait(fd: &OwnedFd, ready: PollFlags, deadline: Option<Instant>, cancel: &Cancel) -> io::Result<()> {
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
