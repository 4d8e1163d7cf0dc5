//! Guest-physical memory, as it is at the end of a stream: for whoever walks tables in it. It reads the pages that are asked for,
//! keeps one of them, and says why something could not be read.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io::Read;

use whimbrel_its::ReadMemory;

use crate::index::{Image, Index};
use crate::report::Report;
use crate::{Block, ReadAt};

/// Where machines have the RAM in which tables of an ITS can be: a stream doesn't say.
///
/// | block | machine | begins at |
/// |---|---|---|
/// | `mach-virt.ram` | `virt` | 1 GiB |
const RAM: &[(&str, u64)] = &[("mach-virt.ram", 1 << 30)];

/// How often a page, or what changes one, may be read. The tables of 2¹⁶ devices take fewer.
const MAX_READS: u64 = 1 << 20;

/// Where a block begins in guest-physical memory.
pub(super) fn address(block: &Block) -> Option<u64> {
    let known = || RAM.iter().find(|(name, _)| *name == block.name).map(|(_, address)| *address);
    block.guest_address.or_else(known)
}

/// The blocks of which it is known, if the stream doesn't say.
pub(super) fn known_blocks() -> String {
    RAM.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ")
}

/// RAM that can be read.
pub(super) struct GuestMemory<'a> {
    report: &'a Report,
    index: &'a Index,
    bytes: &'a dyn ReadAt,
    /// The numbers of blocks whose address is known, by that.
    blocks: BTreeMap<u64, usize>,
    now: RefCell<Now<'a>>,
}

/// What changes from one read to the next.
struct Now<'a> {
    /// The block that was read last.
    image: Option<(usize, Image<'a>)>,
    /// Why the last read failed.
    why: Option<String>,
}

impl<'a> GuestMemory<'a> {
    /// The blocks of a stream whose address is known; `None` if there are none.
    pub(super) fn new(report: &'a Report, index: &'a Index, bytes: &'a dyn ReadAt) -> Option<Self> {
        let numbered = report.blocks.iter().enumerate();
        let blocks: BTreeMap<u64, usize> =
            numbered.filter_map(|(number, block)| Some((address(block)?, number))).collect();
        let now = RefCell::new(Now { image: None, why: None });
        (!blocks.is_empty()).then_some(Self { report, index, bytes, blocks, now })
    }

    /// Why the last read failed. It is told once.
    pub(super) fn why(&self) -> Option<String> {
        self.now.borrow_mut().why.take()
    }

    /// The block at an address, and how far into it that is.
    fn locate(&self, address: u64) -> Option<(usize, &'a Block, u64)> {
        let (start, number) = self.blocks.range(..=address).next_back()?;
        let (block, offset) = (self.report.blocks.get(*number)?, address.saturating_sub(*start));
        (offset < block.length).then_some((*number, block, offset))
    }

    fn fill(&self, mut address: u64, mut room: &mut [u8]) -> Result<(), String> {
        let mut now = self.now.borrow_mut();
        while !room.is_empty() {
            let (number, block, offset) = self.locate(address).ok_or("no RAM is there")?;
            let page = offset.checked_div(block.page_size).unwrap_or(0);
            if block.mapped_at.is_none() && !block.sent.contains(page) {
                return Err(format!("its page, {offset:#x} into {}, never came", block.name));
            }
            let image = self.image(&mut now.image, number, block.page_size);
            let content = image.page(page).map_err(|fault| fault.to_string())?;
            let within = offset.checked_rem(block.page_size).and_then(|within| usize::try_from(within).ok());
            let mut content = within.and_then(|within| content.get(within..)).unwrap_or_default();
            match content.read(room) {
                Ok(0) | Err(_) => return Err("no RAM is there".to_owned()),
                Ok(read) => {
                    address = address.saturating_add(read as u64);
                    room = room.get_mut(read..).unwrap_or_default();
                }
            }
        }
        Ok(())
    }

    /// The block of that number, to be read; `last` is the one that was read last.
    fn image<'i>(
        &self,
        last: &'i mut Option<(usize, Image<'a>)>,
        number: usize,
        page_size: u64,
    ) -> &'i mut Image<'a> {
        let reads = match last.take() {
            Some(same) if same.0 == number => return &mut last.insert(same).1,
            Some((_, other)) => other.reads_left(),
            None => MAX_READS,
        };
        let image = Image::new(self.index.block(number), self.bytes, page_size).at_most(reads);
        &mut last.insert((number, image)).1
    }
}

impl ReadMemory for GuestMemory<'_> {
    fn read(&self, address: u64, bytes: &mut [u8]) -> bool {
        let filled = self.fill(address, bytes);
        let read = filled.is_ok();
        self.now.borrow_mut().why = filled.err();
        read
    }
}
