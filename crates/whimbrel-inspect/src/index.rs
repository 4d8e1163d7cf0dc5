//! Where in a stream each page's last content stands, to read pages a second time: eight bytes a page, and a few more for each
//! difference that came after.

use std::collections::BTreeMap;

use whimbrel_wire::WireError;
use whimbrel_wire::ram::xbzrle;

use crate::visitor::{Content, Page, PageVisitor};
use crate::{Block, Fault, ReadAt};

/// Where the pages of the wanted blocks stand.
#[derive(Debug)]
pub(crate) struct Index {
    wanted: fn(&Block) -> bool,
    blocks: BTreeMap<usize, BlockIndex>,
    none: BlockIndex,
}

/// Where the pages of one block stand. Zero pages are not there.
#[derive(Debug, Default)]
pub(crate) struct BlockIndex {
    pieces: BTreeMap<u64, Box<[u64; SLOTS]>>,
    differences: BTreeMap<u64, Vec<(u64, u16)>>,
}

/// Pages that share one piece.
const PIECE: u64 = 512;
const SLOTS: usize = 512;

impl Index {
    /// Will learn where the pages of those blocks stand that are wanted.
    pub(crate) fn of(wanted: fn(&Block) -> bool) -> Self {
        Index { wanted, blocks: BTreeMap::new(), none: BlockIndex::default() }
    }

    pub(crate) fn block(&self, number: usize) -> &BlockIndex {
        self.blocks.get(&number).unwrap_or(&self.none)
    }
}

impl PageVisitor for Index {
    fn block(&mut self, index: usize, block: &Block) -> Result<(), Fault> {
        if (self.wanted)(block) {
            self.blocks.insert(index, BlockIndex::default());
        }
        Ok(())
    }

    fn page(&mut self, page: Page<'_>) -> Result<(), Fault> {
        let Some(block) = self.blocks.get_mut(&page.block) else { return Ok(()) };
        let number = page.offset.checked_div(page.size).unwrap_or(0);
        match page.content {
            Content::Bytes(_) => block.set(number, page.at.saturating_add(1)),
            // A fill byte other than 0 is a fault that the report tells.
            Content::Filled(_) => block.set(number, 0),
            Content::Xbzrle(encoded) => {
                let length = u16::try_from(encoded.len()).unwrap_or(u16::MAX);
                block.differences.entry(number).or_default().push((page.at, length));
            }
        }
        Ok(())
    }
}

impl BlockIndex {
    fn set(&mut self, page: u64, place: u64) {
        self.differences.remove(&page);
        let piece = page / PIECE;
        let slot = usize::try_from(page % PIECE).unwrap_or(0);
        let piece = match place {
            0 => self.pieces.get_mut(&piece),
            _ => Some(self.pieces.entry(piece).or_insert_with(|| Box::new([0; SLOTS]))),
        };
        if let Some(slot) = piece.and_then(|piece| piece.get_mut(slot)) {
            *slot = place;
        }
    }

    fn place(&self, page: u64) -> Option<u64> {
        let slot = usize::try_from(page % PIECE).unwrap_or(0);
        let place = *self.pieces.get(&(page / PIECE))?.get(slot)?;
        place.checked_sub(1)
    }
}

/// The content of a block's pages at the end of a stream.
pub(crate) struct Image<'a> {
    index: &'a BlockIndex,
    bytes: &'a dyn ReadAt,
    page: Vec<u8>,
    /// Which page that is.
    number: Option<u64>,
    /// How often something may still be read.
    reads: u64,
}

impl<'a> Image<'a> {
    pub(crate) fn new(index: &'a BlockIndex, bytes: &'a dyn ReadAt, page_size: u64) -> Self {
        let page = vec![0; usize::try_from(page_size).unwrap_or(0)];
        Image { index, bytes, page, number: None, reads: u64::MAX }
    }

    /// The same, that reads no more than so often.
    pub(crate) fn at_most(self, reads: u64) -> Self {
        Image { reads, ..self }
    }

    /// How often it still may.
    pub(crate) fn reads_left(&self) -> u64 {
        self.reads
    }

    /// The pages that may be other than zero, in ascending order.
    pub(crate) fn pages(&self) -> impl Iterator<Item = u64> + use<'a> {
        let index = self.index;
        let pieces = index.pieces.iter().flat_map(|(piece, places)| {
            let first = piece.saturating_mul(PIECE);
            let pages = places.iter().zip(first..);
            pages.filter(|(place, _)| **place != 0).map(|(_, page)| page)
        });
        let bare = index.differences.keys().copied().filter(|page| index.place(*page).is_none());
        merge(pieces, bare)
    }

    /// A page's content. The one asked for last costs nothing.
    pub(crate) fn page(&mut self, page: u64) -> Result<&[u8], Fault> {
        if self.number.take() != Some(page) {
            match self.index.place(page) {
                Some(at) => read(&mut self.reads, self.bytes, at, &mut self.page)?,
                None => self.page.fill(0),
            }
            let differences = self.index.differences.get(&page).map(Vec::as_slice).unwrap_or_default();
            for (at, length) in differences {
                let mut encoded = vec![0; usize::from(*length)];
                read(&mut self.reads, self.bytes, *at, &mut encoded)?;
                xbzrle::apply(&encoded, &mut self.page)
                    .map_err(|why| WireError::Xbzrle { offset: *at, why })?;
            }
        }
        self.number = Some(page);
        Ok(&self.page)
    }
}

fn read(left: &mut u64, bytes: &dyn ReadAt, offset: u64, room: &mut [u8]) -> Result<(), Fault> {
    *left = left.checked_sub(1).ok_or(Fault::TooManyReads { offset })?;
    bytes.read_exact_at(room, offset).map_err(Fault::io("reading a page again"))
}

/// Two ascending sequences as one, without repetitions.
pub(crate) fn merge(a: impl Iterator<Item = u64>, b: impl Iterator<Item = u64>) -> impl Iterator<Item = u64> {
    let (mut a, mut b) = (a.peekable(), b.peekable());
    std::iter::from_fn(move || match (a.peek().copied(), b.peek().copied()) {
        (Some(x), Some(y)) if x == y => {
            b.next();
            a.next()
        }
        (Some(x), Some(y)) if x > y => b.next(),
        (Some(_), _) => a.next(),
        (None, _) => b.next(),
    })
}
