//! The content of a page as a function of (seed, page, generation); the guest writes it, both sides recompute it.
//!
//! A page is 512 little-endian 64-bit words. `page` is the guest-physical address / 4096; a generation counts how often
//! the page was rewritten. All arithmetic is modulo 2⁶⁴.
//!
//! | word | value |
//! |---|---|
//! | 0 | page |
//! | 1 | generation |
//! | i = 2…511 | `z = key + i × 0x9e3779b97f4a7c15; z = (z ^ z >> 32) × 0xd6e8feb86659fd93; z ^ z >> 29` |
//!
//! `key = mix(mix(mix(seed + 0x9e3779b97f4a7c15) + page) + generation)`, where
//! `mix(z)`: `z = (z ^ z >> 30) × 0xbf58476d1ce4e5b9; z = (z ^ z >> 27) × 0x94d049bb133111eb; z ^ z >> 31`.
//!
//! Page and generation stand in clear, so that a page out of date and a page in the wrong place can be told apart; the
//! rest does not compress, and neither does the difference between two generations.

use std::fmt;

/// Bytes in a page.
pub const PAGE_SIZE: usize = 4096;
/// Words in a page.
pub const PAGE_WORDS: usize = PAGE_SIZE / 8;

const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// The words of a page that holds `generation`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Content {
    page: u64,
    generation: u64,
    key: u64,
}

impl Content {
    /// The content of `page` (guest-physical address / 4096) in `generation`.
    pub fn new(seed: u64, page: u64, generation: u64) -> Self {
        let key = mix(mix(mix(seed.wrapping_add(GOLDEN)).wrapping_add(page)).wrapping_add(generation));
        Self { page, generation, key }
    }

    /// Word `index`, below [`PAGE_WORDS`].
    pub fn word(&self, index: usize) -> u64 {
        match index {
            0 => self.page,
            1 => self.generation,
            _ => {
                let z = self.key.wrapping_add((index as u64).wrapping_mul(GOLDEN));
                let z = (z ^ (z >> 32)).wrapping_mul(0xd6e8_feb8_6659_fd93);
                z ^ (z >> 29)
            }
        }
    }

    /// The first word of `page` that differs, if any does.
    pub fn first_difference(&self, page: &[u8; PAGE_SIZE]) -> Option<usize> {
        words(page).enumerate().find_map(|(index, word)| (word != self.word(index)).then_some(index))
    }

    /// Writes the whole content.
    pub fn write(&self, page: &mut [u8; PAGE_SIZE]) {
        for (index, bytes) in page.chunks_exact_mut(8).enumerate() {
            bytes.copy_from_slice(&self.word(index).to_le_bytes());
        }
    }
}

/// What a page that is not as expected holds instead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// The right page in another generation.
    Stale {
        /// The generation it holds.
        generation: u64,
    },
    /// Another page's content.
    Foreign {
        /// The page it belongs to.
        page: u64,
        /// The generation it holds.
        generation: u64,
    },
    /// Zeros.
    Blank,
    /// No page's content.
    Corrupt {
        /// The first word that differs from the expected content.
        word: usize,
        /// Its value.
        value: u64,
    },
}

impl Found {
    /// Says what `bytes`, found at `page`, hold; `first_difference` is the first word not as expected.
    pub fn identify(seed: u64, page: u64, bytes: &[u8; PAGE_SIZE], first_difference: usize) -> Self {
        if bytes.iter().all(|&byte| byte == 0) {
            return Self::Blank;
        }
        let (owner, generation) = (word_at(bytes, 0), word_at(bytes, 1));
        if Content::new(seed, owner, generation).first_difference(bytes).is_some() {
            Self::Corrupt { word: first_difference, value: word_at(bytes, first_difference) }
        } else if owner == page {
            Self::Stale { generation }
        } else {
            Self::Foreign { page: owner, generation }
        }
    }
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stale { generation } => write!(f, "stale: generation {generation}"),
            Self::Foreign { page, generation } => {
                write!(f, "foreign: page {page:#x} generation {generation}")
            }
            Self::Blank => write!(f, "blank"),
            Self::Corrupt { word, value } => write!(f, "corrupt: word {word} is {value:#x}"),
        }
    }
}

/// The words of a page.
pub(crate) fn words(page: &[u8; PAGE_SIZE]) -> impl Iterator<Item = u64> + '_ {
    page.as_chunks().0.iter().map(|bytes| u64::from_le_bytes(*bytes))
}

fn word_at(page: &[u8; PAGE_SIZE], index: usize) -> u64 {
    words(page).nth(index).unwrap_or_default()
}

fn mix(z: u64) -> u64 {
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(seed: u64, page: u64, generation: u64) -> [u8; PAGE_SIZE] {
        let mut bytes = [0; PAGE_SIZE];
        Content::new(seed, page, generation).write(&mut bytes);
        bytes
    }

    #[test]
    fn page_and_generation_stand_in_clear() {
        let bytes = page(7, 0x1234, 56);
        assert_eq!((word_at(&bytes, 0), word_at(&bytes, 1)), (0x1234, 56));
    }

    #[test]
    fn words_are_those_that_the_guest_writes() {
        let content = Content::new(0x5eed, 0x200, 3);
        let words = [0, 1, 2, 511].map(|index| content.word(index));
        assert_eq!(words, [0x200, 3, 0x272f_8722_9ede_d230, 0x95df_976d_159c_938d]);
    }

    #[test]
    fn every_argument_changes_every_later_word() {
        let base = Content::new(1, 2, 3);
        for other in [Content::new(2, 2, 3), Content::new(1, 3, 3), Content::new(1, 2, 4)] {
            assert!((2..PAGE_WORDS).all(|index| base.word(index) != other.word(index)));
        }
    }

    #[test]
    fn a_changed_page_is_told_apart_by_kind() {
        let seed = 9;
        let difference = |bytes: &[u8; PAGE_SIZE]| Content::new(seed, 5, 10).first_difference(bytes);
        assert_eq!(difference(&page(seed, 5, 10)), None);

        let stale = page(seed, 5, 9);
        assert_eq!(difference(&stale), Some(1));
        assert_eq!(Found::identify(seed, 5, &stale, 1), Found::Stale { generation: 9 });

        let foreign = page(seed, 6, 10);
        assert_eq!(Found::identify(seed, 5, &foreign, 0), Found::Foreign { page: 6, generation: 10 });

        assert_eq!(Found::identify(seed, 5, &[0; PAGE_SIZE], 0), Found::Blank);

        let mut torn = page(seed, 5, 10);
        torn[4088..].fill(0xff);
        assert_eq!(difference(&torn), Some(511));
        assert_eq!(Found::identify(seed, 5, &torn, 511), Found::Corrupt { word: 511, value: u64::MAX });
    }
}
