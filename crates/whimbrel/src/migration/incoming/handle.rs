//! The engine's end of a migration in: listens, starts its thread, asks how it is, gives it up. It waits for nothing.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex};

use whimbrel_proto::capabilities::{Capabilities, Capability};
use whimbrel_proto::event::DestinationEvent;
use whimbrel_proto::outcome::Outcome;
use whimbrel_proto::status::MigrationStatus;

use super::Driver;
use crate::cancel::Cancel;
use crate::channel::{Address, Link, Listener, Target};
use crate::lock;
use crate::migration::Context;

/// What `query-migrate` shows of it.
#[derive(Debug, Clone, Default)]
pub struct IncomingInfo {
    /// As last published.
    pub status: MigrationStatus,
    /// Why it failed.
    pub error: Option<String>,
    /// Where it listens, with the port the kernel chose.
    pub socket_address: Option<Address>,
}

/// The engine's end of an incoming migration.
#[derive(Clone)]
pub(crate) struct Handle {
    mailbox: Sender<DestinationEvent>,
    shared: Arc<Shared>,
}

/// What the engine and the incoming thread both reach.
pub(super) struct Shared {
    pub(super) cancel: Cancel,
    pub(super) link: Mutex<Option<Arc<Link>>>,
    pub(super) info: Mutex<IncomingInfo>,
    pub(super) cancelled: AtomicBool,
    /// As they are now: they may still be set while a guest is awaited.
    pub(super) capabilities: Mutex<Capabilities>,
}

impl Handle {
    /// Listens, then starts the thread. `done` runs on it when the attempt is over.
    ///
    /// # Errors
    /// If the address cannot be listened on.
    pub(crate) fn start(
        context: Context,
        autostart: bool,
        target: Target,
        done: impl FnOnce(&Outcome) + Send + 'static,
    ) -> std::io::Result<Self> {
        let (listener, bound) = Listener::bind(target)?;
        let (mailbox, events) = std::sync::mpsc::channel();
        let socket_address = listener.is_bound().then(|| bound.clone());
        let info = IncomingInfo { socket_address, ..IncomingInfo::default() };
        let shared = Arc::new(Shared {
            cancel: Cancel::new()?,
            link: Mutex::default(),
            info: Mutex::new(info),
            cancelled: AtomicBool::new(false),
            capabilities: Mutex::new(context.capabilities),
        });
        let handle = Self { mailbox, shared: shared.clone() };
        std::thread::Builder::new().name("incoming".into()).spawn(move || {
            let driver = Driver::new(&context, autostart, events, &shared);
            let outcome = driver.run(listener, &bound);
            done(&outcome);
        })?;
        Ok(handle)
    }

    pub(crate) fn info(&self) -> IncomingInfo {
        lock(&self.shared.info).clone()
    }

    /// `cont` (true) or `stop` (false) while incoming.
    pub(crate) fn autostart(&self, on: bool) {
        let _over = self.mailbox.send(DestinationEvent::Autostart(on));
    }

    /// Capabilities may still be set while a guest is awaited.
    pub(crate) fn capabilities(&self, capabilities: Capabilities) {
        *lock(&self.shared.capabilities) = capabilities;
        let acknowledge = capabilities.has(Capability::SwitchoverAck);
        let _over = self.mailbox.send(DestinationEvent::SwitchoverAck(acknowledge));
    }

    /// Gives up, unless the guest is already ours.
    pub(crate) fn cancel(&self) {
        self.shared.cancelled.store(true, Ordering::Release);
        let _over = self.mailbox.send(DestinationEvent::Cancel);
        self.shared.cancel.raise();
        if let Some(link) = &*lock(&self.shared.link) {
            link.give_up();
        }
    }
}
