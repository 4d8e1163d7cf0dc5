//! One client's socket and the one thread that serves it.
//!
//! ```text
//!             ┌───────────────────────── qmp-client ──────────────────────────┐
//! socket ─────┼─▶ framer ─▶ queue (8) ─▶ session ─┬─▶ job ────────────────────┼──▶ main loop
//!             │      └── exec-oob, at once ──▶────┤ read-only: done here      │        │
//! socket ◀────┼── outbox ◀────────────────────────┴─◀─ answer, events ◀───────┼── wake ◀── engine
//!             └───────────────────────────────────────────────────────────────┘
//! ```
//!
//! The thread waits in one place, for the socket or for its wake descriptor, which the main loop raises when a command is done and
//! the engine when something happened. So a command on the main loop holds up neither events nor what comes out of band.
//! Nobody else waits for the client, and no memory is the client's to fill:
//!
//! | what piles up | bound | then |
//! |---|---|---|
//! | commands behind one that runs | [`QUEUE`] | nothing is read |
//! | answers and events that the client doesn't read | the outbox's room | nothing is read, no event taken |
//! | one message that is not taken whole | [`WRITE_TIMEOUT`](crate::outbox::WRITE_TIMEOUT) | disconnected |
//! | events that are not taken | the engine's backlog | disconnected: a gap would mislead |
//!
//! An event that a command causes is sent before the command's answer: events that have come are taken before each answer.

use std::collections::VecDeque;
use std::io;
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, sync_channel};
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;
use std::time::Instant;

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use serde_json::Value;
use whimbrel::error::CommandError;
use whimbrel::events::{FellBehind, Watch};

use crate::command::{Job, Table};
use crate::endpoint::Stream;
use crate::events::to_message;
use crate::json::{Bounds, Framer};
use crate::outbox::Outbox;
use crate::server::Vm;
use crate::session::{Message, Next, Session, answer};

/// Commands that wait while one runs (QEMU's number).
const QUEUE: usize = 8;

/// A served client. Dropping it stops reading, answers what was read, and disconnects.
pub(crate) struct Connection {
    /// The thread's: a client that has gone leaves nothing open here.
    wake: Weak<Wake>,
    thread: Option<JoinHandle<()>>,
}

impl Connection {
    pub(crate) fn start(stream: Stream, vm: Arc<Vm>, table: Arc<Table>) -> io::Result<Self> {
        stream.set_nonblocking()?;
        let wake = Arc::new(Wake::new()?);
        let (ours, raise) = (Arc::downgrade(&wake), wake.clone());
        let serving = Serving {
            stream,
            events: vm.engine.watch(move || raise.raise()),
            session: Session::new(vm.clone(), table),
            vm,
            wake,
            framer: Framer::new(Bounds::SERVER),
            descriptor: None,
            reading: true,
            queue: VecDeque::new(),
            running: None,
            outbox: Outbox::default(),
        };
        let thread = std::thread::Builder::new().name("qmp-client".into()).spawn(move || serving.serve())?;
        Ok(Self { wake: ours, thread: Some(thread) })
    }

    pub(crate) fn is_over(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        if let Some(wake) = self.wake.upgrade() {
            wake.end();
        }
        if let Some(thread) = self.thread.take() {
            let _panicked = thread.join();
        }
    }
}

/// Brings the thread back from its wait.
struct Wake {
    fd: OwnedFd,
    ending: AtomicBool,
}

impl Wake {
    fn new() -> io::Result<Self> {
        let fd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self { fd, ending: AtomicBool::new(false) })
    }

    fn raise(&self) {
        let _is_raised_already = rustix::io::write(&self.fd, &1_u64.to_ne_bytes());
    }

    /// To be called before looking for what it was raised for.
    fn lower(&self) {
        let _was_not_raised = rustix::io::read(&self.fd, &mut [0_u8; 8]);
    }

    /// No more is to be read.
    fn end(&self) {
        self.ending.store(true, Ordering::Release);
        self.raise();
    }
}

/// A command that the main loop was given.
struct Running {
    id: Option<Value>,
    answer: Receiver<Result<Value, CommandError>>,
}

/// The main loop's end of it. If the loop ends before it comes to the command, this is dropped, and that is seen as well.
struct Reply {
    answer: SyncSender<Result<Value, CommandError>>,
    // After the answer: members are dropped in this order.
    _raised: RaisedWhenDropped,
}

struct RaisedWhenDropped(Arc<Wake>);

impl Drop for RaisedWhenDropped {
    fn drop(&mut self) {
        self.0.raise();
    }
}

impl Reply {
    fn send(self, result: Result<Value, CommandError>) {
        let _gone = self.answer.send(result);
    }
}

/// The thread's own.
struct Serving {
    stream: Stream,
    vm: Arc<Vm>,
    session: Session,
    events: Watch,
    wake: Arc<Wake>,
    framer: Framer,
    /// The latest descriptor, for the message whose bytes it came with: where messages and parts of them came together, the
    /// kernel ends a read with the bytes of the descriptor.
    descriptor: Option<OwnedFd>,
    /// The client may still say something.
    reading: bool,
    queue: VecDeque<Message>,
    running: Option<Running>,
    outbox: Outbox,
}

impl Serving {
    fn serve(mut self) {
        self.outbox.put(&self.session.greeting());
        let end = loop {
            match self.turn() {
                Ok(true) => {}
                Ok(false) => break Ok(()),
                Err(error) => break Err(error),
            }
        };
        match end {
            Err(error) if error.kind() == io::ErrorKind::TimedOut => {
                tracing::warn!("a monitor client does not read and is disconnected");
            }
            Err(error) => tracing::debug!(%error, "a monitor client is gone"),
            Ok(()) => {}
        }
        self.stream.shutdown(Shutdown::Both);
    }

    /// Does all that can be done now, then waits; whether there is more to do.
    fn turn(&mut self) -> io::Result<bool> {
        self.wake.lower();
        if self.wake.ending.load(Ordering::Acquire) {
            self.reading = false;
        }
        self.finish_command()?;
        if self.outbox.has_room() {
            self.tell_events()?;
        }
        while self.take_message()? {}
        let was_full = !self.outbox.has_room();
        self.outbox.write(&self.stream)?;
        if was_full && self.outbox.has_room() {
            // There may be messages and events that had to wait for room, and nobody wakes us for them again.
            return Ok(true);
        }
        let idle = self.running.is_none() && self.queue.is_empty() && !self.framer.has_messages();
        if !self.reading && idle && self.outbox.is_empty() {
            return Ok(false);
        }
        self.wait()
    }

    /// Takes the answer of the command that the main loop has done.
    fn finish_command(&mut self) -> io::Result<()> {
        let Some(Running { id, answer: wait }) = self.running.take() else { return Ok(()) };
        let result = match wait.try_recv() {
            Ok(result) => result,
            Err(TryRecvError::Disconnected) => Err(CommandError::generic("The machine has ended")),
            Err(TryRecvError::Empty) => {
                self.running = Some(Running { id, answer: wait });
                return Ok(());
            }
        };
        self.answer(&answer(id, result))
    }

    /// Takes the next message that may be taken; whether there was one.
    fn take_message(&mut self) -> io::Result<bool> {
        if !self.outbox.has_room() {
            return Ok(false);
        }
        if self.running.is_none()
            && let Some(message) = self.queue.pop_front()
        {
            self.execute(message)?;
            return Ok(true);
        }
        if self.queue.len() >= QUEUE {
            return Ok(false);
        }
        let Some(value) = self.framer.next_message() else { return Ok(false) };
        let is_last = !self.framer.has_messages() && !self.framer.is_inside_message();
        let message = Message { value, descriptor: self.descriptor.take_if(|_| is_last) };
        if self.session.is_out_of_band(&message) {
            self.execute(message)?;
        } else {
            self.queue.push_back(message);
        }
        Ok(true)
    }

    fn execute(&mut self, message: Message) -> io::Result<()> {
        match self.session.take(message) {
            Next::Answer(message) => self.answer(&message),
            Next::MainLoop { id, job } => {
                self.running = Some(Running { id, answer: self.post(job) });
                Ok(())
            }
        }
    }

    fn post(&self, job: Job) -> Receiver<Result<Value, CommandError>> {
        let (answer, wait) = sync_channel(1);
        let reply = Reply { answer, _raised: RaisedWhenDropped(self.wake.clone()) };
        let vm = self.vm.clone();
        self.vm.engine.post(move |_| reply.send(job(&vm)));
        wait
    }

    fn answer(&mut self, message: &Value) -> io::Result<()> {
        self.tell_events()?;
        self.outbox.put(message);
        Ok(())
    }

    /// Takes the events that have come. Before negotiation they are not sent.
    fn tell_events(&mut self) -> io::Result<()> {
        loop {
            match self.events.try_next() {
                Ok(Some(event)) if self.session.is_negotiated() => {
                    if let Some(message) = to_message(&event) {
                        self.outbox.put(&message);
                    }
                }
                Ok(Some(_)) => {}
                Ok(None) => return Ok(()),
                Err(FellBehind) => return Err(io::ErrorKind::TimedOut.into()),
            }
        }
    }

    /// Waits until there is something to do, and reads if that is it.
    fn wait(&mut self) -> io::Result<bool> {
        let takes = self.reading && self.outbox.has_room() && self.queue.len() < QUEUE;
        let mut interest = PollFlags::empty();
        interest.set(PollFlags::IN, takes && !self.framer.has_messages());
        interest.set(PollFlags::OUT, !self.outbox.is_empty());
        // A socket that nothing is wanted of is left out: that its client is gone would wake us again and again.
        let mut fds = [PollFd::new(&self.wake.fd, PollFlags::IN), PollFd::new(&self.stream, interest)];
        let asked = if interest.is_empty() { &mut fds[..1] } else { &mut fds[..] };
        let left = self.outbox.deadline().map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let timeout = left.and_then(|left| Timespec::try_from(left).ok());
        match poll(asked, timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let came = PollFlags::IN | PollFlags::HUP | PollFlags::ERR;
        if interest.contains(PollFlags::IN) && asked.get(1).is_some_and(|fd| fd.revents().intersects(came)) {
            self.read()?;
        }
        Ok(true)
    }

    fn read(&mut self) -> io::Result<()> {
        let mut buffer = [0; 4 << 10];
        match self.stream.receive(&mut buffer) {
            Ok((0, _)) => self.reading = false,
            Ok((read, received)) => {
                self.descriptor = received.or(self.descriptor.take());
                self.framer.feed(buffer.get(..read).unwrap_or_default());
            }
            Err(error) => match error.kind() {
                io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock => {}
                _ => return Err(error),
            },
        }
        Ok(())
    }
}
