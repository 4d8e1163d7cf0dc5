//! The host's check on synthetic memory: a control block and pages as a guest would have left them.

use super::*;
use crate::DumpSlice;
use crate::control::{ADDRESSES, MAGIC, VERSION};

const SEED: u64 = 77;
const SET: u64 = 8;
const FILL: u64 = 4;
const ADDRESS: u64 = ADDRESSES[0];
/// Where the x86-64 guest's pages begin.
const DATA_START: u64 = 0x20_0000;
const FIRST: u64 = DATA_START / PAGE_SIZE as u64;
/// Two workers of four pages each: the first has done two passes and three pages, the second nothing.
const PROGRESS: [u64; 2] = [11, 0];

struct Guest(Vec<u8>);

impl Guest {
    fn new() -> Self {
        let mut guest = Self(vec![0; (DATA_START + (SET + FILL) * PAGE_SIZE as u64) as usize]);
        guest.put(0, MAGIC);
        guest.put(0x08, u64::from(VERSION) | 2 << 32);
        guest.put(0x10, SEED);
        guest.put(0x28, 2 | 2 << 32);
        guest.put(0x38, 1);
        guest.put(0x50, SET + FILL);
        guest.put(0x60, SET);
        guest.put(0x68, SET);
        guest.put(0x70, FILL);
        guest.put(0x78, 1);
        guest.put(0x80, FIRST);
        guest.put(0x88, SET + FILL);
        for (n, progress) in [0, 1].into_iter().zip(PROGRESS) {
            let vcpu = 0x1000 * (n + 1);
            guest.put(vcpu, 1 | 1 << 32);
            guest.put(vcpu + 0x08, 4 * n);
            guest.put(vcpu + 0x10, 4);
            guest.put(vcpu + 0x18, progress);
            guest.put(vcpu + 0x20, u64::MAX);
        }
        for (index, generation) in [3, 3, 3, 2, 0, 0, 0, 0, 0, 0, 0, 0].into_iter().enumerate() {
            guest.stamp(index as u64, FIRST + index as u64, generation);
        }
        guest
    }

    /// Sets a field of the control block.
    fn put(&mut self, offset: u64, value: u64) {
        let at = (ADDRESS + offset) as usize;
        self.0[at..at + 8].copy_from_slice(&value.to_le_bytes());
    }

    fn bytes(&mut self, index: u64) -> &mut [u8; PAGE_SIZE] {
        let at = (DATA_START as usize) + index as usize * PAGE_SIZE;
        (&mut self.0[at..at + PAGE_SIZE]).try_into().expect("a page")
    }

    /// Writes the content of `page` where data page `index` lies.
    fn stamp(&mut self, index: u64, page: u64, generation: u64) {
        Content::new(SEED, page, generation).write(self.bytes(index));
    }

    fn check(&self) -> Result<Report, Error> {
        check(&DumpSlice::new(&self.0, 0))
    }
}

#[test]
fn an_untouched_guest_is_clean_and_every_page_was_looked_at() {
    let report = Guest::new().check().expect("a guest");
    assert!(report.is_clean(), "{:?}", report.mismatches);
    assert_eq!(report.pages_verified, SET + FILL);
}

#[test]
fn one_page_left_behind_is_reported_stale() {
    let mut guest = Guest::new();
    guest.stamp(1, FIRST + 1, 2);
    let report = guest.check().expect("a guest");
    let expected = Expected::Generation(3);
    let found = Found::Stale { generation: 2 };
    assert_eq!(report.mismatches, [Mismatch { page: FIRST + 1, expected, found }]);
    assert!(!report.is_clean());
}

#[test]
fn swapped_pages_are_reported_foreign_in_set_and_fill() {
    let mut guest = Guest::new();
    guest.stamp(4, FIRST + 9, 0);
    guest.stamp(9, FIRST + 4, 0);
    let report = guest.check().expect("a guest");
    let expected = Expected::Generation(0);
    let foreign = |page| Found::Foreign { page, generation: 0 };
    assert_eq!(
        report.mismatches,
        [
            Mismatch { page: FIRST + 4, expected, found: foreign(FIRST + 9) },
            Mismatch { page: FIRST + 9, expected, found: foreign(FIRST + 4) }
        ]
    );
}

#[test]
fn a_page_that_never_came_is_reported_blank() {
    let mut guest = Guest::new();
    guest.bytes(10).fill(0);
    assert_eq!(guest.check().expect("a guest").mismatches[0].found, Found::Blank);
}

#[test]
fn one_flipped_bit_in_a_zero_fill_is_reported() {
    let mut guest = Guest::new();
    guest.put(0x38, 0);
    for index in SET..SET + FILL {
        guest.bytes(index).fill(0);
    }
    assert!(guest.check().expect("a guest").is_clean());
    guest.bytes(SET + 1)[4095] = 1;
    let report = guest.check().expect("a guest");
    let found = Found::Corrupt { word: 511, value: 1 << 56 };
    assert_eq!(report.mismatches, [Mismatch { page: FIRST + SET + 1, expected: Expected::Zero, found }]);
}

#[test]
fn only_the_page_being_written_may_be_half_written_and_only_in_order() {
    let torn = |guest: &mut Guest, split: usize| {
        let mut new = [0; PAGE_SIZE];
        Content::new(SEED, FIRST + 3, 3).write(&mut new);
        guest.bytes(3)[..split].copy_from_slice(&new[..split]);
    };
    let mut guest = Guest::new();
    torn(&mut guest, 2000);
    assert_eq!(guest.check().expect("a guest").mismatch_count, 1, "nobody is writing it");
    guest.put(0x1020, FIRST + 3);
    let report = guest.check().expect("a guest");
    assert_eq!((report.mismatch_count, report.in_flight), (0, 1));
    guest.bytes(3)[4000] ^= 1;
    assert_eq!(guest.check().expect("a guest").mismatch_count, 1, "a word neither old nor new");
}

#[test]
fn faults_the_guest_found_itself_are_not_clean() {
    let mut guest = Guest::new();
    guest.put(0x1000 + 0x1b8, 1);
    assert!(!guest.check().expect("a guest").is_clean());
}

#[test]
fn memory_without_a_running_guest_is_an_error_that_says_so() {
    let mut guest = Guest::new();
    guest.put(0x08, u64::from(VERSION) | 1 << 32);
    assert!(matches!(guest.check(), Err(Error::NotReady { state: 1 })));
    guest.put(0x08, 99);
    assert!(matches!(guest.check(), Err(Error::Version { found: 99 })));
    guest.put(0, 0);
    assert!(matches!(guest.check(), Err(Error::NoControlBlock { found: 0 })));
    assert!(matches!(check(&DumpSlice::new(&[0; 16], 0)), Err(Error::Memory { gpa: ADDRESS, .. })));
}

#[test]
fn a_damaged_control_block_is_an_error_whatever_it_claims() {
    for (offset, value) in
        [(0x78, 9), (0x2c, 17), (0x88, u64::MAX), (0x80, u64::MAX), (0x1008, u64::MAX), (0x2010, 5)]
    {
        let mut guest = Guest::new();
        guest.put(offset, value);
        assert!(matches!(guest.check(), Err(Error::Damaged { .. })), "{offset:#x}");
    }
}
