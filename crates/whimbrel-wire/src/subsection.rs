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
