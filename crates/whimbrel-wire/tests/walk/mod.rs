//! A reader of whole streams for the tests: it accepts what the crate accepts, keeps what it saw, and checks on the way
//! that whatever was decoded encodes to the bytes it was decoded from.

use whimbrel_wire::element::{decode_footer, encode_footer};
use whimbrel_wire::ram::{self, LastBlock, decode_block_list, encode_block_list};
use whimbrel_wire::vmdescription::{self, Trailer};
use whimbrel_wire::{
    BlockRef, Command, Configuration, Element, Input, Output, RamBlockEntry, RamRecord, SectionHeader,
    SetupLayout, WireError, command, header,
};

/// What a stream held.
#[derive(Debug, Default)]
pub(crate) struct Walk {
    pub(crate) configuration: Configuration,
    pub(crate) elements: Vec<Element>,
    pub(crate) blocks: Vec<RamBlockEntry>,
    pub(crate) pages: Vec<(usize, u64, Payload)>,
    pub(crate) trailer: Option<Trailer>,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Payload {
    Raw(Vec<u8>),
    Zero,
    Xbzrle(Vec<u8>),
}

/// Why a stream was not taken.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    Wire(WireError),
    /// Well-formed, and nothing this reader knows: an unknown section, say.
    Unexpected(&'static str),
}

impl From<WireError> for Fault {
    fn from(error: WireError) -> Self {
        Fault::Wire(error)
    }
}

/// Reads a whole stream.
pub(crate) fn walk(stream: &[u8]) -> Result<Walk, Fault> {
    let mut input = Input::with_capacity(stream, 0);
    let mut walk = Walk::default();
    header::decode(&mut input)?;
    walk.configuration = Configuration::decode(&mut input)?;
    let again = written(|out| walk.configuration.encode(out));
    assert_eq!(
        Configuration::decode(&mut Input::with_capacity(&again[..], 0)).as_ref(),
        Ok(&walk.configuration)
    );
    let mut reader =
        Reader { stream, base: 0, in_package: false, sections: Vec::new(), last: LastBlock::new() };
    reader.elements(&mut input, &mut walk)?;
    walk.trailer = Some(vmdescription::decode_trailer(&mut input)?);
    Ok(walk)
}

struct Reader<'a> {
    /// The bytes being read, of which the first has stream offset `base`.
    stream: &'a [u8],
    base: u64,
    in_package: bool,
    sections: Vec<SectionHeader>,
    last: LastBlock<usize>,
}

impl Reader<'_> {
    /// Up to the end of the stream, or to the end of the package.
    fn elements(&mut self, input: &mut Input<&[u8]>, walk: &mut Walk) -> Result<(), Fault> {
        while !(self.in_package && input.at_end()?) {
            let start = input.offset();
            let element = Element::decode(input)?;
            self.same(start, input, &written(|out| element.encode(out)));
            walk.elements.push(element.clone());
            match element {
                Element::Eof => return Ok(()),
                Element::SectionStart(header) if header.idstr == ram::IDSTR => {
                    self.sections.push(header.clone());
                    self.ram(input, walk)?;
                    self.footer(input, &header)?;
                }
                Element::SectionPart { section_id } | Element::SectionEnd { section_id } => {
                    let known = self.sections.iter().find(|header| header.section_id == section_id).cloned();
                    let header = known.ok_or(Fault::Unexpected("part of an unknown section"))?;
                    self.ram(input, walk)?;
                    self.footer(input, &header)?;
                }
                Element::SectionFull(header) if header.idstr == "globalstate" => {
                    input.reading("globalstate").skip(104)?;
                    self.footer(input, &header)?;
                }
                Element::SectionStart(_) | Element::SectionFull(_) => {
                    return Err(Fault::Unexpected("section"));
                }
                Element::VmDescription { .. } => return Err(Fault::Unexpected("description before the end")),
                Element::Command(Command::Packaged { length }) => self.package(input, length, walk)?,
                Element::Command(_) => {}
            }
        }
        Ok(())
    }

    fn package(&mut self, input: &mut Input<&[u8]>, length: u32, walk: &mut Walk) -> Result<(), Fault> {
        if self.in_package {
            return Err(Fault::Unexpected("package inside a package"));
        }
        let base = input.offset();
        let content = input.reading("a package").bytes(length.into(), command::MAX_PACKAGE.into())?;
        let sections = self.sections.clone();
        let mut inner = Reader { stream: &content, base, in_package: true, sections, last: self.last };
        inner.elements(&mut Input::with_capacity(&content[..], 0).starting_at(base), walk)
    }

    fn ram(&mut self, input: &mut Input<&[u8]>, walk: &mut Walk) -> Result<(), Fault> {
        loop {
            let start = input.offset();
            let record = RamRecord::decode(input)?;
            let again = written(|out| record.encode(out));
            let blocks = &walk.blocks;
            let resolve = |last: &mut LastBlock<usize>, block: BlockRef<'_>| {
                last.resolve(block, start, |name| blocks.iter().position(|known| known.name == name))
            };
            match record {
                RamRecord::Page { block, offset } => {
                    let block = resolve(&mut self.last, block)?;
                    self.same(start, input, &again);
                    let page = input.reading("a page").view(ram::TARGET_PAGE_SIZE as usize)?.to_vec();
                    walk.pages.push((block, offset, Payload::Raw(page)));
                }
                RamRecord::Zero { block, offset, .. } => {
                    walk.pages.push((resolve(&mut self.last, block)?, offset, Payload::Zero));
                    self.same(start, input, &again);
                }
                RamRecord::Xbzrle { block, offset, length } => {
                    let block = resolve(&mut self.last, block)?;
                    self.same(start, input, &again);
                    let encoded =
                        input.reading("an XBZRLE page").bytes(length.into(), ram::TARGET_PAGE_SIZE)?;
                    walk.pages.push((block, offset, Payload::Xbzrle(encoded)));
                }
                RamRecord::MemSize { total } => {
                    let layout = SetupLayout {
                        guest_addresses: walk
                            .configuration
                            .capabilities
                            .iter()
                            .any(|c| c == "x-ignore-shared"),
                        ..SetupLayout::default()
                    };
                    walk.blocks = decode_block_list(input, total, &layout)?;
                    self.same(start, input, &written(|out| encode_block_list(out, &walk.blocks).map(drop)));
                }
                RamRecord::MultifdFlush => self.same(start, input, &again),
                RamRecord::Eos => {
                    self.same(start, input, &again);
                    return Ok(());
                }
            }
        }
    }

    fn footer(&self, input: &mut Input<&[u8]>, header: &SectionHeader) -> Result<(), Fault> {
        let start = input.offset();
        decode_footer(input, &header.idstr, header.section_id)?;
        let again = written(|out| {
            encode_footer(out, header.section_id);
            Ok(())
        });
        self.same(start, input, &again);
        Ok(())
    }

    /// What was consumed since `start` is what encoding gives.
    fn same(&self, start: u64, input: &Input<&[u8]>, encoded: &[u8]) {
        let consumed = &self.stream[(start - self.base) as usize..(input.offset() - self.base) as usize];
        assert_eq!(consumed, encoded, "at stream offset {start:#x}");
    }
}

fn written(encode: impl FnOnce(&mut Output) -> Result<(), WireError>) -> Vec<u8> {
    let mut out = Output::new();
    encode(&mut out).expect("whatever was decoded can be encoded");
    out.into_vec()
}
