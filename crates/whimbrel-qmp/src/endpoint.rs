//! Where a monitor is: a unix socket or a TCP port, for listening and for connecting.

use std::fmt;
use std::io::{self, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::net::{Shutdown, TcpListener, TcpStream, ToSocketAddrs};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use rustix::fs::Mode;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SocketAddrUnix, SocketFlags,
    SocketType, recvmsg,
};

/// How many file descriptors of one message are looked at (QEMU's number).
const DESCRIPTORS: usize = 16;

/// The address of a monitor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Endpoint {
    /// `unix:PATH`, or a bare path.
    Unix(PathBuf),
    /// `tcp:HOST:PORT`; an IPv6 host in brackets. Anyone who reaches it controls the machine: loopback only, as a rule.
    Tcp {
        /// Name or number; empty is every address.
        host: String,
        /// 0 lets the kernel choose.
        port: u16,
    },
}

/// The text is no monitor's address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BadEndpoint {
    /// It has no such form.
    #[error("'{0}' is no monitor's address: unix:PATH or tcp:HOST:PORT")]
    Form(String),
    /// An option of QEMU's that asks for what a monitor here doesn't do.
    #[error("{option}: {why}")]
    Option {
        /// As it was written.
        option: String,
        /// What is done instead.
        why: &'static str,
    },
}

/// What QEMU's option of a listening socket asks for: what we do anyway, or what we don't. `None` is no option, but a part of a path
/// with a comma.
fn option(text: &str) -> Option<Result<(), BadEndpoint>> {
    let (name, value) = text.split_once('=').unwrap_or((text, "on"));
    let on = matches!(value, "on" | "yes" | "true" | "y");
    let off = matches!(value, "off" | "no" | "false" | "n");
    let why = match name {
        "server" if on => return Some(Ok(())),
        "wait" if off => return Some(Ok(())),
        "nowait" if text == name => return Some(Ok(())),
        "server" if off => "a monitor listens, it does not connect",
        "wait" if on => "the machine does not wait for a client; start it with -S and `cont` it",
        "server" | "wait" => "it is neither on nor off",
        _ => return None,
    };
    Some(Err(BadEndpoint::Option { option: text.to_owned(), why }))
}

impl FromStr for Endpoint {
    type Err = BadEndpoint;

    fn from_str(text: &str) -> Result<Self, BadEndpoint> {
        let mut address = text;
        while let Some((rest, last)) = address.rsplit_once(',')
            && let Some(read) = option(last)
        {
            read?;
            address = rest;
        }
        let bad = || BadEndpoint::Form(text.to_owned());
        if let Some(rest) = address.strip_prefix("tcp:") {
            let (host, port) = rest.rsplit_once(':').ok_or_else(bad)?;
            let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
            return Ok(Self::Tcp { host: host.to_owned(), port: port.parse().map_err(|_| bad())? });
        }
        match address.strip_prefix("unix:") {
            Some(path) if !path.is_empty() => Ok(Self::Unix(path.into())),
            None if address.contains('/') => Ok(Self::Unix(address.into())),
            _ => Err(bad()),
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Tcp { host, port } if host.contains(':') => write!(f, "tcp:[{host}]:{port}"),
            Self::Tcp { host, port } => write!(f, "tcp:{host}:{port}"),
        }
    }
}

impl Endpoint {
    pub(crate) fn connect(&self) -> io::Result<Stream> {
        match self {
            Self::Unix(path) => UnixStream::connect(path).map(Stream::Unix),
            Self::Tcp { host, port } => {
                let host = if host.is_empty() { "localhost" } else { host };
                let stream = TcpStream::connect((host, *port))?;
                stream.set_nodelay(true)?;
                Ok(Stream::Tcp(stream))
            }
        }
    }

    pub(crate) fn listen(&self) -> io::Result<Listener> {
        match self {
            Self::Unix(path) => {
                remove_stale(path)?;
                let listener = bind_private(path)?;
                Ok(Listener::Unix { listener, path: path.clone() })
            }
            Self::Tcp { host, port } => {
                let host = if host.is_empty() { "::" } else { host };
                let addresses: Vec<_> = (host, *port).to_socket_addrs()?.collect();
                TcpListener::bind(addresses.as_slice()).map(Listener::Tcp)
            }
        }
    }
}

/// Removes the socket of a process that is gone; one that is listened on stays.
fn remove_stale(path: &Path) -> io::Result<()> {
    let is_socket = path.symlink_metadata().is_ok_and(|found| found.file_type().is_socket());
    if is_socket && UnixStream::connect(path).is_err() {
        std::fs::remove_file(path)?;
    }
    Ok(())
}

/// Binds a socket whose file has mode 0600 from its first moment: whoever connects controls the machine. Linux takes the mode
/// of the file from the socket's own.
fn bind_private(path: &Path) -> io::Result<UnixListener> {
    let socket: OwnedFd =
        rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    rustix::fs::fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
    rustix::net::bind(&socket, &SocketAddrUnix::new(path)?)?;
    rustix::net::listen(&socket, 16)?;
    Ok(socket.into())
}

/// A listening socket; a unix socket's file goes with it.
#[derive(Debug)]
pub(crate) enum Listener {
    Unix { listener: UnixListener, path: PathBuf },
    Tcp(TcpListener),
}

impl Listener {
    pub(crate) fn accept(&self) -> io::Result<Stream> {
        match self {
            Self::Unix { listener, .. } => listener.accept().map(|(stream, _)| Stream::Unix(stream)),
            Self::Tcp(listener) => {
                let (stream, _) = listener.accept()?;
                stream.set_nodelay(true)?;
                // A client whose host is gone must not keep its place for ever.
                rustix::net::sockopt::set_socket_keepalive(&stream, true)?;
                Ok(Stream::Tcp(stream))
            }
        }
    }

    /// Where it listens, with the port the kernel chose.
    pub(crate) fn endpoint(&self) -> io::Result<Endpoint> {
        Ok(match self {
            Self::Unix { path, .. } => Endpoint::Unix(path.clone()),
            Self::Tcp(listener) => {
                let address = listener.local_addr()?;
                Endpoint::Tcp { host: address.ip().to_string(), port: address.port() }
            }
        })
    }

    /// Ends an [`accept`](Listener::accept) that another thread waits in, and every later one.
    pub(crate) fn close(&self) {
        let fd = match self {
            Self::Unix { listener, .. } => listener.as_fd(),
            Self::Tcp(listener) => listener.as_fd(),
        };
        let _already_closed = rustix::net::shutdown(fd, rustix::net::Shutdown::Both);
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Self::Unix { path, .. } = self {
            let _already_gone = std::fs::remove_file(path);
        }
    }
}

/// A connection. Reads and writes go through `&Stream`.
#[derive(Debug)]
pub(crate) enum Stream {
    Unix(UnixStream),
    Tcp(TcpStream),
}

impl Stream {
    pub(crate) fn set_read_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        match self {
            Self::Unix(stream) => stream.set_read_timeout(timeout),
            Self::Tcp(stream) => stream.set_read_timeout(timeout),
        }
    }

    pub(crate) fn set_write_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        match self {
            Self::Unix(stream) => stream.set_write_timeout(timeout),
            Self::Tcp(stream) => stream.set_write_timeout(timeout),
        }
    }

    /// What would wait is an error from now on.
    pub(crate) fn set_nonblocking(&self) -> io::Result<()> {
        match self {
            Self::Unix(stream) => stream.set_nonblocking(true),
            Self::Tcp(stream) => stream.set_nonblocking(true),
        }
    }

    pub(crate) fn shutdown(&self, how: Shutdown) {
        let _already_gone = match self {
            Self::Unix(stream) => stream.shutdown(how),
            Self::Tcp(stream) => stream.shutdown(how),
        };
    }
}

impl Stream {
    /// Reads, and takes the file descriptor that came with the bytes: the first, if there are several. The others are closed.
    pub(crate) fn receive(&self, buffer: &mut [u8]) -> io::Result<(usize, Option<OwnedFd>)> {
        let Self::Unix(stream) = self else { return (&mut &*self).read(buffer).map(|read| (read, None)) };
        // What has no room here, the kernel closes.
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::CMSG_CLOEXEC;
        let received = recvmsg(stream, &mut [IoSliceMut::new(buffer)], &mut control, flags)?;
        let rights = control.drain().filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(rights) => Some(rights),
            _ => None,
        });
        let mut descriptors = rights.flatten();
        Ok((received.bytes, descriptors.next()))
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Unix(stream) => stream.as_fd(),
            Self::Tcp(stream) => stream.as_fd(),
        }
    }
}

impl Read for &Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Stream::Unix(stream) => (&mut &*stream).read(buffer),
            Stream::Tcp(stream) => (&mut &*stream).read(buffer),
        }
    }
}

impl Write for &Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Stream::Unix(stream) => (&mut &*stream).write(bytes),
            Stream::Tcp(stream) => (&mut &*stream).write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn addresses_are_read_with_qemus_options() {
        let unix = Endpoint::Unix("/run/a,b".into());
        for text in
            ["unix:/run/a,b", "/run/a,b", "unix:/run/a,b,server=on,wait=off", "unix:/run/a,b,server,nowait"]
        {
            assert_eq!(text.parse(), Ok(unix.clone()), "{text}");
        }
        for text in ["tcp:127.0.0.1:4444", "tcp:[::1]:0", "tcp::5"] {
            let endpoint: Endpoint = text.parse().unwrap();
            assert_eq!(endpoint.to_string(), text);
        }
        for text in ["", "unix:", "tcp:host", "tcp:host:x", "stdio"] {
            assert_eq!(text.parse::<Endpoint>(), Err(BadEndpoint::Form(text.into())));
        }
        for (text, option) in [
            ("unix:/run/a,server=off", "server=off"),
            ("/run/a,wait=on", "wait=on"),
            ("/run/a,wait", "wait"),
            ("unix:/run/a,wait=on,server=on", "wait=on"),
            ("tcp:h:1,server=maybe", "server=maybe"),
        ] {
            let error = text.parse::<Endpoint>().unwrap_err().to_string();
            assert!(error.starts_with(&format!("{option}: ")), "{text}: {error}");
        }
    }

    #[test]
    fn a_unix_socket_is_private_and_goes_with_its_listener() {
        let path = std::env::temp_dir().join(format!("qmp-endpoint-{}", std::process::id()));
        let endpoint = Endpoint::Unix(path.clone());
        let listener = endpoint.listen().unwrap();
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(endpoint.listen().unwrap_err().kind(), io::ErrorKind::AddrInUse, "it is listened on");
        drop(listener);
        assert!(!path.exists());
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists(), "a socket whose process is gone");
        assert!(endpoint.listen().is_ok());
    }
}
