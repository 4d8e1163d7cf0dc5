//! Streams for the tests: put together from captures of real QEMU's device state and from RAM of our own.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses its own part")]

pub mod virt;

use whimbrel_wire::element::encode_footer;
use whimbrel_wire::ram::encode_block_list;
use whimbrel_wire::ram::mapped::{MappedBlock, bitmap_length};
use whimbrel_wire::{
    BlockRef, Configuration, Element, Output, RamBlockEntry, RamRecord, SectionHeader, header, vmdescription,
};

/// Device state as QEMU wrote it, up to the end-of-stream byte, and its description.
pub struct Capture {
    pub name: &'static str,
    pub devices: &'static [u8],
    pub description: &'static str,
}

macro_rules! capture {
    ($name:literal) => {
        Capture {
            name: $name,
            devices: include_bytes!(concat!("../../../whimbrel-vmm/tests/fixtures/vmdesc/", $name, ".bin")),
            description: include_str!(concat!(
                "../../../whimbrel-vmm/tests/fixtures/vmdesc/",
                $name,
                ".json"
            )),
        }
    };
}

pub const CAPTURES: [Capture; 13] = [
    capture!("acpi-off-7.2"),
    capture!("acpi-off-10.0"),
    capture!("full-smp2-7.2"),
    capture!("full-smp2-10.0"),
    capture!("kvm-msrs-7.2"),
    capture!("kvm-msrs-10.0"),
    capture!("tcg-7.2"),
    capture!("tcg-10.0"),
    capture!("cpu-parts-7.2"),
    capture!("cpu-parts-10.0"),
    capture!("serial-rx-10.0"),
    capture!("serial-to-10.0"),
    capture!("serial-tx-10.0"),
];

/// Of `virt`, with two CPUs, GIC and ITS.
pub const VIRT: Capture = capture!("virt-10.0");

pub const PAGE: usize = 4096;

/// The capture as a whole stream: with header, configuration and `ram`, the body of one RAM section after its block list.
pub fn stream(capture: &Capture, ram: &[u8]) -> Vec<u8> {
    let mut out = begin(&[]);
    ram_section(&mut out, ram);
    out.bytes(capture.devices);
    vmdescription::encode(&mut out, capture.description).unwrap();
    out.into_vec()
}

/// Header and configuration.
pub fn begin(capabilities: &[&str]) -> Output {
    let mut out = Output::new();
    header::encode(&mut out);
    let capabilities = capabilities.iter().map(|name| (*name).to_owned()).collect();
    let configuration = Configuration { machine: "microvm".into(), capabilities, ..Configuration::default() };
    configuration.encode(&mut out).unwrap();
    out
}

/// Section `ram` of two blocks of 16 pages and one page, whose start has `records` behind the block list, and whose end is
/// empty.
pub fn ram_section(out: &mut Output, records: &[u8]) {
    let header = SectionHeader { section_id: 2, idstr: "ram".into(), instance_id: 0, version_id: 4 };
    Element::SectionStart(header).encode(out).unwrap();
    let block = |name: &str, pages: usize| RamBlockEntry {
        name: name.into(),
        used_length: (pages * PAGE) as u64,
        page_size: None,
        guest_address: None,
    };
    encode_block_list(out, &[block("ram", 16), block("bios", 1)]).unwrap();
    out.bytes(records);
    RamRecord::Eos.encode(out).unwrap();
    encode_footer(out, 2);
    Element::SectionEnd { section_id: 2 }.encode(out).unwrap();
    RamRecord::Eos.encode(out).unwrap();
    encode_footer(out, 2);
}

/// Section `ram` of a mapped-ram file whose stream begins at `start` of the file and is `out` up to here: blocks with their content.
pub fn mapped_ram_section(out: &mut Output, start: u64, blocks: &[(&str, &[u8])]) {
    const ALIGNMENT: u64 = 1 << 20;
    let header = SectionHeader { section_id: 2, idstr: "ram".into(), instance_id: 0, version_id: 4 };
    Element::SectionStart(header).encode(out).unwrap();
    let total = blocks.iter().map(|(_, content)| content.len() as u64).sum();
    RamRecord::MemSize { total }.encode(out).unwrap();
    for (name, content) in blocks {
        out.pstr(name).unwrap();
        out.be64(content.len() as u64);
        let mut bitmap = vec![0_u8; bitmap_length((content.len() / PAGE) as u64) as usize];
        for (page, bytes) in content.chunks(PAGE).enumerate() {
            bitmap[page / 8] |= u8::from(bytes.iter().any(|byte| *byte != 0)) << (page % 8);
        }
        let bitmap_offset = start + out.len() as u64 + 28;
        let end = bitmap_offset + bitmap.len() as u64;
        let pages_offset = end.next_multiple_of(ALIGNMENT);
        MappedBlock { page_size: PAGE as u64, bitmap_offset, pages_offset }.encode(out);
        out.bytes(&bitmap);
        out.bytes(&vec![0; (pages_offset - end) as usize]);
        out.bytes(content);
    }
    RamRecord::Eos.encode(out).unwrap();
    encode_footer(out, 2);
}

/// A page record.
pub enum Record<'a> {
    Page(&'a str, usize, u8),
    Zero(&'a str, usize),
    Xbzrle(&'a str, usize, &'a [u8]),
}

/// The bytes of page records; a page is filled with its byte.
pub fn records(records: &[Record<'_>]) -> Vec<u8> {
    let mut out = Output::new();
    let at = |page: &usize| (page * PAGE) as u64;
    for record in records {
        match record {
            Record::Page(name, page, fill) => {
                RamRecord::Page { block: BlockRef::Named(name), offset: at(page) }.encode(&mut out).unwrap();
                out.bytes(&[*fill; PAGE]);
            }
            Record::Zero(name, page) => {
                let block = BlockRef::Named(name);
                RamRecord::Zero { block, offset: at(page), fill: 0 }.encode(&mut out).unwrap();
            }
            Record::Xbzrle(name, page, encoded) => {
                let (block, length) = (BlockRef::Named(name), encoded.len() as u16);
                RamRecord::Xbzrle { block, offset: at(page), length }.encode(&mut out).unwrap();
                out.bytes(encoded);
            }
        }
    }
    out.into_vec()
}

/// The stream, in a file that is gone with its handle.
pub fn file(stream: &[u8]) -> std::fs::File {
    use std::io::Write;
    use std::sync::atomic::{AtomicU32, Ordering};
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let number = COUNT.fetch_add(1, Ordering::Relaxed);
    let path = std::env::temp_dir().join(format!("whimbrel-inspect-{}-{number}", std::process::id()));
    let mut file = std::fs::File::options().create_new(true).read(true).write(true).open(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    file.write_all(stream).unwrap();
    file
}

/// xorshift64: the same sequence in every run.
pub struct Random(pub u64);

impl Random {
    pub fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        ((self.0 >> 11) % limit as u64) as usize
    }
}
