use super::*;

const BASE: u64 = 0x4000_0000;
const DEVICE_TABLE: u64 = BASE;
const COLLECTION_TABLE: u64 = BASE + 0x2_0000;
const SECOND_LEVEL: u64 = BASE + 0x3_0000;
const ITT: u64 = BASE + 0x4_0000;

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

/// Two collections; device 3 with events 1 and 5, device 0x2004 with event 0.
fn machine(indirect: bool) -> ([u64; 8], Memory) {
    let mut memory = Memory::new(BASE, 0x5_0000);
    memory.put(COLLECTION_TABLE, cte(1, 7));
    memory.put(COLLECTION_TABLE + 8, cte(0, 9));
    // Behind the end.
    memory.put(COLLECTION_TABLE + 24, cte(2, 4));
    if indirect {
        memory.put(DEVICE_TABLE, 1 << 63 | SECOND_LEVEL);
        memory.put(DEVICE_TABLE + 8, 1 << 63 | (SECOND_LEVEL + 0x8000) & !0xffff);
        memory.put(SECOND_LEVEL + 3 * 8, dte(0, ITT, 4));
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
    let tables = decode(&basers, &memory).unwrap();
    assert_eq!(tables.collections, [Collection { id: 7, target: 1 }, Collection { id: 9, target: 0 }]);
    let ids: Vec<_> = tables.devices.iter().map(|device| (device.id, device.event_bits)).collect();
    assert_eq!(ids, [(3, 4), (4, 1)]);
    let expected =
        [mapping(3, 1, 8200, 9, Some(0)), mapping(3, 5, 8201, 7, Some(1)), mapping(4, 0, 8300, 1, None)];
    assert_eq!(tables.mappings, expected);
}

#[test]
fn a_table_of_two_levels_gives_the_same_ids() {
    let (basers, memory) = machine(true);
    let tables = decode(&basers, &memory).unwrap();
    // Both pages of the first level point to the same page: each device is there twice, 8192 ids apart.
    let ids: Vec<_> = tables.devices.iter().map(|device| device.id).collect();
    assert_eq!(ids, [3, 0x2003]);
    assert_eq!(tables.mappings.len(), 4);
}

#[test]
fn tables_of_zeroes_say_that_nothing_is_mapped() {
    let (basers, mut memory) = machine(false);
    memory.bytes.fill(0);
    assert_eq!(decode(&basers, &memory), Ok(Tables::default()));
    assert_eq!(decode(&[0; 8], &memory), Ok(Tables::default()));
}

#[test]
fn what_kvm_would_refuse_is_refused_by_table_entry_and_address() {
    let refused = |at: u64, word: u64| {
        let (basers, mut memory) = machine(false);
        memory.put(at, word);
        decode(&basers, &memory).unwrap_err()
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
    assert_eq!(survey(&memory), (decode(&basers, &memory).unwrap(), vec![]));
    // The second event of device 3 is none, and device 4's table is nowhere; the second collection is the first again.
    memory.put(ITT + 5 * 8, ite(0, 100, 7));
    memory.put(DEVICE_TABLE + 4 * 8, dte(0, 0x8000_0000, 1));
    memory.put(COLLECTION_TABLE + 8, cte(1, 7));
    let (tables, wrong) = survey(&memory);
    assert_eq!(tables.collections, [Collection { id: 7, target: 1 }]);
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
fn tables_that_would_take_forever_are_given_up() {
    let (basers, mut memory) = machine(false);
    // Every device has the same table of 2¹⁶ events, none of them valid.
    for device in 0..0x2000 {
        memory.put(DEVICE_TABLE + device * 8, dte(1, BASE + 0x4000_0000, 16));
    }
    struct Endless(Memory);
    impl ReadMemory for Endless {
        fn read(&self, address: u64, bytes: &mut [u8]) -> bool {
            if address >= BASE + 0x4000_0000 {
                bytes.fill(0);
                return true;
            }
            self.0.read(address, bytes)
        }
    }
    let memory = Endless(memory);
    let error = decode(&basers, &memory).unwrap_err();
    assert!(matches!(error, Error::TooMany { limit: LIMIT, .. }), "{error}");
    let mut wrong = Vec::new();
    super::survey(&basers, &memory, |error| wrong.push(error));
    assert_eq!(wrong, [error]);
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
        let decoded = decode(&basers, &memory);
        assert_eq!(decoded.as_ref().err(), wrong.first());
        if let Ok(tables) = decoded {
            assert_eq!(tables, surveyed);
            assert!(tables.mappings.iter().all(|mapping| mapping.intid >= 8192));
        }
    }
}
