//! Live state: what is sent while the guest runs, RAM first of all, and what a VMM adds (a local disk, a device with much memory).
//!
//! A handler tells how much it has to send and sends it in turns; when to stop the guest is decided over all of them together.
//! Section headers, numbers and footers are the engine's, and so is the order:
//!
//! | at the source | section | what the handler does |
//! |---|---|---|
//! | [`LiveState::source`], [`setup`](LiveSource::setup) | START | begins to track writes, writes what the destination must know first |
//! | [`pending`](LiveSource::pending) | | the bytes left by what it knows |
//! | [`sync`](LiveSource::sync) | | takes in what was written since, the last time with the guest stopped |
//! | [`iterate`](LiveSource::iterate) | PART, any number | sends some of it |
//! | [`complete`](LiveSource::complete) | END, once | nothing is left |
//! | dropped | | ends tracking: the attempt is over, whether the guest has moved or goes on here |
//!
//! | at the destination | |
//! |---|---|
//! | [`LiveState::destination`] | when START comes; dropped when the attempt is over |
//! | [`load`](LiveDestination::load) | every body: it comes from the peer, so nothing in it is true before it was checked |

use std::sync::Arc;
use std::time::Instant;

use whimbrel_proto::event::Pages;
use whimbrel_wire::Input;

use crate::channel::LinkReader;
use crate::error::StreamError;
use crate::handlers::Priority;
use crate::outgoing::Outgoing;

/// The incoming stream. What it reads is bounded and has a deadline; errors carry the offset.
pub type Incoming = Input<LinkReader>;

/// State that is sent while the guest runs.
pub trait LiveState: Send + Sync {
    /// Its source for one outgoing migration. Nothing is tracked yet.
    ///
    /// # Errors
    /// If writes to it cannot be tracked.
    fn source(&self) -> Result<Box<dyn LiveSource>, StreamError>;

    /// Its destination for one incoming migration.
    ///
    /// # Errors
    /// If nothing can be put here.
    fn destination(&self) -> Result<Box<dyn LiveDestination + '_>, StreamError>;
}

/// The sending side of one migration. Dropping it ends tracking and gives back what it holds.
///
/// An error of any of its methods fails the migration before its commit: the guest goes on.
pub trait LiveSource: Send {
    /// Begins tracking, then writes the START section's body. From here on everything counts as not sent.
    ///
    /// # Errors
    /// What cannot be tracked or sent.
    fn setup(&mut self, out: &mut Outgoing) -> Result<(), StreamError>;

    /// Bytes that are left to be sent, by what is known without asking. It is asked often.
    fn pending(&self) -> u64;

    /// Takes in what was written since the last time; `last`: the guest is stopped, and nothing is written any more. Returns the
    /// bytes that were not known to be left.
    ///
    /// # Errors
    /// If that is not known: the migration must not go on.
    fn sync(&mut self, last: bool) -> Result<u64, StreamError>;

    /// Writes the body of a PART section: some of what is left, until the quota is used up, but always a little. Each piece is taken
    /// off what is left before it is read, so that a write to it from then on is found by the next [`sync`](LiveSource::sync).
    ///
    /// # Errors
    /// What cannot be read or sent.
    fn iterate(&mut self, out: &mut Outgoing, quota: &Quota) -> Result<Pages, StreamError>;

    /// Writes the body of the END section: nothing is left.
    ///
    /// # Errors
    /// What cannot be sent.
    fn complete(&mut self, out: &mut Outgoing) -> Result<(), StreamError>;
}

/// The receiving side of one migration. Dropping it gives back what it holds.
pub trait LiveDestination {
    /// Reads one body, and exactly that, into place.
    ///
    /// # Errors
    /// What is wrong with it, and where ([`Input::offset`]). The migration fails, and nothing runs here.
    fn load(&mut self, part: LivePart, input: &mut Incoming) -> Result<(), StreamError>;
}

/// Which of its sections a body is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LivePart {
    /// The first.
    Start,
    /// One in between.
    Part,
    /// The last.
    End,
}

/// How much may be sent in one turn.
#[derive(Debug, Clone, Copy)]
pub struct Quota {
    end: u64,
    until: Instant,
}

impl Quota {
    /// `at_most` bytes from where `out` stands, and not past `until`.
    pub(crate) fn new(out: &Outgoing, at_most: u64, until: Instant) -> Self {
        Self { end: out.position().saturating_add(at_most), until }
    }

    /// No further byte may be sent.
    pub fn is_used_up(&self, out: &Outgoing) -> bool {
        out.position() >= self.end
    }

    /// The time is over. It costs a look at the clock.
    pub fn is_over(&self) -> bool {
        Instant::now() >= self.until
    }
}

/// Where and as what live state stands in the stream.
#[derive(Clone)]
pub struct LiveHandler {
    /// Section name.
    pub idstr: String,
    /// Number among equal names.
    pub instance_id: u32,
    /// Version sent, and the only one accepted.
    pub version_id: u32,
    /// Order among live states; RAM is of [`Priority::Default`] and the first of it.
    pub priority: Priority,
    /// The state.
    pub state: Arc<dyn LiveState>,
}
