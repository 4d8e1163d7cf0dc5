//! Guest RAM: QEMU's microvm memory map over named blocks.
//!
//! ```text
//! 0                       RAM                          microvm.ram
//! 1 MiB − min(B, 128 KiB) the firmware's tail, over RAM pc.bios, read only
//! 1 MiB                   RAM                          microvm.ram
//! min(size, 3 GiB)        hole: MMIO, LAPIC, IOAPIC
//! 4 GiB − B               firmware, B bytes            pc.bios, read only
//! 4 GiB                   the rest of RAM              microvm.ram
//! ```
//!
//! The stream knows only blocks and offsets in them: RAM above 4 GiB follows RAM below the hole in `microvm.ram`.

use std::fs::{File, OpenOptions};
use std::io;
use std::path::Path;
use std::sync::{Arc, OnceLock};

use rustix::fs::{MemfdFlags, memfd_create};
use vm_memory::bitmap::NewBitmap;
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{FileOffset, GuestAddress, GuestMemoryMmap};
use whimbrel::memory::{HostWrites, PAGE_SIZE, RamBlock, Region};
use whimbrel_vmstate::Level;

use crate::config::{MemoryBackend, VmConfig};
use crate::error::Error;

/// End of RAM below the hole, at most.
pub const LOW_END: u64 = 3 << 30;
/// Where RAM goes on above the hole.
pub const HIGH_START: u64 = 4 << 30;
/// Name of the RAM block.
pub const RAM_NAME: &str = "microvm.ram";
/// Name of the firmware block.
pub const BIOS_NAME: &str = "pc.bios";

/// The firmware's tail is also mapped below 1 MiB, at most this much of it.
const ISA_BIOS_MAX: u64 = 128 << 10;
/// Firmware beyond this would reach into the LAPIC's page and below.
const BIOS_MAX: u64 = 8 << 20;
const HUGE_PAGE: u64 = 2 << 20;
const HUGETLBFS_MAGIC: i64 = 0x9584_58f6;

/// A range of guest-physical addresses and the part of a block behind it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mapping {
    /// Where it starts in guest-physical memory.
    pub gpa: u64,
    /// Its length in bytes.
    pub len: u64,
    /// Index of the block in [`GuestRam::blocks`].
    pub block: usize,
    /// Where it starts in the block.
    pub offset: u64,
    /// The guest cannot write it.
    pub read_only: bool,
}

/// All guest memory of a machine.
#[derive(Debug)]
pub struct GuestRam {
    blocks: Vec<RamBlock>,
    /// The same blocks and the ROMs behind them, once they are known.
    with_roms: OnceLock<Vec<RamBlock>>,
    mappings: Vec<Mapping>,
    ram: GuestMemoryMmap<HostWrites>,
    low: u64,
    high: u64,
}

impl GuestRam {
    /// Allocates guest memory; firmware is in it already, if the machine isn't an incoming one.
    ///
    /// # Errors
    /// If a size cannot be, or the host refuses the memory.
    pub fn new(config: &VmConfig) -> Result<Self, Error> {
        let size = config.memory;
        if size < 1 << 20 || !size.is_multiple_of(PAGE_SIZE) {
            return Err(Error::Config(format!(
                "memory of {size} bytes: at least 1 MiB, in whole 4 KiB pages"
            )));
        }
        let low = size.min(LOW_END);
        let high = size - low;
        let backing = Backing::new(&config.backend, size, config.huge_pages)?;
        let mut ram_regions = vec![backing.map(0, low, 0)?];
        if high > 0 {
            ram_regions.push(backing.map(low, high, HIGH_START)?);
        }
        let ram = GuestMemoryMmap::from_arc_regions(ram_regions.clone())
            .map_err(|error| Error::Config(format!("memory map: {error}")))?;

        let firmware = match &config.bios {
            Some(path) => {
                std::fs::read(path).map_err(|source| Error::Image { path: path.clone(), source })?
            }
            None => Vec::new(),
        };
        let bios_len = firmware_len(&firmware, config.level)?;
        let bios_region = Backing::Anonymous { huge: false }.map(0, bios_len, HIGH_START - bios_len)?;

        let blocks = vec![
            RamBlock::new(RAM_NAME, ram_regions, backing.is_fresh()),
            RamBlock::new(BIOS_NAME, vec![bios_region], config.incoming || firmware.is_empty()),
        ];
        let mappings = map(low, high, bios_len);
        let mut this = Self { blocks, with_roms: OnceLock::new(), mappings, ram, low, high };
        if !config.incoming && !firmware.is_empty() {
            this.bios()
                .write(0, &firmware)
                .map_err(|source| Error::Memory { what: "firmware".into(), source })?;
        }
        // The engine lists blocks as QEMU does: the largest first.
        if this.blocks[0].len() < this.blocks[1].len() {
            this.blocks.swap(0, 1);
            for mapping in &mut this.mappings {
                mapping.block = 1 - mapping.block;
            }
        }
        Ok(this)
    }

    /// Another machine's memory: `ram` is what loaders write to, all of it below the hole.
    #[cfg(target_arch = "aarch64")]
    pub(crate) fn from_parts(
        blocks: Vec<RamBlock>,
        mappings: Vec<Mapping>,
        ram: GuestMemoryMmap<HostWrites>,
        size: u64,
    ) -> Self {
        Self { blocks, with_roms: OnceLock::new(), mappings, ram, low: size, high: 0 }
    }

    /// The blocks: RAM and firmware, the larger first, then the ROMs.
    pub fn blocks(&self) -> &[RamBlock] {
        self.with_roms.get().unwrap_or(&self.blocks)
    }

    /// Adds empty ROM blocks, which the guest does not see in its memory.
    ///
    /// # Errors
    /// If there are other ROMs already, or the host refuses the memory.
    pub fn add_roms(&self, roms: &[(&str, u64)]) -> Result<(), Error> {
        let mut blocks = self.blocks.clone();
        for (name, len) in roms {
            let region = Backing::Anonymous { huge: false }.map(0, *len, 0)?;
            blocks.push(RamBlock::new(*name, vec![region], true));
        }
        let shape = |blocks: &[RamBlock]| -> Vec<(String, u64)> {
            blocks.iter().map(|block| (block.name().to_owned(), block.len())).collect()
        };
        let wanted = shape(&blocks);
        let there = self.with_roms.get_or_init(|| blocks);
        if shape(there) == wanted {
            Ok(())
        } else {
            Err(Error::Config("other ROM blocks were announced before: start this machine again".into()))
        }
    }

    /// What the guest sees, in ascending order of address.
    pub fn mappings(&self) -> &[Mapping] {
        &self.mappings
    }

    /// RAM without the firmware, by guest-physical address, for loaders.
    pub fn ram(&self) -> &GuestMemoryMmap<HostWrites> {
        &self.ram
    }

    /// Bytes of RAM below the hole, and above 4 GiB.
    pub fn split(&self) -> (u64, u64) {
        (self.low, self.high)
    }

    /// Reads guest-physical memory as the guest sees it.
    ///
    /// # Errors
    /// If the range leaves what is mapped.
    pub fn read(&self, gpa: u64, buf: &mut [u8]) -> io::Result<()> {
        self.pieces(gpa, buf.len(), |mapping, at, range| self.blocks[mapping.block].read(at, &mut buf[range]))
    }

    /// Writes guest-physical memory as the guest could: read-only parts swallow it. The dirty log sees it.
    ///
    /// # Errors
    /// If the range leaves what is mapped.
    pub fn write(&self, gpa: u64, buf: &[u8]) -> io::Result<()> {
        self.pieces(gpa, buf.len(), |mapping, at, range| {
            if mapping.read_only { Ok(()) } else { self.blocks[mapping.block].write(at, &buf[range]) }
        })
    }

    fn bios(&self) -> &RamBlock {
        let bios = self.blocks.iter().find(|block| block.name() == BIOS_NAME);
        bios.expect("the machine has a firmware block")
    }

    fn pieces(
        &self,
        gpa: u64,
        len: usize,
        mut f: impl FnMut(&Mapping, u64, std::ops::Range<usize>) -> io::Result<()>,
    ) -> io::Result<()> {
        let mut done = 0;
        while done < len {
            let at = gpa.checked_add(done as u64);
            let found = at.and_then(|at| {
                let mapping = self.mappings.iter().find(|m| m.gpa <= at && at - m.gpa < m.len)?;
                Some((mapping, at - mapping.gpa))
            });
            let Some((mapping, inside)) = found else {
                let text = format!("no guest memory at {:#x}", gpa.wrapping_add(done as u64));
                return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
            };
            let count = ((len - done) as u64).min(mapping.len - inside) as usize;
            f(mapping, mapping.offset + inside, done..done + count)?;
            done += count;
        }
        Ok(())
    }
}

/// QEMU's firmware block: the file's size, or what its own firmware has at that version.
fn firmware_len(firmware: &[u8], level: Level) -> Result<u64, Error> {
    let len = firmware.len() as u64;
    match len {
        0 if level >= Level::V9_0 => Ok(0x2_0000),
        0 => Ok(0x1_0000),
        _ if len > BIOS_MAX || !len.is_multiple_of(64 << 10) => Err(Error::Config(format!(
            "firmware of {len} bytes: it must be a multiple of 64 KiB, at most 8 MiB"
        ))),
        _ => Ok(len),
    }
}

/// Block 0 is RAM, block 1 the firmware.
fn map(low: u64, high: u64, bios_len: u64) -> Vec<Mapping> {
    let isa_len = bios_len.min(ISA_BIOS_MAX);
    let isa = (1 << 20) - isa_len;
    let ram = |gpa, len, offset| Mapping { gpa, len, block: 0, offset, read_only: false };
    let rom = |gpa, len, offset| Mapping { gpa, len, block: 1, offset, read_only: true };
    let mut mappings = vec![ram(0, isa, 0), rom(isa, isa_len, bios_len - isa_len)];
    mappings.push(ram(1 << 20, low - (1 << 20), 1 << 20));
    mappings.push(rom(HIGH_START - bios_len, bios_len, 0));
    mappings.push(ram(HIGH_START, high, low));
    mappings.retain(|mapping| mapping.len > 0);
    mappings
}

/// What a block's regions are mapped from.
pub(crate) enum Backing {
    Anonymous { huge: bool },
    File { file: Arc<File>, huge: bool, fresh: bool, reserve: bool },
}

impl Backing {
    pub(crate) fn new(backend: &MemoryBackend, size: u64, huge: bool) -> Result<Self, Error> {
        let sized = |file: File, what: &str| {
            file.set_len(size).map_err(|source| Error::Memory { what: what.to_owned(), source })?;
            Ok::<_, Error>(Arc::new(file))
        };
        match backend {
            MemoryBackend::Anonymous => Ok(Self::Anonymous { huge }),
            MemoryBackend::Private => {
                let fd = memfd_create(RAM_NAME, MemfdFlags::CLOEXEC)
                    .map_err(|error| Error::Memory { what: "memfd".into(), source: error.into() })?;
                let file = sized(File::from(fd), "memfd")?;
                Ok(Self::File { file, huge, fresh: true, reserve: false })
            }
            MemoryBackend::SharedFile(path) => {
                let what = path.display().to_string();
                let failed = |source| Error::Memory { what: what.clone(), source };
                let file = open_shared(path).map_err(failed)?;
                let fresh = file.metadata().map_err(failed)?.len() == 0;
                let reserve = is_hugetlbfs(&file).map_err(failed)?;
                if reserve && !size.is_multiple_of(HUGE_PAGE) {
                    return Err(Error::Config(format!(
                        "{what} is on hugetlbfs: memory must be a multiple of 2 MiB"
                    )));
                }
                Ok(Self::File { file: sized(file, &what)?, huge, fresh, reserve })
            }
        }
    }

    pub(crate) fn is_fresh(&self) -> bool {
        match self {
            Self::Anonymous { .. } => true,
            Self::File { fresh, .. } => *fresh,
        }
    }

    pub(crate) fn map(&self, offset: u64, len: u64, gpa: u64) -> Result<Arc<Region>, Error> {
        let failed = |error: vm_memory::mmap::MmapRegionError| {
            let what = format!("mapping {len:#x} bytes");
            Error::Memory { what, source: io::Error::other(error.to_string()) }
        };
        let bitmap = HostWrites::with_len(len as usize);
        let builder = MmapRegionBuilder::new_with_bitmap(len as usize, bitmap)
            .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE);
        let (builder, huge) = match self {
            Self::Anonymous { huge } => {
                (builder.with_mmap_flags(libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE), huge)
            }
            Self::File { file, huge, reserve, .. } => {
                let at = FileOffset::from_arc(Arc::clone(file), offset);
                // hugetlbfs: without a reservation the guest would die of the first page that is not to be had.
                let flags = if *reserve { libc::MAP_SHARED } else { libc::MAP_SHARED | libc::MAP_NORESERVE };
                (builder.with_file_offset(at).with_mmap_flags(flags), huge)
            }
        };
        let mapping = builder.build().map_err(failed)?;
        if *huge {
            // Advice: where there are no transparent huge pages (or the pages are huge already) memory works without.
            // SAFETY: the range is exactly the mapping just made, which nothing else knows of yet.
            unsafe { libc::madvise(mapping.as_ptr().cast(), mapping.size(), libc::MADV_HUGEPAGE) };
        }
        let region = Region::new(mapping, GuestAddress(gpa));
        Ok(Arc::new(region.ok_or_else(|| Error::Config("memory beyond the address space".into()))?))
    }
}

fn open_shared(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)
}

fn is_hugetlbfs(file: &File) -> io::Result<bool> {
    Ok(rustix::fs::fstatfs(file)?.f_type as i64 == HUGETLBFS_MAGIC)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(memory: u64, level: Level) -> VmConfig {
        VmConfig { memory, level, backend: MemoryBackend::Anonymous, ..VmConfig::default() }
    }

    #[test]
    fn ram_beyond_three_gib_follows_above_four() {
        let ram = GuestRam::new(&config(5 << 30, Level::V7_2)).unwrap();
        assert_eq!(ram.split(), (3 << 30, 2 << 30));
        assert_eq!(ram.blocks()[0].len(), 5 << 30);
        ram.write(HIGH_START + 5, &[7]).unwrap();
        let mut byte = [0];
        ram.blocks()[0].read((3 << 30) + 5, &mut byte).unwrap();
        assert_eq!(byte, [7]);
        assert!(ram.read(LOW_END, &mut byte).is_err(), "the hole is no memory");
    }

    #[test]
    fn firmware_has_the_size_of_the_level_and_is_read_only() {
        for (level, len) in [(Level::V7_2, 0x1_0000), (Level::V9_0, 0x2_0000), (Level::V10_0, 0x2_0000)] {
            let ram = GuestRam::new(&config(64 << 20, level)).unwrap();
            assert_eq!((ram.blocks()[1].name(), ram.blocks()[1].len()), (BIOS_NAME, len));
            ram.write(HIGH_START - 16, &[1]).unwrap();
            let mut byte = [9];
            ram.read(HIGH_START - 16, &mut byte).unwrap();
            assert_eq!(byte, [0]);
        }
    }

    #[test]
    fn the_firmware_tail_shows_below_one_mib() {
        let ram = GuestRam::new(&config(64 << 20, Level::V7_2)).unwrap();
        ram.blocks()[1].write(0xfff0, b"tail").unwrap();
        let mut read = [0; 4];
        ram.read(0xf_fff0, &mut read).unwrap();
        assert_eq!(&read, b"tail");
    }

    #[test]
    fn a_range_over_a_border_is_read_whole() {
        let ram = GuestRam::new(&config(64 << 20, Level::V7_2)).unwrap();
        ram.write(0xf_0000 - 2, &[1, 2, 3, 4]).unwrap();
        let mut read = [9; 4];
        ram.read(0xf_0000 - 2, &mut read).unwrap();
        assert_eq!(read, [1, 2, 0, 0], "the second half is firmware");
    }

    #[test]
    fn memory_of_a_broken_page_is_refused() {
        assert!(matches!(GuestRam::new(&config((1 << 20) + 1, Level::V7_2)), Err(Error::Config(_))));
    }
}
