//! Dirty sources: who tells which pages the guest (or the host) has written since last asked.

pub mod kvm;
pub mod write_protect;

use std::io;
use std::ops::Range;

use crate::bitmap::DirtyBitmap;

/// Tracks writes to the RAM blocks of a machine.
///
/// The order that keeps every write: `sync` (harvest) … `rearm` a range … read its pages. A write after `rearm` is reported
/// by a later `sync`; a write before it is in the bytes that are read.
pub trait DirtySource: Send {
    /// Begins tracking. Pages written before it are not reported: the caller treats all as dirty.
    ///
    /// # Errors
    /// If the host refuses.
    fn start(&mut self) -> io::Result<()>;

    /// Adds every page of block number `block` written since the last call to `into`; returns how many were not in it yet.
    ///
    /// # Errors
    /// If the log cannot be read: the migration must not go on.
    fn sync(&mut self, block: usize, into: &mut DirtyBitmap) -> io::Result<u64>;

    /// As [`sync`](Self::sync), with every vCPU paused and every table saved into guest RAM: also what was written by none of the
    /// vCPUs, if asking for that costs too much while the guest runs. Each switchover ends with one; there may be several.
    ///
    /// # Errors
    /// As of [`sync`](Self::sync).
    fn last_sync(&mut self, block: usize, into: &mut DirtyBitmap) -> io::Result<u64> {
        self.sync(block, into)
    }

    /// These pages of the block are about to be read: report writes from now on. Sources that re-arm in `sync` do nothing.
    ///
    /// # Errors
    /// If the host refuses: the migration must not go on.
    fn rearm(&mut self, block: usize, pages: Range<u64>) -> io::Result<()>;

    /// Ends tracking and its cost. Called exactly once, also after errors.
    fn stop(&mut self);
}
