//! What a machine refuses to be told.

/// An event that can't be, as things stand. The machine's state is as before it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Violation {
    /// An answer that no action asked for: a fault of the engine.
    #[error("event {event} does not answer what was asked for ({asked})")]
    Unexpected {
        /// The event.
        event: &'static str,
        /// What was asked for last.
        asked: &'static str,
    },
    /// A cancel after the commit: only the destination may run the guest now.
    #[error("the migration is committed and cannot be cancelled")]
    Committed,
    /// `stop` or `cont` at the destination when the start was ordered already: it is to be done after the start, as to
    /// any guest.
    #[error("the guest is being started")]
    Starting,
    /// `migrate-continue` while nothing waits for it.
    #[error("the migration does not wait for migrate-continue")]
    NotWaiting,
}
