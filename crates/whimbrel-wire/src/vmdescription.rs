//! The JSON text that describes the device state, after the end of a pre-copy stream.
//!
//! ```text
//! 06  be32 length  length bytes of JSON
//! ```
//!
//! It is there for tools; a receiver drops it. Its absence, or anything else in its place, is worth a log line and no
//! more. What the text says is `whimbrel-vmstate`'s subject.

use std::io::Read;

use crate::element::VM_DESCRIPTION;
use crate::error::WireError;
use crate::input::Input;
use crate::output::Output;

/// Longest text accepted. Real machines' are below 100 KiB.
pub const MAX_LENGTH: u32 = 16 << 20;

/// What stands behind the end-of-stream byte.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Trailer {
    /// A description; its text, not checked to be JSON or UTF-8.
    Description(Vec<u8>),
    /// Another byte, consumed: to be logged with [`crate::qemu_texts::expected_vmdescription`].
    Other(u8),
    /// The stream has ended.
    Nothing,
}

/// Reads what stands behind the end-of-stream byte. Waits until a byte arrives or the stream ends.
pub fn decode_trailer<R: Read>(input: &mut Input<R>) -> Result<Trailer, WireError> {
    if input.reading("the VM description").at_end()? {
        return Ok(Trailer::Nothing);
    }
    match input.u8()? {
        VM_DESCRIPTION => {
            let length = decode_length(input)?;
            input.bytes(length.into(), MAX_LENGTH.into()).map(Trailer::Description)
        }
        other => Ok(Trailer::Other(other)),
    }
}

/// Writes a description, its type byte included. Fails above [`MAX_LENGTH`].
pub fn encode(out: &mut Output, json: &str) -> Result<(), WireError> {
    let length = u32::try_from(json.len()).ok().filter(|length| *length <= MAX_LENGTH);
    let length = length.ok_or(WireError::Unsendable {
        what: "the VM description",
        value: json.len() as u64,
        range: "at most 16 MiB",
    })?;
    out.u8(VM_DESCRIPTION);
    out.be32(length);
    out.bytes(json.as_bytes());
    Ok(())
}

/// Reads the length that follows the type byte.
pub(crate) fn decode_length<R: Read>(input: &mut Input<R>) -> Result<u32, WireError> {
    let offset = input.offset();
    let length = input.reading("the VM description").be32()?;
    if length > MAX_LENGTH {
        let (length, limit) = (length.into(), MAX_LENGTH.into());
        return Err(WireError::TooLong { offset, what: input.what(), length, limit });
    }
    Ok(length)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{bytes, encoded, input, refused};

    #[test]
    fn a_description_is_its_length_and_text() {
        let stream = bytes("06 00000002 '{}'");
        assert_eq!(encoded(|out| encode(out, "{}")), stream);
        assert_eq!(decode_trailer(&mut input(&stream)), Ok(Trailer::Description(b"{}".to_vec())));
        assert_eq!(decode_trailer(&mut input(&bytes("06 00000000"))), Ok(Trailer::Description(vec![])));
    }

    #[test]
    fn anything_else_after_the_end_is_reported_and_is_no_error() {
        assert_eq!(decode_trailer(&mut input(b"")), Ok(Trailer::Nothing));
        assert_eq!(decode_trailer(&mut input(b"\x04")), Ok(Trailer::Other(4)));
    }

    #[test]
    fn a_description_is_bounded_both_ways() {
        let what = "the VM description";
        let error = WireError::TooLong { offset: 1, what, length: 0x0100_0001, limit: 0x0100_0000 };
        assert_eq!(decode_trailer(&mut input(&bytes("06 01000001"))), Err(error));
        let error = WireError::Truncated { offset: 6, wanted: 0xff_ffff, what };
        assert_eq!(decode_trailer(&mut input(&bytes("06 01000000 '{'"))), Err(error));
        let long = " ".repeat(MAX_LENGTH as usize + 1);
        let error = WireError::Unsendable { what, value: 0x0100_0001, range: "at most 16 MiB" };
        assert_eq!(refused(|out| encode(out, &long)), error);
    }
}
