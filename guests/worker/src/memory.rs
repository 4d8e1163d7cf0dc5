//! Memory whose every page says which it is and how often it was written.

pub(crate) const PAGE: usize = 4096;
const WORDS: usize = PAGE / size_of::<u64>();

/// One thread's pages.
pub(crate) struct Pages {
    words: Vec<u64>,
    owner: u64,
    /// Times the page at hand has been written, as all before it in this round but once less than those.
    generation: u64,
    next: usize,
}

impl Pages {
    /// Writes them all once. At least one.
    pub(crate) fn new(owner: u64, count: usize) -> Self {
        let count = count.max(1);
        let mut pages = Self { words: vec![0; count * WORDS], owner, generation: 0, next: 0 };
        (0..count).for_each(|page| pages.write(page, 0));
        pages
    }

    /// Checks the next pages in turn and writes each anew; how many were not as they had been left.
    pub(crate) fn step(&mut self, count: usize) -> u64 {
        let mut corrupt = 0;
        for _ in 0..count {
            let (page, generation) = (self.next, self.generation);
            let at = page * WORDS;
            let right =
                (at..).zip(&self.words[at..at + WORDS]).all(|(at, word)| *word == self.value(at, generation));
            corrupt += u64::from(!right);
            self.write(page, generation + 1);
            self.next += 1;
            if self.next * WORDS == self.words.len() {
                (self.next, self.generation) = (0, generation + 1);
            }
        }
        corrupt
    }

    fn write(&mut self, page: usize, generation: u64) {
        for at in page * WORDS..(page + 1) * WORDS {
            self.words[at] = self.value(at, generation);
        }
    }

    /// What the word at `at` holds: the golden ratio's multiples spread neighbours over all bits.
    fn value(&self, at: usize, generation: u64) -> u64 {
        (self.owner << 48 ^ generation << 32 ^ at as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_left_alone_are_right_round_after_round() {
        let mut pages = Pages::new(1, 3);
        assert_eq!(pages.step(10), 0);
        assert_eq!((pages.next, pages.generation), (1, 3));
    }

    #[test]
    fn a_changed_word_and_a_page_of_a_generation_ago_are_found_once() {
        let mut pages = Pages::new(0, 4);
        pages.words[WORDS + 7] ^= 1;
        assert_eq!(pages.step(4), 1);
        pages.write(2, 0);
        assert_eq!(pages.step(4), 1);
        assert_eq!(pages.step(4), 0);
    }
}
