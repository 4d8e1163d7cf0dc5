//! The test guest `beacon`, and the host's side of it.
//!
//! The guest is a small PVH kernel that makes every fault of a live migration visible: it beats, dirties memory with
//! pages that can be recomputed, keeps values in every register and counts its interrupts. This crate embeds the built
//! guest ([`ELF`]), writes its command line ([`CommandLine`]), reads its control block , recomputes its
//! whole memory  and parses its heartbeat . It never starts a machine: that is its user's part.

pub mod command_line;

pub use command_line::CommandLine;

include!(concat!(env!("OUT_DIR"), "/built.rs"));
