use super::*;
use crate::config::{MemoryBackend, VmConfig};

fn device() -> FwCfg {
    with(false)
}

fn with(acpi: bool) -> FwCfg {
    let config = VmConfig { memory: 8 << 20, backend: MemoryBackend::Anonymous, ..VmConfig::default() };
    FwCfg::new(Arc::new(GuestRam::new(&config).unwrap()), 2, acpi)
}

fn select(device: &FwCfg, item: u16) {
    device.write(SELECTOR, &item.to_le_bytes());
}

fn bytes<const N: usize>(device: &FwCfg) -> [u8; N] {
    std::array::from_fn(|_| {
        let mut byte = [9];
        device.read(DATA, &mut byte);
        byte[0]
    })
}

#[test]
fn items_read_byte_by_byte_and_as_zero_behind_their_end() {
    let device = device();
    select(&device, ITEM_SIGNATURE);
    assert_eq!(&bytes::<6>(&device), b"QEMU\0\0");
    select(&device, ITEM_CPUS);
    assert_eq!(bytes(&device), [2, 0]);
    select(&device, 0x7777);
    assert_eq!(bytes(&device), [0]);
}

#[test]
fn a_transfer_selects_reads_and_reports() {
    let device = device();
    let request = |control: u32, length: u32, address: u64| {
        let mut bytes = control.to_be_bytes().to_vec();
        bytes.extend(length.to_be_bytes());
        bytes.extend(address.to_be_bytes());
        device.ram.write(0x1000, &bytes).unwrap();
        device.write(DMA_HIGH, &[0; 4]);
        device.write(DMA_LOW, &0x1000u32.to_be_bytes());
        let mut status = [9; 4];
        device.ram.read(0x1000, &mut status).unwrap();
        u32::from_be_bytes(status)
    };
    assert_eq!(request(u32::from(ITEM_FIRST_FILE + 3) << 16 | CONTROL_SELECT | CONTROL_READ, 20, 0x2000), 0);
    let mut entry = [0; 20];
    device.ram.read(0x2000, &mut entry).unwrap();
    assert_eq!(entry[8..16], (8u64 << 20).to_le_bytes());
    assert_eq!(request(CONTROL_READ, 4, 1 << 40), CONTROL_ERROR, "outside of memory");
    assert_eq!(request(CONTROL_WRITE, 4, 0x2000), CONTROL_ERROR);
}

#[test]
fn the_position_moves_with_the_guest() {
    let source = device();
    select(&source, ITEM_SIGNATURE);
    assert_eq!(&bytes(&source), b"QE");
    let destination = device();
    destination.load(source.save().unwrap()).unwrap();
    assert_eq!(&bytes(&destination), b"MU");
}

#[test]
fn files_have_the_numbers_they_have_in_qemu() {
    for (acpi, names) in [
        (true, vec![(0x22, ACPI_RSDP), (0x23, ACPI_TABLES), (0x25, E820), (0x27, ACPI_LINKER)]),
        (false, vec![(0x23, E820)]),
    ] {
        let device = with(acpi);
        select(&device, ITEM_DIRECTORY);
        let count = u32::from_be_bytes(bytes(&device));
        let entries: Vec<[u8; 64]> = (0..count).map(|_| bytes(&device)).collect();
        for (item, name) in names {
            let entry = entries.iter().find(|entry| entry[8..].starts_with(name.as_bytes())).unwrap();
            assert_eq!(u16::from_be_bytes([entry[4], entry[5]]), item, "{name}");
        }
    }
}

#[test]
fn tables_that_came_with_a_guest_are_read_from_their_block_up_to_their_size() {
    let device = with(true);
    device.ram.add_roms(&[("/rom@etc/acpi/tables", 0x1000)]).unwrap();
    device.ram.blocks()[2].write(0, b"DSDTrest").unwrap();
    let acpi = FwCfgAcpi { table_size: 4, ..Default::default() };
    let state = state::FwCfg { cur_entry: 0x23, cur_offset: 1, acpi: Some(acpi), ..Default::default() };
    device.load(Box::new(state)).unwrap();
    assert_eq!(&bytes(&device), b"SDT\0\0");
    let saved = downcast::<state::FwCfg>(device.save().unwrap()).unwrap();
    assert_eq!((saved.acpi, saved.cur_offset), (Some(acpi), 6));
    device.reset();
    select(&device, ITEM_DIRECTORY);
    let [_, _, _, _, rest @ ..] = bytes::<{ 4 + 4 * 64 }>(&device);
    assert_eq!(rest[3 * 64..3 * 64 + 4], [0, 0, 0, 4], "the directory tells the size");
}

#[test]
fn tables_that_cannot_be_are_refused() {
    let with_tables = |table_size| {
        let acpi = Some(FwCfgAcpi { table_size, ..Default::default() });
        Box::new(state::FwCfg { acpi, ..Default::default() })
    };
    assert!(device().load(with_tables(0)).unwrap_err().0.contains("acpi=off"));
    assert!(with(true).load(with_tables(0)).is_ok());
    assert!(with(true).load(with_tables(1)).unwrap_err().0.contains("etc/acpi/tables"));
}
