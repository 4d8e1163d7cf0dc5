//! mapped-ram: RAM at fixed offsets in a file. In the block list each entry is followed by a header, a bitmap, and the room
//! for the block's pages:
//!
//! | size | field |
//! |---|---|
//! | be32 | version 1 |
//! | be64 | page size, in bytes |
//! | be64 | file offset of the bitmap: directly behind this header |
//! | be64 | file offset of the pages: the bitmap's end, rounded up to 1 MiB |
//!
//! The bitmap has a bit for each page, in little-endian 64-bit words; a page without its bit is zero. Page `i` stands at the
//! pages' offset plus `i` pages. The next entry, or the end of the body, follows behind the room for all pages. Offsets are
//! the file's, wherever in it the stream begins.

use std::io::Read;

use crate::error::WireError;
use crate::input::Input;
use crate::output::Output;

/// Name of the capability in the configuration.
pub const CAPABILITY: &str = "mapped-ram";

/// The only version.
pub const VERSION: u32 = 1;

/// The header of one block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MappedBlock {
    /// Target page size, in bytes.
    pub page_size: u64,
    /// File offset of the bitmap.
    pub bitmap_offset: u64,
    /// File offset of page 0.
    pub pages_offset: u64,
}

impl MappedBlock {
    /// Reads the header of the block `name`. Refuses other versions. The offsets aren't checked.
    pub fn decode<R: Read>(input: &mut Input<R>, name: &str) -> Result<Self, WireError> {
        let offset = input.offset();
        if input.reading("a mapped-ram header").be32()? != VERSION {
            let (name, why) = (name.to_owned(), "its mapped-ram header is of another version than 1");
            return Err(WireError::BlockList { offset, name, why });
        }
        let (page_size, bitmap_offset, pages_offset) = (input.be64()?, input.be64()?, input.be64()?);
        Ok(MappedBlock { page_size, bitmap_offset, pages_offset })
    }

    /// Writes the header.
    pub fn encode(&self, out: &mut Output) {
        out.be32(VERSION);
        for word in [self.page_size, self.bitmap_offset, self.pages_offset] {
            out.be64(word);
        }
    }
}

/// Size of the bitmap of a block of so many pages, in bytes: whole 64-bit words.
pub fn bitmap_length(pages: u64) -> u64 {
    pages.div_ceil(64).saturating_mul(8)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{bytes, encoded, input};

    #[test]
    fn a_header_has_its_28_bytes() {
        let block = MappedBlock { page_size: 0x1000, bitmap_offset: 0x8c, pages_offset: 0x10_0000 };
        let stream = bytes("00000001 0000000000001000 000000000000008c 0000000000100000");
        let written = encoded(|out| {
            block.encode(out);
            Ok(())
        });
        assert_eq!(written, stream);
        assert_eq!(MappedBlock::decode(&mut input(&stream), "ram"), Ok(block));
    }

    #[test]
    fn other_versions_are_refused_with_the_blocks_name() {
        let stream = bytes("00000002 0000000000001000");
        let error = MappedBlock::decode(&mut input(&stream), "ram").unwrap_err();
        let why = "its mapped-ram header is of another version than 1";
        assert_eq!(error, WireError::BlockList { offset: 0, name: "ram".into(), why });
    }

    #[test]
    fn bitmaps_are_whole_words() {
        assert_eq!([0, 1, 64, 65, 16384].map(bitmap_length), [0, 8, 8, 16, 2048]);
    }
}
