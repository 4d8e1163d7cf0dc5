//! Guest RAM as the engine sees it: named blocks over `vm-memory` regions.
//!
//! Guest RAM is never a `&[u8]`: the guest writes it at any time. It is read and written through volatile slices, or
//! handed to the kernel as iovecs.

mod block;
mod host_writes;

pub use block::{Piece, RamBlock, Region};
pub use host_writes::HostWrites;

/// Bytes of a target page, the unit of the stream and of every dirty bitmap.
pub const PAGE_SIZE: u64 = 4096;
