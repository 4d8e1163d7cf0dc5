//! Whole streams: what the writer builds is byte for byte what real QEMU takes and sends, the reader reads it, and a
//! stream cut or damaged anywhere is refused.

mod walk;

use walk::{Fault, Payload, walk};
use whimbrel_wire::element::encode_footer;
use whimbrel_wire::ram::{decode_block_list, encode_block_list};
use whimbrel_wire::vmdescription::Trailer;
use whimbrel_wire::{
    BlockRef, Command, Configuration, Element, Input, Output, RamBlockEntry, RamRecord, SectionHeader,
    WireError, header,
};

const MINIMAL: &[u8] = include_bytes!("corpus/stream-minimal.bin");
const PRECOPY: &[u8] = include_bytes!("corpus/stream-precopy.bin");
const POSTCOPY: &[u8] = include_bytes!("corpus/stream-postcopy.bin");

const BLOCKS: [(&str, u64); 5] = [
    ("microvm.ram", 0x400_0000),
    ("pc.bios", 0x2_0000),
    ("/rom@etc/acpi/tables", 0x1000),
    ("/rom@etc/table-loader", 0x1000),
    ("/rom@etc/acpi/rsdp", 0x1000),
];
const XBZRLE: [u8; 4] = [0x00, 0x02, 0x13, 0x02];

fn pattern(factor: u32) -> Vec<u8> {
    (0..4096u32).map(|i| (i * factor + i / 256) as u8).collect()
}

fn minimal() -> Result<Vec<u8>, WireError> {
    let mut out = Output::new();
    header::encode(&mut out);
    Configuration { machine: "microvm".into(), ..Configuration::default() }.encode(&mut out)?;

    let section_id = 77;
    let ram = SectionHeader { section_id, idstr: "ram".into(), instance_id: 0, version_id: 4 };
    Element::SectionStart(ram).encode(&mut out)?;
    let blocks = BLOCKS.map(|(name, used_length)| RamBlockEntry {
        name: name.into(),
        used_length,
        page_size: None,
        guest_address: None,
    });
    assert_eq!(encode_block_list(&mut out, &blocks)?, 0x402_3000);
    RamRecord::Eos.encode(&mut out)?;
    encode_footer(&mut out, section_id);

    Element::SectionPart { section_id }.encode(&mut out)?;
    let (named, same) = (BlockRef::Named("microvm.ram"), BlockRef::Same);
    RamRecord::Page { block: named, offset: 0x100_0000 }.encode(&mut out)?;
    out.bytes(&pattern(7));
    RamRecord::Page { block: same, offset: 0x100_1000 }.encode(&mut out)?;
    out.bytes(&pattern(11));
    RamRecord::Eos.encode(&mut out)?;
    encode_footer(&mut out, section_id);

    Element::SectionEnd { section_id }.encode(&mut out)?;
    RamRecord::Xbzrle { block: same, offset: 0x100_0000, length: 4 }.encode(&mut out)?;
    out.bytes(&XBZRLE);
    RamRecord::Zero { block: same, offset: 0x100_1000, fill: 0 }.encode(&mut out)?;
    RamRecord::Eos.encode(&mut out)?;
    encode_footer(&mut out, section_id);

    Element::Eof.encode(&mut out)?;
    Ok(out.into_vec())
}

#[test]
fn the_writer_builds_the_minimal_stream_that_qemu_loads() {
    assert!(minimal().unwrap() == MINIMAL);
}

#[test]
fn the_reader_reads_the_minimal_stream() {
    let walk = walk(MINIMAL).unwrap();
    assert_eq!(walk.configuration.machine, "microvm");
    let blocks: Vec<_> = walk.blocks.iter().map(|block| (block.name.as_str(), block.used_length)).collect();
    assert_eq!(blocks, BLOCKS);
    let pages = [
        (0, 0x100_0000, Payload::Raw(pattern(7))),
        (0, 0x100_1000, Payload::Raw(pattern(11))),
        (0, 0x100_0000, Payload::Xbzrle(XBZRLE.to_vec())),
        (0, 0x100_1000, Payload::Zero),
    ];
    assert_eq!(walk.pages, pages);
    assert_eq!(walk.trailer, Some(Trailer::Nothing));
    assert_eq!(walk.elements.len(), 4);
}

#[test]
fn the_reader_reads_commands_devices_and_the_description() {
    let walk = walk(PRECOPY).unwrap();
    assert_eq!(walk.configuration.target_page_bits, Some(12));
    assert_eq!(walk.configuration.uuid.map(|uuid| uuid[15]), Some(15));
    let json = br#"{"page_size": 4096, "devices": []}"#;
    assert_eq!(walk.trailer, Some(Trailer::Description(json.to_vec())));
    let commands: Vec<_> = walk.elements.iter().filter(|e| matches!(e, Element::Command(_))).collect();
    let expected = [Command::OpenReturnPath, Command::Ping(1), Command::SwitchoverStart, Command::Ping(0x77)]
        .map(Element::Command);
    assert!(commands.into_iter().eq(expected.iter()));
}

#[test]
fn the_reader_reads_a_package_with_the_outer_streams_offsets() {
    let walk = walk(POSTCOPY).unwrap();
    let run = walk.elements.iter().position(|e| *e == Element::Command(Command::PostcopyRun)).unwrap();
    assert_eq!(walk.elements[run + 1], Element::Command(Command::Ping(4)));
    // A byte inside the package that begins no element.
    let listen = POSTCOPY.windows(5).position(|w| w == [8, 0, 4, 0, 0]).unwrap();
    let mut damaged = POSTCOPY.to_vec();
    damaged[listen] = 0x55;
    let error = WireError::UnknownElement { offset: listen as u64, element: 0x55 };
    assert_eq!(self::walk(&damaged).unwrap_err(), Fault::Wire(error));
}

#[test]
fn a_stream_cut_anywhere_is_truncated_exactly_there() {
    for (stream, content) in
        [(MINIMAL, MINIMAL.len()), (PRECOPY, PRECOPY.len() - 39), (POSTCOPY, POSTCOPY.len())]
    {
        assert_eq!(stream[content - 1], 0, "the content ends with the end-of-stream byte");
        for cut in 0..stream.len() {
            match walk(&stream[..cut]) {
                Err(Fault::Wire(WireError::Truncated { offset, wanted, .. })) => {
                    assert_eq!(offset, cut as u64);
                    assert!(wanted > 0 && wanted <= (stream.len() - cut) as u64, "cut at {cut}: {wanted}");
                }
                Ok(walk) => assert!(cut == content && walk.trailer == Some(Trailer::Nothing), "cut at {cut}"),
                Err(other) => panic!("cut at {cut}: {other:?}"),
            }
        }
    }
}

#[test]
fn a_stream_with_any_byte_changed_is_read_or_refused_at_an_offset_inside_it() {
    let stream = minimal().unwrap();
    for at in 0..stream.len() {
        for change in [0x01, 0x20, 0xff] {
            let mut damaged = stream.clone();
            damaged[at] ^= change;
            if let Err(Fault::Wire(error)) = walk(&damaged) {
                assert!(offset(&error) <= stream.len() as u64, "{error}");
            }
        }
    }
    let mut damaged = stream.clone();
    let footer = stream.len() - 2;
    damaged[footer] = 0x63;
    let error = walk(&damaged).unwrap_err();
    let (offset, section) = (footer as u64 - 4, "ram".to_owned());
    assert_eq!(error, Fault::Wire(WireError::FooterMismatch { offset, section, read: 0x63, expected: 77 }));
}

/// The offset that a decoder's error carries, read off its text as an operator would.
fn offset(error: &WireError) -> u64 {
    let text = error.to_string();
    let digits = text.rsplit_once("offset 0x").expect("every decoder's error names an offset").1;
    u64::from_str_radix(digits.trim_end_matches(')'), 16).unwrap()
}

#[test]
fn what_real_qemu_sends_up_to_the_block_list_is_read_and_written_again() {
    let microvm = [("m0", 0x400_0000, Some(0)), ("pc.bios", 0x1_0000, Some(0xffff_0000))];
    let virt = [
        ("mach-virt.ram", 0x400_0000, None),
        ("virt.flash0", 0x400_0000, None),
        ("virt.flash1", 0x400_0000, None),
        ("/rom@etc/acpi/tables", 0x2_0000, None),
        ("/rom@etc/table-loader", 0x1000, None),
        ("/rom@etc/acpi/rsdp", 0x1000, None),
    ];
    for (capture, machine, bits, section_id, expected) in [
        (&include_bytes!("corpus/setup-qemu-7.2-microvm.bin")[..], "microvm", None, 2, &microvm[..]),
        (&include_bytes!("corpus/setup-qemu-10.0-microvm.bin")[..], "microvm", None, 1, &microvm[..]),
        (&include_bytes!("corpus/setup-qemu-10.0-virt.bin")[..], "virt-10.0", Some(12), 1, &virt[..]),
    ] {
        let mut input = Input::new(capture);
        let mut again = Output::new();
        header::decode(&mut input).unwrap();
        header::encode(&mut again);
        let configuration = Configuration::decode(&mut input).unwrap();
        assert_eq!((configuration.machine.as_str(), configuration.target_page_bits), (machine, bits));
        configuration.encode(&mut again).unwrap();
        let element = Element::decode(&mut input).unwrap();
        let ram = SectionHeader { section_id, idstr: "ram".into(), instance_id: 0, version_id: 4 };
        assert_eq!(element, Element::SectionStart(ram));
        element.encode(&mut again).unwrap();
        let layout = whimbrel_wire::SetupLayout { guest_addresses: bits.is_none(), ..Default::default() };
        let Ok(RamRecord::MemSize { total }) = RamRecord::decode(&mut input) else { panic!("no block list") };
        let blocks = decode_block_list(&mut input, total, &layout).unwrap();
        let seen: Vec<_> = blocks.iter().map(|b| (b.name.as_str(), b.used_length, b.guest_address)).collect();
        assert_eq!(seen, expected);
        encode_block_list(&mut again, &blocks).unwrap();
        assert_eq!(RamRecord::decode(&mut input), Ok(RamRecord::Eos));
        RamRecord::Eos.encode(&mut again).unwrap();
        encode_footer(&mut again, section_id);
        assert_eq!(again.as_slice(), capture);
    }
}
