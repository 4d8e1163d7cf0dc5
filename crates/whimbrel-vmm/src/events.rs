//! What a guest does to its machine as a whole: it resets it, powers it off, or cannot go on.

use std::sync::{OnceLock, Weak};

use whimbrel::Engine;
use whimbrel::proto::run_state::RunState;

/// What the guest does to the machine as a whole. Called on vCPU threads; must not wait for one.
pub trait GuestEvents: Send + Sync {
    /// The guest asked for a reset, or a vCPU took a triple fault. That vCPU is held until it is resumed.
    fn guest_reset(&self);
    /// The guest powered off.
    fn guest_shutdown(&self);
    /// A vCPU cannot go on.
    fn guest_failed(&self, text: String);
    /// Whether an operator has stopped the guest.
    fn is_paused(&self) -> bool {
        false
    }
}

/// Weak, for the engine owns the machine.
impl GuestEvents for Weak<Engine> {
    fn guest_reset(&self) {
        if let Some(engine) = self.upgrade() {
            engine.guest_reset();
        }
    }

    fn guest_shutdown(&self) {
        if let Some(engine) = self.upgrade() {
            engine.guest_shutdown();
        }
    }

    fn guest_failed(&self, text: String) {
        if let Some(engine) = self.upgrade() {
            engine.guest_failed(text);
        }
    }

    fn is_paused(&self) -> bool {
        self.upgrade().is_some_and(|engine| engine.run_state() == RunState::Paused)
    }
}

/// The listener, once there is one.
#[derive(Default)]
pub(crate) struct EventSlot(OnceLock<Box<dyn GuestEvents>>);

impl EventSlot {
    /// The first call counts.
    pub(crate) fn attach(&self, events: impl GuestEvents + 'static) {
        if self.0.set(Box::new(events)).is_err() {
            tracing::warn!("the machine has its listener already");
        }
    }
}

impl GuestEvents for EventSlot {
    fn guest_reset(&self) {
        match self.0.get() {
            Some(events) => events.guest_reset(),
            None => tracing::warn!("the guest reset itself, and nobody listens"),
        }
    }

    fn guest_shutdown(&self) {
        match self.0.get() {
            Some(events) => events.guest_shutdown(),
            None => tracing::warn!("the guest powered off, and nobody listens"),
        }
    }

    fn guest_failed(&self, text: String) {
        match self.0.get() {
            Some(events) => events.guest_failed(text),
            None => tracing::error!(text, "the guest failed, and nobody listens"),
        }
    }

    fn is_paused(&self) -> bool {
        // A machine driven without an engine is stopped by its owner.
        self.0.get().is_none_or(|events| events.is_paused())
    }
}
