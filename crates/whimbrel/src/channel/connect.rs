//! Connecting and listening, cancellable at any moment.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::net::{SocketAddr, ToSocketAddrs};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, sockopt};

use super::{Address, Link};
use crate::cancel::Cancel;

/// A connection that does not stand by then fails.
const CONNECT_PATIENCE: Duration = Duration::from_secs(30);
/// A listener with a full queue is asked again after so long.
const RETRY: Duration = Duration::from_millis(20);

/// Connects to `address` (or creates the file), until it stands, fails, or `cancel` is raised.
///
/// # Errors
/// The text is what `query-migrate` shows: `Failed to connect to 'host:port': Connection refused`.
pub(crate) fn connect(address: &Address, cancel: &Cancel) -> io::Result<Link> {
    match address {
        Address::Tcp { host, port } => {
            let mut last = io::Error::new(io::ErrorKind::NotFound, "no address");
            for candidate in resolve(host, port).map_err(|error| failed_to_connect(address, &error))? {
                match connect_to(family(&candidate), &candidate, cancel) {
                    Ok(fd) => return Link::socket(fd, address.to_string()),
                    Err(error) => last = error,
                }
            }
            Err(failed_to_connect(address, &last))
        }
        Address::Unix(path) => {
            let fd = SocketAddrUnix::new(path)
                .map_err(io::Error::from)
                .and_then(|peer| connect_to(AddressFamily::UNIX, &peer, cancel))
                .map_err(|error| failed_to_connect(address, &error))?;
            Link::socket(fd, address.to_string())
        }
        Address::File { path, offset } => {
            let create = || -> io::Result<File> {
                let mut file =
                    OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path)?;
                file.set_len(*offset)?;
                file.seek(SeekFrom::Start(*offset))?;
                Ok(file)
            };
            let file = create()
                .map_err(|error| with_context(&error, &format!("cannot create '{}'", path.display())))?;
            Ok(Link::file(file, address.to_string()))
        }
    }
}

/// Where an incoming migration is awaited.
pub(crate) enum Listener {
    Socket { fd: OwnedFd, unlink: Option<std::path::PathBuf> },
    File { file: File },
}

impl Listener {
    /// Listens on `address` (or opens the file); also tells the address it got, with the port the kernel chose for port 0.
    pub(crate) fn bind(address: &Address) -> io::Result<(Self, Address)> {
        match address {
            Address::Tcp { host, port } => {
                let mut last = io::Error::new(io::ErrorKind::NotFound, "no address");
                for candidate in resolve(host, port)? {
                    match listen(family(&candidate), &candidate) {
                        Ok(fd) => {
                            let port = local_port(&fd).map_or_else(|| port.clone(), |port| port.to_string());
                            let bound = Address::Tcp { host: host.clone(), port };
                            return Ok((Self::Socket { fd, unlink: None }, bound));
                        }
                        Err(error) => last = error,
                    }
                }
                Err(with_context(&last, &format!("cannot listen on '{address}'")))
            }
            Address::Unix(path) => {
                remove_stale_socket(path);
                let fd = SocketAddrUnix::new(path)
                    .map_err(io::Error::from)
                    .and_then(|here| listen(AddressFamily::UNIX, &here))
                    .map_err(|error| with_context(&error, &format!("cannot listen on '{address}'")))?;
                Ok((Self::Socket { fd, unlink: Some(path.clone()) }, address.clone()))
            }
            Address::File { path, offset } => {
                let open = || -> io::Result<File> {
                    let mut file = File::open(path)?;
                    file.seek(SeekFrom::Start(*offset))?;
                    Ok(file)
                };
                let file = open()
                    .map_err(|error| with_context(&error, &format!("cannot open '{}'", path.display())))?;
                Ok((Self::File { file }, address.clone()))
            }
        }
    }

    /// Waits for the one connection; the listening socket is gone afterwards.
    pub(crate) fn accept(self, address: &Address, cancel: &Cancel) -> io::Result<Link> {
        match self {
            Self::File { file } => Ok(Link::file(file, address.to_string())),
            Self::Socket { fd, unlink } => {
                wait(&fd, PollFlags::IN, None, cancel)?;
                let (connection, peer) = rustix::net::acceptfrom_with(&fd, SocketFlags::CLOEXEC)?;
                if let Some(path) = unlink {
                    let _someone_elses_now = std::fs::remove_file(path);
                }
                let peer = peer
                    .and_then(|peer| SocketAddr::try_from(peer).ok())
                    .map_or_else(|| address.to_string(), |peer| format!("tcp:{peer}"));
                Link::socket(connection, peer)
            }
        }
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

fn listen(family: AddressFamily, here: &impl rustix::net::addr::SocketAddrArg) -> io::Result<OwnedFd> {
    let fd = rustix::net::socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    if family != AddressFamily::UNIX {
        sockopt::set_socket_reuseaddr(&fd, true)?;
    }
    rustix::net::bind(&fd, here)?;
    rustix::net::listen(&fd, 1)?;
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
    let text = whimbrel_wire::qemu_texts::connect_failed(&address.endpoint(), &plain(error));
    io::Error::new(error.kind(), text)
}

fn with_context(error: &io::Error, context: &str) -> io::Error {
    io::Error::new(error.kind(), format!("{context}: {}", plain(error)))
}

/// The system's own words, without Rust's "(os error N)".
pub(crate) fn plain(error: &io::Error) -> String {
    let text = error.to_string();
    match text.find(" (os error") {
        Some(end) => text[..end].to_owned(),
        None => text,
    }
}
