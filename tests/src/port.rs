//! What a guest writes to one of its ports (debug console, serial line), byte by byte with the time it came; and bytes
//! for the guest. The machine connects to a Unix socket of ours, so that no buffering stands between.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use beacon::heartbeat::Stream;

use crate::{now, wait_for};

/// The host's end of a port.
#[derive(Debug)]
pub struct Port {
    path: PathBuf,
    received: Arc<Mutex<Received>>,
}

#[derive(Debug, Default)]
struct Received {
    guest: Option<UnixStream>,
    bytes: Vec<u8>,
    /// When each chunk came, and where it ends in `bytes`.
    chunks: Vec<(Duration, usize)>,
}

impl Port {
    /// Listens at `path` for one machine.
    ///
    /// # Panics
    /// If it cannot.
    pub fn listen(path: &Path) -> Self {
        let listener = UnixListener::bind(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let received = Arc::new(Mutex::new(Received::default()));
        let shared = Arc::clone(&received);
        std::thread::spawn(move || receive(&listener, &shared));
        Self { path: path.to_owned(), received }
    }

    /// The socket's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The bytes as beats.
    pub fn beats(&self) -> Stream {
        let received = self.lock();
        let mut stream = Stream::default();
        let mut start = 0;
        for &(at, end) in &received.chunks {
            stream.push(at, &received.bytes[start..end]);
            start = end;
        }
        stream
    }

    /// The bytes themselves.
    pub fn bytes(&self) -> Vec<u8> {
        self.lock().bytes.clone()
    }

    /// How many bytes came.
    pub fn count(&self) -> usize {
        self.lock().bytes.len()
    }

    /// The bytes as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.lock().bytes).into_owned()
    }

    /// Sends bytes to the guest.
    ///
    /// # Panics
    /// If the machine never connected, or is gone.
    pub fn send(&self, bytes: &[u8]) {
        let mut guest = wait_for("a machine at the port", Duration::from_secs(180), || {
            self.lock().guest.as_ref().map(|stream| stream.try_clone().expect("a second descriptor"))
        });
        guest.write_all(bytes).expect("the machine takes bytes for its port");
    }

    fn lock(&self) -> MutexGuard<'_, Received> {
        self.received.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The reader's thread: ends with the machine.
fn receive(listener: &UnixListener, received: &Mutex<Received>) {
    let lock = || received.lock().unwrap_or_else(PoisonError::into_inner);
    let Ok((mut stream, _)) = listener.accept() else { return };
    lock().guest = stream.try_clone().ok();
    let mut chunk = [0; 4096];
    while let Ok(count @ 1..) = stream.read(&mut chunk) {
        let at = now();
        let mut received = lock();
        received.bytes.extend_from_slice(&chunk[..count]);
        let end = received.bytes.len();
        received.chunks.push((at, end));
    }
}
