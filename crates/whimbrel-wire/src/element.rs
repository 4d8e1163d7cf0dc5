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
//! again, closes each body: [`decode_footer`] and [`encode_footer`]. Where no handler reads it, [`crate::footer`] finds its end.
//!
//! A section id is a number of the sender's choosing; start and full bind it to (idstr, instance) and part and end
//! refer to that. The map is the receiver's to keep.

use std::io::Read;

use crate::command::Command;
use crate::error::WireError;
use crate::footer;
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
    out.bytes(&footer::bytes(section_id));
}

fn decode_id<R: Read>(input: &mut Input<R>) -> Result<u32, WireError> {
    input.reading("a section's id").be32()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{bytes, encoded, input, refused};

    fn decoded(stream: &str) -> Result<Element, WireError> {
        let stream = bytes(stream);
        let mut input = input(&stream);
        let element = Element::decode(&mut input)?;
        assert!(input.at_end()?, "bytes left after {element:?}");
        Ok(element)
    }

    #[test]
    fn every_element_has_its_bytes() {
        let header = SectionHeader { section_id: 77, idstr: "ram".into(), instance_id: 0, version_id: 4 };
        let apic = SectionHeader { section_id: 0x102, idstr: "apic".into(), instance_id: 1, version_id: 3 };
        for (element, stream) in [
            (Element::Eof, "00"),
            (Element::SectionStart(header), "01 0000004d 03'ram' 00000000 00000004"),
            (Element::SectionPart { section_id: 77 }, "02 0000004d"),
            (Element::SectionEnd { section_id: 77 }, "03 0000004d"),
            (Element::SectionFull(apic), "04 00000102 04'apic' 00000001 00000003"),
            (Element::VmDescription { length: 0x1000000 }, "06 01000000"),
            (Element::Command(Command::Ping(1)), "08 0002 0004 00000001"),
        ] {
            assert_eq!(encoded(|out| element.encode(out)), bytes(stream));
            assert_eq!(decoded(stream), Ok(element));
        }
    }

    #[test]
    fn bytes_that_begin_no_element_are_refused_in_qemus_words() {
        for byte in (0..=255).filter(|byte| ![0, 1, 2, 3, 4, 6, 8].contains(byte)) {
            let error = Element::decode(&mut input(&[byte, 0, 0, 0, 0]).starting_at(9)).unwrap_err();
            assert_eq!(error, WireError::UnknownElement { offset: 9, element: byte });
            let text = format!("Unknown savevm section type {byte} (stream offset 0x9)");
            assert_eq!(error.to_string(), text);
        }
    }

    #[test]
    fn a_footer_repeats_the_sections_id() {
        let footer = encoded(|out| {
            encode_footer(out, 2);
            Ok(())
        });
        assert_eq!(footer, bytes("7e 00000002"));
        assert_eq!(decode_footer(&mut input(&footer), "ram", 2), Ok(()));
        let error = decode_footer(&mut input(&bytes("7e 00000063")), "ram", 2).unwrap_err();
        let section = "ram".to_owned();
        assert_eq!(error, WireError::FooterMismatch { offset: 0, section, read: 0x63, expected: 2 });
        let text = "Mismatched section id in footer for ram - read 0x63 expected 0x2 (stream offset 0x0)";
        assert_eq!(error.to_string(), text);
    }

    #[test]
    fn a_missing_footer_names_the_section() {
        let error = decode_footer(&mut input(&bytes("04 00000002")), "i8259", 2).unwrap_err();
        assert_eq!(error, WireError::MissingFooter { offset: 0, section: "i8259".into(), got: 4 });
        assert!(error.to_string().starts_with("Missing section footer for i8259"));
    }

    #[test]
    fn what_cannot_be_sent_leaves_no_half_element() {
        let header = SectionHeader { section_id: 1, idstr: "x".repeat(256), instance_id: 0, version_id: 0 };
        let error = WireError::Unsendable { what: "a name", value: 256, range: "at most 255 bytes" };
        assert_eq!(refused(|out| Element::SectionFull(header).encode(out)), error);
        let discard = Command::PostcopyRamDiscard { block: "ram".into(), ranges: vec![] };
        let error = WireError::Unsendable { what: "a RAM discard", value: 0, range: "1 to 12 ranges" };
        assert_eq!(refused(|out| Element::Command(discard).encode(out)), error);
    }
}
