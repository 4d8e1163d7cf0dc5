//! What a save has written into an ITS's tables is gone from them before the guest goes on.
//!
//! KVM reads no device and no event there but when it restores itself. Kernels before late 2024 leave an entry where it is when the
//! guest unmaps what it stands for (MAPD, DISCARD), and a later save leaves it, too: it lies between the entries that are chained
//! then, or before the first of them, and there the next restore finds it and maps it again. Tables that are empty whenever the
//! guest runs hold nothing of that kind. Cleared is only what is the ITS's by the tables of this stop: a table that the guest has
//! taken back is its own again.

use whimbrel::machine::MachineError;
use whimbrel_its::{Places, places};

use crate::aarch64::memory::Tables;
use crate::memory::GuestRam;

/// Bytes that are read at once.
const PIECE: u64 = 4096;

/// Where entries of devices and events stand in guest RAM: those that a walk finds, as far as it comes, and of the devices' table
/// all. What is not in RAM holds none.
///
/// # Errors
/// If the tables are not laid out as KVM's are.
pub(super) fn all(basers: &[u64; 8], ram: &GuestRam) -> Result<Vec<u64>, MachineError> {
    let decoded = whimbrel_its::survey(basers, &Tables(ram), |error| {
        tracing::warn!(%error, "not all of an ITS's tables is read");
    });
    let table = |id| {
        let found = decoded.devices.binary_search_by_key(&id, |device| device.id);
        found.ok().and_then(|at| decoded.devices.get(at)).map(|device| device.table)
    };
    let events = decoded.mappings.iter();
    let events = events.filter_map(|event| Some(table(event.device)? + u64::from(event.event) * 8));
    let mut entries: Vec<u64> = events.collect();
    let Places { devices, .. } = places(basers, &Tables(ram)).map_err(|error| error.to_string())?;
    let mut bytes = [0; PIECE as usize];
    for (address, len) in devices {
        for start in (address..address + len).step_by(PIECE as usize) {
            if ram.read(start, &mut bytes).is_err() {
                continue;
            }
            let words = (start..).step_by(8).zip(bytes.as_chunks::<8>().0);
            entries.extend(words.filter(|(_, word)| **word != [0; 8]).map(|(at, _)| at));
        }
    }
    Ok(entries)
}

/// Clears them, by ways that the dirty log sees.
pub(super) fn clear(entries: &[u64], ram: &GuestRam) -> Result<(), MachineError> {
    let cleared = entries.iter().try_for_each(|at| ram.write(*at, &[0; 8]));
    cleared.map_err(|error| error.to_string().into())
}

/// A fault's: what stands there now.
pub(super) fn words(entries: &[u64], ram: &GuestRam) -> Vec<(u64, [u8; 8])> {
    let mut word = [0; 8];
    let read = entries.iter().filter_map(|at| ram.read(*at, &mut word).ok().map(|()| (*at, word)));
    read.filter(|(_, word)| *word != [0; 8]).collect()
}

/// A fault's: what stood there and was cleared since stands there again.
pub(super) fn put_back(words: &[(u64, [u8; 8])], ram: &GuestRam) -> Result<(), MachineError> {
    for (at, word) in words {
        let mut now = [0; 8];
        let read = ram.read(*at, &mut now);
        if now == [0; 8] {
            read.and_then(|()| ram.write(*at, word)).map_err(|error| error.to_string())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::aarch64::memory;
    use crate::config::{MemoryBackend, VmConfig};

    const DEVICES: u64 = 0x4010_0000;
    const COLLECTIONS: u64 = 0x4011_0000;
    const EVENTS: u64 = 0x4012_0000;

    #[test]
    fn entries_of_the_tables_are_cleared_and_what_is_the_guests_is_not() {
        let config = VmConfig { memory: 8 << 20, backend: MemoryBackend::Anonymous, ..VmConfig::default() };
        let ram = memory::allocate(&config).unwrap();
        let put = |at: u64, word: u64| ram.write(at, &word.to_le_bytes()).unwrap();
        let baser = |kind: u64, at: u64| 1 << 63 | kind << 56 | 7 << 48 | at | 2 << 8;
        let basers = [baser(1, DEVICES), baser(4, COLLECTIONS), 0, 0, 0, 0, 0, 0];
        put(COLLECTIONS, 1 << 63 | 7);
        // Device 3 has events 1 and 2. Device 5 is of an earlier save, and its table the guest's own again.
        put(DEVICES + 3 * 8, 1 << 63 | EVENTS >> 8 << 5 | 3);
        put(DEVICES + 5 * 8, 1 << 63 | (EVENTS + 0x1000) >> 8 << 5 | 3);
        put(EVENTS + 8, 1 << 48 | 8200 << 16 | 7);
        put(EVENTS + 2 * 8, 8201 << 16 | 7);
        put(EVENTS + 0x1000, 8300 << 16 | 7);
        let entries = all(&basers, &ram).unwrap();
        assert_eq!(entries, [EVENTS + 8, EVENTS + 2 * 8, DEVICES + 3 * 8, DEVICES + 5 * 8]);
        let before = words(&entries, &ram);
        clear(&entries, &ram).unwrap();
        assert_eq!(words(&entries, &ram), []);
        let [own] = <[_; 1]>::try_from(words(&[EVENTS + 0x1000], &ram)).unwrap();
        assert_eq!(u64::from_le_bytes(own.1), 8300 << 16 | 7, "a table of no device of these tables");
        put(EVENTS + 8, 1);
        put_back(&before, &ram).unwrap();
        assert_eq!(words(&entries, &ram)[1..], before[1..]);
        assert_eq!(words(&entries, &ram)[0].1, 1_u64.to_le_bytes(), "what is there stays");
        // An event that is none ends the walk through its table; devices are found nevertheless.
        put(EVENTS + 8, 1 << 48 | 100 << 16 | 7);
        assert_eq!(all(&basers, &ram).unwrap(), [DEVICES + 3 * 8, DEVICES + 5 * 8]);
    }
}
