//! Two captures of a machine that stood still, compared but for what counts by itself.

use whimbrel_vmm::state::{Apic, CpuX86, KvmClock, Timer};
use whimbrel_vmstate::{Level, VmState, load_body};

use super::moving::Section;

/// Panics where they differ in more than time.
pub fn assert_same_but_time(first: &Section, second: &Section) {
    match first.name.idstr.as_str() {
        "cpu" => {
            let [mut a, mut b] = [first, second].map(parse::<CpuX86>);
            assert!(b.tsc >= a.tsc, "the TSC went back from {} to {}", a.tsc, b.tsc);
            (a.tsc, b.tsc) = (0, 0);
            assert_same(&a, &b);
        }
        "apic" => {
            let [mut a, mut b] = [first, second].map(parse::<Apic>);
            let (before, after) = (a.next_time, b.next_time);
            let period = i64::from(a.initial_count) << a.count_shift;
            assert!((before - after).abs() <= period, "the timer stands at {before} and {after} of {period}");
            for apic in [&mut a, &mut b] {
                (apic.next_time, apic.timer_expiry, apic.initial_count_load_time) = (0, 0, 0);
                // A periodic timer may expire meanwhile.
                let vector = apic.lvt[0] as usize & 0xff;
                apic.irr[vector / 32] &= !(1 << (vector % 32));
            }
            assert_same(&a, &b);
        }
        "kvmclock" => {
            let [a, b] = [first, second].map(parse::<KvmClock>);
            assert!(b.clock >= a.clock && b.clock - a.clock < 10_000_000_000, "{a:?} {b:?}");
        }
        "timer" => assert_eq!(parse::<Timer>(first), parse::<Timer>(second)),
        other => panic!("{other} does not count"),
    }
}

/// Panics with the lines that differ.
fn assert_same<T: std::fmt::Debug + PartialEq>(first: &T, second: &T) {
    let (a, b) = (format!("{first:#?}"), format!("{second:#?}"));
    let lines = a.lines().zip(b.lines()).enumerate().filter(|(_, (a, b))| a != b);
    let lines: Vec<_> =
        lines.map(|(number, (a, b))| format!("{number}: {} / {}", a.trim(), b.trim())).collect();
    assert!(first == second, "{lines:#?}");
}

/// A section's state.
pub fn parse<T: VmState + Default>(section: &Section) -> T {
    let mut state = T::default();
    load_body(&section.name, &mut state, section.version, &section.body, 0, Level::default()).unwrap();
    state
}
