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
