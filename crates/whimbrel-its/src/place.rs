//! Where the tables of an ITS lie: for who is to write them.

use crate::ReadMemory;
use crate::entry::{Baser, COLLECTIONS, DEVICE_IDS, DEVICES, ENTRY, bits};
use crate::error::{Error, Table};

/// Pieces of guest memory: the address of each, and its bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Places {
    /// Where devices' entries are: the table, or the pages that the first of two levels names, which itself is the guest's. As far as
    /// KVM has device ids, which is 512 KiB.
    pub devices: Vec<(u64, u64)>,
    /// Where collections' are.
    pub collections: Option<(u64, u64)>,
}

/// Where GITS_BASER0 to 7 have the tables of devices and collections.
///
/// # Errors
/// If they are not laid out as KVM's are, or the first of two levels leaves guest memory.
pub fn places(basers: &[u64; 8], memory: &impl ReadMemory) -> Result<Places, Error> {
    let whole = |baser: Baser| (baser.address, baser.len);
    let flat = |baser: Baser| (baser.address, baser.len.min(DEVICE_IDS.saturating_mul(ENTRY)));
    let devices = match Baser::find(basers, DEVICES)? {
        Some(baser) if baser.indirect => second_level(&baser, memory)?,
        one_level => one_level.map(flat).into_iter().collect(),
    };
    Ok(Places { devices, collections: Baser::find(basers, COLLECTIONS)?.map(whole) })
}

fn second_level(baser: &Baser, memory: &impl ReadMemory) -> Result<Vec<(u64, u64)>, Error> {
    let mut pages = Vec::new();
    let most = DEVICE_IDS.div_ceil((baser.page / ENTRY).max(1));
    for index in 0..most.min(baser.len / ENTRY) {
        let address = baser.address.saturating_add(index.saturating_mul(ENTRY));
        let mut bytes = [0; 8];
        if !memory.read(address, &mut bytes) {
            return Err(Error::Outside { table: Table::DevicePages, address });
        }
        let entry = u64::from_le_bytes(bytes);
        if bits(entry, 63, 63) == 1 {
            pages.push((bits(entry, 51, 16) << 16, baser.page));
        }
    }
    Ok(pages)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::walk::tests::{COLLECTION_TABLE, DEVICE_TABLE, LAST_PAGE, SECOND_LEVEL, SECOND_PAGE, machine};

    #[test]
    fn devices_are_in_the_table_or_in_the_pages_that_the_first_level_names() {
        const PAGE: u64 = 0x1_0000;
        let (basers, memory) = machine(false);
        let flat =
            Places { devices: vec![(DEVICE_TABLE, PAGE)], collections: Some((COLLECTION_TABLE, PAGE)) };
        assert_eq!(places(&basers, &memory), Ok(flat));
        let (mut basers, memory) = machine(true);
        let pages = [SECOND_LEVEL, SECOND_PAGE, LAST_PAGE].map(|page| (page, PAGE));
        assert_eq!(places(&basers, &memory).unwrap().devices, pages);
        basers[0] |= 0x8000_0000;
        let error = places(&basers, &memory).unwrap_err();
        assert_eq!(error, Error::Outside { table: Table::DevicePages, address: DEVICE_TABLE | 0x8000_0000 });
        let none = Places { devices: vec![], collections: None };
        assert_eq!(places(&[0; 8], &memory), Ok(none));
    }
}
