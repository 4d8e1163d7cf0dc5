//! What became of a block's pages: counts, and which were sent. Memory grows with the pages that came, never with the
//! length that a block claims.

use std::collections::BTreeMap;

/// Pages that share one piece of a [`PageSet`].
const PIECE: u64 = 4096;

/// A set of page numbers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PageSet {
    pieces: BTreeMap<u64, Box<[u64; 64]>>,
    count: u64,
}

impl PageSet {
    /// Adds a page; false if it was there.
    pub fn insert(&mut self, page: u64) -> bool {
        let (word, bit) =
            Self::word(self.pieces.entry(page / PIECE).or_insert_with(|| Box::new([0; 64])), page);
        let new = *word & bit == 0;
        *word |= bit;
        self.count = self.count.saturating_add(u64::from(new));
        new
    }

    /// Takes pages out, and tells how many there were.
    pub fn remove(&mut self, pages: std::ops::Range<u64>) -> u64 {
        let pieces = pages.start / PIECE..pages.end.div_ceil(PIECE);
        let mut removed = 0_u64;
        for (number, piece) in self.pieces.range_mut(pieces) {
            let first = number.saturating_mul(PIECE);
            for page in first.max(pages.start)..first.saturating_add(PIECE).min(pages.end) {
                let (word, bit) = Self::word(piece, page);
                removed = removed.saturating_add(u64::from(*word & bit != 0));
                *word &= !bit;
            }
        }
        self.count = self.count.saturating_sub(removed);
        removed
    }

    /// Whether a page is there.
    pub fn contains(&self, page: u64) -> bool {
        let word = usize::try_from(page % PIECE / 64).unwrap_or(0);
        let piece = self.pieces.get(&(page / PIECE));
        piece.and_then(|piece| piece.get(word)).is_some_and(|word| word & (1 << (page % 64)) != 0)
    }

    /// All of them, in ascending order.
    pub fn iter(&self) -> impl Iterator<Item = u64> {
        self.pieces.iter().flat_map(|(number, piece)| {
            let first = number.saturating_mul(PIECE);
            let words = piece.iter().zip((first..).step_by(64));
            words.flat_map(|(word, first)| {
                (0..64).filter(move |bit| word & (1 << bit) != 0).map(move |bit| first.saturating_add(bit))
            })
        })
    }

    /// How many there are.
    pub fn count(&self) -> u64 {
        self.count
    }

    fn word(piece: &mut [u64; 64], page: u64) -> (&mut u64, u64) {
        let [first, rest @ ..] = piece;
        let word = match usize::try_from(page % PIECE / 64).unwrap_or(0) {
            0 => first,
            n => rest.get_mut(n.saturating_sub(1)).unwrap_or(first),
        };
        (word, 1 << (page % 64))
    }
}

/// A RAM block and what came of its pages.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Block {
    /// Its name.
    pub name: String,
    /// Its length in use, in bytes.
    pub length: u64,
    /// Its pages' size on the wire, in bytes.
    pub page_size: u64,
    /// The page size of its backing, where the stream tells it.
    pub backing_page_size: Option<u64>,
    /// Its guest-physical address, where the stream tells it.
    pub guest_address: Option<u64>,
    /// Where its pages begin in a mapped-ram file.
    pub mapped_at: Option<u64>,
    /// Pages sent as they are; in a mapped-ram file, pages that have their bit.
    pub normal: u64,
    /// Pages sent as zero; in a mapped-ram file, pages without their bit.
    pub zero: u64,
    /// Pages sent as a difference.
    pub xbzrle: u64,
    /// Bytes of those differences.
    pub xbzrle_bytes: u64,
    /// Times a page was sent that had been sent before.
    pub duplicates: u64,
    /// Pages taken back by a post-copy discard.
    pub discarded: u64,
    /// Which pages were sent and not taken back.
    pub sent: PageSet,
}

impl Block {
    /// Its length in pages.
    pub fn pages(&self) -> u64 {
        self.length.checked_div(self.page_size).unwrap_or(0)
    }

    /// Pages that were never sent, or not again after a discard.
    pub fn unsent(&self) -> u64 {
        match self.mapped_at {
            Some(_) => 0,
            None => self.pages().saturating_sub(self.sent.count()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_counted_once() {
        let mut set = PageSet::default();
        for page in [0, 63, 64, 4095, 4096, u64::MAX >> 12] {
            assert!(set.insert(page));
            assert!(!set.insert(page));
            assert!(set.contains(page));
        }
        assert!(!set.contains(1) && !set.contains(1 << 40));
        assert_eq!(set.count(), 6);
        assert!(set.iter().eq([0, 63, 64, 4095, 4096, u64::MAX >> 12]));
        assert_eq!(set.remove(63..4096), 3);
        assert_eq!(set.remove(0..u64::MAX), 3);
        assert_eq!((set.count(), set.contains(0)), (0, false));
    }
}
