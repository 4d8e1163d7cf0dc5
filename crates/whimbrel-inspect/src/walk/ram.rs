//! The bodies of section `ram`: the block list, page records, and the room for pages in a mapped-ram file.

use whimbrel_wire::command::DiscardRange;
use whimbrel_wire::configuration::VALIDATED_CAPABILITIES;
use whimbrel_wire::ram::mapped::{self, MappedBlock};
use whimbrel_wire::ram::{BlockList, LastBlock, xbzrle};
use whimbrel_wire::{BlockRef, Input, RamRecord, WireError};

use crate::report::Report;
use crate::visitor::{Content, Page, PageVisitor};
use crate::{Block, Fault, Stream};

pub(super) struct Ram<'a> {
    pages: &'a mut dyn PageVisitor,
    last: LastBlock<usize>,
    ignore_shared: bool,
    mapped: bool,
    /// The page sizes that a POSTCOPY_ADVISE announced, or-ed.
    advised: u64,
}

impl<'a> Ram<'a> {
    pub(super) fn new(pages: &'a mut dyn PageVisitor) -> Self {
        Ram { pages, last: LastBlock::new(), ignore_shared: false, mapped: false, advised: 0 }
    }

    pub(super) fn set_capabilities(&mut self, capabilities: &[String]) {
        let on = |name: &str| capabilities.iter().any(|capability| capability == name);
        let [ignore_shared, ..] = VALIDATED_CAPABILITIES;
        (self.ignore_shared, self.mapped) = (on(ignore_shared), on(mapped::CAPABILITY));
    }

    pub(super) fn advised(&mut self, page_sizes: u64) {
        self.advised = page_sizes;
    }

    /// Takes back pages that the source will send again.
    pub(super) fn discard(
        &mut self,
        report: &mut Report,
        offset: u64,
        name: &str,
        ranges: &[DiscardRange],
    ) -> Result<(), Fault> {
        let block = report.blocks.iter_mut().find(|block| block.name == name);
        let block = block.ok_or_else(|| WireError::UnknownRamBlock { offset, name: name.to_owned() })?;
        for range in ranges {
            let end = range.start.saturating_add(range.length);
            if end > block.length {
                return Err(outside(block, end, offset));
            }
            let page = |at: u64| at.checked_div(block.page_size).unwrap_or(0);
            let removed = block.sent.remove(page(range.start)..page(end));
            block.discarded = block.discarded.saturating_add(removed);
        }
        Ok(())
    }

    /// One body, its EOS word included.
    pub(super) fn body<S: Stream>(&mut self, input: &mut Input<S>, report: &mut Report) -> Result<(), Fault> {
        loop {
            let at = input.offset();
            match RamRecord::decode(input)? {
                RamRecord::Eos => return Ok(()),
                RamRecord::MultifdFlush => {
                    report.multifd_flushes = report.multifd_flushes.saturating_add(1);
                }
                RamRecord::MemSize { total } => self.block_list(input, report, at, total)?,
                RamRecord::Page { block, offset } => {
                    let (index, number) = self.locate(report, at, block, offset)?;
                    let content = input.offset();
                    let size = report.page_size;
                    let bytes = input.reading("a page").view(usize::try_from(size).unwrap_or(usize::MAX))?;
                    let content = (content, Content::Bytes(bytes));
                    self.came(report, index, offset, content)?;
                    if let Some(block) = report.blocks.get_mut(index) {
                        block.normal = block.normal.saturating_add(1);
                        block.note(number);
                    }
                }
                RamRecord::Zero { block, offset, fill } => {
                    let (index, number) = self.locate(report, at, block, offset)?;
                    if fill != 0 {
                        let place = report.blocks.get(index).map_or_else(String::new, |b| b.name.clone());
                        let (expected, found) = ("0 in a zero page".to_owned(), fill.to_string());
                        report.note(Fault::Disagreement { offset: at, place, expected, found });
                    }
                    self.came(report, index, offset, (at, Content::Filled(fill)))?;
                    if let Some(block) = report.blocks.get_mut(index) {
                        block.zero = block.zero.saturating_add(1);
                        block.note(number);
                    }
                }
                RamRecord::Xbzrle { block, offset, length } => {
                    let (index, number) = self.locate(report, at, block, offset)?;
                    let size = report.page_size;
                    let begins = input.offset();
                    let encoded = input.reading("an XBZRLE page").view(usize::from(length))?;
                    let size = usize::try_from(size).unwrap_or(usize::MAX);
                    if let Some(Err(why)) = xbzrle::runs(encoded, size).find(Result::is_err) {
                        return Err(WireError::Xbzrle { offset: at, why }.into());
                    }
                    if !report.blocks.get(index).is_some_and(|block| block.sent.contains(number)) {
                        let why = "an XBZRLE page changes a page that was not sent before".to_owned();
                        report.note(Fault::Ram { offset: at, why });
                    }
                    self.came(report, index, offset, (begins, Content::Xbzrle(encoded)))?;
                    if let Some(block) = report.blocks.get_mut(index) {
                        block.xbzrle = block.xbzrle.saturating_add(1);
                        block.xbzrle_bytes = block.xbzrle_bytes.saturating_add(length.into());
                        block.note(number);
                    }
                }
            }
        }
    }

    /// The block of a record at `at`, and the number of its page.
    fn locate(
        &mut self,
        report: &Report,
        at: u64,
        block: BlockRef<'_>,
        offset: u64,
    ) -> Result<(usize, u64), Fault> {
        let find = |name: &str| report.blocks.iter().position(|block| block.name == name);
        let index = self.last.resolve(block, at, find)?;
        let block = report.blocks.get(index).ok_or(WireError::NoPreviousBlock { offset: at })?;
        if offset >= block.length || offset.checked_rem(block.page_size) != Some(0) {
            return Err(outside(block, offset, at));
        }
        Ok((index, offset.checked_div(block.page_size).unwrap_or(0)))
    }

    fn came(
        &mut self,
        report: &Report,
        block: usize,
        offset: u64,
        (at, content): (u64, Content<'_>),
    ) -> Result<(), Fault> {
        self.pages.page(Page { block, offset, size: report.page_size, at, content })
    }

    fn block_list<S: Stream>(
        &mut self,
        input: &mut Input<S>,
        report: &mut Report,
        offset: u64,
        total: u64,
    ) -> Result<(), Fault> {
        if !report.blocks.is_empty() {
            return Err(Fault::OutOfPlace { offset, what: "a second list of RAM blocks" });
        }
        let mut list = BlockList::new(total);
        while let Some(entry) = list.next(input)? {
            let mut block = Block {
                name: entry.name,
                length: entry.used_length,
                page_size: report.page_size,
                ..Block::default()
            };
            if let Some(size) = self.backing_page_size(input)? {
                input.skip(8)?;
                block.backing_page_size = Some(size);
            }
            if self.ignore_shared {
                block.guest_address = Some(input.reading("a RAM block's guest address").be64()?);
            }
            let index = report.blocks.len();
            self.pages.block(index, &block)?;
            if self.mapped {
                self.mapped_block(input, index, &mut block)?;
            }
            report.blocks.push(block);
        }
        Ok(())
    }

    /// The page size of a block's backing, not consumed. Whether the word is there depends on both hosts' page sizes; but
    /// no other thing that may stand here begins with a zero and is one of the page sizes that were announced.
    fn backing_page_size<S: Stream>(&self, input: &mut Input<S>) -> Result<Option<u64>, Fault> {
        if self.advised == 0 {
            return Ok(None);
        }
        let word = input
            .reading("a RAM block's page size")
            .peek(8)?
            .first_chunk()
            .map(|word| u64::from_be_bytes(*word));
        Ok(word.filter(|size| size.is_power_of_two() && *size > 0x200 && self.advised & size != 0))
    }

    /// A block of a mapped-ram file: header, bitmap, and the room for its pages.
    fn mapped_block<S: Stream>(
        &mut self,
        input: &mut Input<S>,
        index: usize,
        block: &mut Block,
    ) -> Result<(), Fault> {
        let offset = input.offset();
        let refuse = |block: &Block, why| WireError::BlockList { offset, name: block.name.clone(), why };
        let header = MappedBlock::decode(input, &block.name)?;
        if header.page_size != block.page_size {
            return Err(refuse(block, "its mapped-ram header has another page size").into());
        }
        if header.bitmap_offset != input.offset() {
            return Err(refuse(block, "its bitmap doesn't stand behind its mapped-ram header").into());
        }
        let pages = block.pages();
        let mut left = mapped::bitmap_length(pages);
        let mut first = 0_u64;
        while left > 0 {
            let word = u64::from_le_bytes(input.reading("a block's bitmap").array()?);
            let in_use = match pages.saturating_sub(first) {
                0..64 => (1_u64 << (pages.saturating_sub(first) & 63)).wrapping_sub(1),
                _ => u64::MAX,
            };
            if word & !in_use != 0 {
                return Err(refuse(block, "its bitmap has pages beyond the block").into());
            }
            let mut bits = word;
            while bits != 0 {
                let page = first.saturating_add(u64::from(bits.trailing_zeros()));
                block.sent.insert(page);
                bits &= bits.wrapping_sub(1);
            }
            first = first.saturating_add(64);
            left = left.saturating_sub(8);
        }
        let gap = header.pages_offset.checked_sub(input.offset());
        let gap = gap.ok_or_else(|| refuse(block, "its pages begin inside its bitmap"))?;
        pass_over(input, "the room before a block's pages", gap)?;
        block.mapped_at = Some(header.pages_offset);
        block.normal = block.sent.count();
        block.zero = pages.saturating_sub(block.normal);
        self.mapped_pages(input, index, block, header.pages_offset)
    }

    fn mapped_pages<S: Stream>(
        &mut self,
        input: &mut Input<S>,
        index: usize,
        block: &Block,
        pages_offset: u64,
    ) -> Result<(), Fault> {
        let wanted = self.pages.wants_bytes(index);
        let size = block.page_size;
        for page in block.sent.iter() {
            let offset = page.saturating_mul(size);
            let at = pages_offset.saturating_add(offset);
            let mut bytes: &[u8] = &[];
            if wanted {
                pass_over(input, ROOM, at.saturating_sub(input.offset()))?;
                bytes = input.reading("a page").view(usize::try_from(size).unwrap_or(usize::MAX))?;
            }
            self.pages.page(Page { block: index, offset, size, at, content: Content::Bytes(bytes) })?;
        }
        let end = pages_offset.saturating_add(block.length);
        pass_over(input, ROOM, end.saturating_sub(input.offset()))
    }
}

const ROOM: &str = "the room for a block's pages";

fn pass_over<S: Stream>(input: &mut Input<S>, what: &'static str, length: u64) -> Result<(), Fault> {
    input.reading(what).skip_by(length, |stream, length| stream.pass_over(length)).map_err(Fault::Wire)
}

fn outside(block: &Block, page: u64, offset: u64) -> Fault {
    Fault::OutsideBlock { offset, block: block.name.clone(), page, length: block.length }
}

impl Block {
    /// Notes that a page came.
    fn note(&mut self, page: u64) {
        if !self.sent.insert(page) {
            self.duplicates = self.duplicates.saturating_add(1);
        }
    }
}
