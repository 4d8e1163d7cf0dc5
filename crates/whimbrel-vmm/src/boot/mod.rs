//! PVH boot: the kernel is entered directly, in 32-bit protected mode, without firmware.
//!
//! ```text
//! 0x5000  hvm_start_info (RBX points here), modules
//! 0x7000  memory map
//! 0x20000 command line, at most 64 KiB − 1 bytes
//! …       the ELF's own segments
//! high    initrd, page aligned, as high below the hole as it fits
//! ```
//! Everything is written through the regions, so the dirty log sees a reset during a migration.

use std::io::Cursor;
use std::sync::Arc;

use kvm_bindings::{kvm_regs, kvm_segment};
use linux_loader::configurator::{BootConfigurator, BootParams, pvh::PvhBootConfigurator};
use linux_loader::loader::elf::PvhBootCapability;
use linux_loader::loader::elf::start_info::{hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info};
use linux_loader::loader::{Elf, KernelLoader};
use vm_memory::GuestAddress;
use whimbrel::memory::PAGE_SIZE;

use crate::config::{Image, VmConfig};
use crate::error::Error;
use crate::memory::{GuestRam, HIGH_START};

const START_INFO: u64 = 0x5000;
const MODULES: u64 = 0x6000;
const MEMORY_MAP: u64 = 0x7000;
const COMMAND_LINE: u64 = 0x2_0000;
const COMMAND_LINE_MAX: usize = 0xffff;
/// RAM below 640 KiB; above it the legacy hole and the firmware's tail.
const BASE_END: u64 = 0xa_0000;
const ONE_MIB: u64 = 1 << 20;

/// Offsets in the ELF64 header: of the program headers, their size, their number.
const PHOFF: usize = 32;
const PHENTSIZE: usize = 54;
const PHNUM: usize = 56;
const PT_LOAD: u32 = 1;

const START_INFO_MAGIC: u32 = 0x336e_c578;
const E820_RAM: u32 = 1;

/// Images to boot, and how to enter them.
#[derive(Debug)]
pub struct Boot {
    kernel: Arc<[u8]>,
    initrd: Option<Arc<[u8]>>,
    command_line: Vec<u8>,
}

impl Boot {
    /// Reads the images of a configuration; `None` if it has no kernel.
    ///
    /// # Errors
    /// If a file cannot be read or the command line is too long.
    pub fn new(config: &VmConfig) -> Result<Option<Self>, Error> {
        let Some(kernel) = &config.kernel else { return Ok(None) };
        let mut command_line = config.command_line.clone().into_bytes();
        if command_line.len() > COMMAND_LINE_MAX || command_line.contains(&0) {
            return Err(Error::Kernel(format!(
                "the command line must be at most {COMMAND_LINE_MAX} bytes, none of them 0"
            )));
        }
        command_line.push(0);
        let initrd = config.initrd.as_ref().map(Image::read).transpose()?;
        Ok(Some(Self { kernel: kernel.read()?, initrd, command_line }))
    }

    /// Writes everything into RAM; returns the entry point.
    ///
    /// # Errors
    /// If an image does not fit or is no PVH kernel.
    pub fn load(&self, ram: &GuestRam) -> Result<u64, Error> {
        let failed = |what: &str, error: &dyn std::fmt::Display| Error::Kernel(format!("{what}: {error}"));
        let memory = ram.ram();
        let loaded = Elf::load(memory, None, &mut Cursor::new(&self.kernel[..]), Some(GuestAddress(ONE_MIB)))
            .map_err(|error| failed("loading the ELF", &error))?;
        let PvhBootCapability::PvhEntryPresent(entry) = loaded.pvh_boot_cap else {
            return Err(Error::Kernel("the ELF has no PVH entry point (XEN_ELFNOTE_PHYS32_ENTRY)".into()));
        };
        for (address, len) in zeroed(&self.kernel) {
            // The loader leaves it as it is, which after a reset is what the guest had there.
            fill_zero(ram, address, len).map_err(|error| failed("clearing the ELF's BSS", &error))?;
        }
        ram.write(COMMAND_LINE, &self.command_line).map_err(|error| failed("command line", &error))?;

        let mut info = hvm_start_info {
            magic: START_INFO_MAGIC,
            version: 1,
            cmdline_paddr: COMMAND_LINE,
            memmap_paddr: MEMORY_MAP,
            ..Default::default()
        };
        let map = memory_map(ram);
        info.memmap_entries = map.len() as u32;
        let module = self.load_initrd(ram)?;
        if module.is_some() {
            info.nr_modules = 1;
            info.modlist_paddr = MODULES;
        }
        let mut params = BootParams::new(&info, GuestAddress(START_INFO));
        params.set_sections(&map, GuestAddress(MEMORY_MAP));
        if let Some(module) = module {
            params.set_modules(&[module], GuestAddress(MODULES));
        }
        PvhBootConfigurator::write_bootparams(&params, memory)
            .map_err(|error| failed("start info", &error))?;
        Ok(entry.0)
    }

    fn load_initrd(&self, ram: &GuestRam) -> Result<Option<hvm_modlist_entry>, Error> {
        let Some(initrd) = &self.initrd else { return Ok(None) };
        let (low, _) = ram.split();
        let at =
            low.checked_sub(initrd.len() as u64).map(|at| at & !(PAGE_SIZE - 1)).filter(|at| *at >= ONE_MIB);
        let at = at.ok_or_else(|| Error::Kernel("the initrd does not fit into RAM below 3 GiB".into()))?;
        ram.write(at, initrd).map_err(|error| Error::Kernel(format!("initrd: {error}")))?;
        Ok(Some(hvm_modlist_entry { paddr: at, size: initrd.len() as u64, ..Default::default() }))
    }
}

/// The general registers the PVH ABI asks for.
pub fn entry_regs(entry: u64) -> kvm_regs {
    kvm_regs { rip: entry, rbx: START_INFO, rflags: 2, ..Default::default() }
}

/// Flat 32-bit segments: code, data, task state.
pub fn entry_segments() -> (kvm_segment, kvm_segment, kvm_segment) {
    let flat = kvm_segment { limit: 0xffff_ffff, present: 1, s: 1, db: 1, g: 1, ..Default::default() };
    let code = kvm_segment { type_: 0xb, selector: 0x10, ..flat };
    let data = kvm_segment { type_: 0x3, selector: 0x18, ..flat };
    let task = kvm_segment { type_: 0xb, limit: 0x67, present: 1, ..Default::default() };
    (code, data, task)
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

fn memory_map(ram: &GuestRam) -> Vec<hvm_memmap_table_entry> {
    let (low, high) = ram.split();
    let ranges = [(0, BASE_END), (ONE_MIB, low - ONE_MIB), (HIGH_START, high)];
    let entry = |(addr, size)| hvm_memmap_table_entry { addr, size, type_: E820_RAM, reserved: 0 };
    ranges.into_iter().filter(|(_, size)| *size > 0).map(entry).collect()
}
