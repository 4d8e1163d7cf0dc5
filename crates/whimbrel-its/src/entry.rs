//! Entries and table registers, by their bits.

use crate::error::Error;

/// Bytes of an entry, of every table.
pub(crate) const ENTRY: u64 = 8;

/// KVM's device ids are of 16 bits.
pub(crate) const DEVICE_IDS: u64 = 1 << 16;

/// Bits `high` to `low` of a word.
pub(crate) const fn bits(word: u64, high: u32, low: u32) -> u64 {
    let above = 63_u32.saturating_sub(high);
    (word << above) >> above.saturating_add(low)
}

/// GITS_IIDR of KVM's ITS, but for the revision: Arm's number as implementer, product `K`.
const KVM: u64 = 0x43b | 0x4b << 24;

/// Whether tables are laid out as KVM does it in revision 0 of its ABI, by GITS_IIDR.
///
/// # Errors
/// Says whose they are.
pub fn check_layout(iidr: u32) -> Result<(), Error> {
    if u64::from(iidr) == KVM { Ok(()) } else { Err(Error::UnknownLayout { iidr }) }
}

/// Kinds of table in GITS_BASERn.
pub(crate) const DEVICES: u64 = 1;
pub(crate) const COLLECTIONS: u64 = 4;

/// GITS_BASERn of a table that is there.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Baser {
    pub(crate) indirect: bool,
    pub(crate) address: u64,
    /// Bytes of a page, which is what an entry of the first level points to.
    pub(crate) page: u64,
    /// Bytes of the table.
    pub(crate) len: u64,
}

impl Baser {
    /// The table of a kind, if the guest has set one up.
    pub(crate) fn find(basers: &[u64; 8], kind: u64) -> Result<Option<Self>, Error> {
        let found = basers.iter().find(|baser| bits(**baser, 58, 56) == kind && bits(**baser, 63, 63) == 1);
        let Some(baser) = found.copied() else { return Ok(None) };
        if bits(baser, 52, 48).saturating_add(1) != ENTRY {
            return Err(Error::Layout { baser, what: "entries are not of 8 bytes" });
        }
        let (page, address) = match bits(baser, 9, 8) {
            0 => (4 << 10, bits(baser, 47, 12) << 12),
            1 => (16 << 10, bits(baser, 47, 12) << 12),
            // Bits 51:48 of the address stand in its low ones.
            2 => (64 << 10, bits(baser, 47, 16) << 16 | bits(baser, 15, 12) << 48),
            _ => return Err(Error::Layout { baser, what: "a reserved page size" }),
        };
        let pages = bits(baser, 7, 0).saturating_add(1);
        let len = pages.saturating_mul(page);
        Ok(Some(Self { indirect: bits(baser, 62, 62) == 1, address, page, len }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_kvms_layout_of_revision_0_is_known() {
        assert_eq!(check_layout(0x4b00_043b), Ok(()));
        for other in [0, 0x4b00_143b, 0x4c00_043b, 0x4b00_043a, 0x0202_043b] {
            assert_eq!(check_layout(other), Err(Error::UnknownLayout { iidr: other }));
        }
        let revision_1 = check_layout(0x4b00_143b).unwrap_err().to_string();
        assert!(revision_1.contains("implementer 0x43b, product 0x4b, revision 1"), "{revision_1}");
    }

    #[test]
    fn bits_are_cut_out_of_either_end() {
        assert_eq!(bits(!0, 63, 0), !0);
        assert_eq!(bits(0xabcd, 15, 12), 0xa);
        assert_eq!(bits(1 << 63, 63, 63), 1);
    }

    #[test]
    fn a_table_register_says_where_how_long_and_of_what() {
        let baser = 1 << 63 | 1 << 62 | 1 << 56 | 7 << 48 | 0x8765_0000 | 0x3000 | 2 << 8 | 1;
        let table = Baser::find(&[0, baser, 0, 0, 0, 0, 0, 0], DEVICES).unwrap().unwrap();
        assert_eq!((table.address, table.len, table.page), (0x3_0000_8765_0000, 0x2_0000, 0x1_0000));
        assert!(table.indirect);
        assert!(Baser::find(&[baser; 8], COLLECTIONS).unwrap().is_none());
        assert!(Baser::find(&[baser & !(1 << 63); 8], DEVICES).unwrap().is_none());
        assert!(Baser::find(&[baser & !(7 << 48); 8], DEVICES).is_err());
    }
}
