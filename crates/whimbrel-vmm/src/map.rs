//! Where things are: addresses and interrupt lines of QEMU's `microvm`. For devices, and for the tables that tell a guest of them.

/// Every vCPU's local APIC.
pub const LAPIC: u64 = 0xfee0_0000;
/// KVM's IOAPIC.
pub const IOAPIC: u64 = 0xfec0_0000;
/// The second IOAPIC, for virtio-mmio.
pub const IOAPIC2: u64 = 0xfec1_0000;
/// Length of an IOAPIC's registers.
pub const IOAPIC_LEN: u64 = 0x1000;
/// Pins of an IOAPIC.
pub const IOAPIC_PINS: usize = 24;
/// First global interrupt of the second IOAPIC.
pub const IOAPIC2_FIRST_GSI: u32 = IOAPIC_PINS as u32;

/// ACPI's generic event device: the selector of what happened.
pub const GED_EVENT: u64 = 0xfea0_0000;
/// Length of the selector.
pub const GED_EVENT_LEN: u64 = 4;
/// Its sleep and reset registers.
pub const GED_REGISTERS: u64 = 0xfea0_0200;
/// Length of the sleep and reset registers.
pub const GED_REGISTERS_LEN: u64 = 3;
/// Its interrupt, edge-triggered.
pub const GED_GSI: u32 = 9;

/// First of the virtio-mmio transports.
pub const VIRTIO_MMIO: u64 = 0xfeb0_0000;
/// Length of one, and distance to the next.
pub const VIRTIO_MMIO_LEN: u64 = 0x200;

/// Interrupt of COM1.
pub const SERIAL_GSI: u32 = 4;
/// Interrupt of the real-time clock.
pub const RTC_GSI: u32 = 8;
