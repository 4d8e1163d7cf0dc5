//! Return-path messages: `cargo +nightly fuzz run return_path tests/corpus`, from the crate's folder.

#![no_main]

use whimbrel_wire::{Input, Output, ReturnPathMessage};

libfuzzer_sys::fuzz_target!(|stream: &[u8]| {
    let mut input = Input::with_capacity(stream, 0);
    loop {
        let start = input.offset() as usize;
        let Ok(message) = ReturnPathMessage::decode(&mut input, 1 << 16) else { return };
        let mut again = Output::new();
        message.encode(&mut again).expect("whatever was decoded can be encoded");
        assert_eq!(again.as_slice(), &stream[start..input.offset() as usize]);
    }
});
