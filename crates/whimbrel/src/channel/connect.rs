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
use whimbrel_wire::qemu_texts;

use super::vsock::VsockAddress;
use super::{Address, Link};
use crate::cancel::Cancel;
use crate::descriptors::{Access, Descriptors};
use crate::error::CommandError;

/// A connection that does not stand by then fails.
const CONNECT_PATIENCE: Duration = Duration::from_secs(30);
/// A listener with a full queue is asked again after so long.
const RETRY: Duration = Duration::from_millis(20);

/// An address, with the descriptor that it names where it names one.
#[derive(Debug)]
pub(crate) struct Target {
    pub(crate) address: Address,
    given: Option<OwnedFd>,
}

impl Target {
    /// Looks up what `fd:` and `/dev/fdset/N` mean, so that the command is refused if it is nothing.
    ///
    /// # Errors
    /// QEMU's texts for a descriptor that isn't there.
    pub(crate) fn resolve(
        address: Address,
        descriptors: &Descriptors,
        access: Access,
    ) -> Result<Self, CommandError> {
        let given = match &address {
            Address::Fd(name) => Some(descriptors.take(name)?),
            Address::File { path, .. } => descriptors.open(path, access).transpose()?,
            _ => None,
        };
        Ok(Self { address, given })
    }

    /// What is sent there is kept in a file, not read by a peer.
    pub(crate) fn is_file(&self) -> bool {
        let is_regular = |fd: &OwnedFd| {
            rustix::fs::fstat(fd).is_ok_and(|stat| {
                rustix::fs::FileType::from_raw_mode(stat.st_mode) == rustix::fs::FileType::RegularFile
            })
        };
        match self.address {
            Address::File { .. } => true,
            _ => self.given.as_ref().is_some_and(is_regular),
        }
    }
}

/// Connects to the target (or creates the file, or starts the command), until it stands, fails, or `cancel` is raised.
///
/// # Errors
/// The text is what `query-migrate` shows: `Failed to connect to 'host:port': Connection refused`.
pub(crate) fn connect(Target { address, given }: Target, cancel: &Cancel) -> io::Result<Link> {
    let peer = address.to_string();
    let link = |connected: io::Result<OwnedFd>| {
        connected
            .map_err(|error| failed_to_connect(&address, &error))
            .and_then(|fd| Link::socket(fd, peer.clone()))
    };
    match &address {
        Address::Tcp { host, port } => link(resolve(host, port).and_then(|candidates| {
            let mut last = io::Error::new(io::ErrorKind::NotFound, "no address");
            for candidate in candidates {
                match connect_to(family(&candidate), &candidate, cancel) {
                    Ok(fd) => return Ok(fd),
                    Err(error) => last = error,
                }
            }
            Err(last)
        })),
        Address::Unix(_) | Address::Abstract { .. } => {
            link(unix_name(&address).and_then(|name| connect_to(AddressFamily::UNIX, &name, cancel)))
        }
        Address::Vsock { cid, port } => {
            let there = VsockAddress::new(cid, port)?;
            link(connect_to(AddressFamily::VSOCK, &there, cancel))
        }
        Address::Fd(_) => match given {
            Some(fd) => Link::given(fd, peer),
            None => Err(io::ErrorKind::NotFound.into()),
        },
        Address::Exec(arguments) => Link::exec(arguments, Access::Write, peer),
        Address::File { path, offset } => {
            let create = || -> io::Result<File> {
                // A pipe of that name would keep us waiting for its reader; so it is refused.
                let mut open = OpenOptions::new();
                open.write(true).create(true).truncate(false).mode(0o600).custom_flags(libc::O_NONBLOCK);
                let mut file = given.map_or_else(|| open.open(path), |fd| Ok(fd.into()))?;
                file.set_len(*offset)?;
                file.seek(SeekFrom::Start(*offset))?;
                Ok(file)
            };
            let failed =
                |error| retold(&error, |why| qemu_texts::could_not_create(&path.display().to_string(), why));
            Link::file(create().map_err(failed)?, peer)
        }
    }
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

/// Where an incoming migration is awaited.
pub(crate) enum Listener {
    Socket {
        fd: OwnedFd,
        unlink: Option<std::path::PathBuf>,
    },
    /// Nobody is waited for.
    Connected(Link),
}

impl Listener {
    /// Listens (or opens the file, or starts the command); also tells the address it got, with the port the kernel chose for
    /// port 0.
    pub(crate) fn bind(Target { address, given }: Target) -> io::Result<(Self, Address)> {
        let peer = address.to_string();
        let failed = |error: io::Error| with_context(&error, &format!("cannot listen on '{address}'"));
        let listener = match &address {
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
                return Err(failed(last));
            }
            Address::Unix(path) => {
                remove_stale_socket(path);
                let fd = unix_name(&address)
                    .and_then(|here| listen(AddressFamily::UNIX, &here))
                    .map_err(failed)?;
                Self::Socket { fd, unlink: Some(path.clone()) }
            }
            Address::Abstract { .. } => {
                let fd = unix_name(&address)
                    .and_then(|here| listen(AddressFamily::UNIX, &here))
                    .map_err(failed)?;
                Self::Socket { fd, unlink: None }
            }
            Address::Vsock { cid, port } => {
                let here = VsockAddress::new(cid, port)?;
                Self::Socket { fd: listen(AddressFamily::VSOCK, &here).map_err(failed)?, unlink: None }
            }
            Address::Fd(_) => {
                let fd = given.ok_or(io::ErrorKind::NotFound)?;
                Self::Connected(Link::given(fd, peer)?)
            }
            Address::Exec(arguments) => Self::Connected(Link::exec(arguments, Access::Read, peer)?),
            Address::File { path, offset } => {
                let open = || -> io::Result<File> {
                    let mut open = OpenOptions::new();
                    open.read(true).custom_flags(libc::O_NONBLOCK);
                    let mut file = given.map_or_else(|| open.open(path), |fd| Ok(fd.into()))?;
                    file.seek(SeekFrom::Start(*offset))?;
                    Ok(file)
                };
                let failed = |error| {
                    retold(&error, |why| qemu_texts::could_not_open(&path.display().to_string(), why))
                };
                Self::Connected(Link::file(open().map_err(failed)?, peer)?)
            }
        };
        Ok((listener, address))
    }

    /// Nobody will be accepted: a command that was started is ended.
    pub(crate) fn give_up(self) {
        if let Self::Connected(link) = self {
            link.give_up();
        }
    }

    /// Waits for the one connection; the listening socket is gone afterwards.
    pub(crate) fn accept(self, address: &Address, cancel: &Cancel) -> io::Result<Link> {
        match self {
            Self::Connected(link) => Ok(link),
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
    let text = qemu_texts::connect_failed(&address.endpoint(), &plain(error));
    io::Error::new(error.kind(), text)
}

fn with_context(error: &io::Error, context: &str) -> io::Error {
    retold(error, |why| format!("{context}: {why}"))
}

/// The same error in other words.
fn retold(error: &io::Error, tell: impl FnOnce(&str) -> String) -> io::Error {
    io::Error::new(error.kind(), tell(&plain(error)))
}

/// The system's own words, without Rust's "(os error N)".
pub(crate) fn plain(error: &io::Error) -> String {
    let text = error.to_string();
    match text.find(" (os error") {
        Some(end) => text[..end].to_owned(),
        None => text,
    }
}
