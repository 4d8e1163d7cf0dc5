//! What the tables of an ITS say, out of every form of a stream; and that nothing in them takes for ever, or memory without end.

mod streams;

use serde_json::json;
use streams::virt::{
    self, COLLECTION_TABLE, DEVICE_TABLE, FIRST_ITT, PENDING, RAM, SECOND_ITT, Virt, dte, ite,
};
use streams::{PAGE, Random, Record, file, records};
use whimbrel_inspect::its::{self, Its, MAX_ERRORS, MAX_KEPT, Unread, inspect_with_tables};
use whimbrel_inspect::text::{self, Detail};
use whimbrel_inspect::{FileStream, PipeStream, Report, inspect, json};

fn walk(stream: &[u8]) -> Report {
    inspect_with_tables(stream, 0, &stream)
}

fn only(report: &Report) -> &Its {
    let [its] = &report.its[..] else { panic!("{:?}", report.its) };
    its
}

fn tables(stream: &[u8]) -> its::Tables {
    only(&walk(stream)).tables.clone().unwrap()
}

/// The number of the page at an address.
fn page_of(address: u64) -> usize {
    (address - RAM) as usize / PAGE
}

/// What is printed of the tables.
fn printed(report: &Report) -> String {
    let text = text::report(report, Detail::Fields);
    text[text.find("ITS tables of").unwrap()..].to_owned()
}

#[test]
fn a_flat_table_is_printed_from_device_to_redistributor() {
    let report = walk(&Virt::new(false).stream());
    assert!(report.is_clean(), "{:?}", report.faults().collect::<Vec<_>>());
    let expected = "\
ITS tables of arm_gicv3_its: 2 devices, 3 events, 2 collections
device 0x3: event ids of 4 bits, translation table at 0x40003000
device 0x10a: event ids of 1 bits, translation table at 0x40004000
collection 7: redistributor 1
collection 9: redistributor 0
pending at redistributor 0: LPIs 8200–8201, 8300
      device        event          LPI   collection  redistributor
         0x3            1         8200            9              0
         0x3            5         8201            7              1
       0x10a            0         8300            1           none
";
    assert_eq!(printed(&report), expected);
    let elements = text::report(&report, Detail::Elements);
    assert!(!elements.contains("ITS tables"), "{elements}");
}

#[test]
fn a_table_of_two_levels_is_told_as_json() {
    let its = json::report(&walk(&Virt::new(true).stream()))["its"].clone();
    let mapping = |device: u32, event: u32, lpi: u32, collection: u16, redistributor: Option<u64>| {
        let mut mapping = json!({"device": device, "event": event, "lpi": lpi, "collection": collection});
        mapping["redistributor"] = redistributor.into();
        mapping
    };
    let expected = json!([{
        "section": "arm_gicv3_its",
        "devices": [
            {"device": 3, "table": FIRST_ITT, "event-bits": 4},
            {"device": 0x20a, "table": SECOND_ITT, "event-bits": 1},
        ],
        "collections": [{"collection": 7, "redistributor": 1}, {"collection": 9, "redistributor": 0}],
        "mappings": [
            mapping(3, 1, 8200, 9, Some(0)),
            mapping(3, 5, 8201, 7, Some(1)),
            mapping(0x20a, 0, 8300, 1, None),
        ],
        "pending": [
            {"redistributor": 0, "lpis": [8200, 8201, 8300]},
            {"redistributor": 1, "lpis": [8200, 8201, 8300]},
        ],
        "left-out": 0,
        "errors": [],
    }]);
    assert_eq!(its, expected);
}

#[test]
fn every_form_of_a_stream_has_the_same_tables() {
    let virt = Virt::new(false);
    let expected = tables(&virt.stream());
    assert_eq!((expected.mappings.len(), expected.errors.len()), (3, 0));

    // Pages that came before, with other tables; a table that was zero; and one that came as a difference.
    let block = virt.block;
    let before =
        [DEVICE_TABLE, FIRST_ITT, COLLECTION_TABLE, PENDING].map(|at| Record::Page(block, page_of(at), 0x81));
    let mut sent = records(&before);
    sent.extend(records(&[Record::Zero(block, page_of(SECOND_ITT))]));
    let mut other = virt.clone();
    other.put(FIRST_ITT + 5 * 8, ite(0, 8400, 7));
    sent.extend(other.records());
    let (old, new) = (ite(0, 8400, 7).to_le_bytes(), ite(0, 8201, 7).to_le_bytes());
    let changed: Vec<usize> = (0..8).filter(|byte| old[*byte] != new[*byte]).collect();
    for byte in &changed {
        let difference = [5 * 8 + *byte as u8, 1, new[*byte]];
        sent.extend(records(&[Record::Xbzrle(block, page_of(FIRST_ITT), &difference)]));
    }
    assert!(!changed.is_empty());
    let mixed = virt.stream_of(&sent);
    assert!(walk(&mixed).is_clean());
    assert_eq!(tables(&mixed), expected);

    let start = 0x1200;
    let mut inside = vec![0xff; start as usize];
    inside.extend(virt.mapped(start));
    let inside = file(&inside);
    let stream = FileStream::new(inside.try_clone().unwrap(), start).unwrap();
    let report = inspect_with_tables(stream, start, &inside);
    assert_eq!(only(&report).tables.as_ref().unwrap(), &expected);
}

#[test]
fn why_tables_are_not_read_is_told_in_one_line() {
    let virt = Virt::new(false);
    let piped = inspect(PipeStream::new(&virt.stream()[..]), 0, &mut ());
    assert_eq!(only(&piped).tables, Err(Unread::Once));
    assert_eq!(
        printed(&piped),
        "ITS tables of arm_gicv3_its: not read: give a file, not a pipe: RAM is read a second time for them\n"
    );
    let unread = |virt: Virt| {
        let report = walk(&virt.stream());
        assert!(json::report(&report)["its"][0]["unread"].is_string());
        let printed = printed(&report);
        assert_eq!(printed.lines().count(), 1, "{printed}");
        printed
    };
    assert!(
        unread(Virt { baser: [1 << 56, 4 << 56, 0, 0, 0, 0, 0, 0], ..virt.clone() }).contains("no tables")
    );
    let emulated = unread(Virt { iidr: 0, ..virt.clone() });
    assert!(emulated.contains("implementer 0x0") && emulated.contains("QEMU emulates"), "{emulated}");
    let later = unread(Virt { iidr: virt::KVM | 1 << 12, ..virt.clone() });
    assert!(later.contains("product 0x4b, revision 1"), "{later}");
    assert!(unread(Virt { block: "sbsa.ram", ..virt }).contains("only of mach-virt.ram"));
}

#[test]
fn a_page_that_never_came_is_named_and_the_other_tables_are_read() {
    let virt = Virt::new(false);
    let sent = virt.records_but(&[SECOND_ITT, PENDING + 0x1_0000]);
    let stream = virt.stream_of(&sent);
    let report = walk(&stream);
    assert!(report.is_clean());
    let found = tables(&stream);
    assert_eq!((found.devices.len(), found.mappings.len(), found.pending.len()), (2, 2, 1));
    let expected = [
        "translation table of device 0x10a, at 0x40004000: its page, 0x4000 into mach-virt.ram, never came",
        "pending table, at 0x40030400: its page, 0x30400 into mach-virt.ram, never came",
    ];
    assert_eq!(found.errors, expected);
    let printed = printed(&report);
    assert!(printed.contains(&format!("\nnot read: {}\n", expected[0])), "{printed}");
}

#[test]
fn what_kvm_would_refuse_is_told_with_device_and_address() {
    let mut virt = Virt::new(false);
    virt.put(FIRST_ITT + 5 * 8, ite(0, 77, 7));
    virt.put(DEVICE_TABLE + 0x10a * 8, dte(0, 0x9000_0000, 1));
    let report = walk(&virt.stream());
    assert!(report.is_clean(), "what a page means is the guest's affair");
    let found = tables(&virt.stream());
    assert_eq!(
        found.errors,
        [
            "translation table of device 0x3: entry 5 at 0x40003028 is 0x4d0007: the interrupt is no LPI",
            "translation table of device 0x10a, at 0x90000000: no RAM is there",
        ]
    );
    assert_eq!(found.mappings.len(), 1);
}

#[test]
fn what_is_kept_and_printed_has_a_bound() {
    // All devices have one translation table, with 2¹³ events.
    let mut virt = Virt::new(false);
    let itt = RAM + 0x3_0000;
    for device in 0..512 {
        virt.put(DEVICE_TABLE + device * 8, dte(1, itt, 13));
    }
    for event in 0..1 << 13 {
        virt.put(itt + event * 8, ite(u64::from(event < (1 << 13) - 1), 8192 + event, 7));
    }
    // And all LPIs are pending, on both redistributors.
    (PENDING + 1024..PENDING + 2048).step_by(8).for_each(|at| virt.put(at, u64::MAX));
    virt.pendbaser = [PENDING; 2];
    let report = walk(&virt.stream());
    let found = only(&report).tables.as_ref().unwrap();
    assert_eq!(found.mappings.len(), MAX_KEPT);
    assert!(found.left_out > MAX_KEPT, "{}", found.left_out);
    let pending: usize = found.pending.iter().map(|pending| pending.lpis.len()).sum();
    assert_eq!(pending, 2 << 13);
    let lines = printed(&report).lines().count();
    assert!(lines < MAX_KEPT + 1024, "{lines}");

    // As many errors as devices.
    for device in 0..512 {
        virt.put(DEVICE_TABLE + device * 8, dte(1, 0x9000_0000, 13));
    }
    let found = tables(&virt.stream());
    assert_eq!((found.errors.len(), found.left_out), (MAX_ERRORS, 512 - MAX_ERRORS));
}

#[test]
fn pages_of_many_pieces_are_not_put_together_for_ever() {
    // 512 devices have one of two translation tables in turn, and each of those came in 4000 differences.
    let mut virt = Virt::new(false);
    for device in 0..512 {
        let itt = if device % 2 == 0 { FIRST_ITT } else { SECOND_ITT };
        virt.put(DEVICE_TABLE + device * 8, dte(1, itt, 4));
    }
    let mut sent = virt.records();
    for number in 0..8000 {
        let itt = if number % 2 == 0 { FIRST_ITT } else { SECOND_ITT };
        let difference = [0x70, 1, number as u8 | 1];
        sent.extend(records(&[Record::Xbzrle(virt.block, page_of(itt), &difference)]));
    }
    let found = tables(&virt.stream_of(&sent));
    let last = found.errors.last().unwrap();
    assert!(last.contains("pages are made of too many pieces"), "{last}");
}

#[test]
fn no_mutation_of_tables_or_registers_panics_and_all_can_be_shown() {
    const ROUNDS: usize = 600;
    let mut random = Random(0x4954_5331);
    let (mut whole, mut wrong) = (0, 0);
    for round in 0..ROUNDS {
        let mut virt = Virt::new(round % 2 == 0);
        for _ in 0..=random.below(3) {
            let word = (random.below(1 << 32) as u64) << 32 | random.below(1 << 32) as u64;
            let table = [DEVICE_TABLE, COLLECTION_TABLE, FIRST_ITT, SECOND_ITT, virt::SECOND_LEVEL, RAM];
            let at = table[random.below(table.len())] + 8 * random.below(12) as u64;
            match random.below(6) {
                0 => virt.baser[random.below(2)] ^= 1 << random.below(64),
                1 => virt.baser[random.below(8)] = word,
                2 => virt.pendbaser[random.below(2)] = word,
                3 => virt.put(at, word),
                4 => virt.put(at, word | 1 << 63),
                _ => virt.ram[(at - RAM) as usize] ^= 1 << random.below(8),
            }
        }
        let report = walk(&virt.stream());
        assert!(report.is_clean());
        assert!(!text::report(&report, Detail::Fields).is_empty());
        assert!(json::report(&report)["its"].is_array());
        match &only(&report).tables {
            Ok(tables) if tables.errors.is_empty() => whole += 1,
            _ => wrong += 1,
        }
    }
    assert!(whole > ROUNDS / 10 && wrong > ROUNDS / 10, "{whole} whole, {wrong} wrong");
}
