//! The pending table of a redistributor: one bit an interrupt. LPIs begin at bit 8192; what stands before is nobody's.

use crate::ReadMemory;
use crate::entry::bits;
use crate::error::{Error, Table};

const FIRST_LPI: u64 = 8192;
/// KVM's interrupt numbers.
const INTID_BITS: u64 = 16;
/// Bytes that are read at once.
const CHUNK: usize = 1024;

/// LPIs that the pending table says are pending, ascending; `propbaser` and `pendbaser` are GICR_PROPBASER, which says how many
/// LPIs there are, and GICR_PENDBASER, which says where the table is.
///
/// # Errors
/// If the table leaves guest memory.
pub fn pending_lpis(propbaser: u64, pendbaser: u64, memory: &impl ReadMemory) -> Result<Vec<u32>, Error> {
    let intids = 1_u64 << bits(propbaser, 4, 0).saturating_add(1).min(INTID_BITS);
    let table = pending_table(pendbaser);
    let mut pending = Vec::new();
    let mut offset = FIRST_LPI / 8;
    while offset < intids / 8 {
        let mut chunk = [0; CHUNK];
        let address = table.saturating_add(offset);
        if !memory.read(address, &mut chunk) {
            return Err(Error::Outside { table: Table::Pending, address });
        }
        let set = |byte: u8| (0..8_u64).filter(move |bit| byte >> bit & 1 == 1);
        for (at, byte) in (offset..).zip(chunk) {
            pending.extend(
                set(byte).filter_map(|bit| u32::try_from(at.saturating_mul(8).saturating_add(bit)).ok()),
            );
        }
        offset = offset.saturating_add(CHUNK as u64);
    }
    Ok(pending)
}

/// Where the table is that GICR_PENDBASER names.
pub fn pending_table(pendbaser: u64) -> u64 {
    bits(pendbaser, 51, 16) << 16
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::walk::tests::Memory;

    #[test]
    fn pending_lpis_are_the_bits_from_8192_on() {
        let mut memory = Memory::new(0x1_0000, 0x4000);
        memory.bytes[1023] = 0xff;
        memory.bytes[1024] = 0b1000_0001;
        memory.bytes[0x7ff] = 0x80;
        memory.bytes[0x800] = 1;
        // 14 bits of interrupt numbers: the table ends at byte 0x800.
        assert_eq!(pending_lpis(13, 0x1_0000 | 7 << 7, &memory), Ok(vec![8192, 8199, 16383]));
        // Without LPIs there is nothing to read.
        assert_eq!(pending_lpis(12, 0x10_0000, &memory), Ok(vec![]));
        let outside = Error::Outside { table: Table::Pending, address: 0x10_0400 };
        assert_eq!(pending_lpis(13, 0x10_0000, &memory), Err(outside));
    }
}
