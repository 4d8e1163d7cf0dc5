//! Guest RAM: one block from 1 GiB on.

use vm_memory::GuestMemoryMmap;
use whimbrel::memory::{PAGE_SIZE, RamBlock};
use whimbrel_its::ReadMemory;

use super::map;
use crate::config::VmConfig;
use crate::error::Error;
use crate::memory::{Backing, GuestRam, Mapping};

/// QEMU's name of the block.
const RAM_NAME: &str = "mach-virt.ram";
/// Less holds no kernel, device tree and tables.
const SIZE_MIN: u64 = 8 << 20;
/// KVM's default address space is 40 bits; RAM is to stay below 512 GiB.
const SIZE_MAX: u64 = (512 << 30) - map::RAM;

/// Guest memory for who walks tables in it.
pub(super) struct Tables<'r>(pub(super) &'r GuestRam);

impl ReadMemory for Tables<'_> {
    fn read(&self, address: u64, bytes: &mut [u8]) -> bool {
        self.0.read(address, bytes).is_ok()
    }
}

/// Allocates guest memory.
///
/// # Errors
/// If a size cannot be, or the host refuses the memory.
pub(super) fn allocate(config: &VmConfig) -> Result<GuestRam, Error> {
    let size = config.memory;
    if !(SIZE_MIN..=SIZE_MAX).contains(&size) || !size.is_multiple_of(PAGE_SIZE) {
        let text = format!("memory of {size} bytes: 8 MiB to 511 GiB, in whole 4 KiB pages");
        return Err(Error::Config(text));
    }
    let backing = Backing::new(&config.backend, size, config.huge_pages)?;
    let region = backing.map(0, size, map::RAM)?;
    let ram = GuestMemoryMmap::from_arc_regions(vec![region.clone()])
        .map_err(|error| Error::Config(format!("memory map: {error}")))?;
    let blocks = vec![RamBlock::new(RAM_NAME, vec![region], backing.is_fresh())];
    let mappings = vec![Mapping { gpa: map::RAM, len: size, block: 0, offset: 0, read_only: false }];
    Ok(GuestRam::from_parts(blocks, mappings, ram, size))
}
