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
//! device), 1 read, 2 skip, 3 select the item in bits 16–31, 4 write. It is set to 0 when done. Only the position is state; the items
//! follow from the configuration.

use std::sync::{Arc, Mutex};

use whimbrel::downcast;
use whimbrel::handlers::Device;
use whimbrel::machine::MachineError;
use whimbrel_vmstate::VmState;

use crate::bus::PortDevice;
use crate::lock;
use crate::memory::{GuestRam, HIGH_START};
use crate::state;

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
/// Of [`ITEM_ID`]: the classic interface, and DMA.
const ID: u32 = 1 | 2;
const E820_RAM: u32 = 1;

/// The device.
pub struct FwCfg {
    ram: Arc<GuestRam>,
    items: Vec<(u16, Vec<u8>)>,
    position: Mutex<Position>,
}

#[derive(Debug, Default, Clone, Copy)]
struct Position {
    item: u16,
    offset: u32,
    dma: u64,
}

impl FwCfg {
    /// For a machine with this memory and number of vCPUs.
    pub fn new(ram: Arc<GuestRam>, cpus: u32) -> Self {
        let cpus = (cpus as u16).to_le_bytes().to_vec();
        let map = e820(&ram);
        let items = vec![
            (ITEM_SIGNATURE, b"QEMU".to_vec()),
            (ITEM_ID, ID.to_le_bytes().to_vec()),
            (ITEM_CPUS, cpus.clone()),
            (ITEM_MAX_CPUS, cpus),
            (ITEM_DIRECTORY, directory(&[("etc/e820", map.len())])),
            (ITEM_FIRST_FILE, map),
        ];
        Self { ram, items, position: Mutex::default() }
    }

    /// Back to power-on.
    pub fn reset(&self) {
        *lock(&self.position) = Position::default();
    }

    /// The next `count` bytes; zeroes behind the end.
    fn take(&self, position: &mut Position, into: &mut [u8]) {
        let item = self.items.iter().find(|(key, _)| *key == position.item);
        let data = item.map_or(&[][..], |(_, data)| data);
        for byte in into {
            *byte = data.get(position.offset as usize).copied().unwrap_or(0);
            position.offset = position.offset.saturating_add(1);
        }
    }

    fn transfer(&self, position: &mut Position) {
        let at = std::mem::take(&mut position.dma);
        let mut request = [0; 16];
        if self.ram.read(at, &mut request).is_err() {
            return;
        }
        let word = |from: usize| u32::from_be_bytes(std::array::from_fn(|index| request[from + index]));
        let (control, length) = (word(0), word(4));
        let address = u64::from(word(8)) << 32 | u64::from(word(12));
        if control & CONTROL_SELECT != 0 {
            *position = Position { item: (control >> 16) as u16, offset: 0, dma: 0 };
        }
        let done = if control & CONTROL_READ != 0 {
            self.read_to(position, address, length)
        } else if control & CONTROL_WRITE != 0 {
            false // no item can be written
        } else {
            let skipped = if control & CONTROL_SKIP != 0 { length } else { 0 };
            position.offset = position.offset.saturating_add(skipped);
            true
        };
        let status = if done { 0 } else { CONTROL_ERROR };
        // A guest that has unmapped its own request cannot be told.
        let _ = self.ram.write(at, &status.to_be_bytes());
    }

    fn read_to(&self, position: &mut Position, mut address: u64, length: u32) -> bool {
        let mut left = length as usize;
        let mut chunk = [0; CHUNK];
        while left > 0 {
            let count = left.min(CHUNK);
            self.take(position, &mut chunk[..count]);
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
            DATA => self.take(&mut lock(&self.position), data),
            DMA_HIGH..PORTS => {
                for (byte, value) in data.iter_mut().zip(&DMA_SIGNATURE[usize::from(offset - DMA_HIGH)..]) {
                    *byte = *value;
                }
            }
            _ => data.fill(0),
        }
    }

    fn write(&self, offset: u16, data: &[u8]) {
        let mut position = lock(&self.position);
        match (offset, data) {
            (SELECTOR, [low, high]) => {
                let item = u16::from_le_bytes([*low, *high]);
                *position = Position { item, offset: 0, ..*position };
            }
            (DMA_HIGH, [a, b, c, d]) => position.dma = u64::from(u32::from_be_bytes([*a, *b, *c, *d])) << 32,
            (DMA_LOW, [a, b, c, d]) => {
                position.dma = position.dma & !0xffff_ffff | u64::from(u32::from_be_bytes([*a, *b, *c, *d]));
                self.transfer(&mut position);
            }
            _ => {}
        }
    }
}

impl Device for FwCfg {
    fn save(&self) -> Result<Box<dyn VmState>, MachineError> {
        let Position { item, offset, dma } = *lock(&self.position);
        Ok(Box::new(state::FwCfg { cur_entry: item, cur_offset: offset, dma_addr: Some(dma), acpi: None }))
    }

    fn blank(&self) -> Box<dyn VmState> {
        Box::new(state::FwCfg::default())
    }

    /// Taken at once: the machine is stopped.
    fn load(&self, state: Box<dyn VmState>) -> Result<(), MachineError> {
        let state = downcast::<state::FwCfg>(state)?;
        if state.acpi.is_some() {
            return Err("acpi_mr: the other machine has ACPI tables, this one does not (acpi=off)".into());
        }
        *lock(&self.position) =
            Position { item: state.cur_entry, offset: state.cur_offset, dma: state.dma_addr.unwrap_or(0) };
        Ok(())
    }
}

/// The file directory: be32 count, then 64 bytes a file: be32 size, be16 item, 2 unused, name.
fn directory(files: &[(&str, usize)]) -> Vec<u8> {
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
mod tests {
    use super::*;
    use crate::config::{MemoryBackend, VmConfig};

    fn device() -> FwCfg {
        let config = VmConfig { memory: 8 << 20, backend: MemoryBackend::Anonymous, ..VmConfig::default() };
        FwCfg::new(Arc::new(GuestRam::new(&config).unwrap()), 2)
    }

    fn select(device: &FwCfg, item: u16) {
        device.write(SELECTOR, &item.to_le_bytes());
    }

    fn bytes<const N: usize>(device: &FwCfg) -> [u8; N] {
        std::array::from_fn(|_| {
            let mut byte = [9];
            device.read(DATA, &mut byte);
            byte[0]
        })
    }

    #[test]
    fn items_read_byte_by_byte_and_as_zero_behind_their_end() {
        let device = device();
        select(&device, ITEM_SIGNATURE);
        assert_eq!(&bytes::<6>(&device), b"QEMU\0\0");
        select(&device, ITEM_CPUS);
        assert_eq!(bytes(&device), [2, 0]);
        select(&device, 0x7777);
        assert_eq!(bytes(&device), [0]);
    }

    #[test]
    fn a_transfer_selects_reads_and_reports() {
        let device = device();
        let request = |control: u32, length: u32, address: u64| {
            let mut bytes = control.to_be_bytes().to_vec();
            bytes.extend(length.to_be_bytes());
            bytes.extend(address.to_be_bytes());
            device.ram.write(0x1000, &bytes).unwrap();
            device.write(DMA_HIGH, &[0; 4]);
            device.write(DMA_LOW, &0x1000u32.to_be_bytes());
            let mut status = [9; 4];
            device.ram.read(0x1000, &mut status).unwrap();
            u32::from_be_bytes(status)
        };
        assert_eq!(request(u32::from(ITEM_FIRST_FILE) << 16 | CONTROL_SELECT | CONTROL_READ, 20, 0x2000), 0);
        let mut entry = [0; 20];
        device.ram.read(0x2000, &mut entry).unwrap();
        assert_eq!(entry[8..16], (8u64 << 20).to_le_bytes());
        assert_eq!(request(CONTROL_READ, 4, 1 << 40), CONTROL_ERROR, "outside of memory");
        assert_eq!(request(CONTROL_WRITE, 4, 0x2000), CONTROL_ERROR);
    }

    #[test]
    fn the_position_moves_with_the_guest() {
        let source = device();
        select(&source, ITEM_SIGNATURE);
        assert_eq!(&bytes(&source), b"QE");
        let destination = device();
        destination.load(source.save().unwrap()).unwrap();
        assert_eq!(&bytes(&destination), b"MU");
    }

    #[test]
    fn a_machine_with_acpi_tables_is_refused() {
        let state = state::FwCfg { acpi: Some(state::FwCfgAcpi::default()), ..Default::default() };
        assert!(device().load(Box::new(state)).unwrap_err().0.contains("ACPI"));
    }
}
