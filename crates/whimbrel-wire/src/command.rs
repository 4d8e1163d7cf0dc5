//! Commands: what the source tells the destination between sections.
//!
//! ```text
//! 08  be16 command  be16 payload length  payload
//! ```
//!
//! | id | command | payload |
//! |---|---|---|
//! | 1 | OPEN_RETURN_PATH | – |
//! | 2 | PING | be32 value, answered by PONG |
//! | 3 | POSTCOPY_ADVISE | – or be64 page sizes, be64 target page size |
//! | 4 | POSTCOPY_LISTEN | – |
//! | 5 | POSTCOPY_RUN | – |
//! | 6 | POSTCOPY_RAM_DISCARD | u8 0, pstr block, u8 0, 1–12 × (be64 start, be64 length) |
//! | 7 | PACKAGED | be32 size; `size` bytes follow the command, uncounted |
//! | 8 | ENABLE_COLO | – |
//! | 9 | POSTCOPY_RESUME | – |
//! | 10 | RECV_BITMAP | pstr block |
//! | 11 | SWITCHOVER_START | – (10.0 on) |
//!
//! Whether a command may come in the present state is not decided here.

use std::io::Read;

use crate::error::WireError;
use crate::input::Input;
use crate::output::Output;

/// Most ranges in one [`Command::PostcopyRamDiscard`]; more go into further commands.
pub const MAX_DISCARD_RANGES: usize = 12;

/// Largest package accepted, in bytes: it is held in memory before it is executed.
pub const MAX_PACKAGE: u32 = 256 << 20;

const OPEN_RETURN_PATH: u16 = 1;
const PING: u16 = 2;
const POSTCOPY_ADVISE: u16 = 3;
const POSTCOPY_LISTEN: u16 = 4;
const POSTCOPY_RUN: u16 = 5;
const POSTCOPY_RAM_DISCARD: u16 = 6;
const PACKAGED: u16 = 7;
const ENABLE_COLO: u16 = 8;
const POSTCOPY_RESUME: u16 = 9;
const RECV_BITMAP: u16 = 10;
const SWITCHOVER_START: u16 = 11;

const DISCARD_VERSION: u8 = 0;
const RANGE_BYTES: u16 = 16;

/// A command with its payload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Answer on the return path from now on.
    OpenReturnPath,
    /// Answer PONG with the same value, once everything before has been loaded.
    Ping(u32),
    /// Post-copy may follow. The sizes are there iff RAM may be post-copied (not only dirty bitmaps).
    PostcopyAdvise(Option<PageSizes>),
    /// Register RAM with userfaultfd and take page records from a thread of its own.
    PostcopyListen,
    /// Start the guest.
    PostcopyRun,
    /// Drop these ranges: the source has dirtied them since it sent them.
    PostcopyRamDiscard {
        /// RAM block.
        block: String,
        /// 1 to [`MAX_DISCARD_RANGES`] ranges.
        ranges: Vec<DiscardRange>,
    },
    /// The next `length` bytes are elements to be executed once all have arrived.
    Packaged {
        /// At most [`MAX_PACKAGE`].
        length: u32,
    },
    /// Prepare for COLO.
    EnableColo,
    /// Post-copy resumes on this connection.
    PostcopyResume,
    /// Send the bitmap of the pages of this block that have arrived.
    RecvBitmap {
        /// RAM block.
        block: String,
    },
    /// The source has stopped its guest; what is left follows.
    SwitchoverStart,
}

/// Page sizes that both sides of a post-copy must agree on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PageSizes {
    /// Bitwise or of the page sizes of all RAM blocks that migrate, in bytes.
    pub summary: u64,
    /// Target page size, in bytes.
    pub target: u64,
}

/// A range inside a RAM block, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiscardRange {
    /// Offset in the block.
    pub start: u64,
    /// Length.
    pub length: u64,
}

impl Command {
    /// The command's name.
    pub fn name(&self) -> &'static str {
        name(self.id())
    }

    /// Reads number, payload length and payload; the type byte has been read.
    pub(crate) fn decode<R: Read>(input: &mut Input<R>) -> Result<Self, WireError> {
        let offset = input.offset();
        let id = input.reading("a command").be16()?;
        let length = input.be16()?;
        let input = input.reading("a command's payload");
        let fixed = |expected: u16, command: Command| {
            if length == expected { Ok(command) } else { Err(wrong_length(offset, id, length)) }
        };
        match id {
            OPEN_RETURN_PATH => fixed(0, Command::OpenReturnPath),
            PING if length == 4 => input.be32().map(Command::Ping),
            POSTCOPY_ADVISE if length == 0 => Ok(Command::PostcopyAdvise(None)),
            POSTCOPY_ADVISE if length == 16 => {
                let (summary, target) = (input.be64()?, input.be64()?);
                Ok(Command::PostcopyAdvise(Some(PageSizes { summary, target })))
            }
            POSTCOPY_LISTEN => fixed(0, Command::PostcopyListen),
            POSTCOPY_RUN => fixed(0, Command::PostcopyRun),
            POSTCOPY_RAM_DISCARD => decode_discard(input, offset, length),
            PACKAGED if length == 4 => decode_packaged(input),
            ENABLE_COLO => fixed(0, Command::EnableColo),
            POSTCOPY_RESUME => fixed(0, Command::PostcopyResume),
            RECV_BITMAP if length > 0 => {
                let name_length = input.u8()?;
                if length != u16::from(name_length).saturating_add(1) {
                    return Err(wrong_length(offset, id, length));
                }
                input.text(usize::from(name_length)).map(|block| Command::RecvBitmap { block })
            }
            SWITCHOVER_START => fixed(0, Command::SwitchoverStart),
            PING | POSTCOPY_ADVISE | PACKAGED | RECV_BITMAP => Err(wrong_length(offset, id, length)),
            command => Err(WireError::UnknownCommand { offset, command, length }),
        }
    }

    /// Writes number, payload length and payload; the type byte is the element's.
    pub(crate) fn encode(&self, out: &mut Output) -> Result<(), WireError> {
        let mut payload = Output::new();
        match self {
            Command::Ping(value) => payload.be32(*value),
            Command::PostcopyAdvise(Some(sizes)) => {
                payload.be64(sizes.summary);
                payload.be64(sizes.target);
            }
            Command::PostcopyRamDiscard { block, ranges } => encode_discard(&mut payload, block, ranges)?,
            Command::Packaged { length } if *length > MAX_PACKAGE => {
                let (what, value) = ("a package", u64::from(*length));
                return Err(WireError::Unsendable { what, value, range: "at most 256 MiB" });
            }
            Command::Packaged { length } => payload.be32(*length),
            Command::RecvBitmap { block } => payload.pstr(block)?,
            Command::OpenReturnPath
            | Command::PostcopyAdvise(None)
            | Command::PostcopyListen
            | Command::PostcopyRun
            | Command::EnableColo
            | Command::PostcopyResume
            | Command::SwitchoverStart => {}
        }
        out.be16(self.id());
        // The longest payload, a discard, has 3 + 255 + 12 × 16 bytes.
        out.be16(u16::try_from(payload.len()).unwrap_or(u16::MAX));
        out.bytes(payload.as_slice());
        Ok(())
    }

    fn id(&self) -> u16 {
        match self {
            Command::OpenReturnPath => OPEN_RETURN_PATH,
            Command::Ping(_) => PING,
            Command::PostcopyAdvise(_) => POSTCOPY_ADVISE,
            Command::PostcopyListen => POSTCOPY_LISTEN,
            Command::PostcopyRun => POSTCOPY_RUN,
            Command::PostcopyRamDiscard { .. } => POSTCOPY_RAM_DISCARD,
            Command::Packaged { .. } => PACKAGED,
            Command::EnableColo => ENABLE_COLO,
            Command::PostcopyResume => POSTCOPY_RESUME,
            Command::RecvBitmap { .. } => RECV_BITMAP,
            Command::SwitchoverStart => SWITCHOVER_START,
        }
    }
}

fn decode_packaged<R: Read>(input: &mut Input<R>) -> Result<Command, WireError> {
    let offset = input.offset();
    let length = input.be32()?;
    if length > MAX_PACKAGE {
        let (length, limit) = (length.into(), MAX_PACKAGE.into());
        return Err(WireError::TooLong { offset, what: "a package", length, limit });
    }
    Ok(Command::Packaged { length })
}

/// `offset` is the command's, `length` its payload length.
fn decode_discard<R: Read>(input: &mut Input<R>, offset: u64, length: u16) -> Result<Command, WireError> {
    let wrong_length = || wrong_length(offset, POSTCOPY_RAM_DISCARD, length);
    if length < 3 {
        return Err(wrong_length());
    }
    let at = input.offset();
    if input.u8()? != DISCARD_VERSION {
        return Err(WireError::Discard { offset: at, why: "unknown version" });
    }
    let name_length = input.u8()?;
    let ranges_length =
        length.checked_sub(u16::from(name_length).saturating_add(3)).ok_or_else(wrong_length)?;
    let count = usize::from(ranges_length / RANGE_BYTES);
    if ranges_length % RANGE_BYTES != 0 || count == 0 || count > MAX_DISCARD_RANGES {
        return Err(wrong_length());
    }
    let block = input.text(usize::from(name_length))?;
    let at = input.offset();
    if input.u8()? != 0 {
        return Err(WireError::Discard { offset: at, why: "the block's name isn't ended by a zero" });
    }
    let mut ranges = Vec::with_capacity(count);
    for _ in 0..count {
        let at = input.offset();
        let (start, length) = (input.be64()?, input.be64()?);
        if start.checked_add(length).is_none() {
            return Err(WireError::Discard { offset: at, why: "the range's end overflows" });
        }
        ranges.push(DiscardRange { start, length });
    }
    Ok(Command::PostcopyRamDiscard { block, ranges })
}

fn encode_discard(payload: &mut Output, block: &str, ranges: &[DiscardRange]) -> Result<(), WireError> {
    if ranges.is_empty() || ranges.len() > MAX_DISCARD_RANGES {
        let value = ranges.len() as u64;
        return Err(WireError::Unsendable { what: "a RAM discard", value, range: "1 to 12 ranges" });
    }
    payload.u8(DISCARD_VERSION);
    payload.pstr(block)?;
    payload.u8(0);
    for range in ranges {
        payload.be64(range.start);
        payload.be64(range.length);
    }
    Ok(())
}

fn wrong_length(offset: u64, id: u16, length: u16) -> WireError {
    WireError::CommandLength { offset, command: name(id), length }
}

fn name(id: u16) -> &'static str {
    match id {
        OPEN_RETURN_PATH => "OPEN_RETURN_PATH",
        PING => "PING",
        POSTCOPY_ADVISE => "POSTCOPY_ADVISE",
        POSTCOPY_LISTEN => "POSTCOPY_LISTEN",
        POSTCOPY_RUN => "POSTCOPY_RUN",
        POSTCOPY_RAM_DISCARD => "POSTCOPY_RAM_DISCARD",
        PACKAGED => "PACKAGED",
        ENABLE_COLO => "ENABLE_COLO",
        POSTCOPY_RESUME => "POSTCOPY_RESUME",
        RECV_BITMAP => "RECV_BITMAP",
        SWITCHOVER_START => "SWITCHOVER_START",
        _ => "unknown",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{bytes, encoded, input, refused};

    fn decoded(stream: &str) -> Result<Command, WireError> {
        let stream = bytes(stream);
        let mut input = input(&stream);
        let command = Command::decode(&mut input)?;
        assert!(input.at_end()?, "bytes left after {command:?}");
        Ok(command)
    }

    fn discard(ranges: usize) -> Command {
        let ranges = vec![DiscardRange { start: 0x1000, length: 0x2000 }; ranges];
        Command::PostcopyRamDiscard { block: "ram".into(), ranges }
    }

    #[test]
    fn every_command_has_its_bytes() {
        let sizes = PageSizes { summary: 0x20_1000, target: 0x1000 };
        for (command, stream) in [
            (Command::OpenReturnPath, "0001 0000"),
            (Command::Ping(0x77), "0002 0004 00000077"),
            (Command::PostcopyAdvise(None), "0003 0000"),
            (Command::PostcopyAdvise(Some(sizes)), "0003 0010 0000000000201000 0000000000001000"),
            (Command::PostcopyListen, "0004 0000"),
            (Command::PostcopyRun, "0005 0000"),
            (discard(1), "0006 0016 00 03'ram' 00 0000000000001000 0000000000002000"),
            (Command::Packaged { length: 0x1000_0000 }, "0007 0004 10000000"),
            (Command::EnableColo, "0008 0000"),
            (Command::PostcopyResume, "0009 0000"),
            (Command::RecvBitmap { block: "ram".into() }, "000a 0004 03'ram'"),
            (Command::SwitchoverStart, "000b 0000"),
        ] {
            assert_eq!(encoded(|out| command.encode(out)), bytes(stream), "{}", command.name());
            assert_eq!(decoded(stream), Ok(command));
        }
        let longest = encoded(|out| discard(MAX_DISCARD_RANGES).encode(out));
        assert_eq!(Command::decode(&mut input(&longest)), Ok(discard(MAX_DISCARD_RANGES)));
    }

    #[test]
    fn unknown_commands_are_refused_in_qemus_words() {
        for (command, stream) in [(0, "0000 0000"), (12, "000c 0000"), (0xffff, "ffff 0000")] {
            let error = decoded(stream).unwrap_err();
            assert_eq!(error, WireError::UnknownCommand { offset: 0, command, length: 0 });
        }
        let error = decoded("000c 0010").unwrap_err();
        assert_eq!(error.to_string(), "MIG_CMD 0xc unknown (len 0x10) (stream offset 0x0)");
    }

    #[test]
    fn every_payload_of_a_wrong_length_is_refused() {
        let ranges = "0000000000001000 0000000000001000 ".repeat(13);
        for (command, length, stream) in [
            ("OPEN_RETURN_PATH", 1, "0001 0001 00".to_owned()),
            ("PING", 5, "0002 0005 0000000000".to_owned()),
            ("PING", 0, "0002 0000".to_owned()),
            ("POSTCOPY_ADVISE", 8, "0003 0008 0000000000001000".to_owned()),
            ("POSTCOPY_LISTEN", 4, "0004 0004 00000000".to_owned()),
            ("POSTCOPY_RUN", 1, "0005 0001 00".to_owned()),
            ("POSTCOPY_RAM_DISCARD", 2, "0006 0002 0000".to_owned()),
            ("POSTCOPY_RAM_DISCARD", 6, "0006 0006 00 03'ram' 00".to_owned()),
            ("POSTCOPY_RAM_DISCARD", 3, "0006 0003 00 ff 00".to_owned()),
            ("POSTCOPY_RAM_DISCARD", 23, "0006 0017 00 03'ram' 00".to_owned()),
            ("POSTCOPY_RAM_DISCARD", 214, format!("0006 00d6 00 03'ram' 00 {ranges}")),
            ("PACKAGED", 0, "0007 0000".to_owned()),
            ("PACKAGED", 8, "0007 0008 0000000000000000".to_owned()),
            ("ENABLE_COLO", 1, "0008 0001 00".to_owned()),
            ("POSTCOPY_RESUME", 1, "0009 0001 00".to_owned()),
            ("RECV_BITMAP", 0, "000a 0000".to_owned()),
            ("RECV_BITMAP", 5, "000a 0005 03'ram' 00".to_owned()),
            ("SWITCHOVER_START", 1, "000b 0001 00".to_owned()),
        ] {
            let error = WireError::CommandLength { offset: 0, command, length };
            assert_eq!(decoded(&stream), Err(error), "{stream}");
        }
    }

    #[test]
    fn malformed_discards_are_refused_where_the_fault_stands() {
        let range = "0000000000001000 0000000000002000";
        let refused = |offset, why| Err(WireError::Discard { offset, why });
        assert_eq!(decoded(&format!("0006 0016 01 03'ram' 00 {range}")), refused(4, "unknown version"));
        let error = refused(9, "the block's name isn't ended by a zero");
        assert_eq!(decoded(&format!("0006 0016 00 03'ram' 01 {range}")), error);
        let error = refused(10, "the range's end overflows");
        assert_eq!(decoded("0006 0016 00 03'ram' 00 ffffffffffffffff 0000000000000001"), error);
    }

    #[test]
    fn a_package_is_bounded_both_ways() {
        let what = "a package";
        let error = WireError::TooLong { offset: 4, what, length: 0xffff_ffff, limit: 0x1000_0000 };
        assert_eq!(decoded("0007 0004 ffffffff"), Err(error));
        let error = WireError::Unsendable { what, value: 0xffff_ffff, range: "at most 256 MiB" };
        assert_eq!(refused(|out| Command::Packaged { length: u32::MAX }.encode(out)), error);
    }

    #[test]
    fn a_discard_of_no_ranges_or_of_too_many_is_not_sent() {
        for ranges in [0, 13] {
            let error = WireError::Unsendable {
                what: "a RAM discard",
                value: ranges as u64,
                range: "1 to 12 ranges",
            };
            assert_eq!(refused(|out| discard(ranges).encode(out)), error);
        }
    }
}
