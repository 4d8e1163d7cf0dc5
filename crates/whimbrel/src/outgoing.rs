//! The outgoing main stream: encoded bytes and guest pages gathered, counted and handed to the link.

use std::sync::Arc;

use whimbrel_wire::{Output, WireError};

use crate::channel::{Gather, Link};
use crate::error::StreamError;
use crate::memory::Region;

/// Gathered before it is sent: fewer system calls, more bytes each. At least 256 KiB by design; larger costs cache.
const BATCH: usize = 512 << 10;

/// Everything of one migration that leaves on its main channel.
pub(crate) struct Outgoing {
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

    /// Appends what `encode` writes.
    pub(crate) fn put(
        &mut self,
        encode: impl FnOnce(&mut Output) -> Result<(), WireError>,
    ) -> Result<(), StreamError> {
        self.scratch.clear();
        encode(&mut self.scratch)?;
        self.gather.bytes(self.scratch.as_slice());
        Ok(())
    }

    /// Appends bytes.
    pub(crate) fn bytes(&mut self, bytes: &[u8]) {
        self.gather.bytes(bytes);
    }

    /// Appends guest memory and sends the batch when it is full.
    pub(crate) fn guest(&mut self, region: &Arc<Region>, at: u64, len: usize) -> Result<(), StreamError> {
        self.gather.guest(region, at, len);
        if self.gather.len() >= BATCH || self.gather.is_full() { self.flush() } else { Ok(()) }
    }

    /// Bytes appended since the start.
    pub(crate) fn position(&self) -> u64 {
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
