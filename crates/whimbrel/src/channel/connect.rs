//! Connecting and listening, cancellable at any moment.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, sockopt};
use whimbrel_wire::qemu_texts;

use super::vsock::VsockAddress;
use super::{Address, Inet, Link, inet};
use crate::cancel::Cancel;
use crate::descriptors::{Access, Descriptors};
use crate::error::CommandError;

/// A connection that does not stand by then fails.
pub(super) const CONNECT_PATIENCE: Duration = Duration::from_secs(30);
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
        Address::Tcp { inet, .. } if inet.to.is_some() => {
            Err(io::Error::new(io::ErrorKind::InvalidInput, "'to' is an option for listening only"))
        }
        Address::Tcp { host, port, inet } => {
            let candidates = inet::resolve(host, port, *inet, cancel)?;
            let connect = |candidate: SocketAddr| connect_to(family(&candidate), &candidate, cancel);
            link(first(candidates, connect))
        }
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
    /// It will be listened at a host whose name is to be looked up, for which the main loop cannot wait.
    Named,
}

impl Listener {
    /// Listens (or opens the file, or starts the command); also tells the address it got, with the port the kernel chose for
    /// port 0.
    pub(crate) fn bind(Target { address, given }: Target) -> io::Result<(Self, Address)> {
        let peer = address.to_string();
        let failed = |error: io::Error| with_context(&error, &format!("cannot listen on '{address}'"));
        let listener = match &address {
            Address::Tcp { host, port, inet } => match inet::numbers(host, port, *inet)? {
                Some(candidates) => return Self::bind_tcp(&address, candidates),
                None => Self::Named,
            },
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

    fn bind_tcp(address: &Address, candidates: Vec<SocketAddr>) -> io::Result<(Self, Address)> {
        let Address::Tcp { host, port, inet } = address else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        let ports = |candidate: SocketAddr| {
            let last = inet.to.unwrap_or(candidate.port());
            (candidate.port()..=last).map(move |port| SocketAddr::new(candidate.ip(), port))
        };
        let bound = first(candidates.into_iter().flat_map(ports), |here| listen(family(&here), &here));
        let fd = bound.map_err(|error| with_context(&error, &format!("cannot listen on '{address}'")))?;
        let port = local_port(&fd).map_or_else(|| port.clone(), |port| port.to_string());
        let bound = Address::Tcp { host: host.clone(), port, inet: Inet { to: None, ..*inet } };
        Ok((Self::Socket { fd, unlink: None }, bound))
    }

    /// Where it listens, once that is known.
    pub(crate) fn is_bound(&self) -> bool {
        !matches!(self, Self::Named)
    }

    /// Looks a name up and listens there; anything else does so since [`bind`](Listener::bind).
    pub(crate) fn stand(self, address: &Address, cancel: &Cancel) -> io::Result<(Self, Address)> {
        match (self, address) {
            (Self::Named, Address::Tcp { host, port, inet }) => {
                Self::bind_tcp(address, inet::resolve(host, port, *inet, cancel)?)
            }
            (standing, _) => Ok((standing, address.clone())),
        }
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
            Self::Named => Err(io::ErrorKind::NotConnected.into()),
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
