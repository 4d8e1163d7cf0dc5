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
