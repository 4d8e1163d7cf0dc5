//! Damaged and invented bytes: no decoder panics, none accepts what it would not have written, and every refusal points
//! into the bytes that were there. The mutations are the same in every run.

mod walk;

use whimbrel_wire::{Input, Output, ReturnPathMessage, WireError};

const STREAMS: [&[u8]; 6] = [
    include_bytes!("corpus/stream-minimal.bin"),
    include_bytes!("corpus/stream-precopy.bin"),
    include_bytes!("corpus/stream-postcopy.bin"),
    include_bytes!("corpus/setup-qemu-7.2-microvm.bin"),
    include_bytes!("corpus/setup-qemu-10.0-microvm.bin"),
    include_bytes!("corpus/setup-qemu-10.0-virt.bin"),
];
const RETURN_PATH: &[u8] = include_bytes!("corpus/return-path.bin");

const ROUNDS: usize = 200_000;

#[test]
fn no_damaged_stream_panics_or_is_read_as_what_it_is_not() {
    let mut random = Random(0x5145_564d);
    let (mut read, mut refused) = (0, 0);
    for round in 0..ROUNDS {
        let mut stream = STREAMS[round % STREAMS.len()].to_vec();
        for _ in 0..=random.below(4) {
            mutate(&mut stream, &mut random);
        }
        // The walk itself asserts that whatever was decoded encodes to the bytes it came from.
        match walk::walk(&stream) {
            Ok(_) => read += 1,
            Err(fault) => {
                refused += 1;
                if let walk::Fault::Wire(WireError::Truncated { offset, .. }) = fault {
                    assert!(offset <= stream.len() as u64);
                }
            }
        }
    }
    // Both must happen, or the mutations test nothing.
    assert!(read > ROUNDS / 100 && refused > ROUNDS / 2, "{read} read, {refused} refused");
}

#[test]
fn no_damaged_return_path_panics_or_is_read_as_what_it_is_not() {
    let mut random = Random(0x0123_4567);
    let (mut read, mut refused) = (0, 0);
    for _ in 0..ROUNDS {
        let mut stream = RETURN_PATH.to_vec();
        for _ in 0..=random.below(4) {
            mutate(&mut stream, &mut random);
        }
        match messages(&stream) {
            Ok(()) => read += 1,
            Err(_) => refused += 1,
        }
    }
    assert!(read > ROUNDS / 100 && refused > ROUNDS / 2, "{read} read, {refused} refused");
}

#[test]
fn the_return_path_cut_anywhere_is_truncated_exactly_there() {
    let mut ends = 0;
    for cut in 0..=RETURN_PATH.len() {
        match messages(&RETURN_PATH[..cut]) {
            Ok(()) => ends += 1,
            Err(WireError::Truncated { offset, .. }) => assert_eq!(offset, cut as u64),
            Err(other) => panic!("cut at {cut}: {other}"),
        }
    }
    assert_eq!(ends, 8, "only between two of the seven messages, and at both ends");
}

/// Reads messages up to the end of the stream, each of which must encode to the bytes it came from.
fn messages(stream: &[u8]) -> Result<(), WireError> {
    let mut input = Input::with_capacity(stream, 0);
    while !input.at_end()? {
        let start = input.offset() as usize;
        let message = ReturnPathMessage::decode(&mut input, 4096)?;
        let mut again = Output::new();
        message.encode(&mut again).expect("whatever was decoded can be encoded");
        assert_eq!(again.as_slice(), &stream[start..input.offset() as usize]);
    }
    Ok(())
}

fn mutate(stream: &mut Vec<u8>, random: &mut Random) {
    if stream.is_empty() {
        return stream.push(random.below(256) as u8);
    }
    let at = random.below(stream.len());
    match random.below(8) {
        0 => stream[at] ^= 1 << random.below(8),
        1 => stream[at] = random.below(256) as u8,
        2 => stream[at] = [0x00, 0x01, 0x05, 0x7e, 0x7f, 0x80, 0xfe, 0xff][random.below(8)],
        3 => stream.truncate(at),
        4 => stream.insert(at, random.below(256) as u8),
        5 => {
            let end = (at + 1 + random.below(16)).min(stream.len());
            stream.drain(at..end);
        }
        6 => {
            // A length, count or address at one of its limits.
            let width = [2, 4, 8][random.below(3)];
            let value = [0, 1, 0x7fff_ffff_ffff_ffff, u64::MAX, 0x1000, 0xffff_f000][random.below(6)];
            let bytes = &value.to_be_bytes()[8 - width..];
            let room = width.min(stream.len() - at);
            stream[at..at + room].copy_from_slice(&bytes[..room]);
        }
        _ => {
            let end = (at + random.below(64)).min(stream.len());
            let piece = stream[at..end].to_vec();
            let to = random.below(stream.len() + 1);
            stream.splice(to..to, piece);
        }
    }
}

/// xorshift64: the same sequence in every run.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        ((self.0 >> 11) % limit as u64) as usize
    }
}
