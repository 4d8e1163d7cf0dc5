//! One client's socket and its threads.
//!
//! ```text
//! socket ─▶ qmp-read ──(queue)──▶ qmp-run ──▶ main loop
//!              │ exec-oob            │ answers
//!              └────────▶ outbox ◀───┴── qmp-event ◀── engine's events
//! ```
//!
//! The queue holds few commands: a client that sends more than it lets be answered is not read any further. A client that doesn't
//! read a message within [`WRITE_TIMEOUT`] is disconnected. No thread but a connection's own ever waits for its client.
//!
//! An event that a command causes is sent before the command's answer: whoever answers first sends the events that have come.

use std::io::{self, Write};
use std::net::Shutdown;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::Value;
use whimbrel::events::TimedEvent;

use crate::command::Table;
use crate::endpoint::Stream;
use crate::events::to_message;
use crate::json::{Bounds, Framer, to_line};
use crate::server::Vm;
use crate::session::{Message, Session};

/// How long a client may leave what it is sent unread.
const WRITE_TIMEOUT: Duration = Duration::from_secs(5);
/// Bytes handed to the kernel in one call.
const WRITE_AT_ONCE: usize = 4 << 10;
/// Commands that wait while one runs (QEMU's number).
const QUEUE: usize = 8;
/// How often the event thread looks whether the connection is still there.
const LOOK: Duration = Duration::from_secs(1);

/// A served client. Dropping it stops reading, answers what was read, and disconnects.
pub(crate) struct Connection {
    stream: Arc<Stream>,
    threads: Vec<JoinHandle<()>>,
}

impl Connection {
    pub(crate) fn start(stream: Stream, vm: Arc<Vm>, table: Arc<Table>) -> io::Result<Self> {
        stream.set_write_timeout(Some(WRITE_TIMEOUT))?;
        let stream = Arc::new(stream);
        let session = Arc::new(Session::new(vm.clone(), table));
        // The outbox's subscription is the older one, so that it has every event by which the other wakes the event thread.
        let events = vm.engine.events();
        let wake = vm.engine.events();
        let outbox = Arc::new(Outbox {
            stream: stream.clone(),
            session: session.clone(),
            events: Mutex::new(events),
            over: AtomicBool::new(false),
        });
        let (queue, queued) = sync_channel(QUEUE);
        let mut connection = Self { stream, threads: Vec::new() };

        let (reading, reader_session) = (outbox.clone(), session.clone());
        connection.spawn("qmp-read", move || read_all(&reading, &reader_session, &queue))?;
        let running = outbox.clone();
        connection.spawn("qmp-run", move || run_all(&running, &session, &queued))?;
        // Nobody waits for this thread: it may sleep for some time after the connection is over.
        std::thread::Builder::new().name("qmp-event".into()).spawn(move || tell_all(&outbox, &wake))?;
        Ok(connection)
    }

    pub(crate) fn is_over(&self) -> bool {
        self.threads.iter().all(JoinHandle::is_finished)
    }

    fn spawn(&mut self, name: &str, body: impl FnOnce() + Send + 'static) -> io::Result<()> {
        self.threads.push(std::thread::Builder::new().name(name.into()).spawn(body)?);
        Ok(())
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.stream.shutdown(Shutdown::Read);
        for thread in self.threads.drain(..) {
            let _panicked = thread.join();
        }
    }
}

/// Reads messages until the client is gone; answers those out of band at once, queues the others.
fn read_all(outbox: &Outbox, session: &Session, queue: &SyncSender<Message>) {
    let mut framer = Framer::new(Bounds::SERVER);
    let mut buffer = [0; 4 << 10];
    // The latest descriptor, for the message whose bytes it came with: where messages and parts of them came together, the kernel
    // ends a read with the bytes of the descriptor.
    let mut descriptor = None;
    loop {
        let read = match outbox.stream.receive(&mut buffer) {
            Ok((0, _)) => return,
            Ok((read, received)) => {
                descriptor = received.or(descriptor);
                read
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => {
                tracing::debug!(%error, "a monitor client is gone");
                return;
            }
        };
        framer.feed(buffer.get(..read).unwrap_or_default());
        while let Some(value) = framer.next_message() {
            let is_last = !framer.has_messages() && !framer.is_inside_message();
            let message = Message { value, descriptor: descriptor.take_if(|_| is_last) };
            if session.is_out_of_band(&message) {
                outbox.answer(&session.answer(message));
            } else if queue.send(message).is_err() {
                return;
            }
        }
    }
}

/// Runs queued commands one after the other, until the reader has ended and all are answered.
fn run_all(outbox: &Outbox, session: &Session, queued: &Receiver<Message>) {
    outbox.answer(&session.greeting());
    for message in queued {
        if outbox.is_over() {
            break;
        }
        outbox.answer(&session.answer(message));
    }
    outbox.close();
}

/// Sends events as they come.
fn tell_all(outbox: &Outbox, wake: &Receiver<TimedEvent>) {
    while !outbox.is_over() {
        match wake.recv_timeout(LOOK) {
            Ok(_) => outbox.tell(),
            Err(RecvTimeoutError::Timeout) => {}
            // Too far behind: going on with a gap in the events would mislead the client.
            Err(RecvTimeoutError::Disconnected) => outbox.close(),
        }
    }
}

/// The way out: one message at a time, events in order, answers after the events they caused.
struct Outbox {
    stream: Arc<Stream>,
    session: Arc<Session>,
    /// Also the lock under which messages are written.
    events: Mutex<Receiver<TimedEvent>>,
    over: AtomicBool,
}

impl Outbox {
    fn answer(&self, answer: &Value) {
        let events = self.events.lock().unwrap_or_else(PoisonError::into_inner);
        self.write_events(&events);
        self.write(answer);
    }

    fn tell(&self) {
        let events = self.events.lock().unwrap_or_else(PoisonError::into_inner);
        self.write_events(&events);
    }

    fn write_events(&self, events: &Receiver<TimedEvent>) {
        // Before negotiation they are taken, and not sent.
        for event in events.try_iter() {
            if self.session.is_negotiated()
                && let Some(message) = to_message(&event)
            {
                self.write(&message);
            }
        }
    }

    fn write(&self, message: &Value) {
        if self.is_over() {
            return;
        }
        if let Err(error) = self.write_in_time(&to_line(message)) {
            tracing::warn!(%error, "a monitor client does not read and is disconnected");
            self.close();
        }
    }

    /// The whole message has to be taken in time: a client that takes a byte now and then reads no more than one that takes none.
    fn write_in_time(&self, mut bytes: &[u8]) -> io::Result<()> {
        let deadline = Instant::now() + WRITE_TIMEOUT;
        while !bytes.is_empty() {
            if Instant::now() >= deadline {
                return Err(io::ErrorKind::TimedOut.into());
            }
            // The kernel's timeout is for each buffer it waits for: a large write would have it many times over.
            let (now, _later) = bytes.split_at(bytes.len().min(WRITE_AT_ONCE));
            match (&*self.stream).write(now) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => bytes = bytes.get(written..).unwrap_or_default(),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn is_over(&self) -> bool {
        self.over.load(Ordering::SeqCst)
    }

    fn close(&self) {
        self.over.store(true, Ordering::SeqCst);
        self.stream.shutdown(Shutdown::Both);
    }
}
