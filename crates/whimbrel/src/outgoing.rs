//! The outgoing main stream: encoded bytes and guest pages gathered, counted and handed to the link.

use std::sync::Arc;

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
    sent: u64,
}

impl Outgoing {
    pub(crate) fn new(link: Arc<Link>) -> Self {
        Self { link, gather: Gather::default(), scratch: Output::new(), sent: 0 }
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
        if self.gather.len() >= BATCH || self.gather.is_full() { self.flush() } else { Ok(()) }
    }

    /// Bytes appended since the start.
    pub fn position(&self) -> u64 {
        self.sent + self.gather.len() as u64
    }

    /// Hands everything to the kernel.
    pub(crate) fn flush(&mut self) -> Result<(), StreamError> {
        let result = self.link.send(&self.gather);
        let len = self.gather.len() as u64;
        self.gather.clear();
        match result {
            Ok(()) => {
                self.sent += len;
                Ok(())
            }
            Err((sent, source)) => {
                self.sent += sent as u64;
                let context = self.link.writing(self.sent);
                Err(StreamError::Link { context, source, sent: sent > 0 })
            }
        }
    }
}
