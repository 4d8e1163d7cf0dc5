//! `mc146818rtc`: the battery-backed clock.

use whimbrel_vmstate::{Result, Visitor, VmState, Vmsd};

const REINJECT: Vmsd = Vmsd::new("mc146818rtc/irq_reinject_on_ack_count", 1);

/// The real-time clock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mc146818Rtc {
    /// CMOS memory, the clock's registers included.
    pub cmos_data: [u8; 128],
    /// Selected register.
    pub cmos_index: u8,
    /// Expiry of the periodic interrupt, in ns; −1: not armed.
    pub periodic_timer: i64,
    /// Next periodic interrupt, in ns.
    pub next_periodic_time: i64,
    /// Periodic interrupts not delivered yet.
    pub irq_coalesced: u32,
    /// Period, in ticks of 32768 Hz.
    pub period: u32,
    /// Time of day last set, in s.
    pub base_rtc: u64,
    /// Clock value at that moment, in ns.
    pub last_update: u64,
    /// Sub-second part, in ns.
    pub offset: i64,
    /// Expiry of the update, in ns; −1: not armed.
    pub update_timer: i64,
    /// Next alarm, in ns.
    pub next_alarm_time: u64,
    /// Interrupts to inject when the guest acknowledges.
    pub irq_reinject_on_ack_count: u16,
}

impl Default for Mc146818Rtc {
    fn default() -> Self {
        Mc146818Rtc {
            cmos_data: [0; 128],
            cmos_index: 0,
            periodic_timer: -1,
            next_periodic_time: 0,
            irq_coalesced: 0,
            period: 0,
            base_rtc: 0,
            last_update: 0,
            offset: 0,
            update_timer: -1,
            next_alarm_time: 0,
            irq_reinject_on_ack_count: 0,
        }
    }
}

impl VmState for Mc146818Rtc {
    fn vmsd(&self) -> Vmsd {
        Vmsd::new("mc146818rtc", 3).since(1)
    }

    fn fields(&mut self, v: &mut dyn Visitor) -> Result<()> {
        v.buffer("cmos_data", &mut self.cmos_data)?;
        v.u8("cmos_index", &mut self.cmos_index)?;
        v.unused(28)?;
        v.timer("periodic_timer", &mut self.periodic_timer)?;
        v.i64("next_periodic_time", &mut self.next_periodic_time)?;
        v.unused(24)?;
        v.since(2, &mut |v| {
            v.u32("irq_coalesced", &mut self.irq_coalesced)?;
            v.u32("period", &mut self.period)
        })?;
        v.since(3, &mut |v| {
            v.u64("base_rtc", &mut self.base_rtc)?;
            v.u64("last_update", &mut self.last_update)?;
            v.i64("offset", &mut self.offset)?;
            v.timer("update_timer", &mut self.update_timer)?;
            v.u64("next_alarm_time", &mut self.next_alarm_time)
        })?;
        v.optional(REINJECT, "irq_reinject_on_ack_count", &mut self.irq_reinject_on_ack_count, 0)?;
        Ok(())
    }
}
