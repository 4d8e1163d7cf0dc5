//! The walk over a stream, from its first byte to its last.
//!
//! ```text
//! header ─▶ configuration ─▶ elements ─▶ end of stream ─▶ description ─▶ nothing more
//!                             │  └ package: elements
//!                             ├ section `ram`: ram.rs
//!                             ├ other live section: its end by its footer, footer.rs
//!                             └ device: by the description; without one, its end by its footer
//! ```
//!
//! The description stands behind what it describes. It is looked for ahead: at once where the source is a file, when the
//! first device section comes where it is a pipe. A stream that has none, or is cut, is walked all the same.

mod device;
mod footer;
mod ram;

use whimbrel_wire::configuration::Configuration;
use whimbrel_wire::element::{CONFIGURATION, decode_footer};
use whimbrel_wire::vmdescription::{self, Trailer};
use whimbrel_wire::{Command, Element, Input, SectionHeader, command, header, ram as wire_ram};

use self::device::Described;
use crate::description::Description;
use crate::fields::Decoder;
use crate::report::{Body, Entry, MAX_ENTRIES, Part, Report, Section, What};
use crate::visitor::PageVisitor;
use crate::{Fault, Stream, its};

/// Most live sections of one stream.
const MAX_LIVE: usize = 1024;

/// Longest configuration: a name of 255 bytes and three subsections.
const CONFIGURATION_ROOM: usize = 1024;

/// Walks `stream`, whose first byte has the offset `start`, and shows `pages` every page on the way. Whatever is wrong
/// stands in the report.
pub fn inspect<S: Stream>(stream: S, start: u64, pages: &mut dyn PageVisitor) -> Report {
    let mut input = Input::new(stream).starting_at(start);
    let mut walk = Walk::new(pages);
    let result = walk.stream(&mut input);
    let mut report = walk.report;
    report.entries = walk.entries;
    report.stopped = result.err();
    report.end = input.offset();
    report.its = its::all(&report, None);
    report
}

/// What is known of a live section from its start on.
#[derive(Clone)]
struct Live {
    header: SectionHeader,
    is_ram: bool,
}

struct Walk<'a> {
    report: Report,
    /// The elements at the present level: of the stream, or of a package.
    entries: Vec<Entry>,
    /// The configuration's bytes.
    configuration: Vec<u8>,
    description: Option<Described>,
    /// The description has been looked for.
    looked: bool,
    decoder: Decoder,
    live: Vec<Live>,
    state_bytes: u64,
    ram: ram::Ram<'a>,
    in_package: bool,
}

impl<'a> Walk<'a> {
    fn new(pages: &'a mut dyn PageVisitor) -> Self {
        Walk {
            report: Report { page_size: wire_ram::TARGET_PAGE_SIZE, ..Report::default() },
            entries: Vec::new(),
            configuration: Vec::new(),
            description: None,
            looked: false,
            decoder: Decoder::new(),
            live: Vec::new(),
            state_bytes: 0,
            ram: ram::Ram::new(pages),
            in_package: false,
        }
    }

    fn stream<S: Stream>(&mut self, input: &mut Input<S>) -> Result<(), Fault> {
        if input.get_ref().is_seekable() {
            self.look_for_description(input)?;
        }
        let offset = input.offset();
        header::decode(input)?;
        self.enter(input, offset, What::Header)?;
        if input.peek_u8()? == Some(CONFIGURATION) {
            self.configuration(input)?;
        }
        self.page_size(input.offset())?;
        self.check_description();
        self.elements(input)?;
        self.trailer(input)
    }

    fn configuration<S: Stream>(&mut self, input: &mut Input<S>) -> Result<(), Fault> {
        let offset = input.offset();
        let bytes = input.peek(CONFIGURATION_ROOM)?.to_vec();
        let configuration = Configuration::decode(input)?;
        let length = usize::try_from(input.offset().saturating_sub(offset)).unwrap_or(0);
        self.configuration = bytes.get(..length).unwrap_or_default().to_vec();
        self.ram.set_capabilities(&configuration.capabilities);
        self.enter(input, offset, What::Configuration(configuration, Vec::new()))
    }

    /// The page size: from the configuration, from the description if that is known by now, or 4 KiB.
    fn page_size(&mut self, offset: u64) -> Result<(), Fault> {
        let bits = self.entries.iter().find_map(|entry| match &entry.what {
            What::Configuration(configuration, _) => configuration.target_page_bits,
            _ => None,
        });
        let announced = bits.map(|bits| 1_u64.checked_shl(bits).unwrap_or(0));
        let described = self.description.as_ref().and_then(|described| described.description.page_size);
        let size = announced.or(described).unwrap_or(wire_ram::TARGET_PAGE_SIZE);
        if !size.is_power_of_two() || !(wire_ram::TARGET_PAGE_SIZE..=1 << 16).contains(&size) {
            let why = format!("pages of {size} bytes are not supported, only those of 4 to 64 KiB");
            return Err(Fault::Ram { offset, why });
        }
        self.report.page_size = size;
        Ok(())
    }

    /// Up to the end of the stream, or to the end of the package.
    fn elements<S: Stream>(&mut self, input: &mut Input<S>) -> Result<(), Fault> {
        while !(self.in_package && input.at_end()?) {
            let offset = input.offset();
            match Element::decode(input)? {
                Element::Eof if self.in_package => {
                    let what = "the end of the stream inside a package";
                    return Err(Fault::OutOfPlace { offset, what });
                }
                Element::Eof => return self.enter(input, offset, What::Eof),
                Element::SectionStart(header) => self.live_section(input, offset, header)?,
                Element::SectionPart { section_id } => {
                    self.live_part(input, offset, section_id, Part::Part(1))?;
                }
                Element::SectionEnd { section_id } => {
                    self.live_part(input, offset, section_id, Part::End)?;
                }
                Element::SectionFull(header) => self.device(input, offset, header)?,
                Element::Command(Command::Packaged { length }) => self.package(input, offset, length)?,
                Element::Command(command) => self.command(input, offset, command)?,
                Element::VmDescription { .. } => {
                    let what = "a VM description before the end of the stream";
                    return Err(Fault::OutOfPlace { offset, what });
                }
            }
        }
        Ok(())
    }

    fn command<S: Stream>(
        &mut self,
        input: &mut Input<S>,
        offset: u64,
        command: Command,
    ) -> Result<(), Fault> {
        match &command {
            Command::PostcopyAdvise(Some(sizes)) => self.ram.advised(sizes.summary),
            Command::PostcopyRamDiscard { block, ranges } => {
                self.ram.discard(&mut self.report, offset, block, ranges)?;
            }
            _ => {}
        }
        self.enter(input, offset, What::Command(command))
    }

    fn package<S: Stream>(&mut self, input: &mut Input<S>, offset: u64, length: u32) -> Result<(), Fault> {
        if self.in_package {
            return Err(Fault::OutOfPlace { offset, what: "a package inside a package" });
        }
        let base = input.offset();
        let content = input.reading("a package").bytes(length.into(), command::MAX_PACKAGE.into())?;
        let outer = std::mem::take(&mut self.entries);
        (self.in_package, self.looked) = (true, true);
        let mut inner = Input::new(&content[..]).starting_at(base);
        let result = self.elements(&mut inner);
        self.in_package = false;
        let inner = std::mem::replace(&mut self.entries, outer);
        self.enter(input, offset, What::Package(inner))?;
        result
    }

    fn live_section<S: Stream>(
        &mut self,
        input: &mut Input<S>,
        offset: u64,
        header: SectionHeader,
    ) -> Result<(), Fault> {
        let is_ram = header.idstr == wire_ram::IDSTR;
        if is_ram && header.version_id != wire_ram::SECTION_VERSION {
            let why = format!("section version {}, only 4 is known", header.version_id);
            return Err(Fault::Ram { offset, why });
        }
        let id = header.section_id;
        self.live.retain(|live| live.header.section_id != id);
        if self.live.len() >= MAX_LIVE {
            let limit = MAX_LIVE as u64;
            return Err(Fault::TooMany { offset, what: "live sections", limit });
        }
        self.live.push(Live { header, is_ram });
        self.live_part(input, offset, id, Part::Start)
    }

    fn live_part<S: Stream>(
        &mut self,
        input: &mut Input<S>,
        offset: u64,
        section_id: u32,
        part: Part,
    ) -> Result<(), Fault> {
        let live = self.live.iter().find(|live| live.header.section_id == section_id).cloned();
        let Live { header, is_ram } = live.ok_or(Fault::UnknownSection { offset, section_id })?;
        let begins = input.offset();
        let body = if is_ram {
            self.ram.body(input, &mut self.report)?;
            Body::Ram
        } else {
            footer::find(input, &header, &self.live, footer::Keep::Nothing)?;
            Body::Opaque(input.offset().saturating_sub(begins))
        };
        decode_footer(input, &header.idstr, section_id)?;
        self.enter_section(input, offset, part, header, body)
    }

    fn trailer<S: Stream>(&mut self, input: &mut Input<S>) -> Result<(), Fault> {
        let offset = input.offset();
        match vmdescription::decode_trailer(input)? {
            Trailer::Nothing => {}
            Trailer::Description(text) => {
                // An empty one stands for none.
                if !text.is_empty() {
                    let at = offset.saturating_add(5);
                    match Description::parse(&text, at) {
                        Ok(found) => self.all_met(at, &found),
                        Err(fault) => self.report.note(fault),
                    }
                }
                self.enter(input, offset, What::Description)?;
            }
            Trailer::Other(_) => return self.trailing(input, offset),
        }
        let begins = input.offset();
        if input.at_end()? { Ok(()) } else { self.trailing(input, begins) }
    }

    fn trailing<S: Stream>(&mut self, input: &mut Input<S>, offset: u64) -> Result<(), Fault> {
        while !input.at_end()? {
            let available = input.buffered().len() as u64;
            input.skip(available)?;
        }
        let length = input.offset().saturating_sub(offset);
        self.report.note(Fault::Trailing { offset, length });
        self.enter(input, offset, What::Trailing)
    }

    fn enter_section<S: Stream>(
        &mut self,
        input: &mut Input<S>,
        offset: u64,
        part: Part,
        header: SectionHeader,
        body: Body,
    ) -> Result<(), Fault> {
        let SectionHeader { section_id: id, idstr, instance_id: instance, version_id: version } = header;
        if let (Part::Part(_), Some(last)) = (part, self.entries.last_mut())
            && let What::Section(Section { part: Part::Part(count), id: same, body: before, .. }) =
                &mut last.what
            && *same == id
        {
            *count = count.saturating_add(1);
            if let (Body::Opaque(sum), Body::Opaque(length)) = (before, body) {
                *sum = sum.saturating_add(length);
            }
            last.size = input.offset().saturating_sub(last.offset);
            return Ok(());
        }
        self.enter(input, offset, What::Section(Section { part, id, idstr, instance, version, body }))
    }

    fn enter<S: Stream>(&mut self, input: &mut Input<S>, offset: u64, what: What) -> Result<(), Fault> {
        if self.entries.len() >= MAX_ENTRIES {
            return Err(Fault::TooMany { offset, what: "elements", limit: MAX_ENTRIES as u64 });
        }
        let arrived = input.get_mut().arrived(offset);
        let size = input.offset().saturating_sub(offset);
        self.entries.push(Entry { offset, size, arrived, what });
        Ok(())
    }
}
