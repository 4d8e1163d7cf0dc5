//! Port and MMIO exits, given to devices. Knows no device; an address nobody owns reads as all ones and swallows writes.

use std::sync::Arc;

/// A device on the I/O ports. Called on vCPU threads; `offset` counts from the first port of its range.
pub trait PortDevice: Send + Sync {
    /// The guest reads.
    fn read(&self, offset: u16, data: &mut [u8]);
    /// The guest writes.
    fn write(&self, offset: u16, data: &[u8]);
}

/// All port ranges of a machine.
#[derive(Default)]
pub struct Bus {
    ports: Vec<(u16, u16, Arc<dyn PortDevice>)>,
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

    fn find(&self, port: u16) -> Option<(u16, &Arc<dyn PortDevice>)> {
        let owner = self.ports.iter().find(|(first, count, _)| port >= *first && port - first < *count);
        owner.map(|(first, _, device)| (port - first, device))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Echo;
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
}
