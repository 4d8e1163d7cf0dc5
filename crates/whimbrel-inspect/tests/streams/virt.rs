//! A `virt` with an ITS, put together from a capture of real QEMU's device state and from tables that KVM could have written.

use whimbrel_inspect::fields::{Field, Value};
use whimbrel_inspect::inspect;
use whimbrel_inspect::report::Body;
use whimbrel_wire::element::encode_footer;
use whimbrel_wire::ram::encode_block_list;
use whimbrel_wire::{
    BlockRef, Configuration, Element, Output, RamBlockEntry, RamRecord, SectionHeader, header, vmdescription,
};

use super::{PAGE, VIRT, mapped_ram_section};

/// GITS_IIDR as KVM has it.
pub const KVM: u32 = 0x4b00_043b;
/// Where RAM begins.
pub const RAM: u64 = 1 << 30;
/// The device table, or its first level.
pub const DEVICE_TABLE: u64 = RAM + 0x1000;
pub const COLLECTION_TABLE: u64 = RAM + 0x2000;
/// The translation tables of the first device and of the second.
pub const FIRST_ITT: u64 = RAM + 0x3000;
pub const SECOND_ITT: u64 = RAM + 0x4000;
/// Behind the first level, for the devices from 512 on: it can only be at a multiple of 64 KiB.
pub const SECOND_LEVEL: u64 = RAM + 0x1_0000;
/// The pending table of the first redistributor; the other's is 64 KiB further on.
pub const PENDING: u64 = RAM + 0x2_0000;

/// Two CPUs, 256 KiB of RAM, an ITS.
#[derive(Clone)]
pub struct Virt {
    pub block: &'static str,
    pub ram: Vec<u8>,
    pub iidr: u32,
    pub baser: [u64; 8],
    pub pendbaser: [u64; 2],
}

impl Virt {
    /// Device 3 with events 1 and 5, and device 0x20a, or without a second level 0x10a, with event 0; collections 7 and 9. Two LPIs
    /// are pending.
    pub fn new(two_level: bool) -> Self {
        let baser = |kind: u64, two_level: bool, at: u64| {
            1 << 63 | u64::from(two_level) << 62 | kind << 56 | 7 << 48 | at
        };
        let mut this = Self {
            block: "mach-virt.ram",
            ram: vec![0; 64 * PAGE],
            iidr: KVM,
            baser: [baser(1, two_level, DEVICE_TABLE), baser(4, false, COLLECTION_TABLE), 0, 0, 0, 0, 0, 0],
            pendbaser: [PENDING, PENDING + 0x1_0000],
        };
        if two_level {
            this.put(DEVICE_TABLE, 1 << 63 | (SECOND_LEVEL + 0x2_0000));
            this.put(DEVICE_TABLE + 8, 1 << 63 | SECOND_LEVEL);
            this.put(SECOND_LEVEL + 0x2_0000 + 3 * 8, dte(0x207, FIRST_ITT, 4));
            this.put(SECOND_LEVEL + 10 * 8, dte(0, SECOND_ITT, 1));
            // There the second redistributor's pending table would be.
            this.pendbaser[1] = PENDING;
        } else {
            this.put(DEVICE_TABLE + 3 * 8, dte(0x107, FIRST_ITT, 4));
            this.put(DEVICE_TABLE + 0x10a * 8, dte(0, SECOND_ITT, 1));
        }
        this.put(COLLECTION_TABLE, cte(1, 7));
        this.put(COLLECTION_TABLE + 8, cte(0, 9));
        this.put(FIRST_ITT + 8, ite(4, 8200, 9));
        this.put(FIRST_ITT + 5 * 8, ite(0, 8201, 7));
        this.put(SECOND_ITT, ite(0, 8300, 1));
        // LPIs 8200 and 8201, 8300.
        this.put(PENDING + 1024, 0b11 << 8);
        this.put(PENDING + 1024 + 8, 1 << (8300 - 8192 - 64));
        this
    }

    /// Writes a word into RAM.
    pub fn put(&mut self, at: u64, word: u64) {
        let at = (at - RAM) as usize;
        self.ram[at..at + 8].copy_from_slice(&word.to_le_bytes());
    }

    /// RAM as a sender sends it: each page once.
    pub fn records(&self) -> Vec<u8> {
        self.records_but(&[])
    }

    /// The same without the pages at these addresses.
    pub fn records_but(&self, missing: &[u64]) -> Vec<u8> {
        let mut out = Output::new();
        for (page, content) in self.ram.chunks(PAGE).enumerate() {
            let (block, offset) = (BlockRef::Named(self.block), (page * PAGE) as u64);
            if missing.contains(&(RAM + offset)) {
                continue;
            }
            if content.iter().all(|byte| *byte == 0) {
                RamRecord::Zero { block, offset, fill: 0 }.encode(&mut out).unwrap();
            } else {
                RamRecord::Page { block, offset }.encode(&mut out).unwrap();
                out.bytes(content);
            }
        }
        out.into_vec()
    }

    /// The stream.
    pub fn stream(&self) -> Vec<u8> {
        self.stream_of(&self.records())
    }

    /// The stream with these records instead of those of its RAM.
    pub fn stream_of(&self, records: &[u8]) -> Vec<u8> {
        let mut out = self.begin(&[]);
        let header = SectionHeader { section_id: 2, idstr: "ram".into(), instance_id: 0, version_id: 4 };
        Element::SectionStart(header).encode(&mut out).unwrap();
        let block = RamBlockEntry {
            name: self.block.into(),
            used_length: self.ram.len() as u64,
            page_size: None,
            guest_address: None,
        };
        encode_block_list(&mut out, &[block]).unwrap();
        out.bytes(records);
        RamRecord::Eos.encode(&mut out).unwrap();
        encode_footer(&mut out, 2);
        self.end(out, 0)
    }

    /// A mapped-ram file's stream, which begins at `start` of it.
    pub fn mapped(&self, start: u64) -> Vec<u8> {
        let mut out = self.begin(&["mapped-ram"]);
        mapped_ram_section(&mut out, start, &[(self.block, &self.ram)]);
        self.end(out, start)
    }

    fn begin(&self, capabilities: &[&str]) -> Output {
        let mut out = Output::new();
        header::encode(&mut out);
        let capabilities = capabilities.iter().map(|name| (*name).to_owned()).collect();
        let configuration = Configuration {
            machine: "virt-10.0".into(),
            target_page_bits: Some(12),
            capabilities,
            ..Configuration::default()
        };
        configuration.encode(&mut out).unwrap();
        out
    }

    fn end(&self, mut out: Output, start: u64) -> Vec<u8> {
        out.bytes(VIRT.devices);
        vmdescription::encode(&mut out, VIRT.description).unwrap();
        let mut stream = out.into_vec();
        self.set_registers(&mut stream, start);
        stream
    }

    /// Puts the registers where the walk finds their fields.
    fn set_registers(&self, stream: &mut [u8], start: u64) {
        let report = inspect(&*stream, start, &mut ());
        let set = |stream: &mut [u8], fields: &[Field], name: &str, bytes: &[u8]| {
            let at = (named(fields, name).offset - start) as usize;
            stream[at..at + bytes.len()].copy_from_slice(bytes);
        };
        assert!(report.stopped.is_none(), "{:?}", report.stopped);
        let fields = |idstr: &str| match &report.sections().find(|(_, s)| s.idstr == idstr).unwrap().1.body {
            Body::Fields(fields) => fields.as_slice(),
            other => panic!("{other:?}"),
        };
        let its = fields("arm_gicv3_its");
        set(stream, its, "iidr", &self.iidr.to_be_bytes());
        set(stream, its, "baser", &self.baser.map(u64::to_be_bytes).concat());
        let Value::Array(cpus) = &named(fields("arm_gicv3"), "cpu").value else { panic!() };
        for (cpu, pendbaser) in cpus.iter().zip(self.pendbaser) {
            let Value::Group { fields, .. } = &cpu.value else { panic!() };
            set(stream, fields, "gicr_ctlr", &1_u32.to_be_bytes());
            // 14 bits of interrupt numbers.
            set(stream, fields, "gicr_propbaser", &13_u64.to_be_bytes());
            set(stream, fields, "gicr_pendbaser", &pendbaser.to_be_bytes());
        }
    }
}

fn named<'a>(fields: &'a [Field], name: &str) -> &'a Field {
    fields.iter().find(|field| field.name == name).unwrap()
}

/// An entry of the device table.
pub fn dte(next: u64, itt: u64, event_bits: u64) -> u64 {
    1 << 63 | next << 49 | itt >> 8 << 5 | (event_bits - 1)
}

/// Of a translation table.
pub fn ite(next: u64, intid: u64, collection: u64) -> u64 {
    next << 48 | intid << 16 | collection
}

/// Of the collection table.
pub fn cte(redistributor: u64, collection: u64) -> u64 {
    1 << 63 | redistributor << 16 | collection
}
