//! A RAM block: a name, a length, and the mapped regions it consists of.

use std::io;
use std::sync::Arc;

use vm_memory::{Bytes, GuestMemoryRegion, GuestRegionMmap, MemoryRegionAddress, VolatileSlice};

use super::{HostWrites, PAGE_SIZE};
use crate::bitmap::DirtyBitmap;

/// A mapped range of guest-physical memory. Its bitmap logs every write that goes through `vm-memory`, so that host-side
/// writers (devices, loaders) reach the dirty log without knowing of it.
pub type Region = GuestRegionMmap<HostWrites>;

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
    ) -> Option<VolatileSlice<'_, vm_memory::bitmap::BS<'_, HostWrites>>> {
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

    /// Moves the pages that host-side writers (loaders, devices, DMA) have written since last asked into `into`; returns how
    /// many were new there.
    pub fn take_host_writes(&self, into: &mut DirtyBitmap) -> u64 {
        let mut new = 0;
        for piece in &self.pieces {
            let first = (piece.offset / PAGE_SIZE / 64) as usize;
            piece.region.get_mmap().bitmap().take(|index, bits| new += into.merge_word(first + index, bits));
        }
        new
    }

    /// Drops what host-side writers have written so far.
    pub fn forget_host_writes(&self) {
        for piece in &self.pieces {
            piece.region.get_mmap().bitmap().take(|_, _| ());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::GuestAddress;

    #[test]
    fn host_writes_are_found_on_their_page_and_taken_once() {
        let region = |gpa| Arc::new(Region::from_range(GuestAddress(gpa), 1 << 20, None).unwrap());
        let block = RamBlock::new("ram", vec![region(0), region(1 << 32)], true);
        block.write(200 * PAGE_SIZE + 4090, &[1; 12]).unwrap();
        block.write(300 * PAGE_SIZE, &[1]).unwrap();
        let mut dirty = DirtyBitmap::empty(block.pages());
        assert_eq!(block.take_host_writes(&mut dirty), 3);
        assert!([200, 201, 300].into_iter().all(|page| dirty.contains(page)));
        assert_eq!(block.take_host_writes(&mut dirty), 0);
    }

    #[test]
    fn a_range_outside_of_the_block_is_refused() {
        let region = Arc::new(Region::from_range(GuestAddress(0), 1 << 20, None).unwrap());
        let block = RamBlock::new("ram", vec![region], true);
        assert!(block.write((1 << 20) - 1, &[0; 2]).is_err());
        assert!(block.read(1 << 20, &mut [0]).is_err());
    }
}
