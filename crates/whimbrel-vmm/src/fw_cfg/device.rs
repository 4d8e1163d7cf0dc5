//! A running fw_cfg, and its section.
//!
//! | port | access |
//! |---|---|
//! | 0x510 | 16-bit write: selects an item |
//! | 0x511 | 8-bit read: the next byte of it; 0 behind its end |
//! | 0x514 | 32-bit big-endian: high half of the DMA address; reads "QEMU" |
//! | 0x518 | 32-bit big-endian: low half; the write starts the transfer; reads " CFG" |
//!
//! A transfer is described by 16 big-endian bytes in guest memory: u32 control, u32 length, u64 address. Control: bit 0 error (set by the
//! device), 1 read, 2 skip, 3 select the item in bits 16–31, 4 write. It is set to 0 when done.
//!
//! The position is state; the items follow from the configuration. Files have the numbers they have in QEMU's microvm, so that a guest
//! that knows the directory from there finds them. ACPI's files are ROM blocks, which come with a guest; their sizes
//! are state too.

use std::sync::{Arc, Mutex};

use whimbrel::downcast;
use whimbrel::handlers::Device;
use whimbrel::machine::MachineError;
use whimbrel::memory::RamBlock;
use whimbrel_vmstate::VmState;

use crate::bus::PortDevice;
use crate::lock;
use crate::memory::{GuestRam, HIGH_START};
use crate::roms::PREFIX;
use crate::state::{self, FwCfgAcpi};

/// First port.
pub const FIRST_PORT: u16 = 0x510;
/// Number of ports.
pub const PORTS: u16 = 12;

const SELECTOR: u16 = 0;
const DATA: u16 = 1;
const DMA_HIGH: u16 = 4;
const DMA_LOW: u16 = 8;
/// What the DMA register reads as.
const DMA_SIGNATURE: [u8; 8] = *b"QEMU CFG";

const CONTROL_ERROR: u32 = 1;
const CONTROL_READ: u32 = 2;
const CONTROL_SKIP: u32 = 4;
const CONTROL_SELECT: u32 = 8;
const CONTROL_WRITE: u32 = 16;
/// Bytes handed to guest memory at a time.
const CHUNK: usize = 4096;

const ITEM_SIGNATURE: u16 = 0x00;
const ITEM_ID: u16 = 0x01;
const ITEM_CPUS: u16 = 0x05;
const ITEM_MAX_CPUS: u16 = 0x0f;
const ITEM_DIRECTORY: u16 = 0x19;
const ITEM_FIRST_FILE: u16 = 0x20;
/// QEMU's files in its order: sorted by name. Those of ACPI are there with it only.
const FILES: [&str; 8] = [
    "bios-geometry",
    "bootorder",
    ACPI_RSDP,
    ACPI_TABLES,
    "etc/boot-fail-wait",
    E820,
    "etc/fdt",
    ACPI_LINKER,
];
const E820: &str = "etc/e820";
const ACPI_RSDP: &str = "etc/acpi/rsdp";
const ACPI_TABLES: &str = "etc/acpi/tables";
const ACPI_LINKER: &str = "etc/table-loader";
/// Of [`ITEM_ID`]: the classic interface, and DMA.
const ID: u32 = 1 | 2;
const E820_RAM: u32 = 1;

/// The device.
pub struct FwCfg {
    ram: Arc<GuestRam>,
    /// Without files.
    items: Vec<(u16, Vec<u8>)>,
    files: Vec<&'static str>,
    e820: Vec<u8>,
    state: Mutex<State>,
}

#[derive(Debug, Default, Clone, Copy)]
struct State {
    position: Position,
    /// Sizes of ACPI's files, once a guest has brought them.
    acpi: Option<FwCfgAcpi>,
}

#[derive(Debug, Default, Clone, Copy)]
struct Position {
    item: u16,
    offset: u32,
    dma: u64,
}

impl FwCfg {
    /// For a machine with this memory and number of vCPUs, and whether it has ACPI.
    pub fn new(ram: Arc<GuestRam>, cpus: u32, acpi: bool) -> Self {
        let cpus = (cpus as u16).to_le_bytes().to_vec();
        let items = vec![
            (ITEM_SIGNATURE, b"QEMU".to_vec()),
            (ITEM_ID, ID.to_le_bytes().to_vec()),
            (ITEM_CPUS, cpus.clone()),
            (ITEM_MAX_CPUS, cpus),
        ];
        let of_acpi = |name: &&str| [ACPI_RSDP, ACPI_TABLES, ACPI_LINKER].contains(name);
        let files = FILES.into_iter().filter(|name| acpi || !of_acpi(name)).collect();
        Self { items, files, e820: e820(&ram), ram, state: Mutex::default() }
    }

    /// Back to power-on. ROM blocks stay, and so do their sizes.
    pub fn reset(&self) {
        lock(&self.state).position = Position::default();
    }

    fn has_acpi(&self) -> bool {
        self.files.contains(&ACPI_TABLES)
    }

    /// The next bytes; zeroes behind the end.
    fn take(&self, state: &mut State, into: &mut [u8]) {
        let Position { item, offset, .. } = state.position;
        into.fill(0);
        let from = offset as usize;
        let copy = |data: &[u8], into: &mut [u8]| {
            for (byte, value) in into.iter_mut().zip(data.get(from..).unwrap_or_default()) {
                *byte = *value;
            }
        };
        match self.file(item) {
            _ if item == ITEM_DIRECTORY => copy(&self.directory(state.acpi), into),
            Some(E820) => copy(&self.e820, into),
            Some(name) => self.take_rom(name, file_len(name, state.acpi), offset, into),
            None => {
                let found = self.items.iter().find(|(key, _)| *key == item);
                copy(found.map_or(&[], |(_, data)| data), into);
            }
        }
        state.position.offset = offset.saturating_add(u32::try_from(into.len()).unwrap_or(u32::MAX));
    }

    /// From the ROM block that holds the file's `len` bytes.
    fn take_rom(&self, name: &str, len: u64, offset: u32, into: &mut [u8]) {
        let block = self.ram.blocks().iter().find(|block| block.name().strip_prefix(PREFIX) == Some(name));
        let left = len.saturating_sub(offset.into());
        let count = usize::try_from(left).unwrap_or(usize::MAX).min(into.len());
        // The sizes were checked when they came: what cannot be read is not there.
        if let Some(block) = block
            && block.read(offset.into(), &mut into[..count]).is_err()
        {
            into.fill(0);
        }
    }

    fn file(&self, item: u16) -> Option<&'static str> {
        self.files.get(usize::from(item.checked_sub(ITEM_FIRST_FILE)?)).copied()
    }

    fn directory(&self, acpi: Option<FwCfgAcpi>) -> Vec<u8> {
        let len = |name: &&'static str| match *name {
            E820 => self.e820.len() as u64,
            name => file_len(name, acpi),
        };
        let files: Vec<_> = self.files.iter().map(|name| (*name, len(name))).collect();
        directory(&files)
    }

    fn transfer(&self, state: &mut State) {
        let at = std::mem::take(&mut state.position.dma);
        let mut request = [0; 16];
        if self.ram.read(at, &mut request).is_err() {
            return;
        }
        let word = |from: usize| u32::from_be_bytes(std::array::from_fn(|index| request[from + index]));
        let (control, length) = (word(0), word(4));
        let address = u64::from(word(8)) << 32 | u64::from(word(12));
        if control & CONTROL_SELECT != 0 {
            state.position = Position { item: (control >> 16) as u16, offset: 0, dma: 0 };
        }
        let done = if control & CONTROL_READ != 0 {
            self.read_to(state, address, length)
        } else if control & CONTROL_WRITE != 0 {
            false // no item can be written
        } else {
            let skipped = if control & CONTROL_SKIP != 0 { length } else { 0 };
            state.position.offset = state.position.offset.saturating_add(skipped);
            true
        };
        let status = if done { 0 } else { CONTROL_ERROR };
        // A guest that has unmapped its own request cannot be told.
        let _ = self.ram.write(at, &status.to_be_bytes());
    }

    fn read_to(&self, state: &mut State, mut address: u64, length: u32) -> bool {
        let mut left = length as usize;
        let mut chunk = [0; CHUNK];
        while left > 0 {
            let count = left.min(CHUNK);
            self.take(state, &mut chunk[..count]);
            if self.ram.write(address, &chunk[..count]).is_err() {
                return false;
            }
            address = address.wrapping_add(count as u64);
            left -= count;
        }
        true
    }
}

impl PortDevice for FwCfg {
    fn read(&self, offset: u16, data: &mut [u8]) {
        match offset {
            DATA => self.take(&mut lock(&self.state), data),
            DMA_HIGH..PORTS => {
                for (byte, value) in data.iter_mut().zip(&DMA_SIGNATURE[usize::from(offset - DMA_HIGH)..]) {
                    *byte = *value;
                }
            }
            _ => data.fill(0),
        }
    }

    fn write(&self, offset: u16, data: &[u8]) {
        let mut state = lock(&self.state);
        let position = &mut state.position;
        match (offset, data) {
            (SELECTOR, [low, high]) => {
                let item = u16::from_le_bytes([*low, *high]);
                *position = Position { item, offset: 0, ..*position };
            }
            (DMA_HIGH, [a, b, c, d]) => position.dma = u64::from(u32::from_be_bytes([*a, *b, *c, *d])) << 32,
            (DMA_LOW, [a, b, c, d]) => {
                position.dma = position.dma & !0xffff_ffff | u64::from(u32::from_be_bytes([*a, *b, *c, *d]));
                self.transfer(&mut state);
            }
            _ => {}
        }
    }
}

impl Device for FwCfg {
    fn save(&self) -> Result<Box<dyn VmState>, MachineError> {
        let State { position: Position { item, offset, dma }, acpi } = *lock(&self.state);
        Ok(Box::new(state::FwCfg { cur_entry: item, cur_offset: offset, dma_addr: Some(dma), acpi }))
    }

    fn blank(&self) -> Box<dyn VmState> {
        Box::new(state::FwCfg::default())
    }

    /// Taken at once: the machine is stopped, and the ROM blocks are there.
    fn load(&self, state: Box<dyn VmState>) -> Result<(), MachineError> {
        let state = downcast::<state::FwCfg>(state)?;
        if state.acpi.is_some() && !self.has_acpi() {
            return Err("acpi_mr: the other machine has ACPI tables, this one does not (acpi=off)".into());
        }
        for name in [ACPI_TABLES, ACPI_LINKER, ACPI_RSDP] {
            let len = file_len(name, state.acpi);
            let block =
                self.ram.blocks().iter().find(|block| block.name().strip_prefix(PREFIX) == Some(name));
            let there = block.map_or(0, RamBlock::len);
            if len > there {
                return Err(format!("acpi_mr: '{name}' of {len:#x} bytes in a block of {there:#x}").into());
            }
        }
        let position =
            Position { item: state.cur_entry, offset: state.cur_offset, dma: state.dma_addr.unwrap_or(0) };
        *lock(&self.state) = State { position, acpi: state.acpi };
        Ok(())
    }
}

/// Bytes of a file that is a ROM block; the others of QEMU's files are empty here.
fn file_len(name: &str, acpi: Option<FwCfgAcpi>) -> u64 {
    let acpi = acpi.unwrap_or_default();
    match name {
        ACPI_TABLES => acpi.table_size,
        ACPI_LINKER => acpi.linker_size,
        ACPI_RSDP => acpi.rsdp_size,
        _ => 0,
    }
}

/// The file directory: be32 count, then 64 bytes a file: be32 size, be16 item, 2 unused, name.
fn directory(files: &[(&str, u64)]) -> Vec<u8> {
    let mut bytes = (files.len() as u32).to_be_bytes().to_vec();
    for (item, (name, len)) in (ITEM_FIRST_FILE..).zip(files) {
        bytes.extend((*len as u32).to_be_bytes());
        bytes.extend(item.to_be_bytes());
        bytes.extend([0; 2]);
        let mut padded = [0; 56];
        padded[..name.len()].copy_from_slice(name.as_bytes());
        bytes.extend(padded);
    }
    bytes
}

/// RAM for the firmware: u64 address, u64 length, u32 type, little-endian.
fn e820(ram: &GuestRam) -> Vec<u8> {
    let (low, high) = ram.split();
    let mut bytes = Vec::new();
    for (address, len) in [(0, low), (HIGH_START, high)].into_iter().filter(|(_, len)| *len > 0) {
        bytes.extend(u64::to_le_bytes(address));
        bytes.extend(u64::to_le_bytes(len));
        bytes.extend(E820_RAM.to_le_bytes());
    }
    bytes
}

#[cfg(test)]
mod tests;
