//! Every byte of QEMU's migration stream that is not a device's own state: the container (header, configuration,
//! sections, commands), RAM records and the return path, for reading and for writing.
//!
//! Encode and decode stand next to each other, one file per family:
//!
//! | module | bytes |
//! |---|---|
//! | [`header`] | magic and version of a stream |
//! | [`configuration`] | machine type name, page size, capabilities, uuid |
//! | [`element`] | the elements between header and end: sections, commands, end of stream |
//! | [`footer`] | the end of a section that nobody here can read |
//! | [`subsection`] | optional parts inside a device's state, and the rule that finds them |
//! | [`vmdescription`] | the JSON text after the end of stream |
//! | [`command`] | source → destination commands inside the stream |
//! | [`return_path`] | destination → source messages |
//! | [`ram`] | block list and page records of the `ram` section |
//! | [`qemu_texts`] | the error texts and event names that clients of QEMU depend on |
//!
//! The crate does no I/O of its own beyond [`std::io::Read`] through [`Input`], knows no clock and no thread, and
//! decides nothing: whether an element may come now is for the state machines above it. Whatever the peer sends, no
//! function here panics, and none allocates more than its peer has really sent, or than a stated limit.

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

pub mod command;
pub mod configuration;
pub mod element;
mod error;
pub mod footer;
pub mod header;
pub mod input;
mod output;
pub mod qemu_texts;
pub mod ram;
pub mod return_path;
pub mod subsection;
#[cfg(test)]
mod testing;
pub mod vmdescription;

pub use command::Command;
pub use configuration::Configuration;
pub use element::{Element, SectionHeader};
pub use error::{IoError, WireError};
pub use input::Input;
pub use output::Output;
pub use ram::{BlockRef, RamBlockEntry, RamRecord, SetupLayout};
pub use return_path::ReturnPathMessage;
pub use subsection::Subsection;
