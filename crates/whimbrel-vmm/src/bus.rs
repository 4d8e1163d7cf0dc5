//! Port and MMIO exits, given to devices. Knows no device; an address nobody owns reads as all ones and swallows writes.

use std::sync::Arc;

/// A device on the I/O ports. Called on vCPU threads; `offset` counts from the first port of its range.
pub trait PortDevice: Send + Sync {
    /// The guest reads.
    fn read(&self, offset: u16, data: &mut [u8]);
    /// The guest writes.
    fn write(&self, offset: u16, data: &[u8]);
}

/// A device with registers in memory. Called on vCPU threads; `offset` counts from the first byte of its range.
pub trait MmioDevice: Send + Sync {
    /// The guest reads.
    fn read(&self, offset: u64, data: &mut [u8]);
    /// The guest writes.
    fn write(&self, offset: u64, data: &[u8]) -> Asked;
}

/// What a guest asks of the machine as a whole with a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asked {
    /// Nothing: it is the device's affair.
    Nothing,
    /// To be reset.
    Reset,
    /// To be switched off.
    Shutdown,
}

/// All port and MMIO ranges of a machine.
#[derive(Default)]
pub struct Bus {
    ports: Vec<(u16, u16, Arc<dyn PortDevice>)>,
    mmio: Vec<(u64, u64, Arc<dyn MmioDevice>)>,
}

impl Bus {
    /// Gives `count` ports from `first` on to a device.
    pub fn add(&mut self, first: u16, count: u16, device: Arc<dyn PortDevice>) {
        self.ports.push((first, count, device));
    }

    /// A read from a port.
    pub fn read(&self, port: u16, data: &mut [u8]) {
        match self.find(port) {
            Some((offset, device)) => device.read(offset, data),
            None => data.fill(0xff),
        }
    }

    /// A write to a port.
    pub fn write(&self, port: u16, data: &[u8]) {
        if let Some((offset, device)) = self.find(port) {
            device.write(offset, data);
        }
    }

    /// Gives `len` bytes from `first` on to a device.
    pub fn add_mmio(&mut self, first: u64, len: u64, device: Arc<dyn MmioDevice>) {
        self.mmio.push((first, len, device));
    }

    /// A read from memory that is none.
    pub fn read_mmio(&self, address: u64, data: &mut [u8]) {
        match self.find_mmio(address) {
            Some((offset, device)) => device.read(offset, data),
            None => data.fill(0xff),
        }
    }

    /// A write to memory that is none.
    pub fn write_mmio(&self, address: u64, data: &[u8]) -> Asked {
        self.find_mmio(address).map_or(Asked::Nothing, |(offset, device)| device.write(offset, data))
    }

    fn find_mmio(&self, address: u64) -> Option<(u64, &Arc<dyn MmioDevice>)> {
        let owner = self.mmio.iter().find(|(first, len, _)| address >= *first && address - first < *len);
        owner.map(|(first, _, device)| (address - first, device))
    }

    fn find(&self, port: u16) -> Option<(u16, &Arc<dyn PortDevice>)> {
        let owner = self.ports.iter().find(|(first, count, _)| port >= *first && port - first < *count);
        owner.map(|(first, _, device)| (port - first, device))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Echo;
    impl MmioDevice for Echo {
        fn read(&self, offset: u64, data: &mut [u8]) {
            data.fill(offset as u8);
        }
        fn write(&self, _: u64, _: &[u8]) -> Asked {
            Asked::Reset
        }
    }
    impl PortDevice for Echo {
        fn read(&self, offset: u16, data: &mut [u8]) {
            data.fill(offset as u8);
        }
        fn write(&self, _: u16, _: &[u8]) {}
    }

    #[test]
    fn ports_go_to_their_owner_and_the_rest_reads_ones() {
        let mut bus = Bus::default();
        bus.add(0x3f8, 8, Arc::new(Echo));
        let mut byte = [0];
        for (port, value) in [(0x3f7, 0xff), (0x3f8, 0), (0x3ff, 7), (0x400, 0xff)] {
            bus.read(port, &mut byte);
            assert_eq!(byte, [value], "{port:#x}");
        }
    }

    #[test]
    fn memory_goes_to_its_owner_and_the_rest_reads_ones() {
        let mut bus = Bus::default();
        bus.add_mmio(0xfec1_0000, 0x1000, Arc::new(Echo));
        let mut byte = [0];
        for (address, value, asked) in [
            (0xfec0_ffff, 0xff, Asked::Nothing),
            (0xfec1_0010, 0x10, Asked::Reset),
            (0xfec1_1000, 0xff, Asked::Nothing),
        ] {
            bus.read_mmio(address, &mut byte);
            assert_eq!(byte, [value], "{address:#x}");
            assert_eq!(bus.write_mmio(address, &byte), asked, "{address:#x}");
        }
    }
}
