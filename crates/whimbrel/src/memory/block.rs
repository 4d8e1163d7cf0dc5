//! A RAM block: a name, a length, and the mapped regions it consists of.

use std::io;
use std::sync::Arc;

use vm_memory::bitmap::AtomicBitmap;
use vm_memory::{Bytes, GuestMemoryRegion, GuestRegionMmap, MemoryRegionAddress, VolatileSlice};

use super::PAGE_SIZE;

/// A mapped range of guest-physical memory. Its bitmap logs every write that goes through `vm-memory`, so that host-side
/// writers (devices, loaders) reach the dirty log without knowing of it.
pub type Region = GuestRegionMmap<AtomicBitmap>;

/// A part of a block.
#[derive(Debug, Clone)]
pub struct Piece {
    /// Where it starts in the block, in bytes.
    pub offset: u64,
    /// Its memory.
    pub region: Arc<Region>,
}

/// One named block of guest RAM. It may consist of several regions (RAM below and above the 4 GiB hole).
#[derive(Debug, Clone)]
pub struct RamBlock {
    name: String,
    pieces: Vec<Piece>,
    len: u64,
    fresh: bool,
}

impl RamBlock {
    /// A block over `regions`, back to back in this order. `fresh`: nothing but zeroes was ever in it, so that a zero page
    /// that arrives for the first time needs no write.
    ///
    /// # Panics
    /// If a region's length is no multiple of [`PAGE_SIZE`].
    pub fn new(name: impl Into<String>, regions: Vec<Arc<Region>>, fresh: bool) -> Self {
        let mut offset = 0;
        let pieces = regions
            .into_iter()
            .map(|region| {
                let piece = Piece { offset, region };
                assert!(piece.region.len().is_multiple_of(PAGE_SIZE), "RAM regions are whole pages");
                offset += piece.region.len();
                piece
            })
            .collect();
        Self { name: name.into(), pieces, len: offset, fresh }
    }

    /// Its idstr in the stream.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Bytes.
    #[expect(clippy::len_without_is_empty, reason = "a block is never empty")]
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Target pages.
    pub fn pages(&self) -> u64 {
        self.len / PAGE_SIZE
    }

    /// The regions it consists of.
    pub fn pieces(&self) -> &[Piece] {
        &self.pieces
    }

    /// Nothing but zeroes was ever in it.
    pub fn is_fresh(&self) -> bool {
        self.fresh
    }

    /// The volatile slice of `len` bytes at `offset`, or `None` if it leaves the block or crosses from one region to the
    /// next (a page never does).
    pub fn slice(
        &self,
        offset: u64,
        len: usize,
    ) -> Option<VolatileSlice<'_, vm_memory::bitmap::BS<'_, AtomicBitmap>>> {
        let piece = self.pieces.iter().rev().find(|piece| piece.offset <= offset)?;
        let at = offset - piece.offset;
        piece.region.get_slice(MemoryRegionAddress(at), len).ok()
    }

    /// Writes host bytes at `offset`; the write is logged dirty.
    ///
    /// # Errors
    /// If the range leaves the block.
    pub fn write(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let outside = || io::Error::new(io::ErrorKind::InvalidInput, "write outside of the RAM block");
        let slice = self.slice(offset, bytes.len()).ok_or_else(outside)?;
        slice.write_slice(bytes, 0).map_err(|_| outside())
    }

    /// Reads into host bytes from `offset`.
    ///
    /// # Errors
    /// If the range leaves the block.
    pub fn read(&self, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
        let outside = || io::Error::new(io::ErrorKind::InvalidInput, "read outside of the RAM block");
        let slice = self.slice(offset, bytes.len()).ok_or_else(outside)?;
        slice.read_slice(bytes, 0).map_err(|_| outside())
    }
}
