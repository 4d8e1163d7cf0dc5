//! A two-level bitmap of pages: finding, counting and merging cost what is set, not what exists.

use std::ops::Range;

/// Bits of a word.
const WORD: u64 = u64::BITS as u64;

/// A set of page numbers below a fixed bound.
///
/// ```text
/// summary   bit s of word w is set  ⇔  words[64·w + s] != 0
/// words     bit b of word w is set  ⇔  page 64·w + b is in the set
/// ```
#[derive(Debug, Clone)]
pub struct DirtyBitmap {
    words: Vec<u64>,
    summary: Vec<u64>,
    pages: u64,
    count: u64,
}

impl DirtyBitmap {
    /// The empty set of pages below `pages`.
    pub fn empty(pages: u64) -> Self {
        let words = pages.div_ceil(WORD) as usize;
        Self { words: vec![0; words], summary: vec![0; words.div_ceil(WORD as usize)], pages, count: 0 }
    }

    /// All pages below `pages`.
    pub fn full(pages: u64) -> Self {
        let mut all = Self::empty(pages);
        for word in 0..all.words.len() {
            all.merge_word(word, u64::MAX);
        }
        all
    }

    /// The bound.
    pub fn pages(&self) -> u64 {
        self.pages
    }

    /// How many pages are in the set.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Whether a page is in it.
    pub fn contains(&self, page: u64) -> bool {
        self.words.get((page / WORD) as usize).is_some_and(|word| word & bit(page) != 0)
    }

    /// Adds a page; whether it was new.
    pub fn insert(&mut self, page: u64) -> bool {
        page < self.pages && self.merge_word((page / WORD) as usize, bit(page)) == 1
    }

    /// Takes a page out; whether it was in.
    pub fn remove(&mut self, page: u64) -> bool {
        if !self.contains(page) {
            return false;
        }
        let index = (page / WORD) as usize;
        self.words[index] &= !bit(page);
        if self.words[index] == 0 {
            self.summary[index / WORD as usize] &= !bit(index as u64);
        }
        self.count -= 1;
        true
    }

    /// Adds the pages `64 × index + b` for every bit b of `bits`; returns how many were new. Bits past the bound are dropped.
    pub fn merge_word(&mut self, index: usize, bits: u64) -> u64 {
        let bits = bits & self.mask(index);
        let new = u64::from((bits & !self.words[index]).count_ones());
        if bits != 0 {
            self.words[index] |= bits;
            self.summary[index / WORD as usize] |= bit(index as u64);
            self.count += new;
        }
        new
    }

    /// Empties `other` into this set; returns how many pages were new.
    pub fn take_from(&mut self, other: &mut Self) -> u64 {
        let mut new = 0;
        other.drain_words(|index, bits| new += self.merge_word(index, bits));
        new
    }

    /// Gives every non-zero word to `f` as `(index, bits)` and empties the set.
    pub fn drain_words(&mut self, mut f: impl FnMut(usize, u64)) {
        for (at, summary) in self.summary.iter_mut().enumerate() {
            for index in bits_of(std::mem::take(summary)).map(|b| at * WORD as usize + b as usize) {
                f(index, std::mem::take(&mut self.words[index]));
            }
        }
        self.count = 0;
    }

    /// Takes the pages `64 × index + b` for every bit b of `bits` out.
    pub fn remove_word(&mut self, index: usize, bits: u64) {
        let gone = self.words[index] & bits;
        self.words[index] &= !bits;
        self.count -= u64::from(gone.count_ones());
        if self.words[index] == 0 {
            self.summary[index / WORD as usize] &= !bit(index as u64);
        }
    }

    /// The first page at or after `from`.
    pub fn next(&self, from: u64) -> Option<u64> {
        if from >= self.pages {
            return None;
        }
        let index = (from / WORD) as usize;
        let here = self.words[index] & (u64::MAX << (from % WORD));
        if here != 0 {
            return Some(index as u64 * WORD + u64::from(here.trailing_zeros()));
        }
        let next = index as u64 + 1;
        let mut at = (next / WORD) as usize;
        let mut mask = u64::MAX << (next % WORD);
        while let Some(summary) = self.summary.get(at) {
            let summary = summary & mask;
            if summary != 0 {
                let word = at as u64 * WORD + u64::from(summary.trailing_zeros());
                return Some(word * WORD + u64::from(self.words[word as usize].trailing_zeros()));
            }
            at += 1;
            mask = u64::MAX;
        }
        None
    }

    /// The words that cover `pages`, as `(index, bits of the range)`.
    pub fn words_of(pages: Range<u64>) -> impl Iterator<Item = (usize, u64)> {
        (pages.start / WORD..pages.end.div_ceil(WORD)).map(move |index| {
            let first = index * WORD;
            let low = pages.start.saturating_sub(first).min(WORD);
            let high = pages.end.saturating_sub(first).min(WORD);
            let upto = |n: u64| if n == WORD { u64::MAX } else { (1 << n) - 1 };
            (index as usize, upto(high) & !upto(low))
        })
    }

    /// A word's bits.
    pub fn word(&self, index: usize) -> u64 {
        self.words[index]
    }

    fn mask(&self, index: usize) -> u64 {
        let first = index as u64 * WORD;
        match self.pages.saturating_sub(first) {
            left if left >= WORD => u64::MAX,
            left => (1 << left) - 1,
        }
    }
}

fn bit(n: u64) -> u64 {
    1 << (n % WORD)
}

fn bits_of(mut word: u64) -> impl Iterator<Item = u32> {
    std::iter::from_fn(move || {
        (word != 0).then(|| {
            let b = word.trailing_zeros();
            word &= word - 1;
            b
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    fn content(bitmap: &DirtyBitmap) -> Vec<u64> {
        let mut pages = Vec::new();
        let mut from = 0;
        while let Some(page) = bitmap.next(from) {
            pages.push(page);
            from = page + 1;
        }
        pages
    }

    #[test]
    fn behaves_like_a_set_for_any_history() {
        let bound = 9001;
        let mut bitmap = DirtyBitmap::empty(bound);
        let mut set = BTreeSet::new();
        let mut x = 88_172_645_463_325_252_u64;
        for _ in 0..20_000 {
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
            let page = x % (bound + 100);
            if x & (1 << 40) == 0 {
                assert_eq!(bitmap.insert(page), page < bound && set.insert(page));
            } else {
                assert_eq!(bitmap.remove(page), set.remove(&page));
            }
            assert_eq!(bitmap.count(), set.len() as u64);
        }
        assert_eq!(content(&bitmap), set.iter().copied().collect::<Vec<_>>());
    }

    #[test]
    fn full_ends_at_the_bound() {
        for pages in [1, 63, 64, 65, 4096, 4097] {
            let bitmap = DirtyBitmap::full(pages);
            assert_eq!(bitmap.count(), pages);
            assert_eq!(content(&bitmap), (0..pages).collect::<Vec<_>>());
        }
    }

    #[test]
    fn taking_counts_only_what_is_new() {
        let mut a = DirtyBitmap::empty(5000);
        let mut b = DirtyBitmap::empty(5000);
        a.insert(7);
        b.insert(7);
        b.insert(4999);
        assert_eq!(a.take_from(&mut b), 1);
        assert_eq!((content(&a), b.count()), (vec![7, 4999], 0));
        assert_eq!(b.next(0), None);
    }

    #[test]
    fn words_of_a_range_cover_exactly_it() {
        for range in [0..1, 0..64, 1..64, 60..70, 64..65, 3..200] {
            let pages: Vec<_> = DirtyBitmap::words_of(range.clone())
                .flat_map(|(index, bits)| bits_of(bits).map(move |b| index as u64 * 64 + u64::from(b)))
                .collect();
            assert_eq!(pages, range.collect::<Vec<_>>());
        }
    }
}
