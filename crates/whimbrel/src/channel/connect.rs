//! Connecting and listening, cancellable at any moment.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;

use whimbrel_wire::qemu_texts;

use super::sockets::{self, SocketListener};
use super::{Address, Link};
use crate::cancel::Cancel;
use crate::descriptors::{Access, Descriptors};
use crate::error::CommandError;

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
    match &address {
        Address::Tcp { .. } | Address::Unix(_) | Address::Abstract { .. } | Address::Vsock { .. } => {
            Link::socket(sockets::connect(&address, cancel)?, peer)
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

/// Where an incoming migration is awaited.
pub(crate) enum Listener {
    Socket(SocketListener),
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
        let listener = match &address {
            Address::Tcp { .. } | Address::Unix(_) | Address::Abstract { .. } | Address::Vsock { .. } => {
                match SocketListener::bind_at_once(&address, 1)? {
                    Some((listener, bound)) => return Ok((Self::Socket(listener), bound)),
                    None => Self::Named,
                }
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

    /// Where it listens, once that is known.
    pub(crate) fn is_bound(&self) -> bool {
        !matches!(self, Self::Named)
    }

    /// Looks a name up and listens there; anything else does so since [`bind`](Listener::bind).
    pub(crate) fn stand(self, address: &Address, cancel: &Cancel) -> io::Result<(Self, Address)> {
        match self {
            Self::Named => SocketListener::bind(address, 1, cancel)
                .map(|(listener, bound)| (Self::Socket(listener), bound)),
            standing => Ok((standing, address.clone())),
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
            Self::Socket(listener) => {
                let (connection, peer) = listener.accept(cancel)?;
                Link::socket(connection, peer.unwrap_or_else(|| address.to_string()))
            }
        }
    }
}

/// The same error in other words.
pub(super) fn retold(error: &io::Error, tell: impl FnOnce(&str) -> String) -> io::Error {
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
