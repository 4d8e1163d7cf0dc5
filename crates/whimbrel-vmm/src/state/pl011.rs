//! `pl011`: the PrimeCell UART.

use whimbrel_vmstate::{Result, Visitor, VmState, Vmsd};

const CLOCK: Vmsd = Vmsd::new("clock", 0);

/// Bytes of the receive queue.
pub const PL011_FIFO: usize = 16;

/// A PL011.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pl011 {
    /// UARTFR.
    pub flags: u32,
    /// UARTLCR_H.
    pub lcr: u32,
    /// UARTRSR.
    pub rsr: u32,
    /// UARTCR.
    pub cr: u32,
    /// UARTDMACR.
    pub dmacr: u32,
    /// UARTIMSC.
    pub int_enabled: u32,
    /// UARTRIS.
    pub int_level: u32,
    /// The receive queue, a ring.
    pub read_fifo: [u32; PL011_FIFO],
    /// UARTILPR.
    pub ilpr: u32,
    /// UARTIBRD.
    pub ibrd: u32,
    /// UARTFBRD.
    pub fbrd: u32,
    /// UARTIFLS.
    pub ifl: u32,
    /// Index of the oldest byte.
    pub read_pos: i32,
    /// Number of bytes.
    pub read_count: i32,
    /// Number of bytes at which the guest is told.
    pub read_trigger: i32,
    /// Period of its clock in 2⁻³² ns, where it is told; 0: it has none.
    pub clock: Option<u64>,
}

impl VmState for Pl011 {
    fn vmsd(&self) -> Vmsd {
        Vmsd::new("pl011", 2)
    }

    fn fields(&mut self, v: &mut dyn Visitor) -> Result<()> {
        v.unused(4)?;
        v.u32("flags", &mut self.flags)?;
        v.u32("lcr", &mut self.lcr)?;
        v.u32("rsr", &mut self.rsr)?;
        v.u32("cr", &mut self.cr)?;
        v.u32("dmacr", &mut self.dmacr)?;
        v.u32("int_enabled", &mut self.int_enabled)?;
        v.u32("int_level", &mut self.int_level)?;
        v.array("read_fifo", &mut self.read_fifo)?;
        v.u32("ilpr", &mut self.ilpr)?;
        v.u32("ibrd", &mut self.ibrd)?;
        v.u32("fbrd", &mut self.fbrd)?;
        v.u32("ifl", &mut self.ifl)?;
        v.i32("read_pos", &mut self.read_pos)?;
        v.i32("read_count", &mut self.read_count)?;
        v.i32("read_trigger", &mut self.read_trigger)?;
        let ring = 0..=PL011_FIFO as i32;
        if !(ring.contains(&self.read_count) && ring.contains(&self.read_pos) && self.read_pos != *ring.end())
        {
            let text = format!("position {} and number {} of 16", self.read_pos, self.read_count);
            return Err(v.refuse("read_count", text));
        }
        v.option(Vmsd::new("pl011/clock", 1), &mut self.clock, |period, v| {
            v.structure("clk", CLOCK, &mut |v| v.u64("period", period))
        })
    }
}
