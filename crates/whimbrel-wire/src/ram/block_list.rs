//! The block list: which blocks of RAM the sender has, in the setup body after [`RamRecord::MemSize`].

use std::io::Read;

use super::{FLAG_MASK, RamRecord};
use crate::error::WireError;
use crate::input::Input;
use crate::output::Output;

/// Most blocks accepted in a block list. A q35 machine with default devices has about ten.
pub const MAX_BLOCKS: usize = 1024;

/// One entry of the block list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RamBlockEntry {
    /// The block's name.
    pub name: String,
    /// Bytes in use.
    pub used_length: u64,
    /// Page size of its backing, where [`SetupLayout::large_page_blocks`] has it.
    pub page_size: Option<u64>,
    /// Guest-physical address, where [`SetupLayout::guest_addresses`] says so.
    pub guest_address: Option<u64>,
}

/// Which optional words a block list has. Nothing on the wire says so: both sides must know.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SetupLayout {
    /// Names of the blocks that carry their page size: with post-copy advised and on, those whose page size isn't the
    /// normal one. Empty otherwise.
    pub large_page_blocks: Vec<String>,
    /// Each block carries its guest-physical address: with `x-ignore-shared` on.
    pub guest_addresses: bool,
}

/// Reads the block list that follows [`RamRecord::MemSize`], until the lengths add up to `total`:
///
/// ```text
/// pstr name  be64 used length  [be64 page size]  [be64 guest-physical address]
/// ```
///
/// Refuses lengths that aren't multiples of the page size or add up to more than `total`, names that occur twice, and
/// more than [`MAX_BLOCKS`] blocks.
pub fn decode_block_list<R: Read>(
    input: &mut Input<R>,
    total: u64,
    layout: &SetupLayout,
) -> Result<Vec<RamBlockEntry>, WireError> {
    let mut list = BlockList::new(total);
    let mut blocks = Vec::new();
    while let Some(mut block) = list.next(input)? {
        if layout.large_page_blocks.contains(&block.name) {
            block.page_size = Some(input.reading("a RAM block's page size").be64()?);
        }
        if layout.guest_addresses {
            block.guest_address = Some(input.reading("a RAM block's guest address").be64()?);
        }
        blocks.push(block);
    }
    Ok(blocks)
}

/// The block list, entry by entry: for readers who find out on the way what follows an entry.
#[derive(Debug)]
pub struct BlockList {
    /// Bytes of RAM that entries are still missing for.
    left: u64,
    names: Vec<String>,
}

impl BlockList {
    /// The list of blocks of `total` bytes, of which none has been read.
    pub fn new(total: u64) -> Self {
        BlockList { left: total, names: Vec::new() }
    }

    /// The next entry's name and length; `None` once the lengths add up. The caller reads what else the entry has.
    ///
    /// # Errors
    /// As [`decode_block_list`].
    pub fn next<R: Read>(&mut self, input: &mut Input<R>) -> Result<Option<RamBlockEntry>, WireError> {
        if self.left == 0 {
            return Ok(None);
        }
        let offset = input.offset();
        let name = input.reading("a RAM block's name").pstr()?;
        let used_length = input.reading("a RAM block's length").be64()?;
        let refuse = |why| WireError::BlockList { offset, name: name.clone(), why };
        if self.names.len() >= MAX_BLOCKS {
            return Err(refuse("too many blocks"));
        }
        if self.names.contains(&name) {
            return Err(refuse("the name occurs twice"));
        }
        if used_length & FLAG_MASK != 0 {
            return Err(refuse("the length is no multiple of the page size"));
        }
        self.left = self
            .left
            .checked_sub(used_length)
            .ok_or_else(|| refuse("the lengths add up to more than the total"))?;
        self.names.push(name.clone());
        Ok(Some(RamBlockEntry { name, used_length, page_size: None, guest_address: None }))
    }
}

/// Writes the block list with the word that announces it, and returns the total. The optional words are written where
/// the entries have them. Fails on what [`decode_block_list`] would refuse for its numbers; nothing is written then.
pub fn encode_block_list(out: &mut Output, blocks: &[RamBlockEntry]) -> Result<u64, WireError> {
    let start = out.len();
    encode_block_list_unguarded(out, blocks).inspect_err(|_| out.truncate(start))
}

fn encode_block_list_unguarded(out: &mut Output, blocks: &[RamBlockEntry]) -> Result<u64, WireError> {
    let mut total: u64 = 0;
    for block in blocks {
        let unsendable = WireError::Unsendable {
            what: "a RAM block's length",
            value: block.used_length,
            range: "whole pages, 2^64 bytes in all",
        };
        total = match total.checked_add(block.used_length) {
            Some(sum) if block.used_length & FLAG_MASK == 0 => sum,
            _ => return Err(unsendable),
        };
    }
    RamRecord::MemSize { total }.encode(out)?;
    for block in blocks {
        out.pstr(&block.name)?;
        out.be64(block.used_length);
        for word in [block.page_size, block.guest_address].into_iter().flatten() {
            out.be64(word);
        }
    }
    Ok(total)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{bytes, encoded, input, refused};

    fn entry(name: &str, used_length: u64) -> RamBlockEntry {
        RamBlockEntry { name: name.into(), used_length, page_size: None, guest_address: None }
    }

    fn listed(stream: &str, layout: &SetupLayout) -> Result<Vec<RamBlockEntry>, WireError> {
        let stream = bytes(stream);
        let mut input = input(&stream);
        let Ok(RamRecord::MemSize { total }) = RamRecord::decode(&mut input) else {
            panic!("not a block list: {stream:02x?}")
        };
        let blocks = decode_block_list(&mut input, total, layout)?;
        assert!(input.at_end()?, "bytes left after {blocks:?}");
        Ok(blocks)
    }

    #[test]
    fn a_block_list_is_its_total_names_and_lengths() {
        let blocks = vec![entry("microvm.ram", 0x400_0000), entry("pc.bios", 0x2_0000)];
        let stream = "0000000004020004 0b'microvm.ram' 0000000004000000 07'pc.bios' 0000000000020000";
        assert_eq!(encoded(|out| encode_block_list(out, &blocks).map(drop)), bytes(stream));
        assert_eq!(encode_block_list(&mut Output::new(), &blocks), Ok(0x402_0000));
        assert_eq!(listed(stream, &SetupLayout::default()), Ok(blocks));
        assert_eq!(listed("0000000000000004", &SetupLayout::default()), Ok(vec![]));
    }

    #[test]
    fn optional_words_come_in_order_where_the_layout_has_them() {
        let huge = RamBlockEntry { page_size: Some(0x20_0000), ..entry("m0", 0x400_0000) };
        let layout = SetupLayout { large_page_blocks: vec!["m0".into()], guest_addresses: false };
        let blocks = vec![huge.clone(), entry("bios", 0x1000)];
        let stream = "0000000004001004 02'm0' 0000000004000000 0000000000200000 04'bios' 0000000000001000";
        assert_eq!(encoded(|out| encode_block_list(out, &blocks).map(drop)), bytes(stream));
        assert_eq!(listed(stream, &layout), Ok(blocks));
        let blocks = vec![RamBlockEntry { guest_address: Some(0x1_0000_0000), ..huge }];
        let stream = "0000000004000004 02'm0' 0000000004000000 0000000000200000 0000000100000000";
        assert_eq!(encoded(|out| encode_block_list(out, &blocks).map(drop)), bytes(stream));
        assert_eq!(listed(stream, &SetupLayout { guest_addresses: true, ..layout }), Ok(blocks));
    }

    #[test]
    fn malformed_block_lists_are_refused_at_the_block() {
        let layout = SetupLayout::default();
        let refused = |offset, name: &str, why| Err(WireError::BlockList { offset, name: name.into(), why });
        let stream = "0000000000001004 01'a' 0000000000002000";
        let error = refused(8, "a", "the lengths add up to more than the total");
        assert_eq!(listed(stream, &layout), error);
        let stream = "0000000000002004 01'a' 0000000000001000 01'a' 0000000000001000";
        assert_eq!(listed(stream, &layout), refused(18, "a", "the name occurs twice"));
        let stream = "0000000000002004 01'a' 0000000000001800";
        let error = refused(8, "a", "the length is no multiple of the page size");
        assert_eq!(listed(stream, &layout), error);
        let mut many = Output::new();
        RamRecord::MemSize { total: 0x1000 }.encode(&mut many).unwrap();
        for index in 0..=MAX_BLOCKS {
            many.pstr(&format!("{index:04}")).unwrap();
            many.be64(0);
        }
        let mut input = input(many.as_slice());
        input.skip(8).unwrap();
        let offset = 8 + 13 * MAX_BLOCKS as u64;
        let error = WireError::BlockList { offset, name: "1024".into(), why: "too many blocks" };
        assert_eq!(decode_block_list(&mut input, 0x1000, &layout), Err(error));
    }

    #[test]
    fn block_lists_that_would_not_be_read_are_not_sent() {
        for blocks in [vec![entry("a", 0x1001)], vec![entry("a", !0xfff), entry("b", 0x1000)]] {
            let error = refused(|out| encode_block_list(out, &blocks).map(drop));
            assert!(matches!(error, WireError::Unsendable { what: "a RAM block's length", .. }));
        }
        let blocks = [entry(&"x".repeat(256), 0x1000)];
        let error = refused(|out| encode_block_list(out, &blocks).map(drop));
        assert!(matches!(error, WireError::Unsendable { what: "a name", .. }));
    }
}
