//! Linux on `microvm`, moved live between two whimbrel processes over TCP while it works.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};
use whimbrel_e2e::l1::{Arch, inside};
use whimbrel_e2e::{Launch, Linux, Peer, Vm, moves};

use crate::guest::{self, INITRD, Tick};

/// What the scheduling of an emulated machine adds to any time.
const SLACK: Duration = Duration::from_millis(700);
/// For a move of an emulated guest.
const MOVE: Duration = Duration::from_secs(90);
const TICKS: usize = 8;

#[test]
fn linux_by_pvh_moves_live_and_goes_on() {
    moves_live("vmlinux", 2);
}

#[test]
fn linux_as_bzimage_moves_live_and_goes_on() {
    moves_live("vmlinuz", 1);
}

fn moves_live(kernel: &str, cpus: u32) {
    inside(
        Arch::X86,
        |root| {
            root.copy(&Arch::X86.fetched(kernel), &format!("/guest/{kernel}"));
            root.file(INITRD, &guest::initramfs(Arch::X86), 0o644);
        },
        || {
            let linux = Linux {
                kernel: format!("/guest/{kernel}").into(),
                initrd: INITRD.into(),
                command_line: "console=ttyS0 quiet tsc=reliable no_timer_check panic=-1".to_owned(),
                cpus,
            };
            let launch = Launch { linux: Some(linux), memory_mib: 256, ..Launch::new(Peer::Whimbrel) };
            let mut source = launch.start();
            guest::wait_ticks(&mut source, TICKS);
            // Not earlier: its clocks begin now, so that one that is not carried over is seconds behind.
            let mut destination = launch.incoming().start();
            move_and_check(&mut source, &mut destination);
            guest::assert_sane(&destination);
        },
    );
}

/// Moves a guest that ticks, and holds its clock against L1's.
#[track_caller]
fn move_and_check(source: &mut Vm, destination: &mut Vm) {
    // The emulated host is slow to stop and to load.
    source.set(json!({ "downtime-limit": 5000, "max-bandwidth": 0 }));
    let first = guest::wait_ticks(source, guest::ticks(source).len() + TICKS);
    let frequency = frequency(&guest::ticks(source));
    let start = wall();
    let info = moves::migrate(source, destination, MOVE);
    let stopped = at(&source.qmp.wait_event("STOP", MOVE));
    let resumed = at(&destination.qmp.wait_event("RESUME", MOVE));
    let last = guest::wait_ticks(destination, TICKS);
    let took = wall() - start;
    let pause = resumed.saturating_sub(stopped);
    let ticks = guest::ticks(destination);
    let step = ticks.iter().map(|tick| tick.gap).max().unwrap_or_default();
    println!(
        "pause {pause:?}, the guest's largest step {step:?}; {took:?} here, {:?} there",
        last.monotonic - first.monotonic
    );
    println!("downtime {} ms, {} bytes", info["downtime"], info["ram"]["transferred"]);

    let sent: Vec<_> = guest::ticks(source);
    let before = sent.last().copied().unwrap_or(first);
    let numbers: Vec<_> = ticks.iter().map(|tick| tick.number).collect();
    assert!(numbers.windows(2).all(|pair| pair[1] == pair[0] + 1), "ticks are missing: {numbers:?}");
    // The line that was being written when the guest stopped is half here and half there.
    assert!((1..=2).contains(&(numbers[0] - before.number)), "from {} to {}", before.number, numbers[0]);
    assert!(ticks.iter().all(|tick| tick.monotonic > before.monotonic), "the clock went back");
    assert!(ticks.iter().all(|tick| tick.counter > before.counter), "the TSC went back");
    assert!(step <= pause + SLACK, "the clock jumped by {step:?} in a pause of {pause:?}");
    let passed = last.monotonic - first.monotonic;
    let counted = Duration::from_secs_f64((last.counter - first.counter) as f64 / frequency);
    println!("by the TSC of {:.0} MHz {counted:?}", frequency / 1e6);
    for (clock, passed) in [("clock", passed), ("TSC", counted)] {
        let sane = passed <= took + SLACK && passed + pause + SLACK >= took;
        assert!(sane, "the {clock} went on by {passed:?} in {took:?}, of which the pause was {pause:?}");
    }
}

/// Of the TSC, by the guest's clock, in Hz.
fn frequency(ticks: &[Tick]) -> f64 {
    let (Some(first), Some(last)) = (ticks.first(), ticks.last()) else { panic!("no ticks") };
    (last.counter - first.counter) as f64 / (last.monotonic - first.monotonic).as_secs_f64()
}

/// When an event was.
fn at(event: &Value) -> Duration {
    let part = |name: &str| event["timestamp"][name].as_u64().expect("an event has its time");
    Duration::from_secs(part("seconds")) + Duration::from_micros(part("microseconds"))
}

/// The clock of events.
fn wall() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("it is after 1970")
}
