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

    /// Writers count what they wrote; each of their writes is in a page that is taken after it.
    #[test]
    fn no_mark_is_lost_while_it_is_taken() {
        const PAGES: usize = 64 * 64 * 2;
        let writes = HostWrites::with_len(PAGES * PAGE);
        let memory: Vec<_> = (0..PAGES).map(|_| AtomicU64::new(0)).collect();
        let mut copy = vec![0; PAGES];
        std::thread::scope(|scope| {
            let writers: Vec<_> = (0..3_u64)
                .map(|writer| {
                    let (writes, memory) = (&writes, &memory);
                    scope.spawn(move || {
                        let mut x = 88_172_645_463_325_252_u64 + writer;
                        for _ in 0..200_000 {
                            x ^= x << 13;
                            x ^= x >> 7;
                            x ^= x << 17;
                            // Few pages of few words, so that they are marked and taken at the same time.
                            let page = x as usize % 8 * 1021;
                            memory[page].fetch_add(1, Ordering::Relaxed);
                            writes.mark_dirty(page * PAGE, 1);
                        }
                    })
                })
                .collect();
            let mut collect = || {
                for page in taken(&writes) {
                    copy[page] = memory[page].load(Ordering::Relaxed);
                }
            };
            while writers.iter().any(|writer| !writer.is_finished()) {
                collect();
            }
            collect();
        });
        let memory: Vec<_> = memory.into_iter().map(AtomicU64::into_inner).collect();
        assert_eq!(memory.iter().sum::<u64>(), 600_000);
        assert!(copy == memory, "a page was written after it was taken last");
    }
}
