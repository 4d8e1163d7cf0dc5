//! The sending side of RAM: a scan over the dirty bitmaps that wraps around the block list, page records in batches.

use std::sync::Arc;

use vm_memory::{Bytes as _, GuestMemoryRegion, MemoryRegionAddress};
use whimbrel_proto::event::Pages;
use whimbrel_wire::ram::{self, BlockRef, RamBlockEntry, RamRecord};

use super::stream_order;
use crate::bitmap::DirtyBitmap;
use crate::dirty::DirtySource;
use crate::error::StreamError;
use crate::faults::{Fault, Faults};
use crate::live::{LiveSource, Quota};
use crate::machine::Machine;
use crate::memory::{PAGE_SIZE, RamBlock, Region};
use crate::outgoing::Outgoing;

/// The dirty log is re-armed this many pages at a time: a multiple of 64, and small enough that few pages are written again
/// between re-arming and reading.
const REARM: u64 = 1024;
/// Pages at the start of a large block where a guest has its kernel: 4 MiB. Only a fault switch asks.
const LOW_MEMORY: u64 = 1024;
/// The clock is read once in so many pages.
const CLOCK_EVERY: u64 = 64;

/// RAM of one outgoing migration. Dropping it ends dirty tracking.
pub(crate) struct RamSource {
    machine: Arc<dyn Machine>,
    log: Box<dyn DirtySource>,
    started: bool,
    blocks: Vec<Block>,
    /// Where the scan stands: an index into `blocks`, and a page.
    cursor: (usize, u64),
    /// Block of the last page record: the next one of it needs no name.
    last: Option<usize>,
    faults: Faults,
    /// The page that a fault keeps back.
    forgotten: Option<(usize, u64)>,
    syncs: u64,
}

struct Block {
    /// Its index in [`Machine::ram`].
    index: usize,
    dirty: DirtyBitmap,
    /// Never written since the log started, nor before: holes of the backing file. Zero without looking.
    holes: DirtyBitmap,
    /// What a sync found, before it is merged.
    found: DirtyBitmap,
    /// First page of the chunk that was re-armed last.
    armed: Option<u64>,
}

impl RamSource {
    pub(crate) fn new(machine: Arc<dyn Machine>, log: Box<dyn DirtySource>, faults: Faults) -> Self {
        let ram = machine.ram();
        let blocks = stream_order(ram)
            .into_iter()
            .map(|index| {
                let pages = ram[index].pages();
                let empty = DirtyBitmap::empty(pages);
                Block {
                    index,
                    dirty: DirtyBitmap::full(pages),
                    holes: empty.clone(),
                    found: empty,
                    armed: None,
                }
            })
            .collect();
        Self {
            machine,
            log,
            started: false,
            blocks,
            cursor: (0, 0),
            last: None,
            faults,
            forgotten: None,
            syncs: 0,
        }
    }
}

impl LiveSource for RamSource {
    /// Starts the dirty log, then writes the block list. Every page counts as dirty from here.
    fn setup(&mut self, out: &mut Outgoing) -> Result<(), StreamError> {
        self.started = true;
        self.log.start().map_err(StreamError::DirtyLog)?;
        // After the start: a page that is written from now on is logged, so a hole seen now is zero until the log says otherwise.
        for block in &mut self.blocks {
            find_holes(&self.machine.ram()[block.index], &mut block.holes);
        }
        let ram = self.machine.ram();
        let entries: Vec<_> = self
            .blocks
            .iter()
            .map(|block| RamBlockEntry {
                name: ram[block.index].name().to_owned(),
                used_length: ram[block.index].len(),
                page_size: None,
                guest_address: None,
            })
            .collect();
        out.put(|out| ram::encode_block_list(out, &entries).map(drop))?;
        end_body(out)
    }

    fn pending(&self) -> u64 {
        self.blocks.iter().map(|block| block.dirty.count()).sum::<u64>() * PAGE_SIZE
    }

    fn sync(&mut self, last: bool) -> Result<u64, StreamError> {
        self.syncs += 1;
        if last && self.faults.has(Fault::LastSync) {
            return Ok(0);
        }
        let last = last && !self.faults.has(Fault::BackupBitmap);
        let mut new = 0;
        for block in &mut self.blocks {
            let (index, found) = (block.index, &mut block.found);
            let synced = if last { self.log.last_sync(index, found) } else { self.log.sync(index, found) };
            synced.map_err(StreamError::DirtyLog)?;
            block.found.drain_words(|word, bits| {
                new += block.dirty.merge_word(word, bits);
                block.holes.remove_word(word, bits);
            });
            block.armed = None;
        }
        Ok(new * PAGE_SIZE)
    }

    fn iterate(&mut self, out: &mut Outgoing, quota: &Quota) -> Result<Pages, StreamError> {
        let mut sent = Pages::default();
        while let Some((at, page)) = self.next_dirty() {
            let count = sent.normal + sent.zero;
            // At least one page a turn, so that a tiny quota cannot stop the migration altogether.
            let over = || quota.is_used_up(out) || (count.is_multiple_of(CLOCK_EVERY) && quota.is_over());
            if count > 0 && over() {
                break;
            }
            self.rearm(at, page)?;
            self.blocks[at].dirty.remove(page);
            self.cursor = (at, page + 1);
            if self.forgets(at, page) {
                continue;
            }
            self.page(out, at, page, &mut sent)?;
        }
        end_body(out)?;
        Ok(sent)
    }

    fn complete(&mut self, out: &mut Outgoing) -> Result<(), StreamError> {
        end_body(out)
    }
}

impl RamSource {
    /// The next dirty page from the cursor on, around the end of the list.
    fn next_dirty(&self) -> Option<(usize, u64)> {
        let (start, from) = self.cursor;
        let count = self.blocks.len();
        (0..=count).find_map(|step| {
            let at = (start + step) % count;
            self.blocks[at].dirty.next(if step == 0 { from } else { 0 }).map(|page| (at, page))
        })
    }

    /// Before a page is read: writes to it from now on must be seen by the next sync.
    fn rearm(&mut self, at: usize, page: u64) -> Result<(), StreamError> {
        let chunk = page - page % REARM;
        let block = &mut self.blocks[at];
        if block.armed != Some(chunk) {
            let end = (chunk + REARM).min(block.dirty.pages());
            self.log.rearm(block.index, chunk..end).map_err(StreamError::DirtyLog)?;
            block.armed = Some(chunk);
        }
        Ok(())
    }

    fn page(
        &mut self,
        out: &mut Outgoing,
        at: usize,
        page: u64,
        sent: &mut Pages,
    ) -> Result<(), StreamError> {
        let machine = self.machine.clone();
        let ram = machine.ram();
        let offset = page * PAGE_SIZE;
        let known_zero = self.blocks[at].holes.remove(page);
        let block = &ram[self.blocks[at].index];
        let (region, in_region) = locate(block, offset);
        let zero = known_zero || is_zero(region, in_region);
        let name = self.swapped(at, offset);
        let same = self.last.replace(name) == Some(name);
        let reference =
            if same { BlockRef::Same } else { BlockRef::Named(ram[self.blocks[name].index].name()) };
        if zero {
            out.put(|out| RamRecord::Zero { block: reference, offset, fill: 0 }.encode(out))?;
            sent.zero += 1;
        } else {
            out.put(|out| RamRecord::Page { block: reference, offset }.encode(out))?;
            out.guest(region, in_region, PAGE_SIZE as usize)?;
            sent.normal += 1;
        }
        Ok(())
    }

    /// Under the fault that takes a written page for clean: whether it is this one, from its first time on. What the first
    /// round's sync finds may have been sent as it is; what a later one finds is new. The low memory of a real guest is left
    /// alone: it keeps there what it works with, and could no longer say which page it was.
    fn forgets(&mut self, at: usize, page: u64) -> bool {
        let works_there = page < LOW_MEMORY && self.blocks[at].dirty.pages() > 16 * LOW_MEMORY;
        if self.forgotten.is_none() && self.syncs > 2 && !works_there && self.faults.once(Fault::DirtyPage) {
            self.forgotten = Some((at, page));
        }
        self.forgotten == Some((at, page))
    }

    /// Under whose name a page goes out: its own block's, except under the fault that swaps two blocks where both reach.
    fn swapped(&self, at: usize, offset: u64) -> usize {
        let shortest = self.blocks.len() - 1;
        let reach = self.blocks[shortest].dirty.pages() * PAGE_SIZE;
        match at {
            _ if !self.faults.has(Fault::SwapBlocks) || offset >= reach => at,
            0 => shortest,
            at if at == shortest => 0,
            at => at,
        }
    }
}

impl Drop for RamSource {
    fn drop(&mut self) {
        if self.started {
            self.log.stop();
        }
    }
}

fn end_body(out: &mut Outgoing) -> Result<(), StreamError> {
    out.put(|out| RamRecord::Eos.encode(out))
}

/// The region of a block that holds `offset`, and the offset in it.
fn locate(block: &RamBlock, offset: u64) -> (&Arc<Region>, u64) {
    let pieces = block.pieces();
    let piece = &pieces[pieces.partition_point(|piece| piece.offset <= offset) - 1];
    (&piece.region, offset - piece.offset)
}

/// Whether a page reads as zeroes now. The first word settles it for nearly every page that is not.
fn is_zero(region: &Region, at: u64) -> bool {
    let Ok(slice) = region.get_slice(MemoryRegionAddress(at), PAGE_SIZE as usize) else { return false };
    if !matches!(slice.read_obj::<u64>(0), Ok(0)) {
        return false;
    }
    let mut page = [0_u8; PAGE_SIZE as usize];
    slice.read_slice(&mut page, 0).is_ok() && page.as_chunks::<64>().0.iter().all(|chunk| *chunk == [0; 64])
}

/// Adds the pages for which the backing file has no data.
fn find_holes(block: &RamBlock, holes: &mut DirtyBitmap) {
    for piece in block.pieces() {
        // A private mapping's pages are not the file's.
        let shared = piece.region.flags() & libc::MAP_SHARED != 0;
        let Some(file) = piece.region.file_offset().filter(|_| shared) else { continue };
        let (start, len) = (file.start(), piece.region.len());
        let mut at = 0;
        while at < len {
            let data = match rustix::fs::seek(file.file(), rustix::fs::SeekFrom::Data(start + at)) {
                Ok(data) => (data - start).min(len),
                Err(rustix::io::Errno::NXIO) => len,
                Err(_) => return,
            };
            let first = (piece.offset + at).div_ceil(PAGE_SIZE);
            let end = (piece.offset + data) / PAGE_SIZE;
            for (word, bits) in DirtyBitmap::words_of(first..end.max(first)) {
                holes.merge_word(word, bits);
            }
            at = match rustix::fs::seek(file.file(), rustix::fs::SeekFrom::Hole(start + data)) {
                Ok(hole) if hole > start + data => hole - start,
                _ => len,
            };
        }
    }
}
