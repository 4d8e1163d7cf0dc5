//! One direction of one connection, on a thread of its own.
//!
//! Where a rule waits for a piece of the stream, bytes whose meaning is not known yet are kept back, so that a cut falls
//! exactly on the boundary: part of a header, or what follows a footer. After [`PATIENCE`] of silence they go on all the same;
//! nobody ever waits for the relay longer than that.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::rules::Next;
use super::shared::{Seen, Wires};
use crate::Direction;
use crate::rule::Act;
use crate::scan::{Answers, Mark, Scanner};

/// Most bytes received at once.
const CHUNK: usize = 256 << 10;
/// How long bytes whose meaning is not known are kept back.
const PATIENCE: Duration = Duration::from_millis(200);
/// How often a flow looks whether it is still held or cut.
const TICK: Duration = Duration::from_millis(20);

pub(super) struct Flow {
    wires: Arc<Wires>,
    direction: Direction,
    /// Most bytes to keep.
    buffer: usize,
    scan: Scan,
    /// Received and not passed on, with the time from which it may be.
    queue: VecDeque<Chunk>,
    queued: usize,
    passed: u64,
    /// Nothing more will be received.
    ended: bool,
    /// When something was received last.
    last: Instant,
    unread: bool,
}

struct Chunk {
    due: Instant,
    bytes: Vec<u8>,
    /// Of them, already passed on.
    from: usize,
}

enum Scan {
    Stream(Box<Scanner>),
    Answers(Answers),
}

/// What has to happen before more can be passed on.
enum Wait {
    /// Something is received, or a tick passes.
    Any,
    /// The other end takes more.
    Writable,
    /// That time comes.
    Until(Instant),
    /// Never: the other end is gone.
    Gone,
}

impl Flow {
    pub(super) fn new(wires: Arc<Wires>, direction: Direction, buffer: usize) -> Self {
        let scan = match direction {
            Direction::Forward => Scan::Stream(Box::default()),
            Direction::Back => Scan::Answers(Answers::default()),
        };
        Self {
            wires,
            direction,
            buffer,
            scan,
            queue: VecDeque::new(),
            queued: 0,
            passed: 0,
            ended: false,
            last: Instant::now(),
            unread: false,
        }
    }

    /// Carries until one end closes or the connection is cut.
    pub(super) fn run(mut self) {
        let mut chunk = vec![0; CHUNK];
        loop {
            let wait = self.pass_on();
            if self.wires.is_cut() {
                return;
            }
            let gate = self.wires.shared.gate();
            let (held, swallows) = (gate.held, gate.swallows);
            let through = self.ended && self.queue.is_empty() && !held && !swallows;
            if through || matches!(wait, Wait::Gone) {
                self.wires.end(self.direction);
                return;
            }
            drop(gate);
            if self.wait(&wait, !held) {
                self.receive(&mut chunk);
            }
        }
    }

    /// Passes on what may pass now.
    fn pass_on(&mut self) -> Wait {
        let wires = self.wires.clone();
        let (shared, number) = (&wires.shared, wires.number);
        loop {
            let now = Instant::now();
            let gate = shared.gate();
            if gate.held || wires.is_cut() {
                return Wait::Any;
            }
            if gate.swallows {
                self.queue.clear();
                self.queued = 0;
                return Wait::Any;
            }
            let (next, unknown) = shared.rules.next(number, self.direction);
            if let Some(next) = next.filter(|next| next.at <= self.passed) {
                if next.act == Act::Corrupt && self.queue.is_empty() {
                    return Wait::Any;
                }
                drop(gate);
                self.fire(next);
                continue;
            }
            let settled = self.settled(unknown, now);
            let Some(front) = self.queue.front_mut() else { return Wait::Any };
            if front.due > now {
                return Wait::Until(front.due);
            }
            let room = match shared.pace(self.direction).room(now) {
                Ok(room) => room,
                Err(free) => return Wait::Until(free),
            };
            let limit = next.map_or(settled, |next| next.at.min(settled)).saturating_sub(self.passed);
            if limit == 0 {
                return Wait::Until(self.last + PATIENCE);
            }
            let most = room.min(usize::try_from(limit).unwrap_or(usize::MAX));
            let bytes = front.bytes.get(front.from..).unwrap_or_default();
            let bytes = bytes.get(..most).unwrap_or(bytes);
            match wires.pass(self.direction, bytes) {
                Ok(passed) => {
                    shared.pace(self.direction).passed(now, passed);
                    front.from += passed;
                    self.queued -= passed;
                    self.passed += passed as u64;
                    if front.from == front.bytes.len() {
                        self.queue.pop_front();
                    }
                }
                Err(rustix::io::Errno::AGAIN) => return Wait::Writable,
                Err(_) => return Wait::Gone,
            }
        }
    }

    /// How far the stream may pass on. `unknown`: a rule waits for a piece that has not been found yet.
    fn settled(&mut self, unknown: bool, now: Instant) -> u64 {
        if !unknown || self.queue.is_empty() {
            return u64::MAX;
        }
        let of = |scan: &Scan| match scan {
            Scan::Stream(scanner) => scanner.settled(),
            Scan::Answers(answers) => answers.settled(),
        };
        let kept_back = of(&self.scan) <= self.passed;
        if kept_back && (self.ended || now >= self.last + PATIENCE) {
            let before = of(&self.scan);
            self.scan(None);
            // What the silence has decided may be a rule's place: it is looked at again first.
            return if of(&self.scan) > before { before } else { u64::MAX };
        }
        of(&self.scan)
    }

    fn fire(&mut self, next: Next) {
        let shared = &self.wires.shared;
        let Some(fired) = shared.rules.fire(next, self.wires.number, self.passed) else { return };
        match fired.act {
            Act::Cut => shared.cut(),
            Act::Hold => shared.hold(true),
            Act::Swallow => shared.swallow(),
            Act::Corrupt => {
                let front = self.queue.front_mut();
                if let Some(byte) = front.and_then(|front| front.bytes.get_mut(front.from)) {
                    *byte = !*byte;
                }
            }
        }
        shared.say(&Seen::Fired(fired));
    }

    /// Waits; whether something can be received.
    fn wait(&self, wait: &Wait, receiving: bool) -> bool {
        let (from, to) = self.wires.ends(self.direction);
        let receiving = receiving && !self.ended && self.queued < self.buffer;
        let mut fds = Vec::with_capacity(2);
        if receiving {
            fds.push(PollFd::new(from, PollFlags::IN));
        }
        if matches!(wait, Wait::Writable) {
            fds.push(PollFd::new(to, PollFlags::OUT));
        }
        let time = match wait {
            Wait::Until(time) => time.saturating_duration_since(Instant::now()).min(TICK),
            _ => TICK,
        };
        let _again = poll(&mut fds, Timespec::try_from(time).ok().as_ref());
        receiving && fds.first().is_some_and(|fd| !fd.revents().is_empty())
    }

    fn receive(&mut self, chunk: &mut [u8]) {
        let most = chunk.len().min(self.buffer.saturating_sub(self.queued));
        let room = chunk.get_mut(..most).unwrap_or_default();
        match rustix::io::retry_on_intr(|| rustix::io::read(self.wires.ends(self.direction).0, &mut *room)) {
            Err(rustix::io::Errno::AGAIN) => {}
            // A connection that was reset has ended.
            Ok(0) | Err(_) => self.ended = true,
            Ok(length) => {
                self.last = Instant::now();
                let bytes = room.get(..length).unwrap_or_default().to_vec();
                self.scan(Some(&bytes));
                self.queued += length;
                let due = self.last + self.wires.shared.latency;
                self.queue.push_back(Chunk { due, bytes, from: 0 });
            }
        }
    }

    /// Looks at what came, or at the silence, and tells what it found.
    fn scan(&mut self, bytes: Option<&[u8]>) {
        let (connection, direction, shared) = (self.wires.number, self.direction, &self.wires.shared);
        let mut found = |mark: Mark| {
            shared.rules.mark(connection, direction, &mark);
            shared.say(&Seen::Mark { connection, direction, mark });
        };
        let lost = match (&mut self.scan, bytes) {
            (Scan::Stream(scanner), Some(bytes)) => {
                scanner.push(bytes, &mut found);
                scanner.lost()
            }
            (Scan::Stream(scanner), None) => {
                scanner.idle(&mut found);
                scanner.lost()
            }
            (Scan::Answers(answers), Some(bytes)) => {
                answers.push(bytes, &mut found);
                answers.lost()
            }
            (Scan::Answers(answers), None) => answers.lost(),
        };
        if let Some(why) = lost.filter(|_| !self.unread) {
            self.unread = true;
            shared.say(&Seen::Unread { connection, direction, why: why.to_owned() });
        }
    }
}
