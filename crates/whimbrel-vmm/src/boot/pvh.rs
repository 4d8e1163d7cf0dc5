//! PVH: an ELF whose note names a 32-bit entry point.

use std::io::Cursor;

use linux_loader::configurator::{BootConfigurator, BootParams, pvh::PvhBootConfigurator};
use linux_loader::loader::elf::PvhBootCapability;
use linux_loader::loader::elf::start_info::{hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info};
use linux_loader::loader::{Elf, KernelLoader};
use vm_memory::GuestAddress;
use whimbrel::memory::PAGE_SIZE;

use super::{ACPI, Boot, COMMAND_LINE, Entry, ONE_MIB, failed, memory_map};
use crate::error::Error;
use crate::memory::{GuestRam, LOW_END};

const START_INFO: u64 = 0x5000;
const MODULES: u64 = 0x6000;
const MEMORY_MAP: u64 = 0x7000;

/// Offsets in the ELF64 header: of the program headers, their size, their number.
const PHOFF: usize = 32;
const PHENTSIZE: usize = 54;
const PHNUM: usize = 56;
const PT_LOAD: u32 = 1;

const START_INFO_MAGIC: u32 = 0x336e_c578;

/// Writes kernel, initrd and start info.
pub(super) fn load(boot: &Boot, ram: &GuestRam) -> Result<Entry, Error> {
    let memory = ram.ram();
    let loaded = Elf::load(memory, None, &mut Cursor::new(&boot.kernel[..]), Some(GuestAddress(ONE_MIB)))
        .map_err(|error| failed("loading the ELF", &error))?;
    let PvhBootCapability::PvhEntryPresent(entry) = loaded.pvh_boot_cap else {
        return Err(Error::Kernel("the ELF has no PVH entry point (XEN_ELFNOTE_PHYS32_ENTRY)".into()));
    };
    for (address, len) in zeroed(&boot.kernel) {
        // The loader leaves it as it is, which after a reset is what the guest had there.
        fill_zero(ram, address, len).map_err(|error| failed("clearing the ELF's BSS", &error))?;
    }
    let map: Vec<_> = memory_map(ram)
        .iter()
        .map(|range| hvm_memmap_table_entry {
            addr: range.at,
            size: range.len,
            type_: range.kind,
            reserved: 0,
        })
        .collect();
    let initrd = boot.load_initrd(ram, LOW_END)?;
    let info = hvm_start_info {
        magic: START_INFO_MAGIC,
        version: 1,
        cmdline_paddr: COMMAND_LINE,
        memmap_paddr: MEMORY_MAP,
        memmap_entries: map.len() as u32,
        rsdp_paddr: ACPI,
        nr_modules: u32::from(initrd.is_some()),
        modlist_paddr: if initrd.is_some() { MODULES } else { 0 },
        ..Default::default()
    };
    let mut params = BootParams::new(&info, GuestAddress(START_INFO));
    params.set_sections(&map, GuestAddress(MEMORY_MAP));
    if let Some(initrd) = initrd {
        let module = hvm_modlist_entry { paddr: initrd.at, size: initrd.len, ..Default::default() };
        params.set_modules(&[module], GuestAddress(MODULES));
    }
    PvhBootConfigurator::write_bootparams(&params, memory).map_err(|error| failed("start info", &error))?;
    Ok(Entry { rip: entry.0, rbx: START_INFO, rsi: 0 })
}

/// The parts of an ELF64's loadable segments that are not in the file: address and length. The loader has checked the headers.
fn zeroed(elf: &[u8]) -> Vec<(u64, u64)> {
    let field =
        |at: usize| elf.get(at..at + 8).map(|bytes| u64::from_le_bytes(std::array::from_fn(|i| bytes[i])));
    let half =
        |at: usize| elf.get(at..at + 2).map(|bytes| usize::from(u16::from_le_bytes([bytes[0], bytes[1]])));
    let (Some(table), Some(size), Some(count)) = (field(PHOFF), half(PHENTSIZE), half(PHNUM)) else {
        return Vec::new();
    };
    let segment = |index: usize| {
        let at = usize::try_from(table).ok()?.checked_add(index * size)?;
        let loadable = field(at)? as u32 == PT_LOAD;
        let (address, in_file, in_memory) = (field(at + 24)?, field(at + 32)?, field(at + 40)?);
        let start = address.checked_add(in_file)?;
        (loadable && in_memory > in_file).then(|| (start, in_memory - in_file))
    };
    (0..count).filter_map(segment).collect()
}

fn fill_zero(ram: &GuestRam, address: u64, len: u64) -> std::io::Result<()> {
    let zeroes = [0; PAGE_SIZE as usize];
    for at in (0..len).step_by(zeroes.len()) {
        ram.write(address + at, &zeroes[..zeroes.len().min((len - at) as usize)])?;
    }
    Ok(())
}
