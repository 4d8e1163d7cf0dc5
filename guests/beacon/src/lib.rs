//! The test guest `beacon`, and the host's side of it.
//!
//! The guest is a small PVH kernel that makes every fault of a live migration visible: it beats, dirties memory with
//! pages that can be recomputed, keeps values in every register and counts its interrupts. This crate embeds the built
//! guest ([`ELF`]), writes its command line ([`CommandLine`]), reads its control block ([`control`]), recomputes its
//! whole memory ([`check`]) and parses its heartbeat ([`heartbeat`]). A second, tiny guest tells what CPU it sees ([`cpu_dump`]). It never starts a machine: that is its user's part.

pub mod check;
pub mod command_line;
pub mod control;
pub mod cpu_dump;
mod error;
pub mod heartbeat;
mod memory;
pub mod page;

pub use command_line::CommandLine;
pub use cpu_dump::CpuDump;
pub use error::Error;
pub use memory::{DumpFile, DumpSlice, GuestMemory};

include!(concat!(env!("OUT_DIR"), "/built.rs"));
