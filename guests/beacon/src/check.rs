//! The host's own check: recomputes every page of a stopped guest from its control block, without the guest's help.
//!
//! It reads memory and nothing else: no machine, no clock. A guest that fails is a [`Report`], not an error.

use std::fmt;

use crate::control::{ControlBlock, Role, Slice, Vcpu};
use crate::page::{Content, Found, PAGE_SIZE, words};
use crate::{Error, GuestMemory};

/// Mismatches a report lists; all are counted.
const LISTED: usize = 64;
/// Pages read at once.
const BATCH: u64 = 64;

/// What a page should hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected {
    /// This generation.
    Generation(u64),
    /// Zeros: the fill with `fill=zero`.
    Zero,
}

/// A page that is not as expected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mismatch {
    /// Guest-physical address / 4096.
    pub page: u64,
    /// What it should hold.
    pub expected: Expected,
    /// What it holds.
    pub found: Found,
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.expected {
            Expected::Generation(generation) => {
                write!(f, "page {:#x}: expected generation {generation}", self.page)?
            }
            Expected::Zero => write!(f, "page {:#x}: expected zeros", self.page)?,
        }
        write!(f, ", found {}", self.found)
    }
}

/// What the check found.
#[derive(Clone, Debug)]
pub struct Report {
    /// The guest's account of itself.
    pub control: ControlBlock,
    /// Pages recomputed: working set and fill.
    pub pages_verified: u64,
    /// Pages caught in the middle of being rewritten, and right up to that point.
    pub in_flight: u64,
    /// How many pages are not as expected.
    pub mismatch_count: u64,
    /// The first of them.
    pub mismatches: Vec<Mismatch>,
}

impl Report {
    /// Nothing wrong: neither found here nor by the guest itself.
    pub fn is_clean(&self) -> bool {
        self.mismatch_count == 0 && self.control.faults() == 0
    }
}

/// Recomputes every page of the working set and of the fill. The guest must be stopped.
pub fn check(memory: &impl GuestMemory) -> Result<Report, Error> {
    let control = ControlBlock::read(memory)?;
    let mut report =
        Report { control, pages_verified: 0, in_flight: 0, mismatch_count: 0, mismatches: Vec::new() };
    let control = report.control.clone();
    for vcpu in control.vcpus.iter().filter(|vcpu| vcpu.role == Role::Worker) {
        for_each_page(memory, &control, vcpu.set, |index, page, bytes| {
            report.working_set_page(control.seed, vcpu, index, page, bytes);
        })?;
    }
    let expected = if control.fill_random { Expected::Generation(0) } else { Expected::Zero };
    for_each_page(memory, &control, control.fill, |_, page, bytes| {
        report.page(control.seed, page, expected, bytes);
    })?;
    Ok(report)
}

impl Report {
    fn working_set_page(&mut self, seed: u64, vcpu: &Vcpu, index: u64, page: u64, bytes: &[u8; PAGE_SIZE]) {
        let generation = vcpu.generation(index);
        let at_cursor = vcpu.progress.checked_rem(vcpu.set.pages) == Some(index);
        if at_cursor && vcpu.writing == Some(page) {
            let [old, new] = [generation, generation.wrapping_add(1)].map(|at| Content::new(seed, page, at));
            if is_written_up_to_a_point(bytes, &old, &new) {
                self.pages_verified += 1;
                self.in_flight += 1;
                return;
            }
        }
        self.page(seed, page, Expected::Generation(generation), bytes);
    }

    fn page(&mut self, seed: u64, page: u64, expected: Expected, bytes: &[u8; PAGE_SIZE]) {
        self.pages_verified += 1;
        let difference = match expected {
            Expected::Generation(generation) => Content::new(seed, page, generation).first_difference(bytes),
            Expected::Zero => words(bytes).position(|word| word != 0),
        };
        if let Some(difference) = difference {
            self.mismatch_count += 1;
            if self.mismatches.len() < LISTED {
                let found = Found::identify(seed, page, bytes, difference);
                self.mismatches.push(Mismatch { page, expected, found });
            }
        }
    }
}

/// Whether the first words are the new content's and all the rest the old one's.
fn is_written_up_to_a_point(bytes: &[u8; PAGE_SIZE], old: &Content, new: &Content) -> bool {
    let written = words(bytes).enumerate().take_while(|&(index, word)| word == new.word(index)).count();
    words(bytes).enumerate().skip(written).all(|(index, word)| word == old.word(index))
}

/// Reads the data pages of `slice` and hands on each one's index in the slice, its page number and its bytes.
fn for_each_page(
    memory: &impl GuestMemory,
    control: &ControlBlock,
    slice: Slice,
    mut visit: impl FnMut(u64, u64, &[u8; PAGE_SIZE]),
) -> Result<(), Error> {
    let mut buffer = vec![0; BATCH as usize * PAGE_SIZE];
    let mut index = 0;
    while index < slice.pages {
        let damaged = Error::Damaged { field: "slice", value: slice.first };
        let Some(first) = control.data_page(slice.first + index) else { return Err(damaged) };
        let contiguous = |count: &u64| control.data_page(slice.first + index + count) == Some(first + count);
        let count = (1..BATCH.min(slice.pages - index)).take_while(contiguous).count() + 1;
        let gpa = first * PAGE_SIZE as u64;
        let batch = &mut buffer[..count * PAGE_SIZE];
        memory.read(gpa, batch).map_err(|source| Error::Memory { gpa, source })?;
        for bytes in batch.as_chunks().0 {
            visit(index, control.data_page(slice.first + index).unwrap_or(first), bytes);
            index += 1;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
