//! The body of the `ram` section (instance 0, version 4): the block list, and records for pages.
//!
//! A body is a sequence of records, each beginning with a be64 word `value | flags`, and ends with an EOS word.
//!
//! | flag | record | after the word |
//! |---|---|---|
//! | `0x002` | zero page at offset `value` | block, u8 fill (0) |
//! | `0x004` | block list; `value` = total bytes | the blocks, see [`decode_block_list`] |
//! | `0x008` | page at offset `value` | block, the page's bytes |
//! | `0x010` | end of this body | – |
//! | `0x020` | with a page: its block is the one before | |
//! | `0x040` | page at offset `value`, XBZRLE | block, u8 1, be16 n, n bytes |
//! | `0x080` | RDMA hook | refused |
//! | `0x100` | page compressed by `compress` | refused |
//! | `0x200` | multifd barrier | – |
//!
//! "Block" is a pstr with the block's name, absent with `0x020`. Every channel remembers its last block across bodies:
//! [`LastBlock`].
//!
//! Page payload isn't touched here: [`RamRecord::decode`] stops where it begins. Offsets are not checked against the
//! block's length, which only its owner knows.

use std::io::Read;

use crate::error::WireError;
use crate::input::Input;
use crate::output::Output;

/// Name of the section.
pub const IDSTR: &str = "ram";
/// The only version there is.
pub const SECTION_VERSION: u32 = 4;

/// Size of the pages on the wire, in bytes: 4 KiB on x86-64 and on aarch64.
pub const TARGET_PAGE_SIZE: u64 = 4096;

/// Page of zeroes.
pub const FLAG_ZERO: u64 = 0x002;
/// Block list.
pub const FLAG_MEM_SIZE: u64 = 0x004;
/// Page as it is.
pub const FLAG_PAGE: u64 = 0x008;
/// End of the body.
pub const FLAG_EOS: u64 = 0x010;
/// The page's block is that of the page record before on this channel.
pub const FLAG_CONTINUE: u64 = 0x020;
/// Page as a difference to the one the receiver has.
pub const FLAG_XBZRLE: u64 = 0x040;
/// RDMA only.
pub const FLAG_HOOK: u64 = 0x080;
/// Page compressed by the capability `compress`, gone since 9.1.
pub const FLAG_COMPRESS_PAGE: u64 = 0x100;
/// Multifd barrier, since 8.1.
pub const FLAG_MULTIFD_FLUSH: u64 = 0x200;

/// Flags are what a page offset leaves free.
const FLAG_MASK: u64 = TARGET_PAGE_SIZE - 1;

/// Encoding id of an XBZRLE page.
const XBZRLE_ENCODING: u8 = 1;

/// Most blocks accepted in a block list. A q35 machine with default devices has about ten.
pub const MAX_BLOCKS: usize = 1024;

/// One record, up to where its payload begins. The names are borrowed, so that no record costs an allocation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RamRecord<'a> {
    /// The bytes of a page follow: [`TARGET_PAGE_SIZE`].
    Page {
        /// Its block.
        block: BlockRef<'a>,
        /// Offset in the block, in bytes, page aligned.
        offset: u64,
    },
    /// A page filled with one byte; nothing follows.
    Zero {
        /// Its block.
        block: BlockRef<'a>,
        /// Offset in the block, in bytes, page aligned.
        offset: u64,
        /// The byte. Senders only send 0; QEMU 10.0 refuses others
        /// ([`crate::qemu_texts::nonzero_zero_page`]), 7.2 fills the page with it.
        fill: u8,
    },
    /// The encoded bytes of a page follow.
    Xbzrle {
        /// Its block.
        block: BlockRef<'a>,
        /// Offset in the block, in bytes, page aligned.
        offset: u64,
        /// Bytes that follow, 1 to [`TARGET_PAGE_SIZE`].
        length: u16,
    },
    /// The block list follows: [`decode_block_list`].
    MemSize {
        /// Sum of the blocks' lengths, in bytes.
        total: u64,
    },
    /// Wait until every multifd channel has reached its SYNC packet.
    MultifdFlush,
    /// The body ends; the section's footer follows.
    Eos,
}

/// How a page record names its block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BlockRef<'a> {
    /// The block of the page record before on this channel.
    Same,
    /// The block of this name.
    Named(&'a str),
}

impl<'a> RamRecord<'a> {
    /// Reads a record, up to where its payload begins. A name that it returns borrows `input`: resolve it (see
    /// [`LastBlock::resolve`]) before reading on.
    #[inline]
    pub fn decode<R: Read>(input: &'a mut Input<R>) -> Result<Self, WireError> {
        let at = input.offset();
        let word = input.reading("a RAM record").be64()?;
        let (offset, flags) = (word & !FLAG_MASK, word & FLAG_MASK);
        let same = flags & FLAG_CONTINUE != 0;
        match flags & !FLAG_CONTINUE {
            FLAG_PAGE => {
                let (block, []) = decode_block(input, same)?;
                Ok(RamRecord::Page { block, offset })
            }
            FLAG_ZERO => {
                let (block, [fill]) = decode_block(input, same)?;
                Ok(RamRecord::Zero { block, offset, fill })
            }
            FLAG_XBZRLE => {
                let (block, [encoding, high, low]) = decode_block(input, same)?;
                let length = u16::from_be_bytes([high, low]);
                if encoding != XBZRLE_ENCODING {
                    return Err(WireError::Xbzrle { offset: at, why: "unknown encoding" });
                }
                if length == 0 || u64::from(length) > TARGET_PAGE_SIZE {
                    return Err(WireError::Xbzrle { offset: at, why: "length must be 1 to a page" });
                }
                Ok(RamRecord::Xbzrle { block, offset, length })
            }
            FLAG_COMPRESS_PAGE => Err(unsupported(at, flags, "COMPRESS_PAGE")),
            FLAG_MEM_SIZE if !same => Ok(RamRecord::MemSize { total: offset }),
            FLAG_EOS if !same => without_address(at, flags, offset, RamRecord::Eos),
            FLAG_MULTIFD_FLUSH if !same => without_address(at, flags, offset, RamRecord::MultifdFlush),
            FLAG_HOOK if !same => Err(unsupported(at, flags, "HOOK")),
            _ => Err(WireError::RamFlags { offset: at, flags }),
        }
    }

    /// Writes the record, up to where its payload begins. Fails, writing nothing, on an offset or a total that isn't a
    /// multiple of the page size, a name above 255 bytes, or an XBZRLE length that isn't 1 to a page.
    #[inline]
    pub fn encode(&self, out: &mut Output) -> Result<(), WireError> {
        match *self {
            RamRecord::Page { block, offset } => encode_page(out, FLAG_PAGE, block, offset),
            RamRecord::Zero { block, offset, fill } => {
                encode_page(out, FLAG_ZERO, block, offset)?;
                out.u8(fill);
                Ok(())
            }
            RamRecord::Xbzrle { block, offset, length } => {
                if length == 0 || u64::from(length) > TARGET_PAGE_SIZE {
                    let (what, value) = ("an XBZRLE page's length", length.into());
                    return Err(WireError::Unsendable { what, value, range: "1 to 4096" });
                }
                encode_page(out, FLAG_XBZRLE, block, offset)?;
                out.u8(XBZRLE_ENCODING);
                out.be16(length);
                Ok(())
            }
            RamRecord::MemSize { total } => encode_word(out, total, FLAG_MEM_SIZE),
            RamRecord::MultifdFlush => encode_word(out, 0, FLAG_MULTIFD_FLUSH),
            RamRecord::Eos => encode_word(out, 0, FLAG_EOS),
        }
    }
}

/// The block of the last page record of one channel.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LastBlock<T> {
    last: Option<T>,
}

impl<T: Copy> LastBlock<T> {
    /// A channel on which no page has come.
    pub fn new() -> Self {
        LastBlock { last: None }
    }

    /// The block that a record at stream offset `at` means; `find` looks up a name.
    #[inline]
    pub fn resolve(
        &mut self,
        block: BlockRef<'_>,
        at: u64,
        find: impl FnOnce(&str) -> Option<T>,
    ) -> Result<T, WireError> {
        match block {
            BlockRef::Same => self.last.ok_or(WireError::NoPreviousBlock { offset: at }),
            BlockRef::Named(name) => {
                let found = find(name)
                    .ok_or_else(|| WireError::UnknownRamBlock { offset: at, name: name.to_owned() })?;
                self.last = Some(found);
                Ok(found)
            }
        }
    }
}

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
    let mut blocks: Vec<RamBlockEntry> = Vec::new();
    let mut left = total;
    while left > 0 {
        let offset = input.offset();
        let name = input.reading("a RAM block's name").pstr()?;
        let used_length = input.reading("a RAM block's length").be64()?;
        let refuse = |name: &str, why| WireError::BlockList { offset, name: name.to_owned(), why };
        if blocks.len() >= MAX_BLOCKS {
            return Err(refuse(&name, "too many blocks"));
        }
        if blocks.iter().any(|block| block.name == name) {
            return Err(refuse(&name, "the name occurs twice"));
        }
        if used_length & FLAG_MASK != 0 {
            return Err(refuse(&name, "the length is no multiple of the page size"));
        }
        left = left
            .checked_sub(used_length)
            .ok_or_else(|| refuse(&name, "the lengths add up to more than the total"))?;
        let page_size = match layout.large_page_blocks.contains(&name) {
            true => Some(input.reading("a RAM block's page size").be64()?),
            false => None,
        };
        let guest_address = match layout.guest_addresses {
            true => Some(input.reading("a RAM block's guest address").be64()?),
            false => None,
        };
        blocks.push(RamBlockEntry { name, used_length, page_size, guest_address });
    }
    Ok(blocks)
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

/// The block of a page record and the `N` bytes of header behind its name, in one look at the buffer.
#[inline]
fn decode_block<'a, R: Read, const N: usize>(
    input: &'a mut Input<R>,
    same: bool,
) -> Result<(BlockRef<'a>, [u8; N]), WireError> {
    if same {
        return Ok((BlockRef::Same, input.array()?));
    }
    input.reading("a RAM block's name");
    let name_length = input.peek_u8()?.ok_or_else(|| input.truncated(1))?;
    let name_end = usize::from(name_length).saturating_add(1);
    let (offset, what) = (input.offset(), input.what());
    let header = input.view(name_end.saturating_add(N))?;
    let name = header.get(1..name_end).unwrap_or_default();
    let rest = header.last_chunk::<N>().copied().unwrap_or([0; N]);
    let name = std::str::from_utf8(name).map_err(|_| WireError::NotUtf8 { offset, what })?;
    Ok((BlockRef::Named(name), rest))
}

#[inline]
fn encode_page(out: &mut Output, kind: u64, block: BlockRef<'_>, offset: u64) -> Result<(), WireError> {
    match block {
        BlockRef::Same => encode_word(out, offset, kind | FLAG_CONTINUE),
        BlockRef::Named(name) => {
            let start = out.len();
            encode_word(out, offset, kind)?;
            out.pstr(name).inspect_err(|_| out.truncate(start))
        }
    }
}

#[inline]
fn encode_word(out: &mut Output, value: u64, flags: u64) -> Result<(), WireError> {
    if value & FLAG_MASK != 0 {
        return Err(WireError::Unsendable {
            what: "a RAM address",
            value,
            range: "multiples of the page size",
        });
    }
    out.be64(value | flags);
    Ok(())
}

#[inline]
fn without_address(
    at: u64,
    flags: u64,
    address: u64,
    record: RamRecord<'_>,
) -> Result<RamRecord<'_>, WireError> {
    match address {
        0 => Ok(record),
        address => Err(WireError::UnexpectedAddress { offset: at, flags, address }),
    }
}

#[cold]
fn unsupported(offset: u64, flags: u64, name: &'static str) -> WireError {
    WireError::UnsupportedRamRecord { offset, flags, name }
}
