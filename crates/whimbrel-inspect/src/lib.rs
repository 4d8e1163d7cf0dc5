//! Reads migration streams that somebody saved: of any machine and architecture, by QEMU or by whimbrel, from a file, a
//! pipe or memory.
//!
//! | module | does |
//! |---|---|
//! | [`inspect`] | walks a stream from its first byte to its last, and reports what it holds and what is wrong with it |
//! | [`return_path`] | the same for what a destination answered |
//! | [`description`] | the stream's own description of its device state |
//! | [`fields`] | device state by that description, checked against it byte for byte |
//! | [`extract`] | one block of RAM, as it is at the end of the stream |
//! | [`compare`] | what differs between two streams: fields and pages |
//! | [`its`] | what the tables of an Arm ITS say, in RAM |
//! | [`text`], [`json`] | a report for people, and for programs |
//!
//! Nothing here knows a device but the ITS, whose tables say where interrupts go: what a stream doesn't say of itself is shown as
//! bytes. RAM is not kept in memory; device state is, up to a bound. Whatever the bytes are, nothing here panics, and none of them is
//! taken for granted.
//!
//! ```no_run
//! let file = whimbrel_inspect::FileStream::new(std::fs::File::open("guest.mig")?, 0)?;
//! let report = whimbrel_inspect::inspect(file, 0, &mut ());
//! print!("{}", whimbrel_inspect::text::report(&report, whimbrel_inspect::text::Detail::Fields));
//! # Ok::<(), std::io::Error>(())
//! ```

#![forbid(unsafe_code)]
#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects,
        clippy::cast_possible_truncation
    )
)]

pub mod compare;
pub mod description;
pub mod extract;
mod fault;
pub mod fields;
mod index;
pub mod its;
pub mod json;
mod pages;
pub mod report;
mod return_path;
mod stream;
pub mod text;
mod timed;
pub mod visitor;
mod walk;

pub use fault::Fault;
pub use pages::{Block, PageSet};
pub use report::Report;
pub use return_path::return_path;
pub use stream::{FileStream, PipeStream, ReadAt, Stream};
pub use timed::{Recorded, TimedStream};
pub use walk::inspect;
