//! The return path: what the destination tells the source, on the same socket in the other direction.
//!
//! ```text
//! be16 type  be16 payload length  payload
//! ```
//!
//! | type | message | payload |
//! |---|---|---|
//! | 1 | SHUT | be32: 0 = loaded and started, else failed; the last message |
//! | 2 | PONG | be32: the PING's value |
//! | 3 | REQ_PAGES_ID | be64 start, be32 length, pstr block |
//! | 4 | REQ_PAGES | be64 start, be32 length; block of the request before |
//! | 5 | RECV_BITMAP | pstr block; then, uncounted: be64 size, bitmap, be64 end mark |
//! | 6 | RESUME_ACK | be32 1 |
//! | 7 | SWITCHOVER_ACK | – |
//!
//! Ranges, blocks and the value of RESUME_ACK are checked by whoever knows the guest's RAM, not here.

use std::io::Read;

use crate::error::WireError;
use crate::input::Input;
use crate::output::Output;

/// Longest counted payload, in bytes.
pub const MAX_PAYLOAD: u16 = 512;

/// The value of a SHUT that says all went well.
pub const SHUT_OK: u32 = 0;

/// The value of every RESUME_ACK.
pub const RESUME_ACK_VALUE: u32 = 1;

/// The word that ends a received bitmap.
pub const BITMAP_END: u64 = 0x0123_4567_89ab_cdef;

const SHUT: u16 = 1;
const PONG: u16 = 2;
const REQ_PAGES_ID: u16 = 3;
const REQ_PAGES: u16 = 4;
const RECV_BITMAP: u16 = 5;
const RESUME_ACK: u16 = 6;
const SWITCHOVER_ACK: u16 = 7;

/// A message from the destination.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReturnPathMessage {
    /// The destination is done: [`SHUT_OK`], or it failed.
    Shut(u32),
    /// Answer to PING with the same value.
    Pong(u32),
    /// Post-copy: the guest waits for these pages.
    RequestPages {
        /// RAM block; `None`: that of the request before.
        block: Option<String>,
        /// Offset in the block, in bytes.
        start: u64,
        /// Length in bytes.
        length: u32,
    },
    /// Recovery: which pages of a block have arrived.
    RecvBitmap {
        /// RAM block.
        block: String,
        /// Bit i, least significant first, is page i; see [`bitmap_bytes`].
        bitmap: Vec<u8>,
    },
    /// Recovery: ready to go on. The value is [`RESUME_ACK_VALUE`].
    ResumeAck(u32),
    /// The destination is ready for the switch-over.
    SwitchoverAck,
}

impl ReturnPathMessage {
    /// The message's name.
    pub fn name(&self) -> &'static str {
        match self {
            ReturnPathMessage::Shut(_) => "SHUT",
            ReturnPathMessage::Pong(_) => "PONG",
            ReturnPathMessage::RequestPages { .. } => "REQ_PAGES",
            ReturnPathMessage::RecvBitmap { .. } => "RECV_BITMAP",
            ReturnPathMessage::ResumeAck(_) => "RESUME_ACK",
            ReturnPathMessage::SwitchoverAck => "SWITCHOVER_ACK",
        }
    }

    /// Reads one message. `bitmap_limit` is the largest received bitmap to accept, in bytes: [`bitmap_bytes`] of the
    /// largest RAM block during a recovery, 0 otherwise.
    pub fn decode<R: Read>(input: &mut Input<R>, bitmap_limit: u64) -> Result<Self, WireError> {
        let offset = input.offset();
        let kind = input.reading("a return-path message").be16()?;
        let length = input.be16()?;
        let wrong_length = |message| WireError::MessageLength { offset, message, length };
        let fixed = |message, expected: u16| {
            if length == expected { Ok(()) } else { Err(wrong_length(message)) }
        };
        match kind {
            SHUT => {
                fixed("SHUT", 4)?;
                input.be32().map(ReturnPathMessage::Shut)
            }
            PONG => {
                fixed("PONG", 4)?;
                input.be32().map(ReturnPathMessage::Pong)
            }
            REQ_PAGES_ID => {
                let name_length = length.checked_sub(13).ok_or_else(|| wrong_length("REQ_PAGES_ID"))?;
                let (start, length) = (input.be64()?, input.be32()?);
                let block =
                    counted_name(input, name_length).ok_or_else(|| wrong_length("REQ_PAGES_ID"))??;
                Ok(ReturnPathMessage::RequestPages { block: Some(block), start, length })
            }
            REQ_PAGES => {
                fixed("REQ_PAGES", 12)?;
                let (start, length) = (input.be64()?, input.be32()?);
                Ok(ReturnPathMessage::RequestPages { block: None, start, length })
            }
            RECV_BITMAP => {
                let name_length = length.checked_sub(1).ok_or_else(|| wrong_length("RECV_BITMAP"))?;
                let block = counted_name(input, name_length).ok_or_else(|| wrong_length("RECV_BITMAP"))??;
                let bitmap = decode_bitmap(input, &block, bitmap_limit)?;
                Ok(ReturnPathMessage::RecvBitmap { block, bitmap })
            }
            RESUME_ACK => {
                fixed("RESUME_ACK", 4)?;
                input.be32().map(ReturnPathMessage::ResumeAck)
            }
            SWITCHOVER_ACK => fixed("SWITCHOVER_ACK", 0).map(|()| ReturnPathMessage::SwitchoverAck),
            kind => Err(WireError::UnknownMessage { offset, kind, length }),
        }
    }

    /// Writes the message. On an error nothing is written.
    pub fn encode(&self, out: &mut Output) -> Result<(), WireError> {
        let start = out.len();
        self.encode_unguarded(out).inspect_err(|_| out.truncate(start))
    }

    fn encode_unguarded(&self, out: &mut Output) -> Result<(), WireError> {
        match self {
            ReturnPathMessage::Shut(value) => encode_value(out, SHUT, *value),
            ReturnPathMessage::Pong(value) => encode_value(out, PONG, *value),
            ReturnPathMessage::RequestPages { block: Some(block), start, length } => {
                out.be16(REQ_PAGES_ID);
                out.be16(counted(block, 13));
                out.be64(*start);
                out.be32(*length);
                out.pstr(block)?;
            }
            ReturnPathMessage::RequestPages { block: None, start, length } => {
                out.be16(REQ_PAGES);
                out.be16(12);
                out.be64(*start);
                out.be32(*length);
            }
            ReturnPathMessage::RecvBitmap { block, bitmap } => {
                if bitmap.len() % 8 != 0 {
                    let (what, value) = ("a received bitmap", bitmap.len() as u64);
                    return Err(WireError::Unsendable { what, value, range: "a multiple of 8 bytes" });
                }
                out.be16(RECV_BITMAP);
                out.be16(counted(block, 1));
                out.pstr(block)?;
                out.be64(bitmap.len() as u64);
                out.bytes(bitmap);
                out.be64(BITMAP_END);
            }
            ReturnPathMessage::ResumeAck(value) => encode_value(out, RESUME_ACK, *value),
            ReturnPathMessage::SwitchoverAck => {
                out.be16(SWITCHOVER_ACK);
                out.be16(0);
            }
        }
        Ok(())
    }
}

/// Bytes of the received bitmap of a block of `pages` target pages: one bit each, in whole 64-bit words.
pub fn bitmap_bytes(pages: u64) -> u64 {
    pages.div_ceil(64).saturating_mul(8)
}

fn encode_value(out: &mut Output, kind: u16, value: u32) {
    out.be16(kind);
    out.be16(4);
    out.be32(value);
}

/// Payload length of a message with `block` after its length byte and `rest` further bytes. A name that is too long
/// fails when it is written.
fn counted(block: &str, rest: u16) -> u16 {
    u16::try_from(block.len()).unwrap_or(u16::MAX).saturating_add(rest)
}

/// A pstr that must be `length` bytes long; `None` if it isn't.
fn counted_name<R: Read>(input: &mut Input<R>, length: u16) -> Option<Result<String, WireError>> {
    match input.u8() {
        Ok(announced) if u16::from(announced) == length => Some(input.text(usize::from(announced))),
        Ok(_) => None,
        Err(error) => Some(Err(error)),
    }
}

fn decode_bitmap<R: Read>(input: &mut Input<R>, block: &str, limit: u64) -> Result<Vec<u8>, WireError> {
    let offset = input.offset();
    let size = input.reading("a received bitmap").be64()?;
    if size % 8 != 0 {
        return Err(WireError::Bitmap { offset, block: block.to_owned(), why: "size is no multiple of 8" });
    }
    let bitmap = input.bytes(size, limit)?;
    let offset = input.offset();
    if input.be64()? != BITMAP_END {
        return Err(WireError::Bitmap { offset, block: block.to_owned(), why: "the end mark is missing" });
    }
    Ok(bitmap)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{bytes, encoded, input, refused};

    fn decoded(stream: &str) -> Result<ReturnPathMessage, WireError> {
        let stream = bytes(stream);
        let mut input = input(&stream);
        let message = ReturnPathMessage::decode(&mut input, 16)?;
        assert!(input.at_end()?, "bytes left after {message:?}");
        Ok(message)
    }

    fn request(block: Option<&str>) -> ReturnPathMessage {
        ReturnPathMessage::RequestPages { block: block.map(str::to_owned), start: 0x20_0000, length: 0x1000 }
    }

    #[test]
    fn every_message_has_its_bytes() {
        let bitmap = vec![0xff, 0x0f, 0, 0, 0, 0, 0, 0];
        for (message, stream) in [
            (ReturnPathMessage::Shut(SHUT_OK), "0001 0004 00000000"),
            (ReturnPathMessage::Pong(1), "0002 0004 00000001"),
            (request(Some("ram")), "0003 0010 0000000000200000 00001000 03'ram'"),
            (request(None), "0004 000c 0000000000200000 00001000"),
            (
                ReturnPathMessage::RecvBitmap { block: "ram".into(), bitmap },
                "0005 0004 03'ram' 0000000000000008 ff0f000000000000 0123456789abcdef",
            ),
            (ReturnPathMessage::ResumeAck(RESUME_ACK_VALUE), "0006 0004 00000001"),
            (ReturnPathMessage::SwitchoverAck, "0007 0000"),
        ] {
            assert_eq!(encoded(|out| message.encode(out)), bytes(stream));
            assert_eq!(decoded(stream), Ok(message));
        }
    }

    #[test]
    fn unknown_messages_are_refused_in_qemus_words() {
        let error = decoded("0009 0000").unwrap_err();
        assert_eq!(error, WireError::UnknownMessage { offset: 0, kind: 9, length: 0 });
        let text = "Received invalid message 0x0009 length 0x0000 (return path offset 0x0)";
        assert_eq!(error.to_string(), text);
        assert_eq!(decoded("0000 0000"), Err(WireError::UnknownMessage { offset: 0, kind: 0, length: 0 }));
    }

    #[test]
    fn every_payload_of_a_wrong_length_is_refused() {
        for (message, length, stream) in [
            ("SHUT", 0, "0001 0000"),
            ("PONG", 8, "0002 0008 0000000000000000"),
            ("REQ_PAGES_ID", 12, "0003 000c 0000000000200000 00001000"),
            ("REQ_PAGES_ID", 17, "0003 0011 0000000000200000 00001000 03'ram' 00"),
            ("REQ_PAGES_ID", 0xffff, "0003 ffff 0000000000200000 00001000 03'ram'"),
            ("REQ_PAGES", 13, "0004 000d 0000000000200000 00001000 00"),
            ("RECV_BITMAP", 0, "0005 0000"),
            ("RECV_BITMAP", 5, "0005 0005 03'ram' 0000000000000000"),
            ("RESUME_ACK", 0, "0006 0000"),
            ("SWITCHOVER_ACK", 4, "0007 0004 00000000"),
        ] {
            let error = WireError::MessageLength { offset: 0, message, length };
            assert_eq!(decoded(stream), Err(error), "{stream}");
        }
    }

    #[test]
    fn a_received_bitmap_is_bounded_whole_words_and_ended() {
        let refused = |offset, why| Err(WireError::Bitmap { offset, block: "ram".into(), why });
        let what = "a received bitmap";
        let error = WireError::TooLong { offset: 16, what, length: 24, limit: 16 };
        assert_eq!(decoded("0005 0004 03'ram' 0000000000000018"), Err(error));
        let error = refused(8, "size is no multiple of 8");
        assert_eq!(decoded("0005 0004 03'ram' 0000000000000009"), error);
        let error = refused(16, "the end mark is missing");
        assert_eq!(decoded("0005 0004 03'ram' 0000000000000000 0123456789abcdee"), error);
    }

    #[test]
    fn what_cannot_be_sent_leaves_no_half_message() {
        let bitmap = ReturnPathMessage::RecvBitmap { block: "ram".into(), bitmap: vec![0; 9] };
        let error =
            WireError::Unsendable { what: "a received bitmap", value: 9, range: "a multiple of 8 bytes" };
        assert_eq!(refused(|out| bitmap.encode(out)), error);
        assert!(matches!(
            refused(|out| request(Some(&"x".repeat(256))).encode(out)),
            WireError::Unsendable { value: 256, .. }
        ));
    }

    #[test]
    fn a_bitmap_has_a_bit_a_page_in_whole_words() {
        for (pages, size) in [(0, 0), (1, 8), (64, 8), (65, 16), (16384, 2048)] {
            assert_eq!(bitmap_bytes(pages), size);
        }
    }
}
