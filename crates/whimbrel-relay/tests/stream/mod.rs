//! Streams for the tests, with the places of all their boundaries.

#![allow(dead_code, reason = "shared by several test programs")]

use whimbrel::wire::element::encode_footer;
use whimbrel::wire::ram::encode_block_list;
use whimbrel::wire::{
    BlockRef, Command, Configuration, Element, Output, RamBlockEntry, RamRecord, SectionHeader, header,
    vmdescription,
};
use whimbrel_relay::scan::{Edge, Kind, Mark, Piece};

/// A stream under construction.
#[derive(Debug, Default)]
pub(crate) struct Stream {
    /// Its bytes so far.
    pub(crate) bytes: Vec<u8>,
    pieces: Vec<(Piece, u64)>,
}

impl Stream {
    /// Header and configuration.
    pub(crate) fn header() -> Self {
        let mut stream = Self::default();
        stream.add(Piece::only(Kind::Header), |out| {
            header::encode(out);
            Configuration { machine: "microvm".into(), ..Configuration::default() }.encode(out).unwrap();
        });
        stream
    }

    /// A move with everything in it.
    pub(crate) fn whole() -> Self {
        let mut stream = Self::header();
        stream.command(Command::OpenReturnPath);
        stream.command(Command::Ping(1));
        stream.ram_start();
        stream.ram(Kind::Part, &[0, 1, 2]);
        stream.ram(Kind::Part, &[]);
        stream.command(Command::SwitchoverStart);
        stream.ram(Kind::End, &[1]);
        stream.full(3, "timer", 0, &[0; 24]);
        stream.full(4, "cpu", 0, &[0x7e; 900]);
        stream.full(5, "cpu", 1, &[]);
        stream.full(0x7e00, "0000:00:1f.3/ich9_smb", 0, &[0x7e, 0, 0, 0x7e, 0]);
        stream.command(Command::Ping(0x77));
        stream.eof();
        stream.vmdesc(br#"{"devices":[]}"#);
        stream
    }

    /// All boundaries, in order.
    pub(crate) fn marks(&self) -> Vec<Mark> {
        let mut begin = 0;
        let mut marks = Vec::new();
        for (piece, end) in &self.pieces {
            marks.push(Mark { edge: Edge::Begin, piece: piece.clone(), at: begin });
            marks.push(Mark { edge: Edge::End, piece: piece.clone(), at: *end });
            begin = *end;
        }
        marks
    }

    pub(crate) fn command(&mut self, command: Command) {
        let value = if let Command::Ping(value) = command { value } else { 0 };
        self.add(Piece::named(Kind::Command, command.name(), value), |out| {
            Element::Command(command).encode(out).unwrap();
        });
    }

    pub(crate) fn ram_start(&mut self) {
        self.add(Piece::named(Kind::Start, "ram", 0), |out| {
            let header = SectionHeader { section_id: 2, idstr: "ram".into(), instance_id: 0, version_id: 4 };
            Element::SectionStart(header).encode(out).unwrap();
            let block = |name: &str, used_length| RamBlockEntry {
                name: name.into(),
                used_length,
                page_size: None,
                guest_address: None,
            };
            encode_block_list(out, &[block("ram", 0x7000), block("bios", 0x1000)]).unwrap();
            RamRecord::Eos.encode(out).unwrap();
            encode_footer(out, 2);
        });
    }

    pub(crate) fn ram(&mut self, kind: Kind, pages: &[u64]) {
        self.add(Piece::named(kind, "ram", 0), |out| {
            let element = match kind {
                Kind::End => Element::SectionEnd { section_id: 2 },
                _ => Element::SectionPart { section_id: 2 },
            };
            element.encode(out).unwrap();
            for page in pages {
                RamRecord::Page { block: BlockRef::Named("ram"), offset: page << 12 }.encode(out).unwrap();
                // A page of what might be footers and ends of bodies.
                out.bytes(&[0x7e, 0, 0, 0, 2, 0, 0x10, 0].repeat(512));
                RamRecord::Zero { block: BlockRef::Same, offset: 0x4000, fill: 0 }.encode(out).unwrap();
            }
            RamRecord::Eos.encode(out).unwrap();
            encode_footer(out, 2);
        });
    }

    pub(crate) fn full(&mut self, section_id: u32, idstr: &str, instance_id: u32, body: &[u8]) {
        self.add(Piece::named(Kind::Full, idstr, instance_id), |out| {
            let header = SectionHeader { section_id, idstr: idstr.into(), instance_id, version_id: 1 };
            Element::SectionFull(header).encode(out).unwrap();
            out.bytes(body);
            encode_footer(out, section_id);
        });
    }

    pub(crate) fn eof(&mut self) {
        self.add(Piece::only(Kind::Eof), |out| Element::Eof.encode(out).unwrap());
    }

    pub(crate) fn vmdesc(&mut self, text: &[u8]) {
        self.add(Piece::only(Kind::Vmdesc), |out| {
            vmdescription::encode(out, std::str::from_utf8(text).unwrap()).unwrap();
        });
    }

    fn add(&mut self, piece: Piece, encode: impl FnOnce(&mut Output)) {
        let mut out = Output::new();
        encode(&mut out);
        self.bytes.extend_from_slice(out.as_slice());
        self.pieces.push((piece, self.bytes.len() as u64));
    }
}

/// xorshift64*: the same in every run.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % limit
    }
}
