//! RAM as a live-state handler: [`source`] sends what is dirty while the guest runs, [`destination`] puts it in place.

mod destination;
mod source;

pub(crate) use destination::RamDestination;
pub(crate) use source::{RamSource, Turn};

use crate::memory::RamBlock;

/// Blocks in stream order: the longest first, as QEMU lists them.
fn stream_order(blocks: &[RamBlock]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..blocks.len()).collect();
    order.sort_by_key(|&index| std::cmp::Reverse(blocks[index].len()));
    order
}
