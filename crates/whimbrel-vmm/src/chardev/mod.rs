//! The host's end of a character device: bytes out, bytes in.
//!
//! Output never holds a vCPU up for long: a peer that doesn't read loses bytes after `PATIENCE`, and all further ones until it
//! reads again. Input is read by a thread of
//! its own and offered to the device until it takes it.

mod input;

use std::fs::{File, OpenOptions};
use std::io;
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};

pub use input::{Input, Receiver};

use crate::config::CharBackend;
use crate::error::Error;
use crate::lock;

/// How long a write waits for a peer that doesn't read.
const PATIENCE: Duration = Duration::from_millis(100);

/// Where a device writes to. Cheap to clone.
#[derive(Clone)]
pub struct Output {
    to: Arc<Mutex<To>>,
}

#[derive(Default)]
struct To {
    /// `None`: nobody is connected, or there is nobody ever; bytes vanish.
    fd: Option<OwnedFd>,
    /// The other end did not read in time; it is not waited for again before it does.
    stuck: bool,
}

impl Output {
    fn new(fd: Option<OwnedFd>) -> Self {
        Self { to: Arc::new(Mutex::new(To { fd, stuck: false })) }
    }

    /// Writes, or drops what the other end doesn't take in time.
    pub fn write(&self, mut bytes: &[u8]) {
        let mut to = lock(&self.to);
        let mut patience = if to.stuck { Duration::ZERO } else { PATIENCE };
        while let Some(fd) = to.fd.as_ref().filter(|_| !bytes.is_empty()) {
            if !ready(fd.as_fd(), PollFlags::OUT, patience) {
                to.stuck = true;
                return;
            }
            match rustix::io::write(fd, bytes) {
                Ok(count) => bytes = &bytes[count..],
                Err(rustix::io::Errno::INTR | rustix::io::Errno::AGAIN) => {}
                Err(_) => to.fd = None,
            }
            to.stuck = false;
            patience = PATIENCE;
        }
    }

    fn set(&self, fd: Option<OwnedFd>) {
        *lock(&self.to) = To { fd, stuck: false };
    }
}

/// Opens a backend. The input is to be started with the device that takes it; none if bytes never come.
///
/// # Errors
/// If the file or socket cannot be opened.
pub fn open(backend: &CharBackend) -> Result<(Output, Option<Input>), Error> {
    let (what, opened) = match backend {
        CharBackend::Null => ("null".into(), Ok((None, None))),
        CharBackend::Stdio => ("stdio".into(), stdio()),
        CharBackend::File(path) => {
            let file = OpenOptions::new().create(true).append(true).open(path);
            (format!("file {}", path.display()), file.map(|file| (Some(file.into()), None)))
        }
        CharBackend::Unix { path, server } => {
            let opened = if *server { unix_server(path) } else { client(UnixStream::connect(path)) };
            (format!("unix {}", path.display()), opened)
        }
        CharBackend::Tcp { address, server } => {
            let opened = if *server { tcp_server(address) } else { client(TcpStream::connect(address)) };
            (format!("tcp {address}"), opened)
        }
    };
    let (to, source) = opened.map_err(|source| Error::Chardev { what, source })?;
    let output = Output::new(to);
    let input = source.map(|source| Input::new(source, output.clone()));
    Ok((output, input))
}

/// Starts an input, if there is one, for `device`; until that is gone.
pub fn start<R: Receiver + 'static>(input: Option<Input>, device: &Arc<R>) {
    if let Some(input) = input {
        let receiver: Arc<dyn Receiver> = Arc::clone(device) as _;
        input.start(Arc::downgrade(&receiver));
    }
}

type Opened = io::Result<(Option<OwnedFd>, Option<input::Source>)>;

fn stdio() -> Opened {
    let out = rustix::stdio::stdout().try_clone_to_owned()?;
    let source = File::from(rustix::stdio::stdin().try_clone_to_owned()?);
    Ok((Some(out), Some(input::Source::Stream(source.into()))))
}

fn client<S: Into<OwnedFd>>(stream: io::Result<S>) -> Opened {
    let stream: OwnedFd = stream?.into();
    Ok((Some(stream.try_clone()?), Some(input::Source::Stream(stream))))
}

fn unix_server(path: &std::path::Path) -> Opened {
    // A socket that a dead process left behind would refuse the bind.
    if UnixStream::connect(path).is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused) {
        std::fs::remove_file(path)?;
    }
    Ok((None, Some(input::Source::Listener(UnixListener::bind(path)?.into()))))
}

fn tcp_server(address: &str) -> Opened {
    Ok((None, Some(input::Source::Listener(TcpListener::bind(address)?.into()))))
}

/// Waits until `fd` can be read or written, or has failed (which the next call on it tells).
fn ready(fd: BorrowedFd<'_>, events: PollFlags, patience: Duration) -> bool {
    let timeout = rustix::event::Timespec { tv_sec: 0, tv_nsec: patience.subsec_nanos().into() };
    let mut fds = [PollFd::new(&fd, events)];
    matches!(poll(&mut fds, Some(&timeout)), Ok(count) if count > 0)
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn a_reader_that_does_not_read_loses_bytes_and_does_not_hold_the_writer() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let output = Output::new(Some(ours.into()));
        let began = std::time::Instant::now();
        for _ in 0..4096 {
            output.write(&[0; 4096]);
        }
        // A quarter of what it takes if each waits.
        assert!(began.elapsed() < PATIENCE * 1024, "16 MiB to nobody took {:?}", began.elapsed());
        theirs.set_nonblocking(true).unwrap();
        std::io::copy(&mut &theirs, &mut std::io::sink()).unwrap_err();
        output.write(b"back");
        let mut text = [0; 4];
        (&theirs).read_exact(&mut text).unwrap();
        assert_eq!(&text, b"back");
    }

    #[test]
    fn bytes_reach_a_file() {
        let path = std::env::temp_dir().join(format!("whimbrel-chardev-{}", std::process::id()));
        let (output, input) = open(&CharBackend::File(path.clone())).unwrap();
        output.write(b"hello");
        assert!(input.is_none());
        let mut text = String::new();
        File::open(&path).unwrap().read_to_string(&mut text).unwrap();
        std::fs::remove_file(path).unwrap();
        assert_eq!(text, "hello");
    }
}
