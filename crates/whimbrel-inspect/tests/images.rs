//! RAM as it is at the end of a stream: extracted from any form of stream, and compared page by page.

mod streams;

use std::fs::File;

use streams::{CAPTURES, PAGE, Record, begin, file, mapped_ram_section, records, stream};
use whimbrel_inspect::compare::{Comparison, compare};
use whimbrel_inspect::extract::Extract;
use whimbrel_inspect::{FileStream, PipeStream, Stream, inspect, text};
use whimbrel_wire::Output;

/// Page 1 is 7s but for one byte, page 2 was something and is zero, page 3 was zero and is 9s, page 4 was changed and then sent
/// anew.
const RAM: [Record<'_>; 9] = [
    Record::Page("ram", 4, 5),
    Record::Xbzrle("ram", 4, &[0x20, 1, 0xbb]),
    Record::Page("ram", 4, 6),
    Record::Page("ram", 1, 7),
    Record::Page("ram", 2, 8),
    Record::Zero("ram", 3),
    Record::Xbzrle("ram", 1, &[0x10, 1, 0xaa]),
    Record::Zero("ram", 2),
    Record::Page("ram", 3, 9),
];

fn image() -> Vec<u8> {
    let mut image = vec![0; 16 * PAGE];
    image[PAGE..2 * PAGE].fill(7);
    image[PAGE + 16] = 0xaa;
    image[3 * PAGE..4 * PAGE].fill(9);
    image[4 * PAGE..5 * PAGE].fill(6);
    image
}

/// A mapped-ram file with the same RAM, whose stream begins at `start`.
fn mapped(start: u64) -> Vec<u8> {
    let mut out = begin(&["mapped-ram"]);
    mapped_ram_section(&mut out, start, &[("ram", &image()), ("bios", &[0; PAGE])]);
    rest(out)
}

fn rest(mut out: Output) -> Vec<u8> {
    out.bytes(CAPTURES[1].devices);
    whimbrel_wire::vmdescription::encode(&mut out, CAPTURES[1].description).unwrap();
    out.into_vec()
}

fn extracted(stream: impl Stream, start: u64) -> Vec<u8> {
    let path = std::env::temp_dir().join(format!("whimbrel-extract-{}-{start}", std::process::id()));
    let mut extract = Extract::new("ram", &path);
    let report = inspect(stream, start, &mut extract);
    let faults: Vec<String> = report.faults().map(ToString::to_string).collect();
    // The description is of a machine without the capability.
    assert!(faults.iter().all(|fault| fault.starts_with("configuration:")), "{faults:?}");
    assert!(extract.found());
    let bytes = std::fs::read(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    bytes
}

#[test]
fn every_form_of_a_stream_gives_the_same_ram() {
    let plain = stream(&CAPTURES[1], &records(&RAM));
    assert_eq!(extracted(&plain[..], 0), image());
    assert_eq!(extracted(PipeStream::new(&plain[..]), 0), image());
    assert_eq!(extracted(PipeStream::new(&mapped(0)[..]), 0), image());
    let start = 0x1200;
    let mut inside = vec![0xff; start as usize];
    inside.extend(mapped(start));
    assert_eq!(extracted(FileStream::new(file(&inside), start).unwrap(), start), image());
}

#[test]
fn a_block_that_is_not_there_leaves_no_file() {
    let path = std::env::temp_dir().join(format!("whimbrel-extract-none-{}", std::process::id()));
    let mut extract = Extract::new("rom", &path);
    inspect(&stream(&CAPTURES[0], &[])[..], 0, &mut extract);
    assert!(!extract.found() && !path.exists());
}

#[test]
fn a_mapped_file_counts_pages_by_its_bitmap() {
    let bytes = mapped(0);
    let report = inspect(&bytes[..], 0, &mut ());
    let [ram, bios] = &report.blocks[..] else { panic!("{:?}", report.stopped) };
    assert_eq!((ram.normal, ram.zero, ram.unsent(), ram.mapped_at), (3, 13, 0, Some(1 << 20)));
    assert_eq!((bios.normal, bios.zero), (0, 1));
    let name = bytes.windows(4).position(|four| four == b"\x03ram".as_slice()).unwrap();
    let bitmaps =
        bytes[name + 4..].windows(4).position(|four| four == b"\x03ram".as_slice()).map(|at| name + 4 + at);
    let header = bitmaps.unwrap() + 4 + 8;
    for (at, expected) in [
        (header + 3, "its mapped-ram header is of another version than 1"),
        (header + 4, "its mapped-ram header has another page size"),
        (header + 19, "its bitmap doesn't stand behind its mapped-ram header"),
        (header + 30, "its bitmap has pages beyond the block"),
    ] {
        let mut damaged = bytes.clone();
        damaged[at] ^= 4;
        let stopped = inspect(&damaged[..], 0, &mut ()).stopped.unwrap_or_else(|| panic!("{expected}"));
        assert!(stopped.to_string().contains(expected), "{stopped}");
    }
    let report = inspect(&bytes[..(1 << 20) + PAGE], 0, &mut ());
    let expected =
        "stream ends inside the room for a block's pages: 61440 more bytes wanted (stream offset 0x101000)";
    assert_eq!(report.stopped.unwrap().to_string(), expected);
}

fn compared(left: &[u8], right: &[u8]) -> Comparison {
    let (left, right): (File, File) = (file(left), file(right));
    compare([(&left, 0), (&right, 0)]).unwrap()
}

#[test]
fn equal_ram_is_equal_however_it_was_sent() {
    let plain = stream(&CAPTURES[1], &records(&RAM));
    let mut whole = [7; PAGE];
    whole[16] = 0xaa;
    let mut direct =
        records(&[Record::Page("ram", 4, 6), Record::Page("ram", 3, 9), Record::Page("ram", 1, 7)]);
    let length = direct.len();
    direct[length - PAGE..].copy_from_slice(&whole);
    let other = stream(&CAPTURES[1], &direct);
    assert!(compared(&plain, &plain).is_same());
    let comparison = compared(&plain, &other);
    assert!(comparison.is_same(), "{}", text::comparison(&comparison));
    let comparison = compared(&plain, &mapped(0));
    assert!(comparison.blocks.is_empty(), "{}", text::comparison(&comparison));
    let places: Vec<&str> =
        comparison.differences.iter().map(|difference| difference.place.as_str()).collect();
    assert_eq!(places, ["configuration"]);
}

#[test]
fn fields_and_pages_that_differ_are_named() {
    let plain = stream(&CAPTURES[1], &records(&RAM));
    let mut other = stream(&CAPTURES[1], &records(&[Record::Page("ram", 1, 7), Record::Page("ram", 2, 1)]));
    let timer =
        inspect(&other[..], 0, &mut ()).sections().find(|(_, s)| s.idstr == "timer").unwrap().0.offset;
    other[timer as usize + 14 + 5 + 7] ^= 0xff;
    let comparison = compared(&plain, &other);
    let text = text::comparison(&comparison);
    assert!(text.starts_with("timer.cpu_ticks_offset: "), "{text}");
    assert_eq!(text.lines().nth(1), Some("RAM block ram: 4 pages differ: 0x1000–0x4fff"));
    assert_eq!(text.lines().count(), 2);
}
