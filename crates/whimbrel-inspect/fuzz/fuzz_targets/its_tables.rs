//! An ITS's registers and tables, as a guest without scruples leaves them: `cargo +nightly fuzz run its_tables`, from the crate's
//! folder. The stream around them is whole; the input is eight table registers, a redistributor's, and words for RAM.

#![no_main]

#[path = "../../tests/streams/mod.rs"]
mod streams;

use streams::virt::{RAM, Virt};
use whimbrel_inspect::its::{MAX_ERRORS, MAX_KEPT, inspect_with_tables};
use whimbrel_inspect::json;
use whimbrel_inspect::text::{self, Detail};

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let Some((registers, words)) = data.split_at_checked(4) else { return };
    let mut virt = Virt::new(registers[0] & 1 == 0);
    // What is at the beginning changes registers, what follows words in RAM: a place and a value each.
    let mut changes = words.chunks_exact(10).map(|change| {
        let (place, word) = change.split_at(2);
        (usize::from(u16::from_le_bytes([place[0], place[1]])), u64::from_le_bytes(word.try_into().unwrap()))
    });
    for (place, word) in changes.by_ref().take(usize::from(registers[1] % 4)) {
        match place % 10 {
            n @ 0..8 => virt.baser[n] = word,
            n => virt.pendbaser[n - 8] = word,
        }
    }
    for (place, word) in changes {
        virt.put(RAM + (place * 8 % virt.ram.len()) as u64, word);
    }
    let stream = virt.stream();
    let report = inspect_with_tables(&stream[..], 0, &&stream[..]);
    assert!(report.is_clean());
    for tables in report.its.iter().filter_map(|its| its.tables.as_ref().ok()) {
        let pending: usize = tables.pending.iter().map(|pending| pending.lpis.len()).sum();
        assert!(tables.mappings.len() <= MAX_KEPT && pending <= MAX_KEPT && tables.errors.len() <= MAX_ERRORS);
    }
    text::report(&report, Detail::Fields);
    json::report(&report);
});
