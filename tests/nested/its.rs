//! The ITS on the move: MSIs are sent before, during and after it, and each arrives exactly once as the interrupt it is mapped to.
//!
//! The guest (`guests/msi`) keeps remapping, so that tables saved too early differ from right ones. A destination does not let the
//! guest run by itself: MSIs sent to it before that go by the restored tables alone, which the guest has had no time to mend.

mod leavings;
pub(crate) mod machine;
mod refusals;
mod stays;

use std::time::Duration;

use machine::{LIMIT, Launch, Machine, Sent};
use msi::{Control, FIRST_LPI, HOLD_EVENT, MOVING_DEVICE, PASSING_DEVICE, STEADY_DEVICE, STEADY_EVENTS};
use whimbrel_e2e::l1::{Arch, inside};
use whimbrel_e2e::{now, rounds, wait_for};

/// How long a guest that has arrived is not let run: its counter must not know.
const PAUSE: Duration = Duration::from_secs(1);

fn steady() -> impl Iterator<Item = (u32, u32)> {
    (0..STEADY_EVENTS as u32).map(|event| (event, FIRST_LPI + event))
}

/// One MSI of each steady event.
#[track_caller]
fn send_steady(machine: &mut Machine, sent: &mut Sent) {
    for (event, lpi) in steady() {
        machine.send(STEADY_DEVICE, event);
        sent.add(lpi);
    }
}

/// One MSI of each event that the guest remaps, by what the guest says it is mapped to now. The guest is stopped.
fn send_remapped(machine: &mut Machine, sent: &mut Sent) -> Vec<String> {
    let control = machine.control();
    let moving = (0..).zip(control.moving).map(|(event, lpi)| (MOVING_DEVICE, event, lpi));
    let passing = (0..).zip(control.passing).map(|(event, lpi)| (PASSING_DEVICE, event, lpi));
    let mut lost = Vec::new();
    // 0: it stopped while remapping this one.
    for (device, event, lpi) in moving.chain(passing).filter(|(_, _, lpi)| *lpi != 0) {
        match machine.signal(device, event).as_deref() {
            Some("sent") => sent.add(lpi),
            answer => lost.push(format!("device {device:#x} event {event}: {answer:?}")),
        }
    }
    lost
}

#[track_caller]
fn assert_all_arrive(machine: &mut Machine, sent: &Sent) {
    let control = machine.wait_control("every MSI", |control| sent.differences(control).is_empty());
    assert_eq!(control.faults(), Vec::<String>::new());
}

/// Sends steady events one after the other, each again only when it was taken, until the source's move has ended. An MSI that the
/// stopped source did not answer for is sent to the destination.
fn send_until_moved(source: &mut Machine, sent: &mut Sent) -> Vec<u32> {
    let mut unanswered = Vec::new();
    while source.ended().is_none() {
        let control = source.control();
        for (event, lpi) in steady() {
            if control.count(lpi) != Some(sent.count(lpi)) || unanswered.contains(&event) {
                continue;
            }
            match source.signal(STEADY_DEVICE, event).as_deref() {
                Some("sent") => sent.add(lpi),
                None => {
                    unanswered.push(event);
                    break;
                }
                Some(other) => panic!("steady event {event}: {other}"),
            }
        }
    }
    unanswered
}

/// Has no CPU take interrupts, and MSIs pending when the source stops.
fn hold_and_send(source: &mut Machine, cpus: u32, sent: &mut Sent) {
    let before = source.control();
    source.send(STEADY_DEVICE, HOLD_EVENT);
    sent.add(FIRST_LPI + HOLD_EVENT);
    source.wait_control("the hold", |control| control.holding[..cpus as usize].iter().all(|held| *held));
    send_steady(source, sent);
    let pending = source.control();
    assert_eq!(pending.counts[..STEADY_EVENTS], before.counts[..STEADY_EVENTS], "held back");
}

/// Between two readings of the guest's counter lay a pause, and `ran` of the guest's own time at most.
fn assert_stood_still(before: &Control, after: &Control, ran: Duration) {
    let went = after.count.checked_sub(before.count).expect("the counter never goes back");
    let went = Duration::from_secs_f64(went as f64 / after.frequency as f64);
    assert!(went < ran + PAUSE / 2, "the guest ran {ran:?}, and its counter went on by {went:?}");
}

fn moves(launch: &Launch, rounds: u32) {
    let mut source = launch.boot();
    let mut sent = Sent::default();
    for round in 0..rounds {
        let mut destination = launch.await_guest();
        send_steady(&mut source, &mut sent);
        assert_all_arrive(&mut source, &sent);
        let held = round % 2 == 1;
        if held {
            hold_and_send(&mut source, launch.cpus, &mut sent);
        }
        source.begin_move(&mut destination);
        let unanswered = if held { Vec::new() } else { send_until_moved(&mut source, &mut sent) };
        source.finish_move(&mut destination);
        let left = source.control();
        if held {
            let late = steady().filter(|(_, lpi)| left.count(*lpi) != Some(sent.count(*lpi))).count();
            assert_eq!(late, STEADY_EVENTS, "all were pending when the source stopped");
        }
        for event in unanswered {
            destination.send(STEADY_DEVICE, event);
            sent.add(FIRST_LPI + event);
        }
        assert_eq!(send_remapped(&mut destination, &mut sent), Vec::<String>::new());
        std::thread::sleep(PAUSE);
        let begin = now();
        destination.cont();
        assert_all_arrive(&mut destination, &sent);
        let control = destination.control();
        assert_stood_still(&left, &control, now() - begin);
        let churns = control.churns;
        destination.wait_control("remapping to go on", |control| control.churns > churns + 50);
        send_steady(&mut destination, &mut sent);
        assert_all_arrive(&mut destination, &sent);
        source = destination;
        let step = Duration::from_micros(source.control().biggest_step);
        println!("round {round}: the guest's counter went by {step:?} at once, at most");
    }
}

/// What is pending when the guest stops, and what is sent to it while it stands at the first destination, it takes at the second.
/// KVM clears pending tables as it takes what stands in them, so that the second move needs them written again.
fn moves_twice_without_running(launch: &Launch) {
    let mut source = launch.boot();
    let mut sent = Sent::default();
    hold_and_send(&mut source, launch.cpus, &mut sent);
    let mut first = launch.await_guest();
    source.begin_move(&mut first);
    source.finish_move(&mut first);
    assert_eq!(send_remapped(&mut first, &mut sent), Vec::<String>::new());
    let mut second = launch.await_guest();
    first.begin_move(&mut second);
    first.finish_move(&mut second);
    second.cont();
    assert_all_arrive(&mut second, &sent);
}

#[test]
fn every_msi_arrives_exactly_once() {
    inside(
        Arch::Arm,
        |_| {},
        || {
            moves(&Launch::default(), rounds(3));
            moves(&Launch { two_level: true, cpus: 1, ..Launch::default() }, 2);
            moves_twice_without_running(&Launch::default());
        },
    );
}

#[test]
fn every_msi_arrives_on_an_older_kernel_too() {
    inside(Arch::ArmWithoutRing, |_| {}, || moves(&Launch::default(), 2));
}

#[test]
fn each_fault_of_the_tables_is_caught_and_without_the_checks_seen_by_the_count() {
    inside(
        Arch::Arm,
        |_| {},
        || {
            stale_tables_are_caught_before_the_commit();
            a_save_that_fails_leaves_the_guest_at_the_source_and_the_next_attempt_arrives();
            seen_by_the_count(&Launch::default(), &["tables-left-out", "no-stamp-check"], &[]);
            seen_by_the_count(&Launch::default(), &["tables-too-early", "no-stamp-check"], &[]);
            seen_by_the_count(&Launch::default(), &[], &["tables-zeroed", "no-digest-check"]);
        },
    );
}

/// The guest runs on at the source, and a second attempt without the fault arrives.
fn refused_then_moved(launch: &Launch, source: Machine, words: &[&str]) {
    let mut source = source;
    let mut destination = launch.await_guest();
    source.begin_move(&mut destination);
    let info = wait_for("the move's end", LIMIT, || source.ended());
    assert_eq!(info["status"], "failed", "{info}");
    let why = info["error-desc"].as_str().unwrap_or_default();
    assert!(words.iter().all(|word| why.contains(word)), "{words:?} in: {why}");
    wait_for("the guest to run on", LIMIT, || (source.run_state() == "running").then_some(()));
    let mut sent = Sent::default();
    send_steady(&mut source, &mut sent);
    assert_all_arrive(&mut source, &sent);
}

fn stale_tables_are_caught_before_the_commit() {
    let launch = Launch::default();
    for fault in ["tables-left-out", "tables-too-early"] {
        let source = launch.faults(&[fault]).boot();
        refused_then_moved(&launch, source, &["arm_gicv3", "those of stop", "but this is stop"]);
    }
}

fn a_save_that_fails_leaves_the_guest_at_the_source_and_the_next_attempt_arrives() {
    let launch = Launch::default();
    let mut source = launch.faults(&["tables-fail"]).boot();
    let mut destination = launch.await_guest();
    source.begin_move(&mut destination);
    let info = wait_for("the move's end", LIMIT, || source.ended());
    assert_eq!(info["status"], "failed", "{info}");
    wait_for("the guest to run on", LIMIT, || (source.run_state() == "running").then_some(()));
    let mut destination = launch.await_guest();
    let mut sent = Sent::default();
    send_steady(&mut source, &mut sent);
    source.begin_move(&mut destination);
    source.finish_move(&mut destination);
    assert_eq!(send_remapped(&mut destination, &mut sent), Vec::<String>::new());
    destination.cont();
    assert_all_arrive(&mut destination, &sent);
}

/// With the checks off: what the guest's own count says of a move with this fault.
fn seen_by_the_count(launch: &Launch, source_faults: &[&'static str], destination_faults: &[&'static str]) {
    let launch = Launch { digest: false, ..launch.clone() };
    let mut source = launch.faults(source_faults).boot();
    // Saved once, as they were long ago: else there is nothing that could be stale.
    source.wait_control("some remapping", |control| control.churns > 100);
    let mut destination = launch.faults(destination_faults).await_guest();
    source.begin_move(&mut destination);
    source.finish_move(&mut destination);
    let mut sent = Sent::default();
    let lost = send_remapped(&mut destination, &mut sent);
    destination.qmp.ok("cont", serde_json::json!({}));
    std::thread::sleep(Duration::from_millis(500));
    let control = destination.control();
    let differences = sent.differences(&control);
    println!("{source_faults:?} {destination_faults:?}: {} lost, {} differ", lost.len(), differences.len());
    assert!(!lost.is_empty() || !differences.is_empty(), "the fault was not seen: the check has no teeth");
}
