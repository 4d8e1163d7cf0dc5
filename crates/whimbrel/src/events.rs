//! What the engine tells those who watch: run-state changes and the progress of migrations.

use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, Weak};
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

/// A subscription that wakes its owner: what has come is taken by [`try_next`](Watch::try_next).
pub struct Watch {
    events: Receiver<TimedEvent>,
    /// The engine holds it only as long as this lives.
    _wake: Arc<Wake>,
}

/// The watcher fell too far behind, or the engine is gone: events are missing, and none will come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FellBehind;

type Wake = dyn Fn() + Send + Sync;

impl Watch {
    /// The next event that has come, in order; never waits.
    ///
    /// # Errors
    /// After the last event of a watcher that fell behind.
    pub fn try_next(&self) -> Result<Option<TimedEvent>, FellBehind> {
        match self.events.try_recv() {
            Ok(event) => Ok(Some(event)),
            Err(TryRecvError::Empty) => Ok(None),
            Err(TryRecvError::Disconnected) => Err(FellBehind),
        }
    }
}

/// Gives each event to every watcher, and waits for none.
#[derive(Default)]
pub(crate) struct Events {
    watchers: Mutex<Vec<Watcher>>,
}

struct Watcher {
    sender: SyncSender<TimedEvent>,
    /// Called after each event, and when the watcher is dropped.
    wake: Option<Weak<Wake>>,
}

impl Watcher {
    fn is_gone(&self) -> bool {
        self.wake.as_ref().is_some_and(|wake| wake.strong_count() == 0)
    }
}

impl Events {
    /// Lasts until the first event after the receiver is gone.
    pub(crate) fn subscribe(&self) -> Receiver<TimedEvent> {
        let (sender, receiver) = sync_channel(BACKLOG);
        self.add(Watcher { sender, wake: None });
        receiver
    }

    /// `wake` is called after each event, on the thread where it happened, and once when the watcher has fallen behind.
    pub(crate) fn watch(&self, wake: impl Fn() + Send + Sync + 'static) -> Watch {
        let (sender, events) = sync_channel(BACKLOG);
        let wake: Arc<Wake> = Arc::new(wake);
        self.add(Watcher { sender, wake: Some(Arc::downgrade(&wake)) });
        Watch { events, _wake: wake }
    }

    /// Watchers come and go while nothing happens, so those that are gone go here too.
    fn add(&self, watcher: Watcher) {
        let mut watchers = crate::lock(&self.watchers);
        watchers.retain(|watcher| !watcher.is_gone());
        watchers.push(watcher);
    }

    pub(crate) fn emit(&self, event: EngineEvent) {
        tracing::debug!(?event, "event");
        let timed = TimedEvent { at: SystemTime::now(), event };
        let mut watchers = crate::lock(&self.watchers);
        for Watcher { sender, wake } in std::mem::take(&mut *watchers) {
            let wakes = wake.as_ref().and_then(Weak::upgrade);
            match sender.try_send(timed.clone()) {
                Ok(()) => watchers.push(Watcher { sender, wake }),
                Err(TrySendError::Full(_)) => {
                    tracing::warn!("a watcher fell {BACKLOG} events behind and is dropped");
                    drop(sender);
                }
                Err(TrySendError::Disconnected(_)) => {}
            }
            if let Some(wake) = wakes {
                wake();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn a_watcher_is_woken_for_each_event_and_for_its_end() {
        let (events, woken) = (Events::default(), Arc::new(AtomicUsize::new(0)));
        let counter = woken.clone();
        let watch = events.watch(move || {
            counter.fetch_add(1, Ordering::Relaxed);
        });
        assert_eq!(watch.try_next(), Ok(None));
        for _ in 0..BACKLOG + 5 {
            events.emit(EngineEvent::Stop);
        }
        assert_eq!(woken.load(Ordering::Relaxed), BACKLOG + 1, "each that it has, and that there is no more");
        for _ in 0..BACKLOG {
            assert!(watch.try_next().unwrap().is_some());
        }
        assert_eq!(watch.try_next(), Err(FellBehind));
    }

    #[test]
    fn watchers_that_are_gone_leave_nothing_behind_though_nothing_happens() {
        let events = Events::default();
        let stays = events.subscribe();
        for _ in 0..100 {
            drop(events.watch(|| ()));
        }
        assert!(crate::lock(&events.watchers).len() <= 2);
        drop(stays);
        events.emit(EngineEvent::Stop);
        assert!(crate::lock(&events.watchers).is_empty());
    }
}
