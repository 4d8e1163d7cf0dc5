//! The walk through the tables, KVM's own.

use std::collections::BTreeMap;

use crate::entry::{Baser, COLLECTIONS, DEVICE_IDS, DEVICES, ENTRY, bits};
use crate::error::{Error, Table};
use crate::{Collection, Device, Mapping, ReadMemory, Tables};

/// What a walk may cost, all tables together, in steps: looking at an entry is one. A guest whose 57344 LPIs all belong to
/// different devices takes 3.7 million; any walk ends within some 10 ms.
const LIMIT: u64 = 1 << 22;
/// Steps of reading a piece of a table.
const FETCH: u64 = 16;
/// Steps of an entry that maps something.
const VALID: u64 = 16;
/// Bytes that are read at once, where they are aligned: they lie in one page, as the entry does that is wanted.
const PIECE: usize = 512;

/// KVM's event ids.
const EVENT_BITS: u64 = 16;
/// The first LPI.
const FIRST_LPI: u64 = 8192;
/// The target of a collection that events name and the guest has not mapped.
const NOT_MAPPED: u64 = 0xffff_ffff;

/// Decodes all tables that GITS_BASER0 to 7 name, of a machine with `redistributors`.
///
/// # Errors
/// Names table, entry and address. Tables that KVM would refuse are refused.
pub fn decode(basers: &[u64; 8], redistributors: u64, memory: &impl ReadMemory) -> Result<Tables, Error> {
    let mut walk = Walk::new(Some(redistributors), memory);
    walk.all(basers, Err)?;
    Ok(walk.tables)
}

/// Decodes what can be decoded, for a look at tables that nobody is to rely on. Each table is read up to its first error, which
/// `wrong` is told as soon as it is met. Events and collections that lead nowhere are no error here.
pub fn survey(basers: &[u64; 8], memory: &impl ReadMemory, mut wrong: impl FnMut(Error)) -> Tables {
    let mut walk = Walk::new(None, memory);
    let end = walk.all(basers, |error| match error {
        // Of whatever follows, too.
        Error::TooMuch { .. } => Err(error),
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
    /// How many there are; `None`: what leads to none of them is let pass.
    redistributors: Option<u64>,
    /// Steps.
    left: u64,
    /// What was read last, and from where.
    piece: (Option<u64>, [u8; PIECE]),
    tables: Tables,
    /// Redistributors by collection: the same as in `tables`.
    targets: BTreeMap<u16, Option<u64>>,
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
    /// As far on as the entry says; 0: it was the last.
    Jump(u64),
}

/// How a walk through a table ended.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    /// With an entry that says it is the last.
    Last,
    /// Where the table ends. Of the devices in a page, the next may stand in another.
    Table,
}

impl<'m, M: ReadMemory> Walk<'m, M> {
    fn new(redistributors: Option<u64>, memory: &'m M) -> Self {
        let (tables, targets) = Default::default();
        Self { memory, redistributors, left: LIMIT, piece: (None, [0; PIECE]), tables, targets }
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
    ) -> Result<End, Error> {
        let mut index = 0_u64;
        while index < count {
            self.spend(table, 1)?;
            let address = base.saturating_add(index.saturating_mul(ENTRY));
            let entry = self.entry(table, address)?;
            let next = f(self, &Found { table, index, address, entry })?;
            index = match next {
                Next::Scan => index.saturating_add(1),
                Next::Jump(0) => return Ok(End::Last),
                Next::Jump(distance) => index.saturating_add(distance),
            };
        }
        Ok(End::Table)
    }

    fn entry(&mut self, table: Table, address: u64) -> Result<u64, Error> {
        let within = address & (PIECE as u64).saturating_sub(1);
        let start = address.saturating_sub(within);
        if self.piece.0 != Some(start) {
            self.spend(table, FETCH)?;
            self.piece.0 = None;
            if !self.memory.read(start, &mut self.piece.1) {
                return Err(Error::Outside { table, address });
            }
            self.piece.0 = Some(start);
        }
        let entry = usize::try_from(within).ok().and_then(|within| self.piece.1.get(within..)?.first_chunk());
        entry.map(|bytes| u64::from_le_bytes(*bytes)).ok_or(Error::Outside { table, address })
    }

    fn spend(&mut self, table: Table, steps: u64) -> Result<(), Error> {
        self.left = self.left.checked_sub(steps).ok_or(Error::TooMuch { table, limit: LIMIT })?;
        Ok(())
    }

    fn collections(&mut self, basers: &[u64; 8]) -> Result<(), Error> {
        let Some(baser) = Baser::find(basers, COLLECTIONS)? else { return Ok(()) };
        let count = baser.len / ENTRY;
        self.table(Table::Collections, baser.address, count, |walk, found| {
            if bits(found.entry, 63, 63) == 0 {
                return Ok(Next::Jump(0));
            }
            walk.spend(found.table, VALID)?;
            let id = u16::try_from(bits(found.entry, 15, 0)).unwrap_or_default();
            let target = Some(bits(found.entry, 51, 16)).filter(|target| *target != NOT_MAPPED);
            if u64::from(id) >= count {
                return Err(found.error("the collection has no place in the table"));
            }
            if walk.targets.contains_key(&id) {
                return Err(found.error("the collection is there twice"));
            }
            if walk.redistributors.is_some_and(|count| target.is_some_and(|target| target >= count)) {
                return Err(found.error("there is no such redistributor"));
            }
            walk.targets.insert(id, target);
            walk.tables.collections.push(Collection { id, target });
            Ok(Next::Jump(1))
        })?;
        Ok(())
    }

    fn devices(&mut self, basers: &[u64; 8]) -> Result<(), Error> {
        let Some(baser) = Baser::find(basers, DEVICES)? else { return Ok(()) };
        if !baser.indirect {
            self.device_page(baser.address, 0, (baser.len / ENTRY).min(DEVICE_IDS))?;
            return Ok(());
        }
        let a_page = baser.page / ENTRY;
        let pages = (baser.len / ENTRY).min(DEVICE_IDS.div_ceil(a_page));
        self.table(Table::DevicePages, baser.address, pages, |walk, found| {
            if bits(found.entry, 63, 63) == 0 {
                return Ok(Next::Scan);
            }
            let first = found.index.saturating_mul(a_page);
            // Behind the last device no page is looked at: what stands there is of an earlier save.
            match walk.device_page(bits(found.entry, 51, 16) << 16, first, a_page)? {
                End::Last => Ok(Next::Jump(0)),
                End::Table => Ok(Next::Scan),
            }
        })?;
        Ok(())
    }

    /// Devices `first..first + count`, whose entries begin at `base`.
    fn device_page(&mut self, base: u64, first: u64, count: u64) -> Result<End, Error> {
        self.table(Table::Devices, base, count, |walk, found| {
            if bits(found.entry, 63, 63) == 0 {
                return Ok(Next::Scan);
            }
            walk.spend(found.table, VALID)?;
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
            walk.spend(found.table, VALID)?;
            if intid < FIRST_LPI {
                return Err(found.error("the interrupt is no LPI"));
            }
            let next = bits(found.entry, 63, 48);
            if found.index.saturating_add(next) >= count {
                return Err(found.error("the next entry is beyond the table"));
            }
            let collection = u16::try_from(bits(found.entry, 15, 0)).unwrap_or_default();
            let target = walk.targets.get(&collection).copied();
            if target.is_none() && walk.redistributors.is_some() {
                return Err(found.error("its collection is not in the collection table"));
            }
            walk.tables.mappings.push(Mapping {
                device: device.id,
                event: u32::try_from(found.index).unwrap_or(u32::MAX),
                intid: u32::try_from(intid).unwrap_or(u32::MAX),
                collection,
                target: target.flatten(),
            });
            Ok(Next::Jump(next))
        })?;
        Ok(())
    }
}

#[cfg(test)]
pub(crate) mod tests;
