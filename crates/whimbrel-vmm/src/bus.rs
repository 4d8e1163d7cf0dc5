//! Port and MMIO exits, given to devices: one bus for each kind. Knows no device; an address nobody owns reads as all ones and swallows writes.

use std::sync::Arc;

/// A device with registers, at I/O ports or in memory. Called on vCPU threads; `offset` counts from its range's first address.
pub trait PortDevice: Send + Sync {
    /// The guest reads.
    fn read(&self, offset: u16, data: &mut [u8]);
    /// The guest writes.
    fn write(&self, offset: u16, data: &[u8]);
}

/// All ranges of one kind of a machine.
#[derive(Default)]
pub struct Bus {
    ranges: Vec<(u64, u16, Arc<dyn PortDevice>)>,
}

impl Bus {
    /// Gives `count` addresses from `first` on to a device.
    pub fn add(&mut self, first: impl Into<u64>, count: u16, device: Arc<dyn PortDevice>) {
        self.ranges.push((first.into(), count, device));
    }

    /// A read.
    pub fn read(&self, address: u64, data: &mut [u8]) {
        match self.find(address) {
            Some((offset, device)) => device.read(offset, data),
            None => data.fill(0xff),
        }
    }

    /// A write.
    pub fn write(&self, address: u64, data: &[u8]) {
        if let Some((offset, device)) = self.find(address) {
            device.write(offset, data);
        }
    }

    fn find(&self, address: u64) -> Option<(u16, &Arc<dyn PortDevice>)> {
        self.ranges.iter().find_map(|(first, count, device)| {
            let offset = u16::try_from(address.checked_sub(*first)?).ok()?;
            (offset < *count).then_some((offset, device))
        })
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
    fn addresses_go_to_their_owner_and_the_rest_reads_ones() {
        let mut bus = Bus::default();
        bus.add(0x3f8_u16, 8, Arc::new(Echo));
        let mut byte = [0];
        for (address, value) in [(0x3f7, 0xff), (0x3f8, 0), (0x3ff, 7), (0x400, 0xff), (0x1_03f8, 0xff)] {
            bus.read(address, &mut byte);
            assert_eq!(byte, [value], "{address:#x}");
        }
    }
}
