//! The receiving side of RAM: page records straight from the input buffer into guest memory.

use std::io::Read;

use whimbrel_wire::qemu_texts;
use whimbrel_wire::ram::{self, LastBlock, RamRecord, SetupLayout};
use whimbrel_wire::{Input, WireError};

use crate::bitmap::DirtyBitmap;
use crate::error::StreamError;
use crate::live::{Incoming, LiveDestination, LivePart};
use crate::machine::{AnnouncedBlock, Machine};
use crate::memory::{PAGE_SIZE, RamBlock};

/// RAM of one incoming migration.
pub(crate) struct RamDestination<'m> {
    machine: &'m dyn Machine,
    blocks: &'m [RamBlock],
    received: Vec<DirtyBitmap>,
    last: LastBlock<usize>,
    announced: bool,
}

impl<'m> RamDestination<'m> {
    pub(crate) fn new(machine: &'m dyn Machine) -> Self {
        let (blocks, received) = blocks_of(machine);
        Self { machine, blocks, received, last: LastBlock::new(), announced: false }
    }

    /// Reads records up to EOS.
    fn records<R: Read>(&mut self, input: &mut Input<R>) -> Result<(), StreamError> {
        loop {
            let at = input.offset();
            match RamRecord::decode(input)? {
                RamRecord::Page { block, offset } => {
                    let index = self.last.resolve(block, at, |name| find(self.blocks, name))?;
                    self.check(index, offset, at)?;
                    let slice = self.blocks[index]
                        .slice(offset, PAGE_SIZE as usize)
                        .ok_or_else(|| illegal(offset, at))?;
                    slice.copy_from(input.reading("a page").view(PAGE_SIZE as usize)?);
                    self.received[index].insert(offset / PAGE_SIZE);
                }
                RamRecord::Zero { block, offset, fill } => {
                    let index = self.last.resolve(block, at, |name| find(self.blocks, name))?;
                    self.check(index, offset, at)?;
                    if fill != 0 {
                        return Err(refuse(qemu_texts::nonzero_zero_page(fill), at));
                    }
                    // Fresh memory is zero already; writing zeroes would only populate it.
                    if !self.received[index].insert(offset / PAGE_SIZE) || !self.blocks[index].is_fresh() {
                        self.blocks[index]
                            .write(offset, &[0; PAGE_SIZE as usize])
                            .map_err(|_| illegal(offset, at))?;
                    }
                }
                RamRecord::MemSize { total } => self.block_list(input, total, at)?,
                RamRecord::Eos => return Ok(()),
                RamRecord::Xbzrle { .. } => {
                    return Err(refuse(
                        "XBZRLE pages are not supported: turn the source's capability 'xbzrle' off".into(),
                        at,
                    ));
                }
                RamRecord::MultifdFlush => {
                    return Err(refuse(
                        "a multifd barrier without multifd: turn the source's capability 'multifd' off"
                            .into(),
                        at,
                    ));
                }
            }
        }
    }

    fn block_list<R: Read>(&mut self, input: &mut Input<R>, total: u64, at: u64) -> Result<(), StreamError> {
        let listed = ram::decode_block_list(input, total, &SetupLayout::default())?;
        if !self.announced {
            let announced: Vec<_> = listed
                .iter()
                .map(|entry| AnnouncedBlock { name: entry.name.clone(), len: entry.used_length })
                .collect();
            self.machine.blocks_announced(&announced).map_err(|error| refuse(error.0, at))?;
            (self.blocks, self.received) = blocks_of(self.machine);
        }
        for entry in &listed {
            let index = find(self.blocks, &entry.name)
                .ok_or_else(|| WireError::UnknownRamBlock { offset: at, name: entry.name.clone() })?;
            let local = self.blocks[index].len();
            if local != entry.used_length {
                return Err(refuse(qemu_texts::size_mismatch(&entry.name, entry.used_length, local), at));
            }
        }
        let missing = |block: &&RamBlock| listed.iter().all(|entry| entry.name != block.name());
        if let Some(block) = self.blocks.iter().find(missing) {
            return Err(refuse(format!("the source has no block '{}'", block.name()), at));
        }
        self.announced = true;
        Ok(())
    }

    fn check(&self, index: usize, offset: u64, at: u64) -> Result<(), StreamError> {
        if self.announced && offset < self.blocks[index].len() { Ok(()) } else { Err(illegal(offset, at)) }
    }
}

impl LiveDestination for RamDestination<'_> {
    fn load(&mut self, _: LivePart, input: &mut Incoming) -> Result<(), StreamError> {
        self.records(input)
    }
}

/// The machine's blocks, and bitmaps for what arrives of them.
fn blocks_of(machine: &dyn Machine) -> (&[RamBlock], Vec<DirtyBitmap>) {
    let blocks = machine.ram();
    (blocks, blocks.iter().map(|block| DirtyBitmap::empty(block.pages())).collect())
}

fn find(blocks: &[RamBlock], name: &str) -> Option<usize> {
    blocks.iter().position(|block| block.name() == name)
}

fn illegal(offset: u64, at: u64) -> StreamError {
    refuse(qemu_texts::illegal_ram_offset(offset), at)
}

fn refuse(text: String, offset: u64) -> StreamError {
    StreamError::Ram { text, offset }
}
