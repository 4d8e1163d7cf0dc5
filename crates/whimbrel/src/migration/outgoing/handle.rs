//! The engine's end of a migration out: starts its thread, asks how it is, cancels it. It waits for nothing.

use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use whimbrel_proto::event::Event;
use whimbrel_proto::parameters::Parameters;
use whimbrel_proto::source::Info;

use super::Driver;
use super::gate::Gate;
use crate::cancel::Cancel;
use crate::channel::Target;
use crate::lock;
use crate::migration::Context;

/// The engine's end of a running outgoing migration.
#[derive(Clone)]
pub(crate) struct Handle {
    mailbox: Sender<Event>,
    shared: Arc<Shared>,
}

/// What the engine and the migration's thread both reach.
pub(super) struct Shared {
    pub(super) gate: Gate,
    pub(super) cancel: Cancel,
    pub(super) info: Mutex<Info>,
    /// When the attempt began: its clock's zero.
    pub(super) start: Instant,
    /// The system's number of the migration's thread, while it runs.
    thread: Mutex<Option<i32>>,
}

impl Handle {
    /// Starts the thread. `done` runs on it when the attempt is over.
    pub(crate) fn start(
        context: Context,
        parameters: Parameters,
        target: Target,
        done: impl FnOnce() + Send + 'static,
    ) -> std::io::Result<Self> {
        let (mailbox, events) = std::sync::mpsc::channel();
        let shared = Arc::new(Shared {
            gate: Gate::default(),
            cancel: Cancel::new()?,
            info: Mutex::default(),
            start: Instant::now(),
            thread: Mutex::default(),
        });
        let post = mailbox.clone();
        let mut driver = Driver::new(context, parameters, target, (events, post), shared.clone());
        // The first step is status setup: whoever asks after the command was answered sees an attempt that has begun.
        driver.step();
        std::thread::Builder::new().name("migration".into()).spawn(move || {
            *lock(&driver.shared.thread) = Some(rustix::thread::gettid().as_raw_nonzero().get());
            while driver.step() {}
            *lock(&driver.shared.thread) = None;
            done();
        })?;
        Ok(Self { mailbox, shared })
    }

    /// What `query-migrate` shows.
    pub(crate) fn info(&self) -> Info {
        let mut info = lock(&self.shared.info).clone();
        if let Some(total) = &mut info.total_time
            && info.status.is_running()
        {
            *total = self.shared.start.elapsed();
        }
        info
    }

    /// The system's number of its thread, while it runs.
    pub(crate) fn thread(&self) -> Option<i32> {
        *lock(&self.shared.thread)
    }

    /// Nothing follows any more.
    pub(crate) fn is_over(&self) -> bool {
        !lock(&self.shared.info).status.is_running()
    }

    /// Cancels, unless it is committed: then false. Returns at once, whatever the peer does.
    pub(crate) fn cancel(&self) -> bool {
        self.shared.gate.cancel(|| {
            self.tell(Event::Cancel);
            self.shared.cancel.raise();
        })
    }

    /// Tells the machine what happened outside.
    pub(crate) fn tell(&self, event: Event) {
        let _over = self.mailbox.send(event);
    }
}
