//! The second I/O APIC, in user space: KVM has one only. Its pins are global interrupts 24 to 47; QEMU puts virtio-mmio there.
//!
//! | offset | register |
//! |---|---|
//! | 0x00 | selects an index |
//! | 0x10 | the indexed register: 0 id, 1 version and number of pins, 2 arbitration id, from 0x10 two a pin (low, high half) |
//! | 0x40 | EOI: a vector |
//!
//! An interrupt goes out as a message to the LAPICs (KVM_SIGNAL_MSI). KVM keeps the LAPICs' EOI to itself, so a level-triggered pin
//! is told when it rises, when it is unmasked while high, and when the guest writes EOI here while it is high. A device that
//! lowers its line when it is served, as virtio does, needs no more.

use std::sync::{Arc, Mutex};

use kvm_bindings::kvm_msi;
use whimbrel::downcast;
use whimbrel::handlers::Device;
use whimbrel::machine::MachineError;
use whimbrel_vmstate::VmState;

use crate::bus::{Asked, MmioDevice};
use crate::kvm::KvmVm;
use crate::lock;
use crate::map::IOAPIC_PINS;
use crate::state;

const SELECT: u64 = 0x00;
const WINDOW: u64 = 0x10;
const EOI: u64 = 0x40;

const ID: u8 = 0;
const VERSION: u8 = 1;
const ARBITRATION: u8 = 2;
const FIRST_PIN: u8 = 0x10;
/// With an EOI register.
const VERSION_NUMBER: u32 = 0x20;

const VECTOR: u64 = 0xff;
const DELIVERY_MODE: u64 = 0x700;
const LOGICAL: u64 = 1 << 11;
/// Delivery status and remote IRR: the device's own.
const READ_ONLY: u64 = REMOTE_IRR | 1 << 12;
const REMOTE_IRR: u64 = 1 << 14;
const LEVEL: u64 = 1 << 15;
const MASKED: u64 = 1 << 16;
const DESTINATION: u32 = 56;

const MESSAGE_ADDRESS: u32 = 0xfee0_0000;

/// Where interrupt messages go.
type Messages = Box<dyn Fn(kvm_msi) + Send + Sync>;

/// The device.
pub struct SecondIoApic {
    messages: Messages,
    registers: Mutex<state::IoApic>,
}

impl SecondIoApic {
    /// Of this VM.
    pub fn new(kvm: &Arc<KvmVm>) -> Self {
        let kvm = Arc::clone(kvm);
        Self::sending(Box::new(move |message| {
            if let Err(error) = kvm.vm.signal_msi(message) {
                tracing::error!(%error, "KVM_SIGNAL_MSI");
            }
        }))
    }

    fn sending(messages: Messages) -> Self {
        Self { messages, registers: Mutex::new(power_on()) }
    }

    /// Back to power-on.
    pub fn reset(&self) {
        *lock(&self.registers) = power_on();
    }

    /// A device drives `pin` (0 to 23) high or low.
    pub fn set(&self, pin: usize, high: bool) {
        let registers = &mut *lock(&self.registers);
        let Some(entry) = registers.ioredtbl.get_mut(pin) else { return };
        let bit = 1 << pin;
        let was_high = registers.irr & bit != 0;
        if *entry & LEVEL == 0 {
            // An edge is remembered only until it is delivered.
            if high {
                registers.irr |= bit;
                self.deliver(registers, pin);
            }
        } else if high {
            registers.irr |= bit;
            if !was_high {
                self.deliver(registers, pin);
            }
        } else {
            registers.irr &= !bit;
            *entry &= !REMOTE_IRR;
        }
    }

    /// Tells the LAPICs of a pending pin, unless it is masked.
    fn deliver(&self, registers: &mut state::IoApic, pin: usize) {
        let Some(entry) = registers.ioredtbl.get_mut(pin) else { return };
        let bit = 1 << pin;
        if registers.irr & bit == 0 || *entry & MASKED != 0 {
            return;
        }
        if *entry & LEVEL == 0 {
            registers.irr &= !bit;
        } else {
            *entry |= REMOTE_IRR;
        }
        (self.messages)(message(*entry));
    }

    fn read_indexed(registers: &state::IoApic) -> u32 {
        match registers.ioregsel {
            ID | ARBITRATION => u32::from(registers.id) << 24,
            VERSION => VERSION_NUMBER | (IOAPIC_PINS as u32 - 1) << 16,
            index => match half_of_pin(index) {
                Some((pin, false)) => registers.ioredtbl[pin] as u32,
                Some((pin, true)) => (registers.ioredtbl[pin] >> 32) as u32,
                None => 0,
            },
        }
    }

    fn write_indexed(&self, registers: &mut state::IoApic, value: u32) {
        if registers.ioregsel == ID {
            registers.id = (value >> 24) as u8 & 0xf;
        }
        let Some((pin, high)) = half_of_pin(registers.ioregsel) else { return };
        let entry = &mut registers.ioredtbl[pin];
        let was_masked = *entry & MASKED != 0;
        *entry = if high {
            *entry & 0xffff_ffff | u64::from(value) << 32
        } else {
            *entry & (READ_ONLY | !0xffff_ffff) | u64::from(value) & !READ_ONLY
        };
        if *entry & LEVEL == 0 {
            *entry &= !REMOTE_IRR;
        }
        if was_masked || *entry & REMOTE_IRR == 0 {
            self.deliver(registers, pin);
        }
    }

    fn end_of_interrupt(&self, registers: &mut state::IoApic, vector: u8) {
        for pin in 0..IOAPIC_PINS {
            let entry = &mut registers.ioredtbl[pin];
            if *entry & REMOTE_IRR != 0 && *entry & VECTOR == u64::from(vector) {
                *entry &= !REMOTE_IRR;
                self.deliver(registers, pin);
            }
        }
    }
}

impl MmioDevice for SecondIoApic {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let registers = lock(&self.registers);
        let value = match offset {
            SELECT => registers.ioregsel.into(),
            WINDOW => Self::read_indexed(&registers),
            _ => 0,
        };
        data.fill(0);
        for (byte, value) in data.iter_mut().zip(value.to_le_bytes()) {
            *byte = value;
        }
    }

    fn write(&self, offset: u64, data: &[u8]) -> Asked {
        let value = u32::from_le_bytes(std::array::from_fn(|at| data.get(at).copied().unwrap_or(0)));
        let mut registers = lock(&self.registers);
        match offset {
            SELECT => registers.ioregsel = value as u8,
            WINDOW => self.write_indexed(&mut registers, value),
            EOI => self.end_of_interrupt(&mut registers, value as u8),
            _ => {}
        }
        Asked::Nothing
    }
}

impl Device for SecondIoApic {
    fn save(&self) -> Result<Box<dyn VmState>, MachineError> {
        Ok(Box::new(lock(&self.registers).clone()))
    }

    fn blank(&self) -> Box<dyn VmState> {
        Box::new(state::IoApic::default())
    }

    /// Taken at once: the machine is stopped. What is pending and masked is told when the guest unmasks it.
    fn load(&self, state: Box<dyn VmState>) -> Result<(), MachineError> {
        *lock(&self.registers) = *downcast(state)?;
        Ok(())
    }
}

fn power_on() -> state::IoApic {
    state::IoApic { ioredtbl: [MASKED; IOAPIC_PINS], ..Default::default() }
}

/// Which pin an index is about, and whether it is the high half.
fn half_of_pin(index: u8) -> Option<(usize, bool)> {
    let half = usize::from(index.checked_sub(FIRST_PIN)?);
    (half < 2 * IOAPIC_PINS).then_some((half / 2, half % 2 == 1))
}

/// The message that delivers an entry.
fn message(entry: u64) -> kvm_msi {
    let logical = if entry & LOGICAL != 0 { 1 << 2 } else { 0 };
    let level = entry & LEVEL;
    kvm_msi {
        address_lo: MESSAGE_ADDRESS | ((entry >> DESTINATION) as u32) << 12 | logical,
        // A level-triggered message also says that it is asserted.
        data: (entry & (VECTOR | DELIVERY_MODE) | level | level >> 1) as u32,
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, channel};

    use super::*;

    const PIN: usize = 23;

    fn device() -> (SecondIoApic, Receiver<u32>) {
        let (sender, messages) = channel();
        let sender = Mutex::new(sender);
        let send = move |message: kvm_msi| {
            assert_eq!(message.address_lo, 0xfee0_3004);
            lock(&sender).send(message.data).unwrap();
        };
        (SecondIoApic::sending(Box::new(send)), messages)
    }

    fn write(device: &SecondIoApic, index: u8, value: u32) {
        device.write(SELECT, &u32::from(index).to_le_bytes());
        device.write(WINDOW, &value.to_le_bytes());
    }

    fn read(device: &SecondIoApic, index: u8) -> u32 {
        device.write(SELECT, &u32::from(index).to_le_bytes());
        let mut value = [0; 4];
        device.read(WINDOW, &mut value);
        u32::from_le_bytes(value)
    }

    /// Programs the pin: vector 0x51, logical destination 3.
    fn program(device: &SecondIoApic, bits: u32) {
        write(device, FIRST_PIN + 2 * PIN as u8 + 1, 3 << 24);
        write(device, FIRST_PIN + 2 * PIN as u8, 0x851 | bits);
    }

    #[test]
    fn it_tells_its_version_and_pins_and_starts_masked() {
        let (device, messages) = device();
        assert_eq!(read(&device, VERSION), 0x17_0020);
        assert_eq!(read(&device, FIRST_PIN), 0x1_0000);
        write(&device, ID, 0xf500_0000);
        assert_eq!(read(&device, ID), 0x0500_0000);
        device.set(0, true);
        assert!(messages.try_recv().is_err());
    }

    #[test]
    fn an_edge_is_delivered_once_and_kept_while_masked() {
        let (device, messages) = device();
        program(&device, 0);
        device.set(PIN, true);
        device.set(PIN, false);
        assert_eq!(messages.try_iter().collect::<Vec<_>>(), [0x51]);
        program(&device, MASKED as u32);
        device.set(PIN, true);
        assert!(messages.try_recv().is_err());
        program(&device, 0);
        assert_eq!(messages.try_iter().collect::<Vec<_>>(), [0x51]);
    }

    #[test]
    fn a_level_is_delivered_when_it_rises_and_again_at_eoi_while_high() {
        let (device, messages) = device();
        program(&device, LEVEL as u32);
        device.set(PIN, true);
        device.set(PIN, true);
        assert_eq!(messages.try_iter().collect::<Vec<_>>(), [0xc051]);
        assert_eq!(read(&device, FIRST_PIN + 2 * PIN as u8), 0xc851);
        device.write(EOI, &0x51u32.to_le_bytes());
        assert_eq!(messages.try_iter().collect::<Vec<_>>(), [0xc051]);
        program(&device, LEVEL as u32);
        assert!(messages.try_recv().is_err(), "still being served");
        program(&device, (LEVEL | MASKED) as u32);
        program(&device, LEVEL as u32);
        assert_eq!(messages.try_iter().collect::<Vec<_>>(), [0xc051], "unmasked while high");
        device.set(PIN, false);
        device.write(EOI, &0x51u32.to_le_bytes());
        assert!(messages.try_recv().is_err());
        device.set(PIN, true);
        assert_eq!(messages.try_iter().collect::<Vec<_>>(), [0xc051]);
    }

    #[test]
    fn a_pending_pin_moves_with_the_guest() {
        let (source, _) = device();
        source.set(PIN, true);
        let (destination, messages) = device();
        destination.load(source.save().unwrap()).unwrap();
        assert!(messages.try_recv().is_err());
        program(&destination, 0);
        assert_eq!(messages.try_iter().collect::<Vec<_>>(), [0x51]);
    }

    #[test]
    fn indices_and_pins_that_are_not_there_do_nothing() {
        let (device, _) = device();
        for index in [3, 0xf, FIRST_PIN + 48, 0xff] {
            write(&device, index, !0);
            assert_eq!(read(&device, index), 0, "{index:#x}");
        }
        device.set(IOAPIC_PINS, true);
        assert_eq!(*lock(&device.registers), state::IoApic { ioregsel: 0xff, ..power_on() });
    }
}
