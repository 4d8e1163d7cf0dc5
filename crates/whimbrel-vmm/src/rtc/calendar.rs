//! Between seconds since 1970 and the clock's registers, BCD or binary, of 12 or 24 hours.

use super::registers::{
    BINARY, CENTURY, DAY_OF_MONTH, DAY_OF_WEEK, HOURS, HOURS_24, MINUTES, MONTH, SECONDS, STATUS_B, YEAR,
};

/// Of an hour in a clock of 12.
const PM: u8 = 0x80;

/// Writes the date and time of `seconds` since 1970 (UTC) into the registers.
pub(super) fn to_registers(seconds: i64, cmos: &mut [u8; 128]) {
    let mode = cmos[STATUS_B];
    // SAFETY: all zeroes is a value of this structure of numbers and one pointer, which is not followed.
    let mut tm: libc::tm = unsafe { std::mem::zeroed() };
    // SAFETY: both point to values of this frame. A year that does not fit leaves the zeroes.
    unsafe { libc::gmtime_r(&seconds, &mut tm) };
    let year = tm.tm_year.saturating_add(1900);
    let hour = match tm.tm_hour {
        hour if mode & HOURS_24 != 0 => encode(hour, mode),
        hour => encode((hour + 11) % 12 + 1, mode) | if hour >= 12 { PM } else { 0 },
    };
    cmos[SECONDS] = encode(tm.tm_sec, mode);
    cmos[MINUTES] = encode(tm.tm_min, mode);
    cmos[HOURS] = hour;
    cmos[DAY_OF_WEEK] = encode(tm.tm_wday + 1, mode);
    cmos[DAY_OF_MONTH] = encode(tm.tm_mday, mode);
    cmos[MONTH] = encode(tm.tm_mon + 1, mode);
    cmos[YEAR] = encode(year.rem_euclid(100), mode);
    cmos[CENTURY] = encode(year.div_euclid(100), mode);
}

/// Seconds since 1970 of what stands in the registers.
pub(super) fn from_registers(cmos: &[u8; 128]) -> i64 {
    let mode = cmos[STATUS_B];
    let value = |register: usize| decode(cmos[register], mode);
    // SAFETY: all zeroes is a value of this structure.
    let mut tm: libc::tm = unsafe { std::mem::zeroed() };
    tm.tm_sec = value(SECONDS);
    tm.tm_min = value(MINUTES);
    tm.tm_hour = hour(cmos[HOURS], mode);
    tm.tm_mday = value(DAY_OF_MONTH);
    tm.tm_mon = value(MONTH) - 1;
    tm.tm_year = value(YEAR) + value(CENTURY) * 100 - 1900;
    // SAFETY: it points to a value of this frame.
    unsafe { libc::timegm(&mut tm) }
}

/// The hour of the day, 0 to 23, of a register that holds an hour.
pub(super) fn hour(register: u8, mode: u8) -> i32 {
    if mode & HOURS_24 != 0 {
        return decode(register, mode);
    }
    decode(register & !PM, mode) % 12 + if register & PM != 0 { 12 } else { 0 }
}

/// The number a register holds.
pub(super) fn decode(register: u8, mode: u8) -> i32 {
    if mode & BINARY != 0 {
        register.into()
    } else {
        i32::from(register >> 4) * 10 + i32::from(register & 0xf)
    }
}

fn encode(value: i32, mode: u8) -> u8 {
    let value = value.clamp(0, 99) as u8;
    if mode & BINARY != 0 { value } else { ((value / 10) << 4) | (value % 10) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn registers(seconds: i64, mode: u8) -> [u8; 128] {
        let mut cmos = [0; 128];
        cmos[STATUS_B] = mode;
        to_registers(seconds, &mut cmos);
        cmos
    }

    #[test]
    fn a_date_is_written_as_qemu_writes_it() {
        // What QEMU's own clock showed at this second.
        let cmos = registers(0x6b02_32be, HOURS_24);
        assert_eq!(
            cmos[..10],
            [0x34, 0, 9, 0, 0, 0, 1, 0x22, 0x11, 0x26].map(|byte: u8| byte)[..10].to_vec()[..]
        );
        assert_eq!(cmos[CENTURY], 0x20);
    }

    #[test]
    fn every_mode_reads_back_what_it_shows() {
        for mode in [0, HOURS_24, BINARY, BINARY | HOURS_24] {
            for seconds in [0, 11 * 3600, 12 * 3600 + 59, 23 * 3600 + 3599, 951_782_400, 4_102_444_799] {
                assert_eq!(from_registers(&registers(seconds, mode)), seconds, "{mode:#x}");
            }
        }
        assert_eq!(registers(0, BINARY)[HOURS], 12, "midnight on a clock of 12 hours");
    }
}
