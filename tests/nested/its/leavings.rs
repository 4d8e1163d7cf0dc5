//! What the guest has unmapped stays so, whatever an earlier save has left in its tables.
//!
//! KVM clears an entry when the guest unmaps it (MAPD, DISCARD) since late 2024. Where a kernel does not, an entry of an earlier save
//! would stand in guest RAM as one that is valid: jumped over by those of a later save, unless it lies before the first of them.

use msi::{CHURN_EVENT, FIRST_LPI, LEAVING_DEVICE, LEAVING_LPI, MOVING_DEVICE, STEADY_DEVICE};
use serde_json::json;
use whimbrel_e2e::l1::{Arch, inside};

use super::machine::{Launch, Machine, Sent};
use super::{assert_all_arrive, send_steady};

/// Tells the guest to remap no more, which unmaps them, or to go on.
#[track_caller]
fn let_leave(machine: &mut Machine, sent: &mut Sent, leave: bool) {
    machine.send(STEADY_DEVICE, CHURN_EVENT);
    sent.add(FIRST_LPI + CHURN_EVENT);
    machine.wait_control("what leaves", |control| {
        control.churning != leave && (control.moving[0] == 0) == leave
    });
}

/// A guest that has unmapped them between a stop and its move, with this fault at the source; before it runs at the destination.
fn moved_without_them(launch: &Launch, faults: &[&'static str]) -> (Machine, Sent) {
    let launch = Launch { options: "leaves=1", ..launch.clone() };
    let (mut source, mut sent) = (launch.faults(faults).boot(), Sent::default());
    source.send(LEAVING_DEVICE, 0);
    sent.add(LEAVING_LPI);
    // Saved while they are mapped, and once more when they are not.
    source.qmp.ok("stop", json!({}));
    source.cont();
    let_leave(&mut source, &mut sent, true);
    let mut destination = launch.await_guest();
    source.begin_move(&mut destination);
    source.finish_move(&mut destination);
    (destination, sent)
}

fn unmapped_stays_unmapped(launch: &Launch, faults: &[&'static str]) {
    let (mut destination, mut sent) = moved_without_them(launch, faults);
    for (device, event) in [(LEAVING_DEVICE, 0), (MOVING_DEVICE, 0)] {
        let answer = destination.signal(device, event);
        assert_eq!(
            answer.as_deref(),
            Some("blocked"),
            "device {device:#x} event {event}, which the guest has unmapped"
        );
    }
    destination.cont();
    send_steady(&mut destination, &mut sent);
    assert_all_arrive(&mut destination, &sent);
    let_leave(&mut destination, &mut sent, false);
    destination.send(LEAVING_DEVICE, 0);
    sent.add(LEAVING_LPI);
    assert_all_arrive(&mut destination, &sent);
}

/// What it would be if tables were left as a save has written them, on a kernel that does not clear them either.
fn entries_that_are_left_come_alive(launch: &Launch) {
    let (mut destination, _) = moved_without_them(launch, &["entries-left", "unmapped-kept"]);
    let answers =
        [(LEAVING_DEVICE, 0), (MOVING_DEVICE, 0)].map(|(device, event)| destination.signal(device, event));
    println!("entries-left, unmapped-kept: {answers:?}");
    assert!(
        answers.iter().all(|answer| answer.as_deref() == Some("sent")),
        "the check has no teeth: {answers:?}"
    );
}

#[test]
fn what_was_unmapped_does_not_come_alive_by_a_move() {
    inside(
        Arch::Arm,
        |_| {},
        || {
            let two_level = Launch { two_level: true, ..Launch::default() };
            for launch in [&Launch::default(), &two_level] {
                unmapped_stays_unmapped(launch, &[]);
                unmapped_stays_unmapped(launch, &["unmapped-kept"]);
                entries_that_are_left_come_alive(launch);
            }
        },
    );
}

#[test]
fn nor_on_an_older_kernel() {
    inside(Arch::ArmWithoutRing, |_| {}, || unmapped_stays_unmapped(&Launch::default(), &[]));
}
