//! Whole streams, their descriptions included, from memory and from a pipe:
//! `cargo +nightly fuzz run inspect ../whimbrel-wire/tests/corpus`, from the crate's folder.

#![no_main]

use whimbrel_inspect::text::{self, Detail};
use whimbrel_inspect::{PipeStream, inspect, json};

libfuzzer_sys::fuzz_target!(|stream: &[u8]| {
    let report = inspect(stream, 0, &mut ());
    assert!(report.end <= stream.len() as u64);
    for fault in report.faults() {
        assert!(fault.offset().is_none_or(|offset| offset <= stream.len() as u64), "{fault}");
    }
    if report.is_clean() {
        let sizes: u64 = report.entries.iter().map(|entry| entry.size).sum();
        assert_eq!(sizes, stream.len() as u64, "every byte belongs to one element");
    }
    text::report(&report, Detail::Fields);
    json::report(&report);
    // On a pipe less is known ahead.
    let piped = inspect(PipeStream::new(stream), 0, &mut ());
    assert!(piped.end <= stream.len() as u64);
});
