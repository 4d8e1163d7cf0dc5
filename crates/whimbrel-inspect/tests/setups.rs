//! What a stream doesn't say of itself depends on how the move was set up: optional words of the block list, multifd, live
//! sections of devices, parts of one section in a row.

mod streams;

use streams::{CAPTURES, PAGE, begin, ram_section, stream};
use whimbrel_inspect::report::{Body, Part};
use whimbrel_inspect::{Fault, inspect};
use whimbrel_wire::command::PageSizes;
use whimbrel_wire::element::encode_footer;
use whimbrel_wire::ram::encode_block_list;
use whimbrel_wire::{Command, Element, Output, RamBlockEntry, RamRecord, SectionHeader, WireError};

#[test]
fn guest_addresses_of_shared_ram_are_read_where_the_capability_is_on() {
    for capture in [
        &include_bytes!("../../whimbrel-wire/tests/corpus/setup-qemu-7.2-microvm.bin")[..],
        include_bytes!("../../whimbrel-wire/tests/corpus/setup-qemu-10.0-microvm.bin"),
    ] {
        let report = inspect(capture, 0, &mut ());
        assert_eq!(report.end, capture.len() as u64, "{:?}", report.stopped);
        assert!(matches!(report.stopped, Some(Fault::Wire(WireError::Truncated { .. }))));
        let addresses: Vec<_> = report.blocks.iter().map(|block| block.guest_address).collect();
        assert!(addresses.len() >= 2 && addresses.iter().all(Option::is_some), "{addresses:?}");
    }
}

#[test]
fn page_sizes_of_large_pages_are_found_where_post_copy_was_advised() {
    let large = |name: &str, page_size| RamBlockEntry {
        name: name.into(),
        used_length: 4 << 20,
        page_size,
        guest_address: None,
    };
    let mut out = begin(&[]);
    let sizes = PageSizes { summary: 0x20_1000, target: 0x1000 };
    Element::Command(Command::PostcopyAdvise(Some(sizes))).encode(&mut out).unwrap();
    let header = SectionHeader { section_id: 2, idstr: "ram".into(), instance_id: 0, version_id: 4 };
    Element::SectionStart(header).encode(&mut out).unwrap();
    let blocks = [large("a", Some(2 << 20)), large("bios", None), large("z", Some(2 << 20))];
    encode_block_list(&mut out, &blocks).unwrap();
    RamRecord::Eos.encode(&mut out).unwrap();
    encode_footer(&mut out, 2);
    Element::Eof.encode(&mut out).unwrap();
    let report = inspect(out.as_slice(), 0, &mut ());
    assert!(report.is_clean(), "{:?}", report.stopped);
    let sizes: Vec<_> = report.blocks.iter().map(|block| block.backing_page_size).collect();
    assert_eq!(sizes, [Some(2 << 20), None, Some(2 << 20)]);
}

#[test]
fn multifds_main_channel_is_walked_and_its_barriers_counted() {
    let mut out = Output::new();
    RamRecord::MultifdFlush.encode(&mut out).unwrap();
    RamRecord::MultifdFlush.encode(&mut out).unwrap();
    let report = inspect(&stream(&CAPTURES[1], out.as_slice())[..], 0, &mut ());
    assert!(report.is_clean());
    assert_eq!((report.multifd_flushes, report.blocks[0].unsent()), (2, 16));
}

#[test]
fn live_sections_of_devices_are_passed_over_to_their_footers() {
    let mut out = begin(&[]);
    let header = SectionHeader { section_id: 9, idstr: "vfio".into(), instance_id: 1, version_id: 1 };
    Element::SectionStart(header).encode(&mut out).unwrap();
    // A footer that no element follows is data; so is one of another section.
    let data =
        [&[0x7e, 0, 0, 0, 9, 0xaa][..], &[0x7e, 0, 0, 0, 2, 0x03, 0, 0, 0, 9], &[0x55; 100_000]].concat();
    out.bytes(&data);
    encode_footer(&mut out, 9);
    ram_section(&mut out, &[]);
    for _ in 0..3 {
        Element::SectionPart { section_id: 9 }.encode(&mut out).unwrap();
        out.bytes(&[0x33; PAGE]);
        encode_footer(&mut out, 9);
    }
    Element::SectionEnd { section_id: 9 }.encode(&mut out).unwrap();
    encode_footer(&mut out, 9);
    out.bytes(CAPTURES[0].devices);
    whimbrel_wire::vmdescription::encode(&mut out, CAPTURES[0].description).unwrap();
    let report = inspect(out.as_slice(), 0, &mut ());
    assert!(report.is_clean(), "{:?}", report.faults().collect::<Vec<_>>());
    let lengths: Vec<(Part, u64)> = report
        .sections()
        .filter_map(|(_, section)| match section.body {
            Body::Opaque(length) => Some((section.part, length)),
            _ => None,
        })
        .collect();
    let parts = (Part::Part(3), 3 * PAGE as u64);
    assert_eq!(lengths, [(Part::Start, data.len() as u64), parts, (Part::End, 0)]);
}
