//! A guest that stays: MSIs are pending when it is stopped, and it goes on where it was. Each arrives exactly once, however the
//! guest remaps its events afterwards: a stop leaves nothing behind in the pending tables.

use std::time::Duration;

use msi::{CHURN_EVENT, FIRST_LPI, MOVING_DEVICE, PENDING, PENDING_LEN, STEADY_DEVICE};
use serde_json::json;
use whimbrel_e2e::l1::{Arch, inside};
use whimbrel_e2e::scratch::Scratch;
use whimbrel_e2e::wait_for;

use super::machine::{LIMIT, Launch, Machine, Sent};
use super::{assert_all_arrive, hold_and_send, send_remapped, send_steady};

/// Why a guest is stopped and goes on.
#[derive(Clone, Copy, Debug)]
enum Stop {
    /// An operator's `stop` and `cont`.
    Asked,
    /// A move that fails when the tables are saved already.
    Failed,
    /// A move that is cancelled before its switchover.
    Cancelled,
}

impl Stop {
    /// Stops it, and lets it go on.
    #[track_caller]
    fn take(self, machine: &mut Machine, destination: &mut Machine) {
        let wait = |machine: &mut Machine, status: &str| {
            wait_for("the move to get there", LIMIT, || {
                (machine.migration()["status"] == status).then_some(())
            });
        };
        let pause = |machine: &mut Machine, state: bool| {
            let capability = json!({ "capability": "pause-before-switchover", "state": state });
            machine.qmp.ok("migrate-set-capabilities", json!({ "capabilities": [capability] }));
        };
        match self {
            Self::Asked => {
                machine.qmp.ok("stop", json!({}));
                machine.cont();
            }
            Self::Failed => {
                machine.begin_move(destination);
                wait(machine, "failed");
            }
            Self::Cancelled => {
                pause(machine, true);
                pause(destination, true);
                machine.begin_move(destination);
                wait(machine, "pre-switchover");
                machine.qmp.ok("migrate_cancel", json!({}));
                wait(machine, "cancelled");
                pause(machine, false);
            }
        }
        wait_for("the guest to run on", LIMIT, || (machine.run_state() == "running").then_some(()));
    }
}

/// Sends the event that makes the guest remap no more, or again.
#[track_caller]
pub(super) fn let_remap(machine: &mut Machine, sent: &mut Sent, wanted: bool) {
    machine.send(STEADY_DEVICE, CHURN_EVENT);
    sent.add(FIRST_LPI + CHURN_EVENT);
    let all = |lpis: &[u32]| lpis.iter().all(|lpi| *lpi != 0);
    machine.wait_control("remapping, or none", |control| {
        control.churning == wanted && (wanted || all(&control.moving) && all(&control.passing))
    });
}

/// Bits that are set in the guest's pending tables.
pub(super) fn pending_bits(machine: &mut Machine) -> u32 {
    let scratch = Scratch::new("pending");
    let file = scratch.join("tables");
    machine.qmp.ok("pmemsave", json!({ "val": PENDING, "size": PENDING_LEN, "filename": file }));
    std::fs::read(file).expect("pmemsave wrote it").iter().map(|byte| byte.count_ones()).sum()
}

/// Has MSIs of every event pending at a stop; what stands in the pending tables when all have been taken, and how counts differ
/// from what was sent when the guest has remapped every event several times.
fn taken_once(launch: &Launch, machine: &mut Machine, sent: &mut Sent, stop: Stop) -> (u32, Vec<String>) {
    let mut destination = launch.faults(&[]).await_guest();
    let_remap(machine, sent, false);
    hold_and_send(machine, launch.cpus, sent);
    let control = machine.control();
    for (event, lpi) in (0..).zip(control.moving) {
        machine.send(MOVING_DEVICE, event);
        sent.add(lpi);
    }
    assert!(machine.control().holding[0], "still held back when it is stopped");
    stop.take(machine, &mut destination);
    assert_all_arrive(machine, sent);
    let bits = pending_bits(machine);
    let_remap(machine, sent, true);
    let churns = control.churns;
    machine.wait_control("every event to be remapped", |control| control.churns > churns + 5 * 32);
    std::thread::sleep(Duration::from_millis(300));
    (bits, sent.differences(&machine.control()))
}

/// Then it moves, with MSIs pending, and each arrives there.
fn moves_at_last(launch: &Launch, mut source: Machine, mut sent: Sent) {
    let mut destination = launch.faults(&[]).await_guest();
    hold_and_send(&mut source, launch.cpus, &mut sent);
    source.begin_move(&mut destination);
    source.finish_move(&mut destination);
    assert_eq!(send_remapped(&mut destination, &mut sent), Vec::<String>::new());
    destination.cont();
    assert_all_arrive(&mut destination, &sent);
    assert_eq!(pending_bits(&mut destination), 0, "at the destination");
    send_steady(&mut destination, &mut sent);
    assert_all_arrive(&mut destination, &sent);
}

/// Every way to stop and go on, one after the other.
fn what_was_pending_is_taken_once_by_a_guest_that_stays() {
    let launch = Launch::default().faults(&["save-fails"]);
    let (mut machine, mut sent) = (launch.boot(), Sent::default());
    for stop in [Stop::Asked, Stop::Failed, Stop::Cancelled, Stop::Asked] {
        let (bits, differences) = taken_once(&launch, &mut machine, &mut sent, stop);
        assert_eq!(differences, Vec::<String>::new(), "{stop:?}");
        assert_eq!(bits, 0, "left in the pending tables: {stop:?}");
    }
    moves_at_last(&launch, machine, sent);
}

/// The same where the bits are left.
fn bits_that_a_stop_leaves_are_taken_again() {
    let launch = Launch::default().faults(&["pending-bits-left"]);
    let (mut machine, mut sent) = (launch.boot(), Sent::default());
    let (bits, differences) = taken_once(&launch, &mut machine, &mut sent, Stop::Asked);
    println!("pending-bits-left: {bits} bits, {} LPIs differ", differences.len());
    assert!(bits > 0 && !differences.is_empty(), "the fault was not seen: the check has no teeth");
}

#[test]
fn a_stop_leaves_nothing_in_the_pending_tables_of_a_guest_that_stays() {
    inside(
        Arch::Arm,
        |_| {},
        || {
            what_was_pending_is_taken_once_by_a_guest_that_stays();
            bits_that_a_stop_leaves_are_taken_again();
        },
    );
}
