//! Whole streams: `cargo +nightly fuzz run stream tests/corpus`, from the crate's folder.

#![no_main]

#[path = "../../tests/walk/mod.rs"]
mod walk;

libfuzzer_sys::fuzz_target!(|stream: &[u8]| {
    // The walk asserts that whatever it decodes encodes to the bytes it came from.
    let _ = walk::walk(stream);
});
