//! The outgoing main stream: encoded bytes and guest pages gathered, counted and handed to the link.

use std::sync::Arc;
use std::time::Instant;

use whimbrel_wire::{Output, WireError};

use crate::channel::{Gather, Link};
use crate::error::StreamError;
use crate::memory::Region;

/// Gathered before it is sent: fewer system calls, more bytes each. At least 256 KiB by design; larger costs cache.
const BATCH: usize = 512 << 10;

/// Everything of one migration that leaves on its main channel. Live-state handlers write their bodies into it.
pub struct Outgoing {
    link: Arc<Link>,
    gather: Gather,
    scratch: Output,
    /// Bytes of all batches before this one.
    sent: u64,
    /// How much of this batch was sent when a turn was over, if one was over before all of it was.
    held_up: Option<usize>,
    /// When a turn must be over that the stopped guest waits for: no send goes on after it.
    until: Option<Instant>,
}

impl Outgoing {
    pub(crate) fn new(link: Arc<Link>) -> Self {
        Self { link, gather: Gather::default(), scratch: Output::new(), sent: 0, held_up: None, until: None }
    }

    pub(crate) fn link(&self) -> &Arc<Link> {
        &self.link
    }

    /// Appends what `encode` writes: headers and other small things.
    ///
    /// # Errors
    /// What cannot be encoded.
    pub fn put(
        &mut self,
        encode: impl FnOnce(&mut Output) -> Result<(), WireError>,
    ) -> Result<(), StreamError> {
        self.scratch.clear();
        encode(&mut self.scratch)?;
        self.gather.bytes(self.scratch.as_slice());
        Ok(())
    }

    /// Appends bytes in bulk, and sends when enough have gathered.
    ///
    /// # Errors
    /// If the channel is gone.
    pub fn data(&mut self, bytes: &[u8]) -> Result<(), StreamError> {
        for chunk in bytes.chunks(BATCH) {
            self.gather.bytes(chunk);
            self.flush_if_full()?;
        }
        Ok(())
    }

    /// Appends bytes that leave when the caller flushes.
    pub(crate) fn bytes(&mut self, bytes: &[u8]) {
        self.gather.bytes(bytes);
    }

    /// Appends guest memory and sends the batch when it is full.
    pub(crate) fn guest(&mut self, region: &Arc<Region>, at: u64, len: usize) -> Result<(), StreamError> {
        self.gather.guest(region, at, len);
        self.flush_if_full()
    }

    fn flush_if_full(&mut self) -> Result<(), StreamError> {
        if self.held_up.is_some() && self.until.is_some_and(|until| Instant::now() >= until) {
            // The turn is over, which its handler is about to see.
            return Ok(());
        }
        if self.gather.len() >= BATCH || self.gather.is_full() { self.flush() } else { Ok(()) }
    }

    /// Bytes appended since the start.
    pub fn position(&self) -> u64 {
        self.sent + self.gather.len() as u64
    }

    /// Hands everything to the kernel; in a turn with an end, as much as it takes until then.
    pub(crate) fn flush(&mut self) -> Result<(), StreamError> {
        let before = self.held_up.unwrap_or(0);
        match self.link.send_until(&self.gather, before, self.until) {
            Ok(taken) if taken < self.gather.len() => {
                self.held_up = Some(taken);
                Ok(())
            }
            Ok(taken) => {
                self.forget(taken);
                Ok(())
            }
            Err((taken, source)) => {
                let sent = taken > before;
                self.forget(taken);
                let context = self.link.writing(self.sent);
                Err(StreamError::Link { context, source, sent })
            }
        }
    }

    fn forget(&mut self, taken: usize) {
        self.sent += taken as u64;
        self.held_up = None;
        self.gather.clear();
    }

    /// Sends no longer than this, until it is lifted with `None`: what a stuck peer has not taken by then waits for the next turn.
    pub(crate) fn send_until(&mut self, until: Option<Instant>) {
        self.until = until;
    }

    /// Bytes that a turn could not send before its end.
    pub(crate) fn held_up(&self) -> u64 {
        self.held_up.map_or(0, |taken| (self.gather.len() - taken) as u64)
    }
}
