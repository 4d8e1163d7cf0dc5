//! The walk through the tables, KVM's own.

use crate::entry::{Baser, COLLECTIONS, DEVICES, ENTRY, bits};
use crate::error::{Error, Table};
use crate::{Collection, Device, Mapping, ReadMemory, Tables};

/// Entries that are looked at, all tables together: each of 2¹⁶ devices of KVM's could have 2¹⁶ events; no guest maps a millionth.
const LIMIT: u64 = 1 << 22;
/// KVM's device ids.
const DEVICE_BITS: u32 = 16;
/// And its event ids.
const EVENT_BITS: u64 = 16;
/// The first LPI.
const FIRST_LPI: u64 = 8192;

/// Decodes all tables that GITS_BASER0 to 7 name.
///
/// # Errors
/// Names table, entry and address. Tables that KVM would refuse are refused.
pub fn decode(basers: &[u64; 8], memory: &impl ReadMemory) -> Result<Tables, Error> {
    let mut walk = Walk { memory, left: LIMIT };
    let collections = walk.collections(Baser::find(basers, COLLECTIONS)?)?;
    let devices = walk.devices(Baser::find(basers, DEVICES)?)?;
    let mut mappings = Vec::new();
    for device in &devices {
        walk.events(device, &collections, &mut mappings)?;
    }
    Ok(Tables { devices, collections, mappings })
}

struct Walk<'m, M> {
    memory: &'m M,
    left: u64,
}

/// One entry, and where it was.
struct Found {
    table: Table,
    index: u64,
    address: u64,
    entry: u64,
}

impl Found {
    fn error(&self, what: &'static str) -> Error {
        let Self { table, index, address, entry } = *self;
        Error::Entry { table, index, address, entry, what }
    }
}

/// What a walk does after an entry.
enum Next {
    /// It was none: the one behind it.
    Scan,
    /// As far on as the entry says; 0: no further.
    Jump(u64),
}

impl<M: ReadMemory> Walk<'_, M> {
    /// Reads entries `0..count` of the table at `base`, by the distances they name.
    fn table(
        &mut self,
        table: Table,
        base: u64,
        count: u64,
        mut f: impl FnMut(&mut Self, &Found) -> Result<Next, Error>,
    ) -> Result<(), Error> {
        let mut index = 0_u64;
        while index < count {
            self.left = self.left.checked_sub(1).ok_or(Error::TooMany { table, limit: LIMIT })?;
            let address = base.saturating_add(index.saturating_mul(ENTRY));
            let mut bytes = [0; 8];
            if !self.memory.read(address, &mut bytes) {
                return Err(Error::Outside { table, address });
            }
            let found = Found { table, index, address, entry: u64::from_le_bytes(bytes) };
            index = match f(self, &found)? {
                Next::Scan => index.saturating_add(1),
                Next::Jump(0) => break,
                Next::Jump(distance) => index.saturating_add(distance),
            };
        }
        Ok(())
    }

    fn collections(&mut self, baser: Option<Baser>) -> Result<Vec<Collection>, Error> {
        let mut collections = Vec::new();
        let Some(baser) = baser else { return Ok(collections) };
        let count = baser.len / ENTRY;
        self.table(Table::Collections, baser.address, count, |_, found| {
            if bits(found.entry, 63, 63) == 0 {
                return Ok(Next::Jump(0));
            }
            let id = u16::try_from(bits(found.entry, 15, 0)).unwrap_or_default();
            let target = bits(found.entry, 51, 16);
            if collections.iter().any(|known: &Collection| known.id == id) {
                return Err(found.error("the collection is there twice"));
            }
            collections.push(Collection { id, target });
            Ok(Next::Jump(1))
        })?;
        Ok(collections)
    }

    fn devices(&mut self, baser: Option<Baser>) -> Result<Vec<Device>, Error> {
        let mut devices = Vec::new();
        let Some(baser) = baser else { return Ok(devices) };
        let ids = 1_u64 << DEVICE_BITS;
        if !baser.indirect {
            self.device_page(baser.address, 0, (baser.len / ENTRY).min(ids), &mut devices)?;
            return Ok(devices);
        }
        let a_page = baser.page / ENTRY;
        let pages = (baser.len / ENTRY).min(ids.div_ceil(a_page));
        self.table(Table::DevicePages, baser.address, pages, |walk, found| {
            if bits(found.entry, 63, 63) == 1 {
                let first = found.index.saturating_mul(a_page);
                walk.device_page(bits(found.entry, 51, 16) << 16, first, a_page, &mut devices)?;
            }
            Ok(Next::Scan)
        })?;
        Ok(devices)
    }

    /// Devices `first..first + count`, whose entries begin at `base`.
    fn device_page(
        &mut self,
        base: u64,
        first: u64,
        count: u64,
        devices: &mut Vec<Device>,
    ) -> Result<(), Error> {
        self.table(Table::Devices, base, count, |_, found| {
            if bits(found.entry, 63, 63) == 0 {
                return Ok(Next::Scan);
            }
            let event_bits = bits(found.entry, 4, 0).saturating_add(1);
            if event_bits > EVENT_BITS {
                return Err(found.error("more event ids than KVM has"));
            }
            devices.push(Device {
                id: u32::try_from(first.saturating_add(found.index)).unwrap_or(u32::MAX),
                table: bits(found.entry, 48, 5) << 8,
                event_bits: u32::try_from(event_bits).unwrap_or_default(),
            });
            Ok(Next::Jump(bits(found.entry, 62, 49)))
        })
    }

    fn events(
        &mut self,
        device: &Device,
        collections: &[Collection],
        mappings: &mut Vec<Mapping>,
    ) -> Result<(), Error> {
        let count = 1_u64 << device.event_bits;
        self.table(Table::Translation { device: device.id }, device.table, count, |_, found| {
            let intid = bits(found.entry, 47, 16);
            if intid == 0 {
                return Ok(Next::Scan);
            }
            if intid < FIRST_LPI {
                return Err(found.error("the interrupt is no LPI"));
            }
            let next = bits(found.entry, 63, 48);
            if found.index.saturating_add(next) >= count {
                return Err(found.error("the next entry is beyond the table"));
            }
            let collection = u16::try_from(bits(found.entry, 15, 0)).unwrap_or_default();
            let known = collections.iter().find(|known| known.id == collection);
            mappings.push(Mapping {
                device: device.id,
                event: u32::try_from(found.index).unwrap_or(u32::MAX),
                intid: u32::try_from(intid).unwrap_or(u32::MAX),
                collection,
                target: known.map(|known| known.target),
            });
            Ok(Next::Jump(next))
        })
    }
}

#[cfg(test)]
pub(crate) mod tests;
