//! ACPI tables for a kernel that is entered without firmware: nobody else tells it of its processors and interrupt controllers.
//!
//! ```text
//! RSDP ─▶ XSDT ─▶ FADT ─▶ DSDT   devices that cannot be probed for
//!              │    └ registers to switch off and to reset by
//!              └▶ MADT           one local APIC a vCPU, the IOAPICs
//! ```
//! The platform is hardware-reduced, as QEMU's microvm is: no legacy interrupts, and of power management only the registers beside
//! the generic event device, on a machine that has it. The tables are part of RAM and move with it; a machine that awaits a guest
//! builds none.

use acpi_tables::Aml;
use acpi_tables::aml;
use acpi_tables::fadt::{FADT, FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::madt::{EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic};
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;

use crate::{acpi_ged, map, serial};

const OEM: [u8; 6] = *b"WHIMBR";
const TABLE: [u8; 8] = *b"MICROVM ";
const REVISION: u32 = 1;
/// The DSDT's revision from which integers have 64 bits.
const INTEGERS_64: u8 = 2;
/// Tables begin at multiples of this.
const ALIGN: u64 = 16;

/// What the machine has.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Hardware {
    /// vCPUs; their APIC ids count from 0.
    pub(crate) cpus: u32,
    /// Whether there is the serial port COM1.
    pub(crate) serial: bool,
    /// Whether there are the generic event device and the second IOAPIC.
    pub(crate) acpi: bool,
}

/// All tables as one piece of memory that lies at `at`; the RSDP is first.
pub(crate) fn tables(hardware: Hardware, at: u64) -> Vec<u8> {
    // The RSDP is written last, for it points to the XSDT, which points to the rest.
    let mut memory = vec![0; Rsdp::len()];
    let mut add = |table: &dyn Aml| {
        memory.resize(memory.len().next_multiple_of(ALIGN as usize), 0);
        let address = at + memory.len() as u64;
        table.to_aml_bytes(&mut memory);
        address
    };
    let dsdt = add(&dsdt(hardware));
    let fadt = add(&fadt(hardware, dsdt));
    let madt = add(&madt(hardware));
    let mut xsdt = XSDT::new(OEM, TABLE, REVISION);
    xsdt.add_entry(fadt);
    xsdt.add_entry(madt);
    let xsdt = add(&xsdt);
    let mut rsdp = Vec::new();
    Rsdp::new(OEM, xsdt).to_aml_bytes(&mut rsdp);
    memory[..rsdp.len()].copy_from_slice(&rsdp);
    memory
}

fn fadt(hardware: Hardware, dsdt: u64) -> FADT {
    let mut fadt = FADTBuilder::new(OEM, TABLE, REVISION).dsdt_64(dsdt).flag(Flags::HwReducedAcpi);
    if hardware.acpi {
        let register = |offset| {
            GAS::new(AddressSpace::SystemMemory, 8, 0, AccessSize::ByteAccess, map::GED_REGISTERS + offset)
        };
        fadt = fadt.flag(Flags::ResetRegSup);
        fadt.reset_reg = register(acpi_ged::RESET);
        fadt.reset_value = acpi_ged::RESET_VALUE;
        fadt.sleep_control_reg = register(acpi_ged::SLEEP_CONTROL);
        fadt.sleep_status_reg = register(acpi_ged::SLEEP_STATUS);
    }
    fadt.finalize()
}

fn madt(hardware: Hardware) -> MADT {
    let mut madt = MADT::new(OEM, TABLE, REVISION, LocalInterruptController::Address(map::LAPIC as u32));
    // The machine has at most 254 vCPUs: ids fit.
    for id in (0..=u8::MAX).take(hardware.cpus as usize) {
        madt.add_structure(ProcessorLocalApic::new(id, id, EnabledStatus::Enabled));
    }
    madt.add_structure(IoApic::new(0, map::IOAPIC as u32, 0));
    if hardware.acpi {
        madt.add_structure(IoApic::new(1, map::IOAPIC2 as u32, map::IOAPIC2_FIRST_GSI));
    }
    madt
}

fn dsdt(hardware: Hardware) -> Sdt {
    let mut code = Vec::new();
    if hardware.acpi {
        event_device(&mut code);
        // What to write to the sleep control register for it.
        let off = aml::Package::new(vec![&acpi_ged::SOFT_OFF]);
        aml::Name::new("_S5_".into(), &off).to_aml_bytes(&mut code);
    }
    if hardware.serial {
        let ports = aml::IO::new(serial::FIRST_PORT, serial::FIRST_PORT, 1, serial::PORTS as u8);
        let interrupt = aml::Interrupt::new(true, true, false, false, map::SERIAL_GSI);
        let resources = aml::ResourceTemplate::new(vec![&ports, &interrupt]);
        let hid = aml::Name::new("_HID".into(), &aml::EISAName::new("PNP0501"));
        let uid = aml::Name::new("_UID".into(), &aml::ONE);
        let crs = aml::Name::new("_CRS".into(), &resources);
        aml::Device::new("_SB_.COM1".into(), vec![&hid, &uid, &crs]).to_aml_bytes(&mut code);
    }
    let mut table = Sdt::new(*b"DSDT", SDT_HEADER, INTEGERS_64, OEM, TABLE, REVISION);
    table.append_slice(&code);
    table
}

/// The generic event device. Nothing happens on this machine; if its interrupt comes nevertheless, what happened is read away.
fn event_device(code: &mut Vec<u8>) {
    let hid = aml::Name::new("_HID".into(), &"ACPI0013");
    let uid = aml::Name::new("_UID".into(), &aml::ZERO);
    let interrupt = aml::Interrupt::new(true, true, false, false, map::GED_GSI);
    let resources = aml::ResourceTemplate::new(vec![&interrupt]);
    let crs = aml::Name::new("_CRS".into(), &resources);
    let (at, len) = (map::GED_EVENT as u32, map::GED_EVENT_LEN as u8);
    let region = aml::OpRegion::new("EVNT".into(), aml::OpRegionSpace::SystemMemory, &at, &len);
    let selector = aml::Field::new(
        "EVNT".into(),
        aml::FieldAccessType::DWord,
        aml::FieldLockRule::NoLock,
        aml::FieldUpdateRule::WriteAsZeroes,
        vec![aml::FieldEntry::Named(*b"ESEL", usize::from(len) * 8)],
    );
    let (local, source) = (aml::Local(0), aml::Path::new("ESEL"));
    let read = aml::Store::new(&local, &source);
    let happened = aml::Method::new("_EVT".into(), 1, true, vec![&read]);
    let parts: Vec<&dyn Aml> = vec![&hid, &uid, &crs, &region, &selector, &happened];
    aml::Device::new("_SB_.GED_".into(), parts).to_aml_bytes(code);
}

/// Bytes of the header that every table but the RSDP begins with.
const SDT_HEADER: u32 = 36;

#[cfg(test)]
mod tests {
    use super::*;

    const AT: u64 = 0x9_e000;

    fn word(memory: &[u8], at: usize) -> u32 {
        u32::from_le_bytes(memory[at..at + 4].try_into().unwrap())
    }

    fn long(memory: &[u8], at: usize) -> usize {
        (u64::from_le_bytes(memory[at..at + 8].try_into().unwrap()) - AT) as usize
    }

    /// The table at `at`: its signature, and all of it.
    fn table(memory: &[u8], at: usize) -> (&[u8], &[u8]) {
        let whole = &memory[at..at + word(memory, at + 4) as usize];
        (&whole[..4], whole)
    }

    fn sum(bytes: &[u8]) -> u8 {
        bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
    }

    #[test]
    fn every_table_is_found_from_the_rsdp_and_adds_up() {
        let memory = tables(Hardware { cpus: 3, serial: true, acpi: false }, AT);
        assert_eq!((&memory[..8], sum(&memory[..20]), sum(&memory[..36])), (&b"RSD PTR "[..], 0, 0));
        let (name, xsdt) = table(&memory, long(&memory, 24));
        assert_eq!((name, sum(xsdt), xsdt.len()), (&b"XSDT"[..], 0, 36 + 16));
        let (name, fadt) = table(&memory, long(xsdt, 36));
        assert_eq!((name, sum(fadt)), (&b"FACP"[..], 0));
        assert_eq!(word(fadt, 112), 1 << 20, "hardware-reduced, and nothing else");
        let (name, dsdt) = table(&memory, long(fadt, 140));
        assert_eq!((name, sum(dsdt)), (&b"DSDT"[..], 0));
        let (name, madt) = table(&memory, long(xsdt, 44));
        assert_eq!((name, sum(madt), word(madt, 36)), (&b"APIC"[..], 0, map::LAPIC as u32));
        // Local APIC: type 0, 8 bytes, processor, id, flags. IOAPIC: type 1, 12 bytes, id, 0, address, first interrupt.
        let lapic = |id: u8| [0, 8, id, id, 1, 0, 0, 0];
        let ioapic = [1, 12, 0, 0, 0, 0, 0xc0, 0xfe, 0, 0, 0, 0];
        assert_eq!(madt[44..], [&lapic(0)[..], &lapic(1), &lapic(2), &ioapic].concat());
    }

    #[test]
    fn a_device_that_is_not_there_is_not_described() {
        let dsdt_of = |serial| {
            let mut bytes = Vec::new();
            dsdt(Hardware { cpus: 1, serial, acpi: false }).to_aml_bytes(&mut bytes);
            bytes
        };
        assert_eq!(dsdt_of(false).len(), SDT_HEADER as usize);
        let described = dsdt_of(true);
        let contains = |bytes: &[u8]| described.windows(bytes.len()).any(|window| window == bytes);
        assert!(contains(b"COM1"));
        assert!(contains(&[0x47, 0x01, 0xf8, 0x03, 0xf8, 0x03, 1, 8]), "8 ports from 0x3f8");
        assert!(contains(&[0x89, 6, 0, 0b0011, 1, 4, 0, 0, 0]), "interrupt 4, edge, active high");
    }

    #[test]
    fn what_comes_with_acpi_is_described_where_the_machine_has_it() {
        let memory = tables(Hardware { cpus: 1, serial: false, acpi: true }, AT);
        let (_, xsdt) = table(&memory, long(&memory, 24));
        let (_, fadt) = table(&memory, long(xsdt, 36));
        assert_eq!((sum(fadt), word(fadt, 112)), (0, 1 << 20 | 1 << 10), "and it can be reset");
        // In memory, 8 bits wide, from bit 0, read by bytes.
        let register = |offset| [&[0, 8, 0, 1, offset, 2, 0xa0, 0xfe][..], &[0; 4]].concat();
        assert_eq!((&fadt[116..128], fadt[128]), (&register(2)[..], 0x42));
        assert_eq!(fadt[244..268], [register(0), register(1)].concat());
        let (_, madt) = table(&memory, long(xsdt, 44));
        assert_eq!(madt[madt.len() - 12..], [1, 12, 1, 0, 0, 0, 0xc1, 0xfe, 24, 0, 0, 0]);
        let (_, dsdt) = table(&memory, long(fadt, 140));
        let contains = |bytes: &[u8]| dsdt.windows(bytes.len()).any(|window| window == bytes);
        assert!(
            contains(b"ACPI0013\0") && contains(&[0x89, 6, 0, 0b0011, 1, 9, 0, 0, 0]),
            "interrupt 9, edge"
        );
        assert!(contains(b"\x08_S5_\x12\x04\x01\x0a\x05"), "a package of one number, 5");
    }

    #[test]
    fn the_largest_machine_has_room() {
        assert!(
            tables(Hardware { cpus: 254, serial: true, acpi: true }, AT).len() as u64
                <= super::super::ACPI_SIZE
        );
    }
}
