use super::*;

const NOW: i64 = 0x6b02_32be * SECOND + SECOND / 4;

fn write(clock: &mut Registers, now: i64, register: usize, value: u8) {
    clock.select(register as u8);
    clock.write(now, value);
}

fn read(clock: &mut Registers, now: i64, register: usize) -> u8 {
    clock.select(register as u8);
    clock.read(now)
}

#[test]
fn power_on_is_qemus() {
    let mut clock = Registers::power_on(NOW, (64 << 20, 0));
    let saved = clock.save(NOW);
    assert_eq!(saved.cmos_data[..16], [0x34, 0, 0x09, 0, 0, 0, 1, 0x22, 0x11, 0x26, 0x26, 2, 0, 0x80, 0, 0]);
    assert_eq!(saved.cmos_data[0x15..0x19], [0x80, 0x02, 0x00, 0xfc]);
    assert_eq!(saved.cmos_data[0x30..0x36], [0x00, 0xfc, 0x20, 0, 0, 0x03]);
    assert_eq!(saved.base_rtc, 0x6b02_32be);
    assert_eq!(saved.update_timer, (0x6b02_32be + 1) * SECOND);
    assert_eq!((saved.periodic_timer, saved.offset), (-1, SECOND / 4));
}

#[test]
fn time_goes_on_and_can_be_set() {
    let mut clock = Registers::power_on(NOW, (0, 0));
    assert_eq!(read(&mut clock, NOW + SECOND, SECONDS), 0x35);
    write(&mut clock, NOW, STATUS_B, HELD | HOURS_24);
    write(&mut clock, NOW, SECONDS, 0x58);
    assert_eq!(read(&mut clock, NOW + 5 * SECOND, SECONDS), 0x58, "held");
    write(&mut clock, NOW + 5 * SECOND, STATUS_B, HOURS_24);
    assert_eq!(read(&mut clock, NOW + 7 * SECOND, SECONDS), 0x00);
    assert_eq!(read(&mut clock, NOW + 7 * SECOND, MINUTES), 0x10);
}

#[test]
fn what_happened_is_told_once_and_interrupts_if_asked_for() {
    let mut clock = Registers::power_on(NOW, (0, 0));
    assert_eq!(clock.due(), None);
    let later = NOW + SECOND;
    assert_eq!(read(&mut clock, later, STATUS_C), UPDATE | PERIODIC);
    assert_eq!(read(&mut clock, later, STATUS_C), 0);
    write(&mut clock, later, STATUS_B, HOURS_24 | UPDATE);
    let due = clock.due().unwrap();
    assert_eq!(due, NOW - SECOND / 4 + 2 * SECOND);
    clock.look(due);
    assert!(clock.line());
    assert_eq!(clock.due(), None, "until the guest has looked");
    assert_eq!(read(&mut clock, due, STATUS_C) & (INTERRUPT | UPDATE), INTERRUPT | UPDATE);
    assert!(!clock.line());
}

#[test]
fn the_periodic_tick_has_the_rates_of_the_data_sheet() {
    let mut clock = Registers::power_on(NOW, (0, 0));
    for (rate, ns) in [(1, 3_906_250), (2, 7_812_500), (3, 122_070), (6, 976_562), (15, 500_000_000)] {
        write(&mut clock, NOW, STATUS_A, DIVIDER_RUNS | rate);
        write(&mut clock, NOW, STATUS_B, HOURS_24);
        write(&mut clock, NOW, STATUS_B, HOURS_24 | PERIODIC);
        assert_eq!(clock.due(), Some(NOW + ns), "rate {rate}");
    }
    write(&mut clock, NOW, STATUS_A, DIVIDER_RUNS);
    assert_eq!(clock.due(), None);
}

#[test]
fn ticks_go_on_when_the_hosts_time_is_set_back() {
    let mut clock = Registers::power_on(NOW, (0, 0));
    write(&mut clock, NOW, STATUS_B, HOURS_24 | PERIODIC);
    let back = NOW - 3600 * SECOND;
    clock.look(back);
    clock.look(back + 1);
    assert!(clock.due().unwrap() <= back + SECOND);
}

#[test]
fn the_alarm_strikes_at_its_time_and_where_every_hour_counts_each_hour() {
    let mut clock = Registers::power_on(NOW, (0, 0));
    write(&mut clock, NOW, SECONDS_ALARM, 0x00);
    write(&mut clock, NOW, MINUTES_ALARM, 0x10);
    write(&mut clock, NOW, STATUS_B, HOURS_24 | ALARM);
    // Midnight and ten minutes: 26 seconds from now.
    let at = (0x6b02_32be + 26) * SECOND;
    assert_eq!(clock.due(), Some(at));
    clock.look(at);
    assert!(clock.line());
    read(&mut clock, at, STATUS_C);
    assert_eq!(clock.due(), Some(at + DAY * SECOND));
    write(&mut clock, at, HOURS_ALARM, EVERY);
    assert_eq!(clock.due(), Some(at + 3600 * SECOND));
}

#[test]
fn a_clock_moves_with_its_time_its_ticks_and_what_happened() {
    let mut clock = Registers::power_on(NOW, (0, 0));
    write(&mut clock, NOW, STATUS_B, HELD | HOURS_24);
    write(&mut clock, NOW, YEAR, 0x77);
    write(&mut clock, NOW, STATUS_B, HOURS_24 | PERIODIC);
    clock.look(NOW + SECOND);
    let saved = clock.save(NOW + SECOND);
    let mut moved = Registers::load(&saved, NOW + SECOND).unwrap();
    assert_eq!(moved, clock);
    assert!(moved.line());
    assert_eq!(read(&mut moved, NOW + 2 * SECOND, YEAR), 0x77);
    assert!(Registers::load(&Mc146818Rtc { irq_coalesced: 3, ..saved.clone() }, NOW).is_err());
    assert!(Registers::load(&Mc146818Rtc { base_rtc: u64::MAX, ..saved }, NOW).is_err());
}
