use super::*;

const BASE: u64 = 0x4000_0000;
pub(crate) const DEVICE_TABLE: u64 = BASE;
pub(crate) const COLLECTION_TABLE: u64 = BASE + 0x2_0000;
pub(crate) const SECOND_LEVEL: u64 = BASE + 0x3_0000;
const ITT: u64 = BASE + 0x4_0000;
pub(crate) const SECOND_PAGE: u64 = BASE + 0x5_0000;
pub(crate) const LAST_PAGE: u64 = BASE + 0x6_0000;

/// Guest memory of some bytes.
pub(crate) struct Memory {
    base: u64,
    pub(crate) bytes: Vec<u8>,
}

impl Memory {
    pub(crate) fn new(base: u64, len: usize) -> Self {
        Self { base, bytes: vec![0; len] }
    }

    fn put(&mut self, at: u64, word: u64) {
        let at = (at - self.base) as usize;
        self.bytes[at..at + 8].copy_from_slice(&word.to_le_bytes());
    }
}

impl ReadMemory for Memory {
    fn read(&self, address: u64, bytes: &mut [u8]) -> bool {
        let from = address.checked_sub(self.base).and_then(|from| usize::try_from(from).ok());
        let found = from.and_then(|from| self.bytes.get(from..from.checked_add(bytes.len())?));
        found.is_some_and(|found| {
            bytes.copy_from_slice(found);
            true
        })
    }
}

fn baser(kind: u64, indirect: bool, address: u64, pages: u64) -> u64 {
    1 << 63 | u64::from(indirect) << 62 | kind << 56 | 7 << 48 | address | 2 << 8 | (pages - 1)
}

fn dte(next: u64, itt: u64, event_bits: u64) -> u64 {
    1 << 63 | next << 49 | itt >> 8 << 5 | (event_bits - 1)
}

fn ite(next: u64, intid: u64, collection: u64) -> u64 {
    next << 48 | intid << 16 | collection
}

fn cte(target: u64, id: u64) -> u64 {
    1 << 63 | target << 16 | id
}

/// Two collections that are mapped and one that is not; device 3 with events 1 and 5, device 4 or 0x2004 with event 0. Entries
/// that an earlier save has left behind.
pub(crate) fn machine(indirect: bool) -> ([u64; 8], Memory) {
    let mut memory = Memory::new(BASE, 0x7_0000);
    memory.put(COLLECTION_TABLE, cte(1, 7));
    memory.put(COLLECTION_TABLE + 8, cte(0, 9));
    memory.put(COLLECTION_TABLE + 16, cte(NOT_MAPPED, 1));
    // Behind the end.
    memory.put(COLLECTION_TABLE + 32, cte(2, 4));
    if indirect {
        memory.put(DEVICE_TABLE, 1 << 63 | SECOND_LEVEL);
        memory.put(DEVICE_TABLE + 8, 1 << 63 | SECOND_PAGE);
        memory.put(DEVICE_TABLE + 16, 1 << 63 | LAST_PAGE);
        memory.put(SECOND_LEVEL + 3 * 8, dte(0x2001, ITT, 4));
        memory.put(SECOND_PAGE + 4 * 8, dte(0, ITT + 0x1000, 1));
        // Behind the last device, in its page and in the next.
        memory.put(SECOND_PAGE + 5 * 8, dte(0, ITT + 0x1000, 1));
        memory.put(LAST_PAGE, dte(0, ITT + 0x1000, 1));
    } else {
        memory.put(DEVICE_TABLE + 3 * 8, dte(1, ITT, 4));
        memory.put(DEVICE_TABLE + 4 * 8, dte(0, ITT + 0x1000, 1));
        // Not in the chain: an entry that an earlier save left behind.
        memory.put(DEVICE_TABLE + 6 * 8, dte(0, ITT + 0x1000, 1));
    }
    memory.put(ITT + 8, ite(4, 8200, 9));
    memory.put(ITT + 3 * 8, ite(0, 8210, 7));
    memory.put(ITT + 5 * 8, ite(0, 8201, 7));
    memory.put(ITT + 0x1000, ite(0, 8300, 1));
    (
        [
            baser(DEVICES, indirect, DEVICE_TABLE, 1),
            baser(COLLECTIONS, false, COLLECTION_TABLE, 1),
            0,
            0,
            0,
            0,
            0,
            0,
        ],
        memory,
    )
}

fn mapping(device: u32, event: u32, intid: u32, collection: u16, target: Option<u64>) -> Mapping {
    Mapping { device, event, intid, collection, target }
}

#[test]
fn a_flat_device_table_is_walked_by_its_distances() {
    let (basers, memory) = machine(false);
    let tables = decode(&basers, 2, &memory).unwrap();
    let targets: Vec<_> = tables.collections.iter().map(|found| (found.id, found.target)).collect();
    assert_eq!(targets, [(7, Some(1)), (9, Some(0)), (1, None)]);
    let ids: Vec<_> = tables.devices.iter().map(|device| (device.id, device.event_bits)).collect();
    assert_eq!(ids, [(3, 4), (4, 1)]);
    let expected =
        [mapping(3, 1, 8200, 9, Some(0)), mapping(3, 5, 8201, 7, Some(1)), mapping(4, 0, 8300, 1, None)];
    assert_eq!(tables.mappings, expected);
}

#[test]
fn a_table_of_two_levels_ends_with_its_last_device_and_no_later_page_is_read() {
    let (basers, mut memory) = machine(true);
    let ids = |memory: &Memory| -> Vec<u32> {
        decode(&basers, 2, memory).unwrap().devices.iter().map(|device| device.id).collect()
    };
    assert_eq!(ids(&memory), [3, 0x2004]);
    assert_eq!(decode(&basers, 2, &memory).unwrap().mappings.len(), 3);
    // A distance that leads beyond a page leads to the first valid entry of the next that is there, whatever number it says.
    memory.put(SECOND_LEVEL + 3 * 8, dte(0x1fff, ITT, 4));
    assert_eq!(ids(&memory), [3, 0x2004]);
    // The first device is the last; what stands in other pages is stale, be it nonsense.
    memory.put(SECOND_LEVEL + 3 * 8, dte(0, ITT, 4));
    memory.put(SECOND_PAGE + 4 * 8, dte(0, 0x8000_0000, 17));
    assert_eq!(ids(&memory), [3]);
    // And with no last one, every page is read.
    memory.put(SECOND_LEVEL + 3 * 8, 0);
    memory.put(SECOND_PAGE + 4 * 8, 0);
    memory.put(SECOND_PAGE + 5 * 8, 0);
    assert_eq!(ids(&memory), [0x4000]);
}

#[test]
fn tables_of_zeroes_say_that_nothing_is_mapped() {
    let (basers, mut memory) = machine(false);
    memory.bytes.fill(0);
    assert_eq!(decode(&basers, 2, &memory), Ok(Tables::default()));
    assert_eq!(decode(&[0; 8], 2, &memory), Ok(Tables::default()));
}

#[test]
fn what_kvm_would_refuse_is_refused_by_table_entry_and_address() {
    let refused = |at: u64, word: u64| {
        let (basers, mut memory) = machine(false);
        memory.put(at, word);
        decode(&basers, 2, &memory).unwrap_err()
    };
    let no_lpi = refused(ITT + 8, ite(0, 100, 9));
    assert_eq!(
        no_lpi.to_string(),
        "translation table of device 0x3: entry 1 at 0x40040008 is 0x640009: the interrupt is no LPI"
    );
    assert!(matches!(refused(ITT + 8, ite(15, 8200, 9)), Error::Entry { index: 1, .. }));
    assert!(matches!(
        refused(DEVICE_TABLE, dte(0, ITT, 17)),
        Error::Entry { table: Table::Devices, index: 0, .. }
    ));
    assert!(matches!(
        refused(COLLECTION_TABLE + 8, cte(0, 7)),
        Error::Entry { table: Table::Collections, .. }
    ));
    let nowhere = refused(COLLECTION_TABLE + 8, cte(2, 9));
    assert!(nowhere.to_string().ends_with("there is no such redistributor"), "{nowhere}");
    let lost = refused(COLLECTION_TABLE + 16, 0);
    assert_eq!(
        lost.to_string(),
        "translation table of device 0x4: entry 0 at 0x40041000 is 0x206c0001: its collection is not in the collection table"
    );
    let outside = Error::Outside { table: Table::Translation { device: 3 }, address: 0x8000_0000 };
    assert_eq!(refused(DEVICE_TABLE + 3 * 8, dte(1, 0x8000_0000, 4)), outside);
}

#[test]
fn a_survey_gives_what_can_be_decoded_and_says_what_cannot() {
    let (basers, mut memory) = machine(false);
    let survey = |memory: &Memory| {
        let mut wrong = Vec::new();
        let tables = super::survey(&basers, memory, |error| wrong.push(error));
        (tables, wrong)
    };
    assert_eq!(survey(&memory), (decode(&basers, 2, &memory).unwrap(), vec![]));
    // The second event of device 3 is none, and device 4's table is nowhere; the second collection is the first again.
    memory.put(ITT + 5 * 8, ite(0, 100, 7));
    memory.put(DEVICE_TABLE + 4 * 8, dte(0, 0x8000_0000, 1));
    memory.put(COLLECTION_TABLE + 8, cte(1, 7));
    let (tables, wrong) = survey(&memory);
    assert_eq!(tables.collections, [Collection { id: 7, target: Some(1) }]);
    assert_eq!(tables.devices.len(), 2);
    assert_eq!(tables.mappings, [mapping(3, 1, 8200, 9, None)]);
    let at: Vec<_> = wrong
        .iter()
        .map(|error| match error {
            Error::Entry { table, address, .. } | Error::Outside { table, address } => (*table, *address),
            other => panic!("{other}"),
        })
        .collect();
    let translation = |device| Table::Translation { device };
    assert_eq!(
        at,
        [
            (Table::Collections, COLLECTION_TABLE + 8),
            (translation(3), ITT + 5 * 8),
            (translation(4), 0x8000_0000)
        ]
    );
}

#[test]
fn a_survey_goes_by_collections_that_lead_nowhere() {
    let (basers, mut memory) = machine(false);
    memory.put(COLLECTION_TABLE, cte(9, 7));
    memory.put(COLLECTION_TABLE + 16, 0);
    let tables = super::survey(&basers, &memory, |error| panic!("{error}"));
    let targets: Vec<_> = tables.mappings.iter().map(|mapping| mapping.target).collect();
    assert_eq!(targets, [Some(0), Some(9), None]);
}

/// All zero, but for the device table; reads are counted.
struct Counted {
    devices: Memory,
    entry: u64,
    reads: std::cell::Cell<u64>,
}

impl Counted {
    /// Every device has the same table of 2^`bits` events, each of whose entries is `entry`.
    fn new(devices: u64, bits: u64, entry: u64) -> ([u64; 8], Self) {
        let mut memory = Memory::new(BASE, 0x8_0000);
        for device in 0..devices {
            memory.put(BASE + device * 8, dte(u64::from(device + 1 < devices), BASE + 0x4000_0000, bits));
        }
        let collections = baser(COLLECTIONS, false, BASE + 0x3000_0000, 1);
        let basers = [baser(DEVICES, false, BASE, 8), collections, 0, 0, 0, 0, 0, 0];
        (basers, Self { devices: memory, entry, reads: 0.into() })
    }
}

impl ReadMemory for Counted {
    fn read(&self, address: u64, bytes: &mut [u8]) -> bool {
        self.reads.set(self.reads.get() + 1);
        if address < BASE + 0x3000_0000 {
            return self.devices.read(address, bytes);
        }
        let entry = if address < BASE + 0x4000_0000 { 0 } else { self.entry };
        bytes.as_chunks_mut().0.iter_mut().for_each(|bytes| *bytes = entry.to_le_bytes());
        true
    }
}

#[test]
fn a_guest_with_every_lpi_is_walked_and_every_piece_is_read_once() {
    // A device each.
    let lpis = (1 << 16) - FIRST_LPI;
    let (basers, mut memory) = Counted::new(lpis, 1, ite(0, 8192, 0));
    memory.devices.put(BASE + lpis * 8, 0);
    let mut walk = Walk::new(None, &memory);
    walk.all(&basers, Err).unwrap();
    assert_eq!(walk.tables.mappings.len() as u64, lpis);
    // Their tables are one piece here; each of its own costs this much more.
    assert!(LIMIT - walk.left + lpis * FETCH < LIMIT * 3 / 4, "{} steps", LIMIT - walk.left);
    // A device table of 57344 entries is 896 pieces; one of collections, one of events.
    assert_eq!(memory.reads.get(), 896 + 2);
    // One device with as many events.
    let (basers, memory) = Counted::new(1, 16, ite(1, 8192, 0));
    let mut walk = Walk::new(None, &memory);
    walk.all(&basers, Err).unwrap_err();
    assert_eq!((walk.tables.mappings.len(), memory.reads.get()), (0xffff, 1024 + 2));
}

#[test]
fn tables_that_would_take_forever_are_given_up_after_a_bounded_number_of_reads() {
    // Nothing but reading; nothing but entries that lead on.
    for (entry, per_piece) in [(0, FETCH + 64), (ite(1, 8192, 0), FETCH + 64 + 64 * VALID)] {
        let (basers, memory) = Counted::new(0x2000, 16, entry);
        let mut wrong = Vec::new();
        let tables = super::survey(&basers, &memory, |error| wrong.push(error));
        assert!(matches!(wrong.last(), Some(Error::TooMuch { limit: LIMIT, .. })), "{:?}", wrong.last());
        assert!(memory.reads.get() <= LIMIT / per_piece + 200, "{} reads", memory.reads.get());
        assert!(tables.mappings.len() as u64 <= LIMIT / VALID);
        if entry == 0 {
            assert_eq!(decode(&basers, 2, &memory).err().as_ref(), wrong.last());
        }
    }
}

#[test]
fn any_word_anywhere_is_decoded_or_refused() {
    // A sequence without pattern: what a hostile guest has in its memory.
    let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = move || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed
    };
    for round in 0..300 {
        let (mut basers, mut memory) = machine(round % 2 == 0);
        for _ in 0..40 {
            let at = BASE + random() % (0x5_0000 / 8) * 8;
            let (device, within) = (random() % 5, ITT + random() % 0x1000);
            memory.put(at, random());
            memory.put(DEVICE_TABLE + device * 8, random() & !(0x1fff << 36) | 1 << 63);
            memory.put(within & !7, random());
        }
        if round % 3 == 0 {
            basers[0] = random() | 1 << 63;
        }
        let mut wrong = Vec::new();
        let surveyed = super::survey(&basers, &memory, |error| wrong.push(error));
        let decoded = decode(&basers, 2, &memory);
        match &decoded {
            // Of these a survey does not speak.
            Err(Error::Entry { table: Table::Collections | Table::Translation { .. }, what, .. })
                if what.ends_with("redistributor") || what.ends_with("collection table") => {}
            decoded => assert_eq!(decoded.as_ref().err(), wrong.first()),
        }
        if let Ok(tables) = decoded {
            assert_eq!(tables, surveyed);
            assert!(tables.mappings.iter().all(|mapping| mapping.intid >= 8192));
        }
    }
}
