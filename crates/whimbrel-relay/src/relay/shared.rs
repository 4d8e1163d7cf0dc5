//! What all threads of a relay share: the gate that everything passes, the recording, the rules, and what was seen.

use std::fmt;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, Weak};
use std::time::Duration;

use rustix::net::Shutdown;

use super::Config;
use super::pace::Pace;
use super::rules::{Fired, Rules};
use crate::recording::Recorder;
use crate::scan::Mark;
use crate::{Direction, RelayError};

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Seen {
    /// A connection was accepted, and one made to the destination.
    Opened {
        /// Its number, from 0.
        connection: u16,
        /// The source's address, where it has one.
        peer: Option<String>,
    },
    /// A connection was accepted, and the destination cannot be reached; it was closed again.
    Unreachable(String),
    /// A boundary was found in what was received.
    Mark {
        /// On which connection.
        connection: u16,
        /// Which way it goes.
        direction: Direction,
        /// The boundary.
        mark: Mark,
    },
    /// What is carried there is not looked into any more.
    Unread {
        /// On which connection.
        connection: u16,
        /// Which way.
        direction: Direction,
        /// Why.
        why: String,
    },
    /// A rule did what it says.
    Fired(Fired),
    /// Both directions of a connection have ended.
    Closed {
        /// Which.
        connection: u16,
    },
    /// The recording ends here: the file takes no more. Everything is carried on.
    RecordingFailed(String),
}

/// Is told what happens.
pub type Observer = Box<dyn Fn(&Seen) + Send + Sync>;

/// A connection, and what it carried so far.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Connection {
    /// Its number, from 0.
    pub number: u16,
    /// Bytes from source to destination.
    pub forward: u64,
    /// Bytes back.
    pub back: u64,
    /// It still carries something.
    pub open: bool,
}

/// What may pass.
#[derive(Debug, Default)]
pub(super) struct Gate {
    pub(super) held: bool,
    pub(super) swallows: bool,
}

pub(super) struct Shared {
    gate: RwLock<Gate>,
    pub(super) rules: Rules,
    pub(super) latency: Duration,
    forward: Pace,
    back: Pace,
    tallies: Mutex<Vec<(Arc<Tally>, Weak<Wires>)>>,
    recorder: Mutex<Recording>,
    observer: Option<Observer>,
}

#[derive(Debug, Default)]
struct Tally {
    forward: AtomicU64,
    back: AtomicU64,
}

enum Recording {
    No,
    Yes(Recorder),
    Failed(RelayError),
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("gate", &self.gate).field("rules", &self.rules).finish_non_exhaustive()
    }
}

impl Shared {
    pub(super) fn new(config: &Config, recorder: Option<Recorder>, observer: Option<Observer>) -> Self {
        Self {
            gate: RwLock::default(),
            rules: Rules::new(&config.rules),
            latency: config.latency,
            forward: Pace::new(config.rate),
            back: Pace::new(config.rate),
            tallies: Mutex::default(),
            recorder: Mutex::new(recorder.map_or(Recording::No, Recording::Yes)),
            observer,
        }
    }

    pub(super) fn say(&self, seen: &Seen) {
        tracing::debug!(?seen, "relay");
        if let Some(observer) = &self.observer {
            observer(seen);
        }
    }

    pub(super) fn pace(&self, direction: Direction) -> &Pace {
        match direction {
            Direction::Forward => &self.forward,
            Direction::Back => &self.back,
        }
    }

    /// As long as it is kept, nothing is held or cut from outside.
    pub(super) fn gate(&self) -> RwLockReadGuard<'_, Gate> {
        self.gate.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until nobody passes anything.
    fn closed_gate(&self) -> RwLockWriteGuard<'_, Gate> {
        self.gate.write().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn hold(&self, held: bool) {
        self.closed_gate().held = held;
    }

    pub(super) fn swallow(&self) {
        self.closed_gate().swallows = true;
    }

    pub(super) fn cut(&self) {
        let gate = self.closed_gate();
        let open: Vec<_> = lock(&self.tallies).iter().filter_map(|(_, wires)| wires.upgrade()).collect();
        open.iter().for_each(|wires| wires.cut());
        drop(gate);
    }

    pub(super) fn carried(&self, direction: Direction) -> u64 {
        lock(&self.tallies).iter().map(|(tally, _)| tally.of(direction).load(Ordering::Relaxed)).sum()
    }

    pub(super) fn connections(&self) -> Vec<Connection> {
        let of = |(number, (tally, wires)): (u16, &(Arc<Tally>, Weak<Wires>))| Connection {
            number,
            forward: tally.forward.load(Ordering::Relaxed),
            back: tally.back.load(Ordering::Relaxed),
            open: wires.strong_count() > 0,
        };
        (0..).zip(lock(&self.tallies).iter()).map(of).collect()
    }

    /// Writes to the recording, if there is one. `pass` is done under its lock, so that the order in which things are
    /// recorded is that in which they passed.
    fn recorded<T>(
        &self,
        pass: impl FnOnce() -> T,
        record: impl FnOnce(&mut Recorder, &T) -> Result<(), RelayError>,
    ) -> T {
        let mut recording = lock(&self.recorder);
        let Recording::Yes(recorder) = &mut *recording else {
            drop(recording);
            return pass();
        };
        let passed = pass();
        if let Err(error) = record(recorder, &passed) {
            let why = error.to_string();
            *recording = Recording::Failed(error);
            drop(recording);
            self.say(&Seen::RecordingFailed(why));
        }
        passed
    }

    /// Ends the recording.
    pub(super) fn finish(&self) -> Result<u64, RelayError> {
        match std::mem::replace(&mut *lock(&self.recorder), Recording::No) {
            Recording::No => Ok(0),
            Recording::Yes(recorder) => recorder.finish(),
            Recording::Failed(error) => Err(error),
        }
    }
}

impl Tally {
    fn of(&self, direction: Direction) -> &AtomicU64 {
        match direction {
            Direction::Forward => &self.forward,
            Direction::Back => &self.back,
        }
    }
}

/// The two sockets of a connection; they close with the last flow.
pub(super) struct Wires {
    pub(super) number: u16,
    pub(super) shared: Arc<Shared>,
    source: OwnedFd,
    destination: OwnedFd,
    tally: Arc<Tally>,
    cut: AtomicBool,
}

impl Wires {
    /// `None` if the sockets are not what they should be, or there were 65536 connections before.
    pub(super) fn open(
        shared: &Arc<Shared>,
        source: OwnedFd,
        destination: OwnedFd,
        peer: Option<String>,
    ) -> Option<Arc<Self>> {
        for fd in [&source, &destination] {
            rustix::io::ioctl_fionbio(fd, true).ok()?;
            let _only_tcp = rustix::net::sockopt::set_tcp_nodelay(fd, true);
        }
        let mut tallies = lock(&shared.tallies);
        let number = u16::try_from(tallies.len()).ok()?;
        let (tally, cut) = (Arc::<Tally>::default(), AtomicBool::new(false));
        let wires = Arc::new(Self { number, shared: shared.clone(), source, destination, tally, cut });
        tallies.push((wires.tally.clone(), Arc::downgrade(&wires)));
        drop(tallies);
        shared.recorded(|| (), |recorder, ()| recorder.open(number));
        shared.say(&Seen::Opened { connection: number, peer });
        Some(wires)
    }

    /// Where a direction comes from, and where it goes.
    pub(super) fn ends(&self, direction: Direction) -> (&OwnedFd, &OwnedFd) {
        match direction {
            Direction::Forward => (&self.source, &self.destination),
            Direction::Back => (&self.destination, &self.source),
        }
    }

    /// Closes it for both ends.
    pub(super) fn cut(&self) {
        if !self.cut.swap(true, Ordering::AcqRel) {
            self.shared.recorded(|| (), |recorder, ()| recorder.cut(self.number));
            for fd in [&self.source, &self.destination] {
                let _already_gone = rustix::net::shutdown(fd, Shutdown::Both);
            }
        }
    }

    pub(super) fn is_cut(&self) -> bool {
        self.cut.load(Ordering::Acquire)
    }

    /// Passes bytes on, as many as go without waiting.
    pub(super) fn pass(&self, direction: Direction, bytes: &[u8]) -> rustix::io::Result<usize> {
        let passed = self.shared.recorded(
            || {
                rustix::io::retry_on_intr(|| {
                    rustix::net::send(self.ends(direction).1, bytes, rustix::net::SendFlags::NOSIGNAL)
                })
            },
            |recorder, passed| match passed {
                Ok(length) if *length > 0 => {
                    recorder.data(self.number, direction, bytes.get(..*length).unwrap_or_default())
                }
                _ => Ok(()),
            },
        )?;
        self.tally.of(direction).fetch_add(passed as u64, Ordering::Relaxed);
        Ok(passed)
    }

    /// Nothing more goes in that direction.
    pub(super) fn end(&self, direction: Direction) {
        if !self.is_cut() {
            self.shared.recorded(|| (), |recorder, ()| recorder.end(self.number, direction));
            let _already_gone = rustix::net::shutdown(self.ends(direction).1, Shutdown::Write);
        }
    }
}

impl Drop for Wires {
    fn drop(&mut self) {
        self.shared.say(&Seen::Closed { connection: self.number });
    }
}

/// A lock whose data stays usable after a thread panicked with it: every update under our locks is whole.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
