//! The checks bite: with a fault switched on, the very same move and the very same checks report it. `moves` is the
//! other half of each of these: without the fault they report nothing.

use std::time::Duration;

use beacon::heartbeat;
use beacon::{CommandLine, command_line::Fill};
use whimbrel_e2e::{Launch, moves, needs};

use super::{LIMIT, NEEDS, guest, machine};

/// Moves a guest with a fault at one side and returns everything that was reported: by the guest, by the host's
/// recomputation of its memory, by the heartbeat.
fn reported(fault: &str, at_source: bool, launch: &Launch) -> Vec<String> {
    let faulty = launch.fault(fault);
    let (mut source, mut destination) = match at_source {
        true => (faulty.start(), launch.incoming().start()),
        false => (launch.start(), Launch { faults: faulty.faults.clone(), ..launch.incoming() }.start()),
    };
    source.wait_ready();
    source.let_run(Duration::from_millis(300));
    moves::migrate(&mut source, &mut destination, LIMIT);
    source.kill();
    let beating = destination.beats_during(Duration::from_millis(1500)) > 0;
    let report = destination.check();
    let beats = heartbeat::summarise([&source.heartbeat.beats(), &destination.heartbeat.beats()]);
    let mut reported = destination.complaints();
    reported.extend(report.mismatches.iter().map(|mismatch| format!("host: {mismatch}")));
    reported
        .extend((report.control.faults() > 0).then(|| format!("guest: {} faults", report.control.faults())));
    reported.extend((!beating).then(|| "heartbeat: stands still".to_owned()));
    reported.extend(beats.breaks.iter().map(|broken| format!("heartbeat: {broken:?}")));
    println!("{fault}: {reported:?}");
    reported
}

#[track_caller]
pub(crate) fn assert_caught(fault: &str, at_source: bool, launch: &Launch, by: &str) {
    let reported = reported(fault, at_source, launch);
    assert!(reported.iter().any(|line| line.contains(by)), "{fault} was not caught as '{by}': {reported:?}");
}

#[test]
fn one_dirty_page_not_sent_is_caught() {
    if needs(NEEDS) {
        assert_caught("dirty-page", true, &machine(guest()), "page");
    }
}

#[test]
fn the_last_sync_left_out_is_caught() {
    if needs(NEEDS) {
        assert_caught("last-sync", true, &machine(guest()), "page");
    }
}

#[test]
fn ram_blocks_under_each_others_names_are_caught() {
    if !needs(NEEDS) {
        return;
    }
    // A firmware block that reaches as far as the guest's data.
    let folder = whimbrel_e2e::scratch::Scratch::new("firmware");
    let firmware = folder.join("firmware");
    std::fs::write(&firmware, vec![0; 4 << 20]).expect("a scratch file");
    let launch =
        Launch { firmware: Some(firmware), ..machine(CommandLine { fill: Fill::Random, ..guest() }) };
    let reported = reported_or_lost("swap-blocks", &launch);
    assert!(!reported.is_empty(), "swapped blocks were not caught");
}

/// As [`reported`], for a fault that may take the control block itself away.
fn reported_or_lost(fault: &str, launch: &Launch) -> Vec<String> {
    let launch = launch.clone();
    let fault = fault.to_owned();
    std::thread::spawn(move || reported(&fault, true, &launch)).join().unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned().unwrap_or_default();
        assert!(text.contains("the host's check"), "the move itself failed: {text}");
        vec![text]
    })
}

#[test]
fn one_register_left_out_is_caught() {
    if needs(NEEDS) {
        // The guest holds its general registers while it idles.
        assert_caught("register", false, &machine(CommandLine { rate_mib_per_s: 20, ..guest() }), "register");
    }
}

#[test]
fn the_xsave_area_left_out_is_caught() {
    if needs(NEEDS) {
        assert_caught("xsave", false, &machine(guest()), "register");
    }
}

#[test]
fn the_lapic_left_out_is_caught() {
    if needs(NEEDS) {
        let reported = reported("lapic", false, &machine(guest()));
        assert!(
            reported.iter().any(|line| line.contains("timer") || line.contains("interrupt")),
            "{reported:?}"
        );
    }
}

#[test]
fn a_pending_interrupt_left_out_is_caught() {
    if needs(NEEDS) {
        // Held for half of the time: four moves miss it together once in sixteen.
        let caught = (0..6).any(|_| {
            reported("pending-interrupt", false, &machine(guest()))
                .iter()
                .any(|line| line.contains("interrupt"))
        });
        assert!(caught, "a lost pending interrupt was not caught");
    }
}
