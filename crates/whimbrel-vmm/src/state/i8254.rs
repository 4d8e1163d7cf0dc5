//! `i8254`: the legacy interval timer.

use whimbrel_vmstate::{Result, Visitor, VmState, Vmsd};

const CHANNEL: Vmsd = Vmsd::new("pit channel", 2);

/// The 8254 with its three channels.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct I8254 {
    /// Channel 0's interrupt goes nowhere (the HPET has taken it).
    pub irq_disabled: u32,
    /// Channels 0 to 2.
    pub channels: [PitChannel; 3],
    /// Next expiry of channel 0 on the virtual clock, in ns.
    pub next_transition_time: i64,
}

/// One channel of the 8254.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs, reason = "the data sheet's names")]
pub struct PitChannel {
    /// 1 to 0x10000.
    pub count: i32,
    pub latched_count: u16,
    pub count_latched: u8,
    pub status_latched: u8,
    pub status: u8,
    pub read_state: u8,
    pub write_state: u8,
    pub write_latch: u8,
    pub rw_mode: u8,
    pub mode: u8,
    pub bcd: u8,
    pub gate: u8,
    /// Virtual time at which the count was loaded, in ns.
    pub count_load_time: i64,
    /// Virtual time of the next edge, in ns.
    pub next_transition_time: i64,
}

impl VmState for I8254 {
    fn vmsd(&self) -> Vmsd {
        Vmsd::new("i8254", 3).since(2)
    }

    fn fields(&mut self, v: &mut dyn Visitor) -> Result<()> {
        v.since(3, &mut |v| v.u32("channels[0].irq_disabled", &mut self.irq_disabled))?;
        v.structs("channels", CHANNEL, &mut self.channels, PitChannel::fields)?;
        v.i64("channels[0].next_transition_time", &mut self.next_transition_time)
    }
}

impl PitChannel {
    fn fields(&mut self, v: &mut dyn Visitor) -> Result<()> {
        v.i32("count", &mut self.count)?;
        v.u16("latched_count", &mut self.latched_count)?;
        v.u8("count_latched", &mut self.count_latched)?;
        v.u8("status_latched", &mut self.status_latched)?;
        v.u8("status", &mut self.status)?;
        v.u8("read_state", &mut self.read_state)?;
        v.u8("write_state", &mut self.write_state)?;
        v.u8("write_latch", &mut self.write_latch)?;
        v.u8("rw_mode", &mut self.rw_mode)?;
        v.u8("mode", &mut self.mode)?;
        v.u8("bcd", &mut self.bcd)?;
        v.u8("gate", &mut self.gate)?;
        v.i64("count_load_time", &mut self.count_load_time)?;
        v.i64("next_transition_time", &mut self.next_transition_time)
    }
}
