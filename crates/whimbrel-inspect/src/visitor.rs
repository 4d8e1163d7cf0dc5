//! What wants to see pages while a stream is walked.

use crate::{Block, Fault};

/// Sees the RAM of a stream in the order of the stream.
pub trait PageVisitor {
    /// A block was announced; it is number `index` from now on.
    ///
    /// # Errors
    /// End the walk.
    fn block(&mut self, index: usize, block: &Block) -> Result<(), Fault> {
        let _ = (index, block);
        Ok(())
    }

    /// Whether it wants the bytes of this block's pages, not only where they stand.
    fn wants_bytes(&self, index: usize) -> bool {
        let _ = index;
        false
    }

    /// A page came.
    ///
    /// # Errors
    /// End the walk.
    fn page(&mut self, page: Page<'_>) -> Result<(), Fault> {
        let _ = page;
        Ok(())
    }
}

/// Nobody wants to see the pages.
impl PageVisitor for () {}

/// A page in the stream.
#[derive(Debug, Clone, Copy)]
pub struct Page<'a> {
    /// Its block's number.
    pub block: usize,
    /// Its offset in the block, in bytes.
    pub offset: u64,
    /// The page size, in bytes.
    pub size: u64,
    /// Where its content stands in the stream; its record, if it has none.
    pub at: u64,
    /// What it holds.
    pub content: Content<'a>,
}

/// What a page holds.
#[derive(Debug, Clone, Copy)]
pub enum Content<'a> {
    /// Its bytes. Empty where they were passed over because nobody wanted them.
    Bytes(&'a [u8]),
    /// One byte, all over: 0, if the sender is an honest one.
    Filled(u8),
    /// The difference to what it held.
    Xbzrle(&'a [u8]),
}
