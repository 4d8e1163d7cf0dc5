//! A monitor's client that may say anything.

use std::io::{IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use serde_json::Value;

/// A client without manners: sends any bytes, reads lines.
pub(crate) struct Raw {
    pub(crate) stream: UnixStream,
    buffer: Vec<u8>,
}

impl Raw {
    pub(crate) fn connect(path: &Path) -> Self {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            match UnixStream::connect(path) {
                Ok(stream) => {
                    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
                    return Self { stream, buffer: Vec::new() };
                }
                Err(error) if Instant::now() > deadline => panic!("{}: {error}", path.display()),
                Err(_) => std::thread::sleep(Duration::from_millis(10)),
            }
        }
    }

    pub(crate) fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream.write_all(bytes.as_ref()).unwrap();
    }

    /// Sends a line with file descriptors beside it, and awaits its answer.
    pub(crate) fn ask_with(&mut self, request: &str, descriptors: &[BorrowedFd<'_>]) -> Value {
        self.send_with(&format!("{request}\n"), descriptors);
        self.answer()
    }

    pub(crate) fn send_with(&mut self, bytes: &str, descriptors: &[BorrowedFd<'_>]) {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(32))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        assert!(control.push(SendAncillaryMessage::ScmRights(descriptors)));
        let slices = [IoSlice::new(bytes.as_bytes())];
        let sent = sendmsg(&self.stream, &slices, &mut control, SendFlags::empty()).unwrap();
        assert_eq!(sent, bytes.len());
    }

    /// The next line as it came, without its CR LF; empty at the end of the stream.
    pub(crate) fn line(&mut self) -> String {
        loop {
            if let Some(end) = self.buffer.windows(2).position(|two| two == b"\r\n") {
                let line: Vec<u8> = self.buffer.drain(..end + 2).take(end).collect();
                return String::from_utf8(line).unwrap();
            }
            let mut more = [0; 4096];
            match self.stream.read(&mut more).expect("a line in time") {
                0 => return String::new(),
                count => self.buffer.extend_from_slice(&more[..count]),
            }
        }
    }

    pub(crate) fn message(&mut self) -> Value {
        serde_json::from_str(&self.line()).unwrap()
    }

    /// The next message that is no event.
    pub(crate) fn answer(&mut self) -> Value {
        loop {
            let message = self.message();
            if message.get("event").is_none() {
                return message;
            }
        }
    }

    /// Asks until the migration has this status.
    pub(crate) fn await_status(&mut self, status: &str) -> Value {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let info = self.ask(r#"{"execute":"query-migrate"}"#)["return"].take();
            if info["status"] == status {
                return info;
            }
            assert!(Instant::now() < deadline, "waiting for {status}: {info}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Sends a line and awaits its answer.
    pub(crate) fn ask(&mut self, request: &str) -> Value {
        self.send(format!("{request}\n"));
        self.answer()
    }
}
