//! Where in a stream each page's last content stands: eight bytes a page, and a few more for each difference that came after.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;

use whimbrel_wire::WireError;
use whimbrel_wire::ram::xbzrle;

use crate::Fault;
use crate::visitor::{Content, Page, PageVisitor};

/// Where the pages of all blocks stand.
#[derive(Debug, Default)]
pub(super) struct Index {
    blocks: BTreeMap<usize, BlockIndex>,
    none: BlockIndex,
}

/// Where the pages of one block stand. Zero pages are not there.
#[derive(Debug, Default)]
pub(super) struct BlockIndex {
    pieces: BTreeMap<u64, Box<[u64; SLOTS]>>,
    differences: BTreeMap<u64, Vec<(u64, u16)>>,
}

/// Pages that share one piece.
const PIECE: u64 = 512;
const SLOTS: usize = 512;

impl Index {
    pub(super) fn block(&self, number: usize) -> &BlockIndex {
        self.blocks.get(&number).unwrap_or(&self.none)
    }
}

impl PageVisitor for Index {
    fn page(&mut self, page: Page<'_>) -> Result<(), Fault> {
        let block = self.blocks.entry(page.block).or_default();
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
pub(super) struct Image<'a> {
    index: &'a BlockIndex,
    file: &'a File,
    page: Vec<u8>,
}

impl<'a> Image<'a> {
    pub(super) fn new(index: &'a BlockIndex, file: &'a File, page_size: u64) -> Self {
        Image { index, file, page: vec![0; usize::try_from(page_size).unwrap_or(0)] }
    }

    /// The pages that may be other than zero, in ascending order.
    pub(super) fn pages(&self) -> impl Iterator<Item = u64> + use<'a> {
        let index = self.index;
        let pieces = index.pieces.iter().flat_map(|(piece, places)| {
            let first = piece.saturating_mul(PIECE);
            let pages = places.iter().zip(first..);
            pages.filter(|(place, _)| **place != 0).map(|(_, page)| page)
        });
        let bare = index.differences.keys().copied().filter(|page| index.place(*page).is_none());
        merge(pieces, bare)
    }

    /// A page's content.
    pub(super) fn page(&mut self, page: u64) -> Result<&[u8], Fault> {
        let read = || Fault::io("reading a page again");
        match self.index.place(page) {
            Some(at) => self.file.read_exact_at(&mut self.page, at).map_err(read())?,
            None => self.page.fill(0),
        }
        let differences = self.index.differences.get(&page).map(Vec::as_slice).unwrap_or_default();
        for (at, length) in differences {
            let mut encoded = vec![0; usize::from(*length)];
            self.file.read_exact_at(&mut encoded, *at).map_err(read())?;
            xbzrle::apply(&encoded, &mut self.page).map_err(|why| WireError::Xbzrle { offset: *at, why })?;
        }
        Ok(&self.page)
    }
}

/// Two ascending sequences as one, without repetitions.
pub(super) fn merge(a: impl Iterator<Item = u64>, b: impl Iterator<Item = u64>) -> impl Iterator<Item = u64> {
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
