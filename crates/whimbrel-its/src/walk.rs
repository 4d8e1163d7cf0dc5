//! The walk through the tables, KVM's own.

use std::collections::BTreeMap;

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
    let mut walk = Walk::new(memory);
    walk.all(basers, Err)?;
    Ok(walk.tables)
}

/// Decodes what can be decoded, for a look at tables that nobody is to rely on. Each table is read up to its first error, which
/// `wrong` is told as soon as it is met.
pub fn survey(basers: &[u64; 8], memory: &impl ReadMemory, mut wrong: impl FnMut(Error)) -> Tables {
    let mut walk = Walk::new(memory);
    let end = walk.all(basers, |error| match error {
        // Of whatever follows, too.
        Error::TooMany { .. } => Err(error),
        error => {
            wrong(error);
            Ok(())
        }
    });
    end.err().into_iter().for_each(wrong);
    walk.tables
}

struct Walk<'m, M> {
    memory: &'m M,
    left: u64,
    tables: Tables,
    /// Redistributors by collection: the same as in `tables`.
    targets: BTreeMap<u16, u64>,
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

impl<'m, M: ReadMemory> Walk<'m, M> {
    fn new(memory: &'m M) -> Self {
        Self { memory, left: LIMIT, tables: Tables::default(), targets: BTreeMap::new() }
    }

    /// Reads every table, as long as `wrong` lets it go on.
    fn all(
        &mut self,
        basers: &[u64; 8],
        mut wrong: impl FnMut(Error) -> Result<(), Error>,
    ) -> Result<(), Error> {
        self.collections(basers).or_else(&mut wrong)?;
        self.devices(basers).or_else(&mut wrong)?;
        for device in self.tables.devices.clone() {
            self.events(device).or_else(&mut wrong)?;
        }
        Ok(())
    }

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

    fn collections(&mut self, basers: &[u64; 8]) -> Result<(), Error> {
        let Some(baser) = Baser::find(basers, COLLECTIONS)? else { return Ok(()) };
        let count = baser.len / ENTRY;
        self.table(Table::Collections, baser.address, count, |walk, found| {
            if bits(found.entry, 63, 63) == 0 {
                return Ok(Next::Jump(0));
            }
            let id = u16::try_from(bits(found.entry, 15, 0)).unwrap_or_default();
            let target = bits(found.entry, 51, 16);
            if walk.targets.contains_key(&id) {
                return Err(found.error("the collection is there twice"));
            }
            walk.targets.insert(id, target);
            walk.tables.collections.push(Collection { id, target });
            Ok(Next::Jump(1))
        })
    }

    fn devices(&mut self, basers: &[u64; 8]) -> Result<(), Error> {
        let Some(baser) = Baser::find(basers, DEVICES)? else { return Ok(()) };
        let ids = 1_u64 << DEVICE_BITS;
        if !baser.indirect {
            return self.device_page(baser.address, 0, (baser.len / ENTRY).min(ids));
        }
        let a_page = baser.page / ENTRY;
        let pages = (baser.len / ENTRY).min(ids.div_ceil(a_page));
        self.table(Table::DevicePages, baser.address, pages, |walk, found| {
            if bits(found.entry, 63, 63) == 1 {
                let first = found.index.saturating_mul(a_page);
                walk.device_page(bits(found.entry, 51, 16) << 16, first, a_page)?;
            }
            Ok(Next::Scan)
        })
    }

    /// Devices `first..first + count`, whose entries begin at `base`.
    fn device_page(&mut self, base: u64, first: u64, count: u64) -> Result<(), Error> {
        self.table(Table::Devices, base, count, |walk, found| {
            if bits(found.entry, 63, 63) == 0 {
                return Ok(Next::Scan);
            }
            let event_bits = bits(found.entry, 4, 0).saturating_add(1);
            if event_bits > EVENT_BITS {
                return Err(found.error("more event ids than KVM has"));
            }
            walk.tables.devices.push(Device {
                id: u32::try_from(first.saturating_add(found.index)).unwrap_or(u32::MAX),
                table: bits(found.entry, 48, 5) << 8,
                event_bits: u32::try_from(event_bits).unwrap_or_default(),
            });
            Ok(Next::Jump(bits(found.entry, 62, 49)))
        })
    }

    fn events(&mut self, device: Device) -> Result<(), Error> {
        let count = 1_u64 << device.event_bits;
        self.table(Table::Translation { device: device.id }, device.table, count, |walk, found| {
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
            walk.tables.mappings.push(Mapping {
                device: device.id,
                event: u32::try_from(found.index).unwrap_or(u32::MAX),
                intid: u32::try_from(intid).unwrap_or(u32::MAX),
                collection,
                target: walk.targets.get(&collection).copied(),
            });
            Ok(Next::Jump(next))
        })
    }
}

#[cfg(test)]
pub(crate) mod tests;
