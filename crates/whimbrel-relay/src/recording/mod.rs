//! The recording: one file, everything that passed, in the order in which it passed.
//!
//! All numbers are big-endian. The file begins with
//!
//! | offset | size | value |
//! |---|---|---|
//! | 0 | 8 | `whimrec` and a line feed |
//! | 8 | be32 | version: 1 |
//! | 12 | be32 | 0 |
//! | 16 | be64 | when it began: milliseconds since 1970 |
//!
//! and goes on with records, each
//!
//! | offset | size | value |
//! |---|---|---|
//! | 0 | u8 | 1 a connection opens, 2 data, 3 a direction ends, 4 a connection is cut by the relay, 5 the recording is whole |
//! | 1 | u8 | direction: 0 from source to destination, 1 back; 0 for 1, 4 and 5 |
//! | 2 | be16 | the connection: counted from 0 in the order in which they open; 0 for 5 |
//! | 4 | be32 | bytes that follow, at most 1 MiB; 0 for all but 2 |
//! | 8 | be64 | when: microseconds since the beginning, never less than in the record before |
//! | 16 | | the bytes |
//!
//! What is recorded is what was passed on, when it was passed on, as it was passed on: what a rule cut off is not there, and
//! a byte that it corrupted is. Each record is written at once, nothing is kept back; a disk that is slower than the link slows
//! the link. A recording without record 5 breaks off where its relay was ended, and is read as far as it goes.
//!
//! The writer never waits for anything but the file. The reader checks everything, and allocates a record at a time.

mod places;
mod reader;
mod stream;
mod writer;

pub use places::Places;
pub use reader::{Reader, Record, What};
pub use stream::Stream;
pub use writer::Recorder;

/// What every recording begins with.
pub const MAGIC: &[u8; 8] = b"whimrec\n";
const VERSION: u32 = 1;
/// Most bytes of one record.
pub const MAX_DATA: usize = 1 << 20;
/// Bytes of a record before its data.
const HEADER: usize = 16;

const OPEN: u8 = 1;
const DATA: u8 = 2;
const END: u8 = 3;
const CUT: u8 = 4;
const WHOLE: u8 = 5;
