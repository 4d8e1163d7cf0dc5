//! `serial`: the 16550 UART, on ISA wrapped as a struct in a section of the same name.

use whimbrel_vmstate::{Result, Visitor, VmState, Vmsd};

const VMSD: Vmsd = Vmsd::new("serial", 3).since(2);
const FIFO: Vmsd = Vmsd::new("Fifo8", 1);

/// The section of a UART on the ISA bus.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IsaSerial {
    /// The UART.
    pub state: Serial,
}

/// A 16550. 11 bytes before the subsections.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Serial {
    /// Baud rate divider.
    pub divider: u16,
    /// Receive buffer.
    pub rbr: u8,
    /// Interrupt enable.
    pub ier: u8,
    /// Interrupt identification.
    pub iir: u8,
    /// Line control.
    pub lcr: u8,
    /// Modem control.
    pub mcr: u8,
    /// Line status.
    pub lsr: u8,
    /// Modem status.
    pub msr: u8,
    /// Scratch.
    pub scr: u8,
    /// FIFO control.
    pub fcr: u8,
    /// A transmitter-empty interrupt waits, where the registers don't say so.
    pub thr_ipending: Option<i32>,
    /// A byte in the transmitter.
    pub tsr: Option<TransmitRetry>,
    /// Received bytes not read yet.
    pub recv_fifo: Option<Fifo8>,
    /// Bytes to transmit.
    pub xmit_fifo: Option<Fifo8>,
    /// Expiry of the receive timeout, in ns; −1: not armed.
    pub fifo_timeout_timer: Option<i64>,
    /// A receive timeout interrupt waits.
    pub timeout_ipending: Option<i32>,
    /// Polling of the modem lines.
    pub poll: Option<ModemPoll>,
}

/// A byte the backend didn't take yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TransmitRetry {
    /// Attempts so far.
    pub retry: u32,
    /// Transmit holding register.
    pub thr: u8,
    /// Transmit shift register.
    pub tsr: u8,
}

/// A queue of 16 bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fifo8 {
    /// The ring.
    pub data: [u8; 16],
    /// Index of the oldest byte.
    pub head: u32,
    /// Number of bytes.
    pub num: u32,
}

/// Polling of the host line's modem signals.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ModemPoll {
    /// −1 off, 0 to be begun, 1 on.
    pub poll_msl: i32,
    /// Next poll, in ns; −1: not armed.
    pub timer: i64,
}

impl VmState for IsaSerial {
    fn vmsd(&self) -> Vmsd {
        VMSD
    }

    fn fields(&mut self, v: &mut dyn Visitor) -> Result<()> {
        v.nested("state", &mut self.state)
    }
}

impl VmState for Serial {
    fn vmsd(&self) -> Vmsd {
        VMSD
    }

    fn fields(&mut self, v: &mut dyn Visitor) -> Result<()> {
        v.u16("divider", &mut self.divider)?;
        v.u8("rbr", &mut self.rbr)?;
        v.u8("ier", &mut self.ier)?;
        v.u8("iir", &mut self.iir)?;
        v.u8("lcr", &mut self.lcr)?;
        v.u8("mcr", &mut self.mcr)?;
        v.u8("lsr", &mut self.lsr)?;
        v.u8("msr", &mut self.msr)?;
        v.u8("scr", &mut self.scr)?;
        v.since(3, &mut |v| v.u8("fcr_vmstate", &mut self.fcr))?;
        v.option(Vmsd::new("serial/thr_ipending", 1), &mut self.thr_ipending, |pending, v| {
            v.i32("thr_ipending", pending)
        })?;
        v.option(Vmsd::new("serial/tsr", 1), &mut self.tsr, |transmit, v| {
            v.u32("tsr_retry", &mut transmit.retry)?;
            v.u8("thr", &mut transmit.thr)?;
            v.u8("tsr", &mut transmit.tsr)
        })?;
        v.option(Vmsd::new("serial/recv_fifo", 1), &mut self.recv_fifo, |fifo, v| {
            v.structure("recv_fifo", FIFO, &mut |v| fifo.fields(v))
        })?;
        v.option(Vmsd::new("serial/xmit_fifo", 1), &mut self.xmit_fifo, |fifo, v| {
            v.structure("xmit_fifo", FIFO, &mut |v| fifo.fields(v))
        })?;
        v.option(Vmsd::new("serial/fifo_timeout_timer", 1), &mut self.fifo_timeout_timer, |timer, v| {
            v.timer("fifo_timeout_timer", timer)
        })?;
        v.option(Vmsd::new("serial/timeout_ipending", 1), &mut self.timeout_ipending, |pending, v| {
            v.i32("timeout_ipending", pending)
        })?;
        v.option(Vmsd::new("serial/poll", 1), &mut self.poll, |poll, v| {
            v.i32("poll_msl", &mut poll.poll_msl)?;
            v.timer("modem_status_poll", &mut poll.timer)
        })
    }
}

impl Fifo8 {
    fn fields(&mut self, v: &mut dyn Visitor) -> Result<()> {
        v.buffer("data", &mut self.data)?;
        v.u32("head", &mut self.head)?;
        v.u32("num", &mut self.num)?;
        if self.head >= 16 || self.num > 16 {
            return Err(v.refuse("num", format!("head {} and number {} of 16", self.head, self.num)));
        }
        Ok(())
    }
}
