//! A recording sent to a destination, as its source would send it.
//!
//! | from the recording | towards the destination |
//! |---|---|
//! | a connection opens | it is opened, in the same order, once all that was sent before has been sent |
//! | data forward | sent; each connection keeps its own order, and with [`Options::timing`] its times |
//! | a direction ends | the connection is closed for writing; but where there is a return path, only after the last word |
//! | a cut | the connection is closed both ways |
//! | data back | not waited for: what a source waits for changes nothing in what it sends. What comes back is read |
//!
//! Connections do not wait for each other's bytes, as they do not on a network. A guest that runs at the destination is a copy of
//! the one that was recorded: nobody here knows whether that one still runs.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::Scope;
use std::time::{Duration, Instant};

use rustix::net::sockopt::{Timeout, set_socket_timeout, set_tcp_nodelay};
use rustix::net::{SendFlags, Shutdown, send, shutdown};
use whimbrel::channel::{Address, Cancel, connect_socket};

use crate::recording::{Reader, What};
use crate::scan::{Answers, Edge, Kind, Scanner};
use crate::{Direction, RelayError};

/// How long a connection waits until what the ones before it sent before is sent.
const ORDER: Duration = Duration::from_secs(5);

/// How to replay.
#[derive(Debug, Clone)]
pub struct Options {
    /// Everything at its recorded time; else as fast as it goes.
    pub timing: bool,
    /// How long the destination may take to read on, and for its last word.
    pub wait: Duration,
}

/// What became of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The destination says that it has the guest.
    Taken,
    /// It does not.
    Refused(String),
    /// Nobody says.
    Unknown(String),
}

/// What was done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Replayed {
    /// What became of it.
    pub outcome: Outcome,
    /// Connections opened.
    pub connections: usize,
    /// Bytes sent, and bytes in the recording.
    pub sent: u64,
    /// See `sent`.
    pub recorded: u64,
    /// The recording breaks off where its relay was ended.
    pub breaks_off: bool,
}

/// Sends a recording to a destination, and waits for what becomes of it.
///
/// # Errors
/// The recording cannot be read, or is damaged: then nothing was sent. Or the destination cannot be reached.
pub fn replay(recording: &Path, to: &Address, options: &Options) -> Result<Replayed, RelayError> {
    let plan = Plan::read(recording)?;
    let begun = |source| RelayError::Start { what: "a replay", source };
    let cancel = Cancel::new().map_err(begun)?;
    let start = Instant::now();
    let ends: Vec<Arc<End>> = std::thread::scope(|scope| {
        let mut ends: Vec<Arc<End>> = Vec::new();
        for opening in &plan.connections {
            wait_for_order(&ends, &opening.before);
            if options.timing {
                sleep_until(start, opening.at);
            }
            let end = connect_socket(to, &cancel).map_err(RelayError::Socket).and_then(|fd| {
                set_socket_timeout(&fd, Timeout::Send, Some(options.wait))
                    .map_err(|error| begun(error.into()))?;
                let _only_tcp = set_tcp_nodelay(&fd, true);
                Ok(Arc::new(End::new(fd)))
            });
            let end = end.inspect_err(|_| ends.iter().for_each(|end| end.close()))?;
            let job = Job { recording, number: ends.len(), opening, options, start };
            ends.push(end.clone());
            job.start(scope, end);
        }
        Ok::<_, RelayError>(ends)
    })?;
    let sent = ends.iter().map(|end| end.sent.load(Ordering::Relaxed)).sum();
    Ok(Replayed {
        outcome: plan.outcome(&ends),
        connections: ends.len(),
        sent,
        recorded: plan.connections.iter().map(|opening| opening.bytes).sum(),
        breaks_off: plan.breaks_off,
    })
}

/// What a recording holds.
struct Plan {
    connections: Vec<Opening>,
    breaks_off: bool,
}

struct Opening {
    at: Duration,
    /// Bytes that each earlier connection had sent by then.
    before: Vec<u64>,
    /// Bytes of its stream.
    bytes: u64,
    /// It has a stream's header.
    main: bool,
    /// The stream asks for answers.
    answers: bool,
    /// Bytes up to and with the EOF byte.
    eof: Option<u64>,
}

impl Plan {
    /// Reads all of it: a damaged one is refused before a byte is sent.
    fn read(recording: &Path) -> Result<Self, RelayError> {
        let mut reader = Reader::open(recording)?;
        let mut connections: Vec<Opening> = Vec::new();
        let mut scanners: HashMap<u16, Scanner> = HashMap::new();
        while let Some(record) = reader.next()? {
            match record.what {
                What::Open => {
                    let before = connections.iter().map(|opening| opening.bytes).collect();
                    let at = record.at;
                    connections.push(Opening {
                        at,
                        before,
                        bytes: 0,
                        main: false,
                        answers: false,
                        eof: None,
                    });
                    scanners.insert(record.connection, Scanner::default());
                }
                What::Data(Direction::Forward, bytes) => {
                    let Some(opening) = connections.get_mut(usize::from(record.connection)) else { continue };
                    opening.bytes += bytes.len() as u64;
                    let Some(scanner) = scanners.get_mut(&record.connection) else { continue };
                    scanner.push(&bytes, &mut |mark| match mark.piece.kind {
                        Kind::Header => opening.main = true,
                        Kind::Command if mark.piece.name == "OPEN_RETURN_PATH" => opening.answers = true,
                        Kind::Eof if mark.edge == Edge::End => opening.eof = Some(mark.at),
                        _ => {}
                    });
                }
                What::Data(Direction::Back, _) | What::End(_) | What::Cut => {}
            }
        }
        Ok(Self { connections, breaks_off: !reader.is_whole() })
    }

    fn outcome(&self, ends: &[Arc<End>]) -> Outcome {
        let all = || self.connections.iter().zip(ends);
        let Some((main, end)) = all().find(|(opening, _)| opening.main).or_else(|| all().next()) else {
            return Outcome::Refused("the recording holds no connection".to_owned());
        };
        let sent = end.sent.load(Ordering::Relaxed);
        match (lock(&end.heard).shut, main.eof) {
            (Some(0), _) => Outcome::Taken,
            (Some(value), _) => Outcome::Refused(format!("the destination says that it failed (SHUT {value})")),
            (None, _) if !main.main => {
                Outcome::Unknown("the recording is of something that is not looked into (TLS?)".to_owned())
            }
            (None, None) => Outcome::Refused(format!(
                "the recorded stream ends after {} bytes without its EOF byte: no destination can take it",
                main.bytes
            )),
            (None, Some(eof)) if sent < eof => Outcome::Refused(format!(
                "the destination left after {sent} of {} bytes, before the EOF byte",
                main.bytes
            )),
            (None, Some(_)) if main.answers => Outcome::Unknown(
                "all was sent, and the destination did not say that it runs: look at it".to_owned(),
            ),
            (None, Some(_)) => Outcome::Unknown(
                "all was sent; the recorded move had no return path, so the destination says nothing: look at it"
                    .to_owned(),
            ),
        }
    }
}

/// A connection to the destination.
struct End {
    fd: OwnedFd,
    sent: AtomicU64,
    /// Nothing more will be sent.
    done: AtomicBool,
    heard: Mutex<Heard>,
    news: Condvar,
}

#[derive(Default)]
struct Heard {
    /// The destination's last word.
    shut: Option<u32>,
    /// It has closed the connection.
    closed: bool,
}

impl End {
    fn new(fd: OwnedFd) -> Self {
        let (sent, done) = (AtomicU64::new(0), AtomicBool::new(false));
        Self { fd, sent, done, heard: Mutex::default(), news: Condvar::new() }
    }

    fn close(&self) {
        let _already_gone = shutdown(&self.fd, Shutdown::Both);
    }

    /// Reads what comes back until nothing more does.
    fn listen(&self) {
        let (mut answers, mut chunk) = (Answers::default(), vec![0; 64 << 10]);
        while let Ok(length @ 1..) = rustix::io::retry_on_intr(|| rustix::io::read(&self.fd, &mut chunk[..]))
        {
            answers.push(chunk.get(..length).unwrap_or_default(), &mut |mark| {
                if mark.edge == Edge::End && mark.piece.name == "SHUT" {
                    lock(&self.heard).shut = Some(mark.piece.instance);
                    self.news.notify_all();
                }
            });
        }
        lock(&self.heard).closed = true;
        self.news.notify_all();
    }

    /// Waits for the last word, or until the destination closes.
    fn hear(&self, limit: Duration) {
        let waiting = |heard: &mut Heard| heard.shut.is_none() && !heard.closed;
        let _heard = self.news.wait_timeout_while(lock(&self.heard), limit, waiting);
    }

    /// Whether all went.
    fn send(&self, mut bytes: &[u8]) -> bool {
        while !bytes.is_empty() {
            match rustix::io::retry_on_intr(|| send(&self.fd, bytes, SendFlags::NOSIGNAL)) {
                Ok(length) => {
                    self.sent.fetch_add(length as u64, Ordering::Relaxed);
                    bytes = bytes.get(length..).unwrap_or_default();
                }
                Err(error) => {
                    tracing::debug!(%error, "the destination takes no more");
                    return false;
                }
            }
        }
        true
    }
}

/// One connection's part of the recording.
struct Job<'a> {
    recording: &'a Path,
    number: usize,
    opening: &'a Opening,
    options: &'a Options,
    start: Instant,
}

impl<'a> Job<'a> {
    fn start<'s>(self, scope: &'s Scope<'s, 'a>, end: Arc<End>) {
        let heard = end.clone();
        scope.spawn(move || heard.listen());
        scope.spawn(move || {
            // It has been read before: if it cannot be now, somebody changes it, and what was sent tells.
            if let Err(error) = self.send(&end) {
                tracing::error!(%error, "the recording changed while it was replayed");
            }
            end.done.store(true, Ordering::Release);
            if self.opening.answers {
                end.hear(self.options.wait);
            } else {
                let _already_gone = shutdown(&end.fd, Shutdown::Write);
                end.hear(self.options.wait);
            }
            end.close();
        });
    }

    fn send(&self, end: &End) -> Result<(), RelayError> {
        let mut reader = Reader::open(self.recording)?;
        while let Some(record) = reader.next()? {
            if usize::from(record.connection) != self.number {
                continue;
            }
            if self.options.timing {
                sleep_until(self.start, record.at);
            }
            match record.what {
                What::Data(Direction::Forward, bytes) => {
                    if !end.send(&bytes) {
                        return Ok(());
                    }
                }
                What::Cut => {
                    end.close();
                    return Ok(());
                }
                What::End(Direction::Forward) => return Ok(()),
                What::Open | What::Data(Direction::Back, _) | What::End(Direction::Back) => {}
            }
        }
        Ok(())
    }
}

fn wait_for_order(ends: &[Arc<End>], before: &[u64]) {
    let deadline = Instant::now() + ORDER;
    let there = |(end, bytes): (&Arc<End>, &u64)| {
        end.sent.load(Ordering::Relaxed) >= *bytes || end.done.load(Ordering::Acquire)
    };
    while Instant::now() < deadline && !ends.iter().zip(before).all(there) {
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn sleep_until(start: Instant, at: Duration) {
    std::thread::sleep(at.saturating_sub(start.elapsed()));
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
