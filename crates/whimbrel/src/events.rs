//! What the engine tells those who watch: run-state changes and the progress of migrations.

use std::sync::Mutex;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::time::SystemTime;

use whimbrel_proto::status::MigrationStatus;

/// How many events a watcher may be behind before it is dropped.
const BACKLOG: usize = 1024;

/// Something that happened to the machine.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum EngineEvent {
    /// The guest stopped.
    Stop,
    /// The guest is about to run.
    Resume,
    /// The machine was reset.
    Reset {
        /// By the guest.
        guest: bool,
        /// QMP's reason.
        reason: &'static str,
    },
    /// The machine is about to end, or the guest powered off.
    Shutdown {
        /// By the guest.
        guest: bool,
        /// QMP's reason.
        reason: &'static str,
    },
    /// A migration's status changed.
    Migration(MigrationStatus),
    /// A dirty sync was done; their count.
    MigrationPass(u64),
}

/// An event and when it happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TimedEvent {
    /// Host clock.
    pub at: SystemTime,
    /// What.
    pub event: EngineEvent,
}

/// Gives each event to every watcher, and waits for none.
#[derive(Default)]
pub(crate) struct Events {
    watchers: Mutex<Vec<SyncSender<TimedEvent>>>,
}

impl Events {
    pub(crate) fn subscribe(&self) -> Receiver<TimedEvent> {
        let (sender, receiver) = sync_channel(BACKLOG);
        crate::lock(&self.watchers).push(sender);
        receiver
    }

    pub(crate) fn emit(&self, event: EngineEvent) {
        tracing::debug!(?event, "event");
        let timed = TimedEvent { at: SystemTime::now(), event };
        crate::lock(&self.watchers).retain(|watcher| match watcher.try_send(timed.clone()) {
            Ok(()) => true,
            Err(TrySendError::Full(_)) => {
                tracing::warn!("a watcher fell {BACKLOG} events behind and is dropped");
                false
            }
            Err(TrySendError::Disconnected(_)) => false,
        });
    }
}
