//! Booting a kernel directly, without firmware: images, command line and tables into RAM, and where to enter.
//!
//! ```text
//! 0x5000  PVH: hvm_start_info, 0x6000 modules, 0x7000 memory map; bzImage: the zero page
//! 0x20000 command line, at most 64 KiB − 1 bytes
//! 0x9e000 ACPI tables, to 640 KiB
//! 1 MiB   the kernel, where its image says
//! high    initrd, page aligned, as high below the hole as it fits and the kernel allows
//! ```
//! The kernel is entered in 32-bit protected mode, flat, without paging and interrupts. Everything is written through the regions,
//! so the dirty log sees a reset during a migration.
//!
//! | image | is recognized by | entered |
//! |---|---|---|
//! | ELF with a PVH note | `\x7fELF` | at the note's address, EBX: start info |
//! | bzImage | `HdrS` | at its load address, ESI: zero page |

pub(crate) mod acpi;
mod bzimage;
mod pvh;

use std::sync::Arc;

use kvm_bindings::{kvm_regs, kvm_segment};
use whimbrel::memory::PAGE_SIZE;

use crate::config::{Image, VmConfig};
use crate::error::Error;
use crate::memory::{GuestRam, HIGH_START};
use acpi::Hardware;

const COMMAND_LINE: u64 = 0x2_0000;
const COMMAND_LINE_MAX: usize = 0xffff;
const ACPI: u64 = 0x9_e000;
/// The tables' share of the memory map.
const ACPI_SIZE: u64 = BASE_END - ACPI;
/// RAM below 640 KiB; above it the legacy hole and the firmware's tail.
const BASE_END: u64 = 0xa_0000;
const ONE_MIB: u64 = 1 << 20;

/// Kinds of memory in the map a kernel is given.
const E820_RAM: u32 = 1;
const E820_ACPI: u32 = 3;

/// Images to boot, and how to enter them.
#[derive(Debug)]
pub struct Boot {
    kernel: Arc<[u8]>,
    initrd: Option<Arc<[u8]>>,
    /// With its NUL.
    command_line: Vec<u8>,
    hardware: Hardware,
}

/// Where a kernel is entered, and the two registers that tell it what it was given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// The first instruction.
    pub rip: u64,
    /// PVH: the start info.
    pub rbx: u64,
    /// bzImage: the zero page.
    pub rsi: u64,
}

/// Where the initrd was put.
#[derive(Debug, Clone, Copy)]
struct Initrd {
    at: u64,
    len: u64,
}

/// A range of the memory map.
struct Range {
    at: u64,
    len: u64,
    kind: u32,
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
        let hardware =
            Hardware { cpus: config.cpus, serial: config.serial.is_some(), acpi: config.machine.acpi };
        Ok(Some(Self { kernel: kernel.read()?, initrd, command_line, hardware }))
    }

    /// Writes everything into RAM; returns where to enter.
    ///
    /// # Errors
    /// If an image does not fit or is no kernel this machine can enter.
    pub fn load(&self, ram: &GuestRam) -> Result<Entry, Error> {
        ram.write(COMMAND_LINE, &self.command_line).map_err(|error| failed("command line", &error))?;
        ram.write(ACPI, &acpi::tables(self.hardware, ACPI)).map_err(|error| failed("ACPI tables", &error))?;
        if bzimage::is_one(&self.kernel) { bzimage::load(self, ram) } else { pvh::load(self, ram) }
    }

    /// Puts the initrd below `limit`, where the kernel can reach it.
    fn load_initrd(&self, ram: &GuestRam, limit: u64) -> Result<Option<Initrd>, Error> {
        let Some(initrd) = &self.initrd else { return Ok(None) };
        let (low, _) = ram.split();
        let len = initrd.len() as u64;
        let at = low.min(limit).checked_sub(len).map(|at| at & !(PAGE_SIZE - 1));
        let at = at.filter(|at| *at >= ONE_MIB);
        let at = at.ok_or_else(|| Error::Kernel("the initrd does not fit into RAM below 3 GiB".into()))?;
        ram.write(at, initrd).map_err(|error| failed("initrd", &error))?;
        Ok(Some(Initrd { at, len }))
    }
}

/// The general registers a kernel is entered with.
pub fn entry_regs(entry: Entry) -> kvm_regs {
    kvm_regs { rip: entry.rip, rbx: entry.rbx, rsi: entry.rsi, rflags: 2, ..Default::default() }
}

/// Flat 32-bit segments: code, data, task state.
pub fn entry_segments() -> (kvm_segment, kvm_segment, kvm_segment) {
    let flat = kvm_segment { limit: 0xffff_ffff, present: 1, s: 1, db: 1, g: 1, ..Default::default() };
    let code = kvm_segment { type_: 0xb, selector: 0x10, ..flat };
    let data = kvm_segment { type_: 0x3, selector: 0x18, ..flat };
    let task = kvm_segment { type_: 0xb, limit: 0x67, present: 1, ..Default::default() };
    (code, data, task)
}

fn memory_map(ram: &GuestRam) -> Vec<Range> {
    let (low, high) = ram.split();
    let ranges = [
        Range { at: 0, len: ACPI, kind: E820_RAM },
        Range { at: ACPI, len: ACPI_SIZE, kind: E820_ACPI },
        Range { at: ONE_MIB, len: low - ONE_MIB, kind: E820_RAM },
        Range { at: HIGH_START, len: high, kind: E820_RAM },
    ];
    ranges.into_iter().filter(|range| range.len > 0).collect()
}

fn failed(what: &str, error: &dyn std::fmt::Display) -> Error {
    Error::Kernel(format!("{what}: {error}"))
}
