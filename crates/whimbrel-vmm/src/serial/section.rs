//! Between a running 16550A and its section `serial`.

use std::collections::VecDeque;

use whimbrel::downcast;
use whimbrel::handlers::Device;
use whimbrel::machine::MachineError;
use whimbrel_vmstate::VmState;

use super::device::{FIFO, Registers, Serial, bits::*};
use crate::state;

impl Device for Serial {
    fn save(&self) -> Result<Box<dyn VmState>, MachineError> {
        Ok(Box::new(state::IsaSerial { state: save(&self.registers()) }))
    }

    fn blank(&self) -> Box<dyn VmState> {
        Box::new(state::IsaSerial::default())
    }

    /// Taken at once: the machine is stopped. What a QEMU had not transmitted yet goes out when the guest runs.
    fn load(&self, state: Box<dyn VmState>) -> Result<(), MachineError> {
        let state = downcast::<state::IsaSerial>(state)?.state;
        let (registers, unsent) = load(&state)?;
        self.restore(registers, unsent);
        Ok(())
    }
}

fn save(r: &Registers) -> state::Serial {
    let mut saved = state::Serial {
        divider: r.divider,
        rbr: r.rbr,
        ier: r.ier,
        iir: r.iir(),
        lcr: r.lcr,
        mcr: r.mcr,
        lsr: r.lsr,
        msr: r.msr,
        scr: r.scr,
        fcr: r.fcr,
        ..Default::default()
    };
    let id = saved.iir & IIR_ID;
    // A receiver takes a transmitter interrupt as pending if IIR says so; otherwise it must be told.
    if r.transmitter_pending != (id == IIR_TRANSMITTER_EMPTY) {
        saved.thr_ipending = Some(r.transmitter_pending.into());
    }
    if id == IIR_TIMEOUT {
        saved.timeout_ipending = Some(1);
    }
    if r.fifo_enabled() && !r.received.is_empty() {
        let mut fifo = state::Fifo8 { num: r.received.len() as u32, ..Default::default() };
        for (slot, byte) in fifo.data.iter_mut().zip(&r.received) {
            *slot = *byte;
        }
        saved.recv_fifo = Some(fifo);
    } else if let Some(byte) = r.received.front() {
        saved.rbr = *byte;
    }
    saved
}

/// The registers, and the bytes still to be transmitted.
fn load(saved: &state::Serial) -> Result<(Registers, Vec<u8>), MachineError> {
    let fifo_enabled = saved.fcr & FCR_ENABLE != 0;
    let received = match &saved.recv_fifo {
        Some(fifo) => fifo_bytes(fifo, "recv_fifo")?,
        None if !fifo_enabled && saved.lsr & LSR_DATA != 0 => VecDeque::from([saved.rbr]),
        None => VecDeque::new(),
    };
    let mut unsent = Vec::new();
    if let Some(transmit) = &saved.tsr {
        if transmit.retry > 0 {
            unsent.push(transmit.tsr);
        }
        if !fifo_enabled && saved.lsr & LSR_TRANSMITTER == 0 {
            unsent.push(transmit.thr);
        }
    }
    if let Some(fifo) = &saved.xmit_fifo {
        unsent.extend(fifo_bytes(fifo, "xmit_fifo")?);
    }
    let was_sending = saved.lsr & LSR_TRANSMITTER != LSR_TRANSMITTER;
    let told = saved.thr_ipending.map(|pending| pending != 0);
    let pending = told.unwrap_or(saved.iir & IIR_ID == IIR_TRANSMITTER_EMPTY);
    let mut lsr = saved.lsr | LSR_TRANSMITTER;
    lsr = if received.is_empty() { lsr & !LSR_DATA } else { lsr | LSR_DATA };
    let registers = Registers {
        divider: saved.divider,
        ier: saved.ier & 0x0f,
        lcr: saved.lcr,
        mcr: saved.mcr & 0x1f,
        lsr,
        msr: saved.msr,
        scr: saved.scr,
        fcr: saved.fcr & FCR_KEPT,
        rbr: saved.rbr,
        // What was on its way is sent now, so the transmitter has become empty.
        transmitter_pending: pending || was_sending,
        received,
    };
    Ok((registers, unsent))
}

fn fifo_bytes(fifo: &state::Fifo8, name: &str) -> Result<VecDeque<u8>, MachineError> {
    let (head, num) = (fifo.head as usize, fifo.num as usize);
    if head >= FIFO || num > FIFO {
        return Err(format!("{name}: head {head}, {num} bytes in a queue of {FIFO}").into());
    }
    Ok((0..num).map(|index| fifo.data[(head + index) % FIFO]).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::uart::Registers as _;

    fn round_trip(registers: &Registers) -> Registers {
        let (back, unsent) = load(&save(registers)).unwrap();
        assert!(unsent.is_empty());
        back
    }

    #[test]
    fn received_bytes_and_pending_interrupts_come_back() {
        let mut registers = Registers::power_on();
        assert_eq!(round_trip(&registers), registers);
        registers.ier = 0x0f;
        registers.transmitter_pending = true;
        assert_eq!(round_trip(&registers), registers);
        registers.fcr = 0x81;
        registers.received = (1..=5).collect();
        registers.lsr |= LSR_DATA;
        assert_eq!(round_trip(&registers), registers, "a timeout hides the pending transmitter interrupt");
        registers.transmitter_pending = false;
        assert_eq!(round_trip(&registers), registers);
        registers.fcr = 0;
        registers.received = VecDeque::from([9]);
        registers.rbr = 9;
        assert_eq!(round_trip(&registers), registers);
    }

    #[test]
    fn a_ring_that_has_wrapped_is_read_in_order() {
        let mut data = [0; FIFO];
        (data[15], data[0], data[1]) = (b'a', b'b', b'c');
        let bytes = fifo_bytes(&state::Fifo8 { data, head: 15, num: 3 }, "f").unwrap();
        assert_eq!(bytes, b"abc");
        assert!(fifo_bytes(&state::Fifo8 { data, head: 16, num: 0 }, "f").is_err());
        assert!(fifo_bytes(&state::Fifo8 { data, head: 0, num: 17 }, "f").is_err());
    }

    #[test]
    fn bytes_a_qemu_had_not_sent_are_sent() {
        let mut saved = save(&Registers { fcr: 1, ..Registers::power_on() });
        saved.lsr &= !LSR_TRANSMITTER;
        saved.tsr = Some(state::TransmitRetry { retry: 1, thr: 0, tsr: b'x' });
        let mut data = [0; FIFO];
        data[..2].copy_from_slice(b"yz");
        saved.xmit_fifo = Some(state::Fifo8 { data, head: 0, num: 2 });
        let (registers, unsent) = load(&saved).unwrap();
        assert_eq!(unsent, b"xyz");
        assert!(registers.transmitter_pending && registers.lsr & LSR_TRANSMITTER == LSR_TRANSMITTER);
    }
}
