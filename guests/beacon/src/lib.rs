//! The test guest `beacon`, and the host's side of it.
//!
//! The guest is a small kernel (by PVH on x86-64, an arm64 Image on aarch64) that makes every fault of a live migration visible: it beats, dirties memory with
//! pages that can be recomputed, keeps values in every register and counts its interrupts. This crate embeds the built
//! guests ([`NATIVE`] is this machine's), writes its command line ([`CommandLine`]), reads its control block ([`control`]), recomputes its
//! whole memory ([`check`]) and parses its heartbeat ([`heartbeat`]). It never starts a machine: that is its user's part.

pub mod check;
pub mod command_line;
pub mod control;
mod error;
pub mod heartbeat;
mod memory;
pub mod page;

pub use command_line::CommandLine;
pub use error::Error;
pub use memory::{DumpFile, DumpSlice, GuestMemory};

/// A built guest, or why it could not be built and what to do about it.
pub type Built = Result<&'static [u8], &'static str>;

/// The guest for this program's own architecture.
pub const NATIVE: Built = if cfg!(target_arch = "aarch64") { AARCH64 } else { X86_64 };

include!(concat!(env!("OUT_DIR"), "/built.rs"));
