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
//! | `0x040` | page at offset `value`, XBZRLE | block, u8 1, be16 n, n bytes: [`xbzrle`] |
//! | `0x080` | RDMA hook | refused |
//! | `0x100` | page compressed by `compress` | refused |
//! | `0x200` | multifd barrier | – |
//!
//! "Block" is a pstr with the block's name, absent with `0x020`. Every channel remembers its last block across bodies:
//! [`LastBlock`].
//!
//! Page payload isn't touched here: [`RamRecord::decode`] stops where it begins. Offsets are not checked against the
//! block's length, which only its owner knows.

mod block_list;
pub mod mapped;
pub mod xbzrle;

use std::io::Read;

use crate::error::WireError;
use crate::input::Input;
use crate::output::Output;

pub use block_list::{
    BlockList, MAX_BLOCKS, RamBlockEntry, SetupLayout, decode_block_list, encode_block_list,
};

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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{bytes, encoded, input, refused};

    const RAM: BlockRef<'_> = BlockRef::Named("ram");
    const SAME: BlockRef<'_> = BlockRef::Same;

    /// The record, or the error of a record at stream offset 0x10.
    fn check(stream: &str, expected: Result<RamRecord<'_>, WireError>) {
        let stream = bytes(stream);
        let mut input = input(&stream).starting_at(0x10);
        assert_eq!(RamRecord::decode(&mut input), expected);
        if expected.is_ok() {
            assert!(input.at_end().unwrap(), "bytes left after {expected:?}");
        }
    }

    #[test]
    fn every_record_has_its_bytes() {
        for (record, stream) in [
            (RamRecord::Page { block: RAM, offset: 0x20_0000 }, "0000000000200008 03'ram'"),
            (RamRecord::Page { block: SAME, offset: 0x20_1000 }, "0000000000201028"),
            (RamRecord::Zero { block: RAM, offset: 0, fill: 0 }, "0000000000000002 03'ram' 00"),
            (RamRecord::Zero { block: SAME, offset: 0x1000, fill: 0 }, "0000000000001022 00"),
            (RamRecord::Zero { block: SAME, offset: 0x1000, fill: 7 }, "0000000000001022 07"),
            (RamRecord::Xbzrle { block: RAM, offset: 0x1000, length: 4 }, "0000000000001040 03'ram' 01 0004"),
            (RamRecord::Xbzrle { block: SAME, offset: 0, length: 0x1000 }, "0000000000000060 01 1000"),
            (RamRecord::MemSize { total: 0x402_3000 }, "0000000004023004"),
            (RamRecord::MultifdFlush, "0000000000000200"),
            (RamRecord::Eos, "0000000000000010"),
        ] {
            assert_eq!(encoded(|out| record.encode(out)), bytes(stream));
            check(stream, Ok(record));
        }
        let highest = RamRecord::Page { block: SAME, offset: !0xfff };
        check("fffffffffffff028", Ok(highest));
    }

    #[test]
    fn exactly_one_kind_a_record_and_continue_only_with_pages() {
        let kinds = [FLAG_ZERO, FLAG_PAGE, FLAG_XBZRLE, FLAG_COMPRESS_PAGE, FLAG_HOOK];
        let kinds = [&kinds[..], &[FLAG_MEM_SIZE, FLAG_EOS, FLAG_MULTIFD_FLUSH]].concat();
        let pages = [FLAG_ZERO, FLAG_PAGE, FLAG_XBZRLE, FLAG_COMPRESS_PAGE];
        for flags in 0..TARGET_PAGE_SIZE {
            let legal = kinds.contains(&flags) || pages.iter().any(|page| page | FLAG_CONTINUE == flags);
            let mut stream = flags.to_be_bytes().to_vec();
            stream.extend([1; 300]);
            let mut input = input(&stream);
            let unknown = RamRecord::decode(&mut input) == Err(WireError::RamFlags { offset: 0, flags });
            assert_eq!(unknown, !legal, "flags {flags:#x}");
        }
        let text = WireError::RamFlags { offset: 0x10, flags: 0x30 }.to_string();
        assert_eq!(text, "Unknown combination of migration flags: 0x30 (stream offset 0x10)");
    }

    #[test]
    fn malformed_records_are_refused_with_the_records_offset() {
        let offset = 0x10;
        let hook = WireError::UnsupportedRamRecord { offset, flags: 0x80, name: "HOOK" };
        check("0000000000000080", Err(hook));
        let compressed =
            |flags| Err(WireError::UnsupportedRamRecord { offset, flags, name: "COMPRESS_PAGE" });
        check("0000000000000100", compressed(0x100));
        check("0000000000000120", compressed(0x120));
        let addressed = |flags| Err(WireError::UnexpectedAddress { offset, flags, address: 0x1000 });
        check("0000000000001010", addressed(0x10));
        check("0000000000001200", addressed(0x200));
        check("0000000000001060 02 0004", Err(WireError::Xbzrle { offset, why: "unknown encoding" }));
        let length = || Err(WireError::Xbzrle { offset, why: "length must be 1 to a page" });
        check("0000000000001060 01 0000", length());
        check("0000000000001060 01 1001", length());
        let what = "a RAM block's name";
        check("0000000000001008 02 c328", Err(WireError::NotUtf8 { offset: 0x18, what }));
        check("0000000000001008 03'ra'", Err(WireError::Truncated { offset: 0x1b, wanted: 1, what }));
        check("0000000000001008", Err(WireError::Truncated { offset: 0x18, wanted: 1, what }));
    }

    #[test]
    fn what_cannot_be_sent_leaves_no_half_record() {
        let unaligned = RamRecord::Page { block: RAM, offset: 0x1008 };
        let range = "multiples of the page size";
        let error = WireError::Unsendable { what: "a RAM address", value: 0x1008, range };
        assert_eq!(refused(|out| unaligned.encode(out)), error);
        let name = "x".repeat(256);
        let long = RamRecord::Zero { block: BlockRef::Named(&name), offset: 0, fill: 0 };
        assert!(matches!(refused(|out| long.encode(out)), WireError::Unsendable { value: 256, .. }));
        for length in [0, 4097] {
            let record = RamRecord::Xbzrle { block: SAME, offset: 0, length };
            assert!(matches!(refused(|out| record.encode(out)), WireError::Unsendable { .. }));
        }
    }

    #[test]
    fn the_last_block_is_remembered_and_a_first_page_must_name_one() {
        let find = |name: &str| ["ram", "bios"].iter().position(|known| *known == name);
        let mut last = LastBlock::new();
        let error = last.resolve(SAME, 0x10, find).unwrap_err();
        assert_eq!(error, WireError::NoPreviousBlock { offset: 0x10 });
        assert_eq!(last.resolve(BlockRef::Named("bios"), 0, find), Ok(1));
        assert_eq!(last.resolve(SAME, 0, find), Ok(1));
        let error = last.resolve(BlockRef::Named("rom"), 0x20, find).unwrap_err();
        assert_eq!(error, WireError::UnknownRamBlock { offset: 0x20, name: "rom".into() });
        let text = "Unknown ramblock \"rom\", cannot accept migration (stream offset 0x20)";
        assert_eq!(error.to_string(), text);
        assert_eq!(last.resolve(SAME, 0, find), Ok(1), "a failure changes nothing");
    }
}
