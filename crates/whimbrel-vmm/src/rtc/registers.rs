//! The clock's registers and what time does to them. Time is an argument, in ns of the host's clock since 1970; interrupts are the caller's.
//!
//! | register | meaning |
//! |---|---|
//! | 0, 2, 4, 6–9, 0x32 | second, minute, hour, day of week, day, month, year, century |
//! | 1, 3, 5 | alarm: second, minute, hour; from 0xc0 on: every one |
//! | A | bit 7 an update is near, 4–6 divider (2: runs), 0–3 rate of the periodic interrupt |
//! | B | bit 7 held for setting, 6–4 interrupts: periodic, alarm, update; 2 binary, 1 of 24 hours |
//! | C | bit 7 interrupt, 6–4 what happened; reading clears it |
//! | D | bit 7: the battery is good |
//!
//! What happened is found when somebody looks, from the times alone; only interrupts the guest asked for need a thread
//! ([`due`](Registers::due)).

use super::calendar;
use crate::state::Mc146818Rtc;

pub(super) const SECONDS: usize = 0;
const SECONDS_ALARM: usize = 1;
pub(super) const MINUTES: usize = 2;
const MINUTES_ALARM: usize = 3;
pub(super) const HOURS: usize = 4;
const HOURS_ALARM: usize = 5;
pub(super) const DAY_OF_WEEK: usize = 6;
pub(super) const DAY_OF_MONTH: usize = 7;
pub(super) const MONTH: usize = 8;
pub(super) const YEAR: usize = 9;
const STATUS_A: usize = 0xa;
pub(super) const STATUS_B: usize = 0xb;
const STATUS_C: usize = 0xc;
const STATUS_D: usize = 0xd;
pub(super) const CENTURY: usize = 0x32;

const UPDATE_NEAR: u8 = 1 << 7;
const DIVIDER: u8 = 7 << 4;
const DIVIDER_RUNS: u8 = 2 << 4;
const RATE: u8 = 0xf;

const HELD: u8 = 1 << 7;
const PERIODIC: u8 = 1 << 6;
const ALARM: u8 = 1 << 5;
const UPDATE: u8 = 1 << 4;
const SQUARE_WAVE: u8 = 1 << 3;
pub(super) const BINARY: u8 = 1 << 2;
pub(super) const HOURS_24: u8 = 1 << 1;
const INTERRUPT: u8 = 1 << 7;

const EVERY: u8 = 0xc0;
const SECOND: i64 = 1_000_000_000;
/// How long before an update it is near.
const NEAR: i64 = 244_000;
const DAY: i64 = 86_400;
const TICKS_A_SECOND: i64 = 32_768;

/// A running clock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Registers {
    cmos: [u8; 128],
    index: u8,
    /// Guest's time minus the host's, in ns.
    ahead: i64,
    /// Until when, in host ns, it is known what happened.
    looked: i64,
    /// Next periodic tick, in host ns.
    next_tick: i64,
}

impl Registers {
    /// At power-on: the host's time, in BCD and 24 hours. `memory`: bytes of guest RAM below the hole, and above 4 GiB.
    pub(super) fn power_on(now: i64, memory: (u64, u64)) -> Self {
        let mut cmos = [0; 128];
        cmos[STATUS_A] = DIVIDER_RUNS | 6;
        cmos[STATUS_B] = HOURS_24;
        cmos[STATUS_D] = 0x80;
        describe_memory(&mut cmos, memory);
        let mut this = Self { cmos, index: 0, ahead: 0, looked: now, next_tick: now };
        this.show_time(now);
        this
    }

    /// A reset of the machine: interrupts off, time goes on.
    pub(super) fn reset(&mut self, now: i64) {
        self.look(now);
        self.cmos[STATUS_B] &= !(PERIODIC | ALARM | UPDATE | SQUARE_WAVE);
        self.cmos[STATUS_C] = 0;
        self.index = 0;
    }

    /// The guest selects a register.
    pub(super) fn select(&mut self, index: u8) {
        self.index = index & 0x7f;
    }

    /// The guest reads the selected register.
    pub(super) fn read(&mut self, now: i64) -> u8 {
        self.look(now);
        let register = usize::from(self.index);
        match register {
            SECONDS | MINUTES | HOURS | DAY_OF_WEEK..=YEAR | CENTURY => self.show_time(now),
            STATUS_A => {
                let near = self.runs() && self.guest_time(now).rem_euclid(SECOND) >= SECOND - NEAR;
                return self.cmos[STATUS_A] & !UPDATE_NEAR | if near { UPDATE_NEAR } else { 0 };
            }
            STATUS_C => return std::mem::take(&mut self.cmos[STATUS_C]),
            _ => {}
        }
        self.cmos[register]
    }

    /// The guest writes the selected register.
    pub(super) fn write(&mut self, now: i64, value: u8) {
        self.look(now);
        match usize::from(self.index) {
            register @ (SECONDS | MINUTES | HOURS | DAY_OF_WEEK..=YEAR | CENTURY) => {
                self.show_time(now);
                self.cmos[register] = value;
                if self.runs() {
                    self.take_time(now);
                }
            }
            STATUS_A => {
                self.show_time(now);
                let ran = self.runs();
                let old = std::mem::replace(&mut self.cmos[STATUS_A], value & !UPDATE_NEAR);
                self.started_or_stopped(ran, now);
                if (old ^ value) & RATE != 0 {
                    self.next_tick = self.tick_after(now);
                }
            }
            STATUS_B => {
                self.show_time(now);
                let ran = self.runs();
                let held = if value & HELD != 0 { value & !UPDATE } else { value };
                let old = std::mem::replace(&mut self.cmos[STATUS_B], held);
                self.started_or_stopped(ran, now);
                if (old ^ held) & PERIODIC != 0 {
                    self.next_tick = self.tick_after(now);
                }
                self.raise();
            }
            STATUS_C | STATUS_D => {}
            register => self.cmos[register] = value,
        }
    }

    /// Whether the interrupt line is high.
    pub(super) fn line(&self) -> bool {
        self.cmos[STATUS_C] & INTERRUPT != 0
    }

    /// Finds out what has happened until `now`.
    pub(super) fn look(&mut self, now: i64) {
        let before = std::mem::replace(&mut self.looked, now);
        if now <= before {
            return;
        }
        if self.runs() {
            let (from, to) = (self.guest_seconds(before), self.guest_seconds(now));
            if to > from {
                self.cmos[STATUS_C] |= UPDATE;
                if self.alarm_after(from) <= to {
                    self.cmos[STATUS_C] |= ALARM;
                }
            }
        }
        if let Some(period) = self.period() {
            // Farther away only if the host's time was set back.
            self.next_tick = self.next_tick.min(now.saturating_add(period));
            if now >= self.next_tick {
                self.cmos[STATUS_C] |= PERIODIC;
                let passed = (now - self.next_tick) / period + 1;
                self.next_tick = self.next_tick.saturating_add(passed.saturating_mul(period));
            }
        }
        self.raise();
    }

    /// When the next interrupt that the guest asked for comes, in host ns.
    pub(super) fn due(&self) -> Option<i64> {
        let asked = |what: u8| self.cmos[STATUS_B] & what != 0 && self.cmos[STATUS_C] & what == 0;
        let tick = self.period().filter(|_| asked(PERIODIC)).map(|_| self.next_tick);
        let second = self.guest_seconds(self.looked);
        let host = |second: i64| second.saturating_mul(SECOND).saturating_sub(self.ahead);
        let update = (self.runs() && asked(UPDATE)).then(|| host(second + 1));
        let alarm = (self.runs() && asked(ALARM)).then(|| host(self.alarm_after(second)));
        [tick, update, alarm].into_iter().flatten().min()
    }

    /// The section, as of `now`.
    pub(super) fn save(&mut self, now: i64) -> Mc146818Rtc {
        self.look(now);
        self.show_time(now);
        let second = self.guest_seconds(now);
        let host = |second: i64| second.saturating_mul(SECOND).saturating_sub(self.ahead);
        let ticking = self.period().filter(|_| self.cmos[STATUS_B] & (PERIODIC | SQUARE_WAVE) != 0);
        Mc146818Rtc {
            cmos_data: self.cmos,
            cmos_index: self.index,
            periodic_timer: ticking.map_or(-1, |_| self.next_tick),
            next_periodic_time: ticking.map_or(0, |_| self.next_tick),
            period: ticking.map_or(0, |period| (period * TICKS_A_SECOND / SECOND) as u32),
            base_rtc: second as u64,
            last_update: now as u64,
            offset: self.guest_time(now).rem_euclid(SECOND),
            update_timer: if self.runs() { host(second + 1) } else { -1 },
            next_alarm_time: host(self.alarm_after(second)) as u64,
            ..Mc146818Rtc::default()
        }
    }

    /// A clock that goes on from a section.
    ///
    /// # Errors
    /// Names the field that this clock cannot hold.
    pub(super) fn load(state: &Mc146818Rtc, now: i64) -> Result<Self, String> {
        let lost = u32::from(state.irq_reinject_on_ack_count).max(state.irq_coalesced);
        if lost != 0 {
            return Err(format!(
                "irq_coalesced: {lost} ticks to be made up for (lost_tick_policy=slew) are not built"
            ));
        }
        let overflow = |name: &str| format!("{name}: no such time");
        let base = i64::try_from(state.base_rtc).ok().and_then(|base| base.checked_mul(SECOND));
        let base =
            base.and_then(|base| base.checked_add(state.offset)).ok_or_else(|| overflow("base_rtc"))?;
        let at = i64::try_from(state.last_update).map_err(|_| overflow("last_update"))?;
        let ahead = base.checked_sub(at).filter(|ahead| ahead.checked_add(now).is_some());
        let mut this = Self {
            cmos: state.cmos_data,
            index: state.cmos_index & 0x7f,
            ahead: ahead.ok_or_else(|| overflow("last_update"))?,
            looked: now,
            next_tick: state.next_periodic_time,
        };
        if this.next_tick <= 0 || this.next_tick > now.saturating_add(SECOND) {
            this.next_tick = this.tick_after(now);
        }
        Ok(this)
    }

    fn runs(&self) -> bool {
        self.cmos[STATUS_B] & HELD == 0 && self.cmos[STATUS_A] & DIVIDER == DIVIDER_RUNS
    }

    fn guest_time(&self, now: i64) -> i64 {
        now.saturating_add(self.ahead)
    }

    fn guest_seconds(&self, now: i64) -> i64 {
        self.guest_time(now).div_euclid(SECOND)
    }

    /// Time into the registers, unless it stands still there.
    fn show_time(&mut self, now: i64) {
        if self.runs() {
            calendar::to_registers(self.guest_seconds(now), &mut self.cmos);
        }
    }

    /// Time from the registers.
    fn take_time(&mut self, now: i64) {
        let sub_second = self.guest_time(now).rem_euclid(SECOND);
        let time = calendar::from_registers(&self.cmos).saturating_mul(SECOND).saturating_add(sub_second);
        self.ahead = time.saturating_sub(now);
    }

    fn started_or_stopped(&mut self, ran: bool, now: i64) {
        if !ran && self.runs() {
            self.take_time(now);
        }
    }

    /// An interrupt, if the guest asked for one that happened.
    fn raise(&mut self) {
        if self.cmos[STATUS_B] & self.cmos[STATUS_C] & (PERIODIC | ALARM | UPDATE) != 0 {
            self.cmos[STATUS_C] |= INTERRUPT;
        }
    }

    /// Of the periodic tick, in ns: 2^(rate−1) of 32768 Hz, but 2^7 and 2^8 for rates 1 and 2.
    fn period(&self) -> Option<i64> {
        let rate = match self.cmos[STATUS_A] & RATE {
            0 => return None,
            rate @ 1..=2 => rate + 7,
            rate => rate,
        };
        Some((SECOND << (rate - 1)) / TICKS_A_SECOND)
    }

    fn tick_after(&self, now: i64) -> i64 {
        now.saturating_add(self.period().unwrap_or(0))
    }

    /// The first second after `from` at which the alarm strikes; it does once a day at least, if at all.
    fn alarm_after(&self, from: i64) -> i64 {
        let mode = self.cmos[STATUS_B];
        let wanted = |register: usize, number: fn(u8, u8) -> i32| {
            let value = self.cmos[register];
            (value < EVERY).then(|| i64::from(number(value, mode)))
        };
        // An hour in the afternoon has bit 7 set too, and is below `EVERY`.
        let hour = wanted(HOURS_ALARM, calendar::hour);
        let minute = wanted(MINUTES_ALARM, calendar::decode);
        let second = wanted(SECONDS_ALARM, calendar::decode);
        let strikes = |at: i64| {
            let of_day = at.rem_euclid(DAY);
            hour.is_none_or(|hour| hour == of_day / 3600)
                && minute.is_none_or(|minute| minute == of_day / 60 % 60)
                && second.is_none_or(|second| second == of_day % 60)
        };
        (from + 1..=from.saturating_add(DAY)).find(|at| strikes(*at)).unwrap_or(i64::MAX / SECOND)
    }
}

/// Where firmware looks for the size of memory, low byte first.
fn describe_memory(cmos: &mut [u8; 128], (low, high): (u64, u64)) {
    let mut put = |at: usize, value: u64, bytes: usize| {
        let most = (1_u64 << (8 * bytes)) - 1;
        for (index, byte) in value.min(most).to_le_bytes().into_iter().take(bytes).enumerate() {
            cmos[at + index] = byte;
        }
    };
    let (kib, mib) = (1 << 10, 1 << 20);
    put(0x15, 640, 2);
    let extended = low.saturating_sub(mib) / kib;
    put(0x17, extended, 2);
    put(0x30, extended, 2);
    put(0x34, low.saturating_sub(16 * mib) / (64 * kib), 2);
    put(0x5b, high / (64 * kib), 3);
}

#[cfg(test)]
mod tests;
