//! Subsections: optional parts at the end of a device's state.
//!
//! ```text
//! 05  pstr name  be32 version  body (fields, then the subsection's own subsections)
//! ```
//!
//! There is no footer, and nothing tells a subsection from a data byte of value 5 that happens to follow. A receiver
//! decides by the *prefix rule*: the record belongs to the state being loaded only if its name is longer than that
//! state's name and begins with it; otherwise the enclosing state tries. [`peek`] is that rule.

use std::io::Read;

use crate::error::WireError;
use crate::input::Input;
use crate::output::Output;

/// The byte that begins a subsection.
pub const SUBSECTION: u8 = 0x05;

/// The header of a subsection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subsection {
    /// Full name, by convention `parent/suffix`.
    pub name: String,
    /// Version of its body; may be 0.
    pub version_id: u32,
}

impl Subsection {
    /// Reads the header, its type byte included.
    pub fn decode<R: Read>(input: &mut Input<R>) -> Result<Self, WireError> {
        let offset = input.offset();
        let got = input.reading("a subsection").u8()?;
        if got != SUBSECTION {
            return Err(WireError::ExpectedSubsection { offset, got });
        }
        let name = input.reading("a subsection's name").pstr()?;
        let version_id = input.reading("a subsection's version").be32()?;
        Ok(Subsection { name, version_id })
    }

    /// Writes the header, its type byte included.
    pub fn encode(&self, out: &mut Output) -> Result<(), WireError> {
        encode(out, &self.name, self.version_id)
    }
}

/// Writes a subsection's header, its type byte included. Fails on a name above 255 bytes.
pub fn encode(out: &mut Output, name: &str, version_id: u32) -> Result<(), WireError> {
    let start = out.len();
    out.u8(SUBSECTION);
    out.pstr(name).inspect_err(|_| out.truncate(start))?;
    out.be32(version_id);
    Ok(())
}

/// The name of the subsection of `parent` that comes next, or `None` if what comes next isn't one by the prefix rule.
/// Consumes nothing.
///
/// It looks ahead byte by byte and stops at the first that decides, because what follows may be plain data after which
/// the sender waits for an answer: waiting for a whole name there would never end.
pub fn peek<'a, R: Read>(input: &'a mut Input<R>, parent: &str) -> Result<Option<&'a str>, WireError> {
    if input.peek_u8()? != Some(SUBSECTION) {
        return Ok(None);
    }
    let [_, length] = *input.peek(2)? else { return Ok(None) };
    let length = usize::from(length);
    if length <= parent.len() {
        return Ok(None);
    }
    for compared in 1..=parent.len() {
        let ahead = input.peek(compared.saturating_add(2))?;
        let prefix = parent.as_bytes().get(..compared);
        if ahead.get(2..) != prefix {
            return Ok(None);
        }
    }
    let ahead = input.peek(length.saturating_add(2))?;
    let name = ahead.get(2..).filter(|name| name.len() == length).unwrap_or_default();
    Ok(std::str::from_utf8(name).ok().filter(|name| !name.is_empty()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{bytes, encoded, input, refused};
    use std::io;

    #[test]
    fn a_subsection_is_its_name_and_version_and_the_version_may_be_0() {
        let dma = Subsection { name: "fw_cfg/dma".into(), version_id: 0 };
        let stream = bytes("05 0a'fw_cfg/dma' 00000000");
        assert_eq!(encoded(|out| dma.encode(out)), stream);
        assert_eq!(Subsection::decode(&mut input(&stream)), Ok(dma));
    }

    #[test]
    fn something_else_than_a_subsection_is_refused() {
        let error = WireError::ExpectedSubsection { offset: 0, got: 0x7e };
        assert_eq!(Subsection::decode(&mut input(b"\x7e")), Err(error));
        assert!(matches!(refused(|out| encode(out, &"x".repeat(256), 1)), WireError::Unsendable { .. }));
    }

    #[test]
    fn only_a_longer_name_that_begins_with_the_parents_belongs_to_it() {
        let next = |stream: &str, parent: &str| {
            let stream = bytes(stream);
            let mut input = input(&stream);
            let name = peek(&mut input, parent).unwrap().map(str::to_owned);
            assert_eq!(input.offset(), 0, "peeking consumes nothing");
            name
        };
        assert_eq!(next("05 0a'fw_cfg/dma' 00000000", "fw_cfg").as_deref(), Some("fw_cfg/dma"));
        assert_eq!(next("05 09'apic_sipi' 00000001", "apic").as_deref(), Some("apic_sipi"));
        assert_eq!(next("05 0a'fw_cfg/dma' 00000000", "serial"), None);
        assert_eq!(next("05 06'fw_cfg' 00000000", "fw_cfg"), None, "not longer");
        assert_eq!(next("7e 00000001", "fw_cfg"), None, "a footer");
        assert_eq!(next("", "fw_cfg"), None, "the end of the stream");
        assert_eq!(next("05", "fw_cfg"), None);
        assert_eq!(next("05 0a'fw_cfg/d'", "fw_cfg"), None, "the stream ends inside the name");
        assert_eq!(next("05 08'fw_cfg' c328", "fw_cfg"), None, "not UTF-8");
    }

    #[test]
    fn peeking_stops_at_the_first_byte_that_decides() {
        /// A sender that waits for an answer after what it has sent.
        struct Waits(&'static [u8]);
        impl Read for Waits {
            fn read(&mut self, room: &mut [u8]) -> io::Result<usize> {
                match self.0.read(room)? {
                    0 => Err(io::ErrorKind::TimedOut.into()),
                    received => Ok(received),
                }
            }
        }
        for data in [&b"\x05\x04"[..], b"\x05\xffg", b"\x05\xfffx"] {
            assert_eq!(peek(&mut Input::new(Waits(data)), "fw_cfg"), Ok(None), "{data:02x?}");
        }
    }
}
