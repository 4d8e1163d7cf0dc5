//! Damaged streams: every fault is told with its place, whatever the bytes are nothing panics or goes on for ever, and what
//! is damaged in its framing or its device state is never called whole.

mod streams;

use std::io::Read;

use streams::{CAPTURES, Random, Record, begin, ram_section, records, stream};
use whimbrel_inspect::extract::Extract;
use whimbrel_inspect::report::{Body, MAX_FINDINGS, Part, What};
use whimbrel_inspect::text::{self, Detail};
use whimbrel_inspect::{Fault, PipeStream, Report, inspect, json};
use whimbrel_wire::{Command, Element, RamRecord, vmdescription};

fn walk(stream: &[u8]) -> Report {
    inspect(stream, 0, &mut ())
}

fn faults(stream: &[u8]) -> Vec<String> {
    walk(stream).faults().map(Fault::to_string).collect()
}

fn whole() -> Vec<u8> {
    stream(&CAPTURES[3], &records(&[Record::Page("ram", 3, 7), Record::Zero("bios", 0)]))
}

/// Where the text of the description begins.
fn description_at(stream: &[u8]) -> usize {
    stream.len() - CAPTURES[3].description.len()
}

/// The whole stream with another description.
fn described_by(text: &str) -> Vec<u8> {
    let mut stream = whole();
    stream.truncate(description_at(&stream) - 5);
    let mut out = whimbrel_wire::Output::new();
    vmdescription::encode(&mut out, text).unwrap();
    stream.extend(out.into_vec());
    stream
}

#[test]
fn a_whole_stream_has_no_fault_from_memory_and_from_a_pipe() {
    let stream = whole();
    let report = walk(&stream);
    assert_eq!((report.is_clean(), report.end, report.described), (true, stream.len() as u64, true));
    let sizes: u64 = report.entries.iter().map(|entry| entry.size).sum();
    assert_eq!(sizes, stream.len() as u64, "every byte belongs to one element");
    let piped = inspect(PipeStream::new(&stream[..]), 0, &mut ());
    assert_eq!(json::report(&piped), json::report(&report));
}

#[test]
fn every_flipped_bit_of_a_footer_or_a_subsections_header_is_reported_where_it_stands() {
    let stream = whole();
    let report = walk(&stream);
    let mut places: Vec<(u64, u64)> = Vec::new();
    for (entry, section) in report.sections() {
        let end = entry.offset + entry.size;
        places.push((end - 5, 5));
        if let Body::Fields(fields) = &section.body {
            let subsections = fields.iter().filter(|field| field.ty == "subsection");
            places.extend(subsections.map(|field| (field.offset, field.name.len() as u64 + 6)));
        }
    }
    assert!(places.len() > 20);
    for (start, length) in places {
        for at in start..start + length {
            let mut damaged = stream.clone();
            damaged[at as usize] ^= 1;
            let report = walk(&damaged);
            let first = report.faults().next().unwrap_or_else(|| panic!("no fault at {at:#x}"));
            assert_eq!(first.offset(), Some(start), "{first}, damaged at {at:#x}");
        }
    }
}

#[test]
fn a_stream_cut_anywhere_is_reported_up_to_there() {
    let stream = whole();
    let body = description_at(&stream) - 5;
    for cut in (0..stream.len()).step_by(37).chain(body - 300..body).chain(body + 1..body + 10) {
        let report = walk(&stream[..cut]);
        let wrong = !report.is_clean() || report.unverifiable().is_some();
        assert!(wrong, "cut at {cut:#x}");
        assert!(report.end <= cut as u64);
        if cut != body {
            let stopped = report.stopped.as_ref().unwrap_or_else(|| panic!("cut at {cut:#x}"));
            assert!(stopped.offset().unwrap_or(0) <= cut as u64, "{stopped}");
        }
    }
    let report = walk(&stream[..body]);
    assert!(report.is_clean());
    assert!(matches!(report.unverifiable(), Some(Fault::Undescribed { .. })));
}

#[test]
fn without_description_sections_end_at_their_footers() {
    let stream = whole();
    let described = walk(&stream);
    let report = walk(&stream[..description_at(&stream) - 5]);
    let shape = |report: &Report| -> Vec<(u64, u64, String)> {
        let sections = report.sections();
        sections.map(|(entry, section)| (entry.offset, entry.size, section.name())).collect()
    };
    assert_eq!(shape(&report), shape(&described));
    let bytes = report.sections().filter(|(_, section)| matches!(section.body, Body::Bytes(_))).count();
    assert!(bytes > 8);
}

#[test]
fn a_description_that_disagrees_is_reported_at_the_bytes_it_is_about() {
    let text = CAPTURES[3].description;
    let eip = r#"{"name": "env.eip", "type": "uint64", "size": 8}, "#;
    let timer = r#"{"name": "cpu_clock_offset", "type": "int64", "size": 8}"#;
    assert!(text.contains(eip) && text.contains(timer));
    for (from, to, expected) in [
        (eip, "", "cpu: "),
        (
            timer,
            r#"{"name": "cpu_clock_offset", "type": "int64", "size": 4}"#,
            "timer.cpu_clock_offset: 8 as the size",
        ),
        (
            r#""vmsd_name": "timer", "version": 2"#,
            r#""vmsd_name": "timer", "version": 3"#,
            "timer: version 3 expected, 2",
        ),
        (
            r#""name": "timer", "instance_id": 0"#,
            r#""name": "timer", "instance_id": 9"#,
            "timer: a section that is described",
        ),
        (r#""page_size": 4096"#, r#""page_size": 1000"#, "RAM: pages of 1000 bytes"),
        (
            r#""name": "name", "type": "buffer", "size": 7"#,
            r#""name": "name", "type": "buffer", "size": 6"#,
            "configuration: 10 bytes of state expected, 11 found",
        ),
    ] {
        let damaged = described_by(&text.replacen(from, to, 1));
        let faults = faults(&damaged);
        assert!(faults.iter().any(|fault| fault.starts_with(expected)), "{expected}: {faults:#?}");
    }
    // A state of another length than described is passed over all the same.
    let report = walk(&described_by(&text.replacen(eip, "", 1)));
    assert!(report.stopped.is_none());
    assert!(
        report.findings.iter().any(|fault| matches!(fault, Fault::Length { length: 1834, .. })),
        "{:?}",
        report.findings
    );
    let mut cut = whole();
    cut.truncate(cut.len() - 10);
    let end = cut.len();
    assert_eq!(
        faults(&cut),
        [format!("stream ends inside the VM description: 10 more bytes wanted (stream offset {end:#x})")]
    );
}

#[test]
fn what_does_not_belong_is_reported() {
    let mut trailing = whole();
    let end = trailing.len();
    trailing.extend([0; 700]);
    assert_eq!(
        faults(&trailing),
        [format!("700 bytes behind the end of the stream (stream offset {end:#x})")]
    );
    let mut other = begin(&[]);
    let at = other.len();
    other.bytes(b"\x02\x00\x00\x00\x09");
    let expected = format!("Unknown savevm section 9 (stream offset {at:#x})");
    assert_eq!(faults(other.as_slice()), [expected]);
    assert_eq!(faults(b"\x1f\x8b\x08\x00"), ["Not a migration stream (magic 0x1f8b0800, stream offset 0x0)"]);
}

#[test]
fn ram_records_are_counted_and_held_to_their_blocks() {
    let xbzrle: &[u8] = &[0x02, 0x01, 0xaa];
    let good = [
        Record::Page("ram", 3, 7),
        Record::Zero("ram", 4),
        Record::Page("ram", 3, 8),
        Record::Xbzrle("ram", 3, xbzrle),
        Record::Zero("bios", 0),
    ];
    let report = walk(&stream(&CAPTURES[0], &records(&good)));
    assert!(report.is_clean());
    let [ram, bios] = &report.blocks[..] else { panic!() };
    assert_eq!((ram.pages(), ram.normal, ram.zero, ram.xbzrle, ram.xbzrle_bytes), (16, 2, 1, 1, 3));
    assert_eq!((ram.duplicates, ram.unsent(), bios.unsent()), (2, 14, 0));
    for (record, expected) in [
        (Record::Page("ram", 16, 0), "block 'ram': page at 0x10000 is outside the block's 0x10000 bytes"),
        (Record::Page("rom", 0, 0), "Unknown ramblock \"rom\""),
        (Record::Xbzrle("ram", 0, &[0, 0]), "malformed XBZRLE record: a run of no changed bytes"),
        (Record::Xbzrle("ram", 0, &[0, 1, 7]), "RAM: an XBZRLE page changes a page that was not sent before"),
    ] {
        let faults = faults(&stream(&CAPTURES[0], &records(&[record])));
        assert!(faults[0].starts_with(expected), "{faults:?}");
    }
}

#[test]
fn faults_without_number_are_not_kept() {
    let mut records = whimbrel_wire::Output::new();
    for _ in 0..2 * MAX_FINDINGS {
        let block = whimbrel_wire::BlockRef::Named("ram");
        RamRecord::Zero { block, offset: 0, fill: 1 }.encode(&mut records).unwrap();
    }
    let report = walk(&stream(&CAPTURES[0], records.as_slice()));
    assert_eq!((report.findings.len(), report.blocks[0].zero), (MAX_FINDINGS, 2 * MAX_FINDINGS as u64));
}

#[test]
fn packages_and_discards_of_post_copy_are_walked() {
    let mut out = begin(&[]);
    ram_section(
        &mut out,
        &records(&[Record::Page("ram", 0, 1), Record::Page("ram", 1, 1), Record::Zero("bios", 0)]),
    );
    let discard = whimbrel_wire::command::DiscardRange { start: 0x1000, length: 0x3000 };
    let discard = Command::PostcopyRamDiscard { block: "ram".into(), ranges: vec![discard] };
    Element::Command(discard).encode(&mut out).unwrap();
    let mut package = whimbrel_wire::Output::new();
    Element::Command(Command::PostcopyListen).encode(&mut package).unwrap();
    package.bytes(&CAPTURES[0].devices[..CAPTURES[0].devices.len() - 1]);
    Element::Command(Command::PostcopyRun).encode(&mut package).unwrap();
    let length = package.len() as u32;
    Element::Command(Command::Packaged { length }).encode(&mut out).unwrap();
    out.bytes(package.as_slice());
    Element::Command(Command::Ping(4)).encode(&mut out).unwrap();
    Element::Eof.encode(&mut out).unwrap();
    let report = walk(out.as_slice());
    assert!(report.is_clean(), "{:?}", report.faults().collect::<Vec<_>>());
    let ram = &report.blocks[0];
    assert_eq!((ram.discarded, ram.unsent(), ram.duplicates), (1, 15, 0));
    let package = report.entries.iter().find_map(|entry| match &entry.what {
        What::Package(inner) => Some(inner),
        _ => None,
    });
    let full = |entry: &&whimbrel_inspect::report::Entry| matches!(&entry.what, What::Section(section) if section.part == Part::Full);
    assert!(package.unwrap().iter().filter(full).count() >= 8);
}

#[test]
fn no_mutation_panics_and_whatever_is_read_can_be_shown() {
    const ROUNDS: usize = 3000;
    let sources = [
        whole(),
        stream(&CAPTURES[0], &records(&[Record::Page("ram", 1, 1), Record::Xbzrle("ram", 1, &[0, 1, 9])])),
        include_bytes!("../../whimbrel-wire/tests/corpus/stream-postcopy.bin").to_vec(),
        include_bytes!("../../whimbrel-wire/tests/corpus/stream-precopy.bin").to_vec(),
    ];
    let output = std::env::temp_dir().join(format!("whimbrel-inspect-mutation-{}", std::process::id()));
    let mut random = Random(0x5145_564d);
    let (mut clean, mut faulty) = (0, 0);
    for round in 0..ROUNDS {
        let mut stream = sources[round % sources.len()].clone();
        for _ in 0..=random.below(3) {
            mutate(&mut stream, &mut random);
        }
        let report = if round % 2 == 0 {
            inspect(&stream[..], 0, &mut Extract::new("ram", &output))
        } else {
            inspect(PipeStream::new(&stream[..]), 0, &mut ())
        };
        assert!(report.end <= stream.len() as u64);
        assert!(!text::report(&report, Detail::Fields).is_empty());
        assert!(json::report(&report).is_object());
        for fault in report.faults() {
            assert!(fault.offset().is_none_or(|offset| offset <= stream.len() as u64), "{fault}");
        }
        if report.is_clean() { clean += 1 } else { faulty += 1 }
    }
    std::fs::remove_file(&output).unwrap();
    assert!(clean > ROUNDS / 100 && faulty > ROUNDS / 4, "{clean} clean, {faulty} faulty");
}

fn mutate(stream: &mut Vec<u8>, random: &mut Random) {
    let at = random.below(stream.len().max(1)).min(stream.len().saturating_sub(1));
    match random.below(6) {
        _ if stream.is_empty() => stream.push(random.below(256) as u8),
        0 => stream[at] ^= 1 << random.below(8),
        1 => stream[at] = [0x00, 0x01, 0x05, b'{', b'"', b'9', 0x7e, 0xff][random.below(8)],
        2 => stream.truncate(at),
        3 => drop(stream.drain(at..(at + 1 + random.below(16)).min(stream.len()))),
        4 => {
            let piece = stream[at..(at + random.below(64)).min(stream.len())].to_vec();
            let to = random.below(stream.len() + 1);
            stream.splice(to..to, piece);
        }
        _ => {
            let width = [2, 4, 8][random.below(3)];
            let value: u64 = [0, 1, 0x7fff_ffff_ffff_ffff, u64::MAX, 0x1000, 0xffff_f000][random.below(6)];
            let room = width.min(stream.len() - at);
            stream[at..at + room].copy_from_slice(&value.to_be_bytes()[8 - width..][..room]);
        }
    }
}

#[test]
fn an_endless_pipe_takes_no_memory() {
    let stream = whole();
    let report = walk(&stream);
    let ends = report.sections().find(|(_, section)| section.idstr == "fw_cfg").unwrap().0.offset;
    let endless = stream[..ends as usize + 40].chain(std::io::repeat(0x55)).take(3 << 30);
    let report = inspect(PipeStream::new(endless), 0, &mut ());
    assert!(report.stopped.is_some());
}
