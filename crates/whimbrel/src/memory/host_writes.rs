//! The pages of a region that host-side writers (loaders, devices, DMA) have written: a two-level bitmap that many threads mark
//! and one takes. Marking and taking cost what was written, not how much memory there is.
//!
//! ```text
//! summary   bit w of word s ⇒  words[64·s + w] may be non-zero
//! words     bit b of word w ⇔  page 64·w + b was written
//! ```
//! A writer marks the word first, then the summary; a taker takes the summary first, then the word. So a mark that a taker
//! misses is still in the summary for the next.

use std::sync::atomic::{AtomicU64, Ordering};

use vm_memory::bitmap::{Bitmap, NewBitmap, RefSlice, WithBitmapSlice};

use super::PAGE_SIZE;

const WORD: usize = u64::BITS as usize;

/// What was written of a region since it was last taken.
#[derive(Debug, Default)]
pub struct HostWrites {
    words: Box<[AtomicU64]>,
    summary: Box<[AtomicU64]>,
    pages: usize,
}

impl HostWrites {
    /// Gives every non-zero word to `f` as `(index, bits)`, and forgets it.
    pub(super) fn take(&self, mut f: impl FnMut(usize, u64)) {
        for (at, summary) in self.summary.iter().enumerate() {
            // Most of it is empty: looking costs less than an exchange.
            if summary.load(Ordering::Relaxed) == 0 {
                continue;
            }
            let mut bits = summary.swap(0, Ordering::SeqCst);
            while bits != 0 {
                let index = at * WORD + bits.trailing_zeros() as usize;
                bits &= bits - 1;
                let written = self.words[index].swap(0, Ordering::SeqCst);
                if written != 0 {
                    f(index, written);
                }
            }
        }
    }
}

impl NewBitmap for HostWrites {
    /// For a region of `len` bytes.
    fn with_len(len: usize) -> Self {
        let zeroes = |count: usize| (0..count).map(|_| AtomicU64::new(0)).collect::<Box<[_]>>();
        let pages = len.div_ceil(PAGE_SIZE as usize);
        let words = pages.div_ceil(WORD);
        Self { words: zeroes(words), summary: zeroes(words.div_ceil(WORD)), pages }
    }
}

impl<'a> WithBitmapSlice<'a> for HostWrites {
    type S = RefSlice<'a, Self>;
}

impl Bitmap for HostWrites {
    fn mark_dirty(&self, offset: usize, len: usize) {
        if len == 0 {
            return;
        }
        let first = offset / PAGE_SIZE as usize;
        let end = offset.saturating_add(len).div_ceil(PAGE_SIZE as usize).min(self.pages);
        for page in first..end {
            let word = page / WORD;
            self.words[word].fetch_or(1 << (page % WORD), Ordering::SeqCst);
            self.summary[word / WORD].fetch_or(1 << (word % WORD), Ordering::SeqCst);
        }
    }

    fn dirty_at(&self, offset: usize) -> bool {
        let page = offset / PAGE_SIZE as usize;
        self.words.get(page / WORD).is_some_and(|word| word.load(Ordering::SeqCst) >> (page % WORD) & 1 == 1)
    }

    fn slice_at(&self, offset: usize) -> RefSlice<'_, Self> {
        RefSlice::new(self, offset)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    const PAGE: usize = PAGE_SIZE as usize;

    fn taken(writes: &HostWrites) -> BTreeSet<usize> {
        let mut pages = BTreeSet::new();
        writes.take(|index, bits| {
            pages.extend((0..WORD).filter(|b| bits >> b & 1 == 1).map(|b| index * WORD + b))
        });
        pages
    }

    #[test]
    fn every_page_that_a_range_touches_is_taken_once() {
        let writes = HostWrites::with_len(9000 * PAGE);
        writes.mark_dirty(63 * PAGE + 4095, 2);
        writes.slice_at(4096 * PAGE).mark_dirty(10, 0);
        writes.slice_at(4096 * PAGE).mark_dirty(0, PAGE);
        writes.mark_dirty(8999 * PAGE, 10 * PAGE);
        assert!(writes.dirty_at(64 * PAGE) && !writes.dirty_at(65 * PAGE) && !writes.dirty_at(9000 * PAGE));
        assert_eq!(taken(&writes), BTreeSet::from([63, 64, 4096, 8999]));
        assert!(taken(&writes).is_empty());
    }

    /// In each round each word is marked once, so that no later mark makes good for one that was missed.
    #[test]
    fn no_mark_is_lost_while_it_is_taken() {
        const ROUNDS: usize = 10_000;
        let writes = HostWrites::with_len(WORD * WORD * PAGE);
        let (marked, seen) = (AtomicU64::new(0), AtomicU64::new(0));
        let wait = |counter: &AtomicU64, round| {
            while counter.load(Ordering::SeqCst) < round {
                std::thread::yield_now();
            }
        };
        let mut lost = 0;
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for round in 1..=ROUNDS as u64 {
                    (0..WORD).for_each(|word| writes.mark_dirty(word * WORD * PAGE, 1));
                    marked.store(round, Ordering::SeqCst);
                    wait(&seen, round);
                }
            });
            for round in 1..=ROUNDS as u64 {
                let mut found = 0;
                loop {
                    let last = marked.load(Ordering::SeqCst) == round;
                    writes.take(|_, _| found += 1);
                    if last {
                        break;
                    }
                }
                lost += WORD - found;
                seen.store(round, Ordering::SeqCst);
            }
        });
        assert_eq!(lost, 0);
    }
}
