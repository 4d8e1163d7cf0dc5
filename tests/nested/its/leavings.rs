//! What the guest has unmapped stays so, whatever an earlier save has left in its tables.
//!
//! KVM clears an entry when the guest unmaps it (MAPD, DISCARD) since late 2024. Where a kernel does not, an entry of an earlier save
//! stands in guest RAM as one that is valid: jumped over by those of a later save, unless it lies before the first of them.

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

fn unmapped_stays_unmapped(launch: &Launch) {
    let launch = Launch { options: "leaves=1", ..launch.clone() };
    let (mut source, mut sent) = (launch.boot(), Sent::default());
    source.send(LEAVING_DEVICE, 0);
    sent.add(LEAVING_LPI);
    // Saved while they are mapped, and once more when they are not.
    source.qmp.ok("stop", json!({}));
    source.cont();
    let_leave(&mut source, &mut sent, true);
    let mut destination = launch.await_guest();
    source.begin_move(&mut destination);
    source.finish_move(&mut destination);
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

#[test]
fn what_was_unmapped_does_not_come_alive_by_a_move() {
    inside(
        Arch::Arm,
        |_| {},
        || {
            unmapped_stays_unmapped(&Launch::default());
            unmapped_stays_unmapped(&Launch { two_level: true, ..Launch::default() });
        },
    );
}

#[test]
fn nor_on_an_older_kernel() {
    inside(Arch::ArmWithoutRing, |_| {}, || unmapped_stays_unmapped(&Launch::default()));
}
