//! QEMU's `virt` memory map and interrupt numbers, as its device tree tells them.
//!
//! ```text
//! 0x0800_0000  GIC distributor       64 KiB
//! 0x0808_0000  ITS                   128 KiB
//! 0x080a_0000  GIC redistributors    128 KiB a vCPU, up to 123
//! 0x0900_0000  PL011                 4 KiB, SPI 1
//! 0x0b00_0000  debug console         4 KiB; not QEMU's: a hole of its map
//! 0x4000_0000  RAM                   mach-virt.ram
//! ```

/// GIC distributor.
pub const GICD: u64 = 0x0800_0000;
/// Its size.
pub const GICD_SIZE: u64 = 0x1_0000;
/// ITS.
pub const ITS: u64 = 0x0808_0000;
/// Its size.
pub const ITS_SIZE: u64 = 0x2_0000;
/// Where a device writes its MSIs to: GITS_TRANSLATER.
pub const ITS_TRANSLATER: u64 = ITS + 0x1_0040;
/// GIC redistributors, one behind the other.
pub const GICR: u64 = 0x080a_0000;
/// Room for them.
pub const GICR_SIZE: u64 = 0x00f6_0000;
/// One of them.
pub const GICR_ONE: u64 = 0x2_0000;
/// PL011.
pub const UART: u64 = 0x0900_0000;
/// Its size.
pub const UART_SIZE: u64 = 0x1000;
/// Its shared peripheral interrupt, counted from the first.
pub const UART_SPI: u32 = 1;
/// Its clock, in Hz.
pub const UART_CLOCK: u32 = 24_000_000;
/// Debug console.
pub const DEBUGCON: u64 = 0x0b00_0000;
/// Its size.
pub const DEBUGCON_SIZE: u64 = 0x1000;
/// RAM.
pub const RAM: u64 = 0x4000_0000;

/// vCPUs whose redistributors have room.
pub const CPUS_MAX: u32 = (GICR_SIZE / GICR_ONE) as u32;
/// Interrupts of the distributor, with the 32 private to each vCPU.
pub const GIC_IRQS: u32 = 288;
/// The first shared peripheral interrupt.
pub const FIRST_SPI: u32 = 32;

/// Private interrupts of the timers: secure and non-secure EL1 physical, virtual, EL2 physical. Counted from the first.
pub const TIMER_PPIS: [u32; 4] = [13, 14, 11, 10];
