//! The reading side of a character device: a thread that reads, and for a listening socket accepts one client at a time.

use std::net::TcpListener;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Weak;
use std::thread;
use std::time::Duration;

use rustix::event::PollFlags;

use super::{Output, ready};

/// How often the thread looks whether its device is still there, and offers again what was not taken.
const LOOK: Duration = Duration::from_millis(100);
const OFFER_AGAIN: Duration = Duration::from_millis(2);

/// A device that takes bytes from the host.
pub trait Receiver: Send + Sync {
    /// Takes the first bytes of `bytes`, as many as it has room for; 0 while the machine is stopped.
    fn receive(&self, bytes: &[u8]) -> usize;
}

/// Where bytes come from.
pub(super) enum Source {
    /// A connection, a terminal, a pipe.
    Stream(OwnedFd),
    /// A listening socket.
    Listener(OwnedFd),
}

/// Input not yet started.
pub struct Input {
    source: Source,
    output: Output,
}

impl Input {
    pub(super) fn new(source: Source, output: Output) -> Self {
        Self { source, output }
    }

    /// Reads for `receiver` until it is gone or the input ends.
    pub fn start(self, receiver: Weak<dyn Receiver>) {
        let work = move || match self.source {
            Source::Stream(stream) => pump(&stream, &receiver),
            Source::Listener(listener) => serve(listener, &self.output, &receiver),
        };
        let started = thread::Builder::new().name("chardev".into()).spawn(work);
        if let Err(error) = started {
            tracing::error!(%error, "a character device has no input: its thread cannot be started");
        }
    }
}

fn serve(listener: OwnedFd, output: &Output, receiver: &Weak<dyn Receiver>) {
    // Any listening socket accepts alike; the type only names the call.
    let listener = TcpListener::from(listener);
    while receiver.strong_count() > 0 {
        if !ready(listener.as_fd(), PollFlags::IN, LOOK) {
            continue;
        }
        let Ok((client, _)) = rustix::net::acceptfrom(&listener) else {
            continue;
        };
        match client.try_clone() {
            Ok(ours) => output.set(Some(ours)),
            Err(error) => tracing::warn!(%error, "a client of a character device can only write"),
        }
        pump(&client, receiver);
        output.set(None);
    }
}

/// Reads until the other end closes or the device is gone.
fn pump(stream: &OwnedFd, receiver: &Weak<dyn Receiver>) {
    let mut buffer = [0; 256];
    loop {
        let readable = ready(stream.as_fd(), PollFlags::IN, LOOK);
        if receiver.strong_count() == 0 {
            return;
        }
        if !readable {
            continue;
        }
        let count = match rustix::io::read(stream, &mut buffer) {
            Ok(0) => return,
            Ok(count) => count,
            Err(rustix::io::Errno::INTR | rustix::io::Errno::AGAIN) => continue,
            Err(_) => return,
        };
        let mut bytes = &buffer[..count];
        while !bytes.is_empty() {
            let Some(device) = receiver.upgrade() else { return };
            let taken = device.receive(bytes);
            drop(device);
            bytes = &bytes[taken..];
            if taken == 0 {
                thread::sleep(OFFER_AGAIN);
            }
        }
    }
}
