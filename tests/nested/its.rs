//! The ITS on the move: MSIs are sent before, during and after it, and each arrives exactly once as the interrupt it is mapped to.
//!
//! The guest (`guests/msi`) keeps remapping, so that tables saved too early differ from right ones. A destination does not let the
//! guest run by itself: MSIs sent to it before that go by the restored tables alone, which the guest has had no time to mend.

mod leavings;
pub(crate) mod machine;
mod refusals;
mod reset;
mod stays;
mod teeth;

use std::time::Duration;

use machine::{Launch, Machine, Sent};
use msi::{Control, FIRST_LPI, HOLD_EVENT, MOVING_DEVICE, PASSING_DEVICE, STEADY_DEVICE, STEADY_EVENTS};
use whimbrel_e2e::l1::{Arch, inside};
use whimbrel_e2e::{now, rounds};

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
        } else if launch.ring {
            source.slow_down();
        }
        source.begin_move(&mut destination);
        let unanswered = if held { Vec::new() } else { send_until_moved(&mut source, &mut sent) };
        source.finish_move(&mut destination);
        let left = source.control();
        assert!(held || !launch.ring || source.filled_its_ring(), "the guest writes more than a ring holds");
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

#[test]
fn every_msi_arrives_exactly_once() {
    inside(
        Arch::Arm,
        |_| {},
        || {
            moves(&Launch { ring: true, ..Launch::default() }, rounds(3));
            moves(&Launch { two_level: true, cpus: 1, ..Launch::default() }, 2);
        },
    );
}

#[test]
fn every_msi_arrives_on_an_older_kernel_too() {
    inside(
        Arch::ArmWithoutRing,
        |_| {},
        || {
            moves(&Launch::default(), 2);
            let why = Launch { ring: true, ..Launch::default() }.refused();
            for words in
                ["dirty ring", "no KVM_CAP_DIRTY_LOG_RING_ACQ_REL", "Linux has from 6.2", "by the bitmap"]
            {
                assert!(why.contains(words), "{words} in: {why}");
            }
        },
    );
}
