//! The elements between a stream's header and its end.
//!
//! | byte | element | after it |
//! |---|---|---|
//! | `00` | end of stream | nothing |
//! | `01` | section start | be32 id, pstr idstr, be32 instance, be32 version, body, footer |
//! | `02` | section part | be32 id, body, footer |
//! | `03` | section end | be32 id, body, footer |
//! | `04` | section full | as start |
//! | `06` | VM description | be32 length, JSON text; only after the end of stream |
//! | `08` | command | see [`crate::command`] |
//!
//! Bodies aren't read here: they belong to the handler that the section names. A footer, `7e` and the section's id
//! again, closes each body: [`decode_footer`] and [`encode_footer`].
//!
//! A section id is a number of the sender's choosing; start and full bind it to (idstr, instance) and part and end
//! refer to that. The map is the receiver's to keep.

use std::io::Read;

use crate::command::Command;
use crate::error::WireError;
use crate::input::Input;
use crate::output::Output;
use crate::vmdescription;

/// End of the stream.
pub const EOF: u8 = 0x00;
/// First body of a live section.
pub const SECTION_START: u8 = 0x01;
/// Further body of a live section.
pub const SECTION_PART: u8 = 0x02;
/// Last body of a live section.
pub const SECTION_END: u8 = 0x03;
/// The one body of a device's section.
pub const SECTION_FULL: u8 = 0x04;
/// JSON description of the device state, after the end of the stream.
pub const VM_DESCRIPTION: u8 = 0x06;
/// The configuration, directly after the header.
pub const CONFIGURATION: u8 = 0x07;
/// A command.
pub const COMMAND: u8 = 0x08;
/// Closes a section's body.
pub const SECTION_FOOTER: u8 = 0x7e;

/// One element, up to where its body begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Element {
    /// End of the stream.
    Eof,
    /// A live section begins; its first body follows.
    SectionStart(SectionHeader),
    /// A further body of a live section follows.
    SectionPart {
        /// The sender's number of the section.
        section_id: u32,
    },
    /// The last body of a live section follows.
    SectionEnd {
        /// The sender's number of the section.
        section_id: u32,
    },
    /// A device's section; its body follows.
    SectionFull(SectionHeader),
    /// The JSON text follows. Out of place anywhere but after [`Element::Eof`].
    VmDescription {
        /// Length of the text, at most [`vmdescription::MAX_LENGTH`].
        length: u32,
    },
    /// A command, complete (of a package: what follows is the package's content).
    Command(Command),
}

/// What introduces a section.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SectionHeader {
    /// The sender's number of the section.
    pub section_id: u32,
    /// Device path and state name, or the state name alone.
    pub idstr: String,
    /// Tells sections with equal `idstr` apart.
    pub instance_id: u32,
    /// Version of the state that follows.
    pub version_id: u32,
}

impl Element {
    /// Reads the next element, up to where its body begins.
    pub fn decode<R: Read>(input: &mut Input<R>) -> Result<Self, WireError> {
        let offset = input.offset();
        match input.reading("an element's type").u8()? {
            EOF => Ok(Element::Eof),
            SECTION_START => SectionHeader::decode(input).map(Element::SectionStart),
            SECTION_PART => decode_id(input).map(|section_id| Element::SectionPart { section_id }),
            SECTION_END => decode_id(input).map(|section_id| Element::SectionEnd { section_id }),
            SECTION_FULL => SectionHeader::decode(input).map(Element::SectionFull),
            VM_DESCRIPTION => {
                vmdescription::decode_length(input).map(|length| Element::VmDescription { length })
            }
            COMMAND => Command::decode(input).map(Element::Command),
            element => Err(WireError::UnknownElement { offset, element }),
        }
    }

    /// Writes the element, up to where its body begins. On an error nothing is written.
    pub fn encode(&self, out: &mut Output) -> Result<(), WireError> {
        let start = out.len();
        self.encode_unguarded(out).inspect_err(|_| out.truncate(start))
    }

    fn encode_unguarded(&self, out: &mut Output) -> Result<(), WireError> {
        match self {
            Element::Eof => out.u8(EOF),
            Element::SectionStart(header) => {
                out.u8(SECTION_START);
                header.encode(out)?;
            }
            Element::SectionPart { section_id } => {
                out.u8(SECTION_PART);
                out.be32(*section_id);
            }
            Element::SectionEnd { section_id } => {
                out.u8(SECTION_END);
                out.be32(*section_id);
            }
            Element::SectionFull(header) => {
                out.u8(SECTION_FULL);
                header.encode(out)?;
            }
            Element::VmDescription { length } => {
                out.u8(VM_DESCRIPTION);
                out.be32(*length);
            }
            Element::Command(command) => {
                out.u8(COMMAND);
                command.encode(out)?;
            }
        }
        Ok(())
    }
}

impl SectionHeader {
    fn decode<R: Read>(input: &mut Input<R>) -> Result<Self, WireError> {
        let section_id = decode_id(input)?;
        let idstr = input.reading("a section's idstr").pstr()?;
        let instance_id = input.reading("a section's instance id").be32()?;
        let version_id = input.reading("a section's version").be32()?;
        Ok(SectionHeader { section_id, idstr, instance_id, version_id })
    }

    fn encode(&self, out: &mut Output) -> Result<(), WireError> {
        out.be32(self.section_id);
        out.pstr(&self.idstr)?;
        out.be32(self.instance_id);
        out.be32(self.version_id);
        Ok(())
    }
}

/// Reads the footer of the section `idstr`, which was numbered `section_id`.
pub fn decode_footer<R: Read>(input: &mut Input<R>, idstr: &str, section_id: u32) -> Result<(), WireError> {
    let offset = input.offset();
    let got = input.reading("a section's footer").u8()?;
    if got != SECTION_FOOTER {
        return Err(WireError::MissingFooter { offset, section: idstr.to_owned(), got });
    }
    let read = input.be32()?;
    if read != section_id {
        let section = idstr.to_owned();
        return Err(WireError::FooterMismatch { offset, section, read, expected: section_id });
    }
    Ok(())
}

/// Writes the footer of the section numbered `section_id`.
pub fn encode_footer(out: &mut Output, section_id: u32) {
    out.u8(SECTION_FOOTER);
    out.be32(section_id);
}

fn decode_id<R: Read>(input: &mut Input<R>) -> Result<u32, WireError> {
    input.reading("a section's id").be32()
}
