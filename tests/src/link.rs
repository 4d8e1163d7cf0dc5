//! A link between two machines that a test holds in its hand: it can be cut, stopped, or cut after a number of bytes.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use crate::wait_for;

/// A TCP relay on loopback towards one listening machine.
#[derive(Debug)]
pub struct Link {
    uri: String,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    /// Bytes from source to destination so far.
    forward: AtomicU64,
    /// Cut once so many have passed.
    cut_after: AtomicU64,
    cut: AtomicBool,
    held: AtomicBool,
}

impl Link {
    /// A link to `uri` (`tcp:host:port`).
    ///
    /// # Panics
    /// If it cannot listen.
    pub fn to(uri: &str) -> Self {
        let target = uri.strip_prefix("tcp:").unwrap_or_else(|| panic!("not a tcp URI: {uri}")).to_owned();
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let uri = format!("tcp:{}", listener.local_addr().expect("the port"));
        let shared = Arc::new(Shared {
            forward: AtomicU64::new(0),
            cut_after: AtomicU64::new(u64::MAX),
            cut: AtomicBool::new(false),
            held: AtomicBool::new(false),
        });
        let relay = Arc::clone(&shared);
        std::thread::spawn(move || {
            for source in listener.incoming().map_while(Result::ok) {
                let Ok(destination) = TcpStream::connect(&target) else { continue };
                carry(&source, &destination, &relay, true);
                carry(&destination, &source, &relay, false);
            }
        });
        Self { uri, shared }
    }

    /// The address to give to the source.
    pub fn uri(&self) -> &str {
        &self.uri
    }

    /// Bytes that went from the source to the destination.
    pub fn carried(&self) -> u64 {
        self.shared.forward.load(Ordering::Relaxed)
    }

    /// Cuts it now: both ends see their connection closed.
    pub fn cut(&self) {
        self.shared.cut.store(true, Ordering::Relaxed);
    }

    /// Cuts it right after that byte of the source's stream.
    pub fn cut_after(&self, bytes: u64) {
        self.shared.cut_after.store(bytes, Ordering::Relaxed);
    }

    /// Carries nothing more, without closing: a stuck network.
    pub fn hold(&self) {
        self.shared.held.store(true, Ordering::Relaxed);
    }

    /// Carries on.
    pub fn release(&self) {
        self.shared.held.store(false, Ordering::Relaxed);
    }

    /// Waits until so many bytes went from the source to the destination.
    #[track_caller]
    pub fn wait_carried(&self, bytes: u64, limit: Duration) {
        wait_for(&format!("{bytes} bytes on the link"), limit, || (self.carried() >= bytes).then_some(()));
    }
}

/// Carries one direction on a thread of its own, until an end closes or the link is cut.
fn carry(from: &TcpStream, to: &TcpStream, shared: &Arc<Shared>, forward: bool) {
    let (mut from, mut to) = (from.try_clone().expect("a descriptor"), to.try_clone().expect("a descriptor"));
    let shared = Arc::clone(shared);
    // So that a cut is noticed while nothing flows.
    from.set_read_timeout(Some(Duration::from_millis(2))).expect("a positive timeout");
    std::thread::spawn(move || {
        let mut chunk = [0; 64 * 1024];
        while !shared.cut.load(Ordering::Relaxed) {
            if shared.held.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_millis(2));
                continue;
            }
            let count = match from.read(&mut chunk) {
                Ok(0) => break,
                Ok(count) => count,
                Err(error)
                    if matches!(
                        error.kind(),
                        std::io::ErrorKind::WouldBlock | std::io::ErrorKind::Interrupted
                    ) =>
                {
                    continue;
                }
                Err(_) => break,
            };
            // Held while it was being read: it waits here.
            while shared.held.load(Ordering::Relaxed) && !shared.cut.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_millis(2));
            }
            if shared.cut.load(Ordering::Relaxed) {
                break;
            }
            let mut passing = count;
            if forward {
                let before = shared.forward.load(Ordering::Relaxed);
                let allowed = shared.cut_after.load(Ordering::Relaxed).saturating_sub(before);
                passing = count.min(usize::try_from(allowed).unwrap_or(usize::MAX));
            }
            if to.write_all(&chunk[..passing]).is_err() {
                break;
            }
            if forward {
                shared.forward.fetch_add(passing as u64, Ordering::Relaxed);
            }
            if passing < count {
                shared.cut.store(true, Ordering::Relaxed);
            }
        }
        if shared.cut.load(Ordering::Relaxed) {
            // Already closed is as good.
            let _ = from.shutdown(Shutdown::Both);
            let _ = to.shutdown(Shutdown::Both);
        } else {
            // One end is done: pass just that on, the other direction may still carry the answer.
            let _ = to.shutdown(Shutdown::Write);
        }
    });
}
