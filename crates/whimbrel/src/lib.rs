//! whimbrel: live migration for any VMM.
//!
//! A VMM implements [`machine::Machine`], lists its state in a [`handlers::Registry`], and hands both to an
//! [`engine::Engine`]; the engine does the rest: it connects, sends what is dirty while the guest runs, stops the guest
//! when what is left fits the downtime limit, hands it over in two phases, and brings it back when anything fails.
//! `examples/minimal.rs` is a whole machine in some 200 lines.
//!
//! Threads: [`engine::Engine::run`] is the main loop, which executes every state-changing command; a migration out or in
//! has a thread that drives `whimbrel_proto`'s machine, and one for the return path.

mod bitmap;
mod cancel;
pub mod channel;
pub mod descriptors;
pub mod dirty;
pub mod engine;
pub mod error;
pub mod events;
pub mod faults;
mod global_state;
pub mod handlers;
mod live;
pub mod machine;
pub mod memory;
mod migration;
mod outgoing;
mod ram;
mod run_state;
mod sections;
mod tables;

pub use bitmap::DirtyBitmap;
pub use engine::Engine;
pub use global_state::GlobalState;
pub use sections::downcast;
pub use {whimbrel_proto as proto, whimbrel_vmstate as vmstate, whimbrel_wire as wire};

use std::sync::{Mutex, MutexGuard, PoisonError};

/// A lock whose data stays usable after a thread panicked with it: every update under our locks is a single assignment.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
