//! The options that both ends have, with a real QEMU at the other one, in both directions.
//!
//! | options | what must be seen |
//! |---|---|
//! | none | no answer comes back; whimbrel says that nothing was confirmed |
//! | return-path | the hand-over is fenced: QEMU answers a PING after the last device, before the commit |
//! | pause-before-switchover | the guest stands still, still the source's, until `migrate-continue`, or runs on after a cancel |
//! | switchover-ack (10.0) | the destination's word is there before the switchover |
//! | validate-uuid | another machine's uuid is refused, and the guest runs on |

use serde_json::json;
use whimbrel_e2e::journey::Journey;
use whimbrel_e2e::{Launch, Peer, Vm, moves};

use super::{LIMIT, machine, needs};

const UUID: &str = "11111111-2222-3333-4444-555555555555";
const OTHER_UUID: &str = "11111111-2222-3333-4444-555555555556";

fn with_uuid(launch: &Launch, uuid: &str) -> Launch {
    let mut launch = launch.clone();
    launch.extra.extend(["-uuid".to_owned(), uuid.to_owned()]);
    launch
}

/// Moves the guest with these capabilities on at both ends; `pause-before-switchover` is the source's alone.
#[track_caller]
fn migrate_with(source: &mut Vm, destination: &mut Vm, capabilities: &[&str]) {
    let both: Vec<_> =
        capabilities.iter().copied().filter(|name| *name != "pause-before-switchover").collect();
    source.enable(capabilities);
    destination.enable(&both);
    let uri = moves::listen(destination);
    source.qmp.ok("migrate", json!({ "uri": uri }));
    if capabilities.contains(&"pause-before-switchover") {
        moves::wait_status(source, &["pre-switchover"], LIMIT);
        // The last beats may still be on their way through the socket.
        source.beats_during(std::time::Duration::from_millis(100));
        assert_eq!(source.beats_during(std::time::Duration::from_millis(200)), 0, "it runs");
        assert_eq!(destination.run_state(), "inmigrate");
        source.qmp.ok("migrate-continue", json!({"state": "pre-switchover"}));
    }
    let info = moves::wait_end(source, LIMIT);
    assert_eq!(info["status"], "completed", "{info}\n{}", destination.process.log());
    if source.launch.peer == Peer::Whimbrel {
        let fenced = capabilities.contains(&"return-path");
        assert_eq!(info["whimbrel"]["fenced"], fenced, "{info}");
    }
}

/// One guest goes to and fro between whimbrel and `qemu`, each time with other options.
fn assert_options_hold(qemu: Peer) {
    if !needs(qemu) {
        return;
    }
    let plain = machine(qemu, qemu, 1);
    let launch = with_uuid(&plain, UUID);
    let mut options: Vec<&[&str]> = vec![
        &[],
        &["return-path", "events"],
        &["return-path", "pause-before-switchover"],
        &["return-path", "validate-uuid"],
        &["return-path", "validate-uuid", "pause-before-switchover"],
    ];
    if qemu == Peer::Qemu10 {
        options.extend([
            &["return-path", "switchover-ack"] as &[&str],
            &["return-path", "switchover-ack", "pause-before-switchover", "validate-uuid"],
        ]);
    }
    let mut journey = Journey::start(launch.start_at_work());
    for capabilities in options {
        for to in [Peer::Whimbrel, qemu] {
            let waiting = launch.on(to).incoming().start();
            let gap = journey.hop_by(waiting, |source, destination| {
                // A capability stays on from the move before.
                clear(source);
                migrate_with(source, destination, capabilities);
            });
            println!("to {to} with {capabilities:?}: silent for {:.1} ms", gap.as_secs_f64() * 1e3);
        }
    }
    journey.finish();
}

#[track_caller]
fn clear(vm: &mut Vm) {
    let on = vm.qmp.ok("query-migrate-capabilities", json!({}));
    let off: Vec<_> = on
        .as_array()
        .into_iter()
        .flatten()
        .filter(|capability| capability["state"] == true)
        .map(|capability| json!({"capability": capability["capability"], "state": false}))
        .collect();
    vm.qmp.ok("migrate-set-capabilities", json!({ "capabilities": off }));
}

#[test]
fn every_option_holds_in_both_directions_with_qemu_7_2() {
    assert_options_hold(Peer::Qemu72);
}

#[test]
fn every_option_holds_in_both_directions_with_qemu_10_0() {
    assert_options_hold(Peer::Qemu10);
}

/// The guest stays where it is, whole, and says why it could not go; and goes with the right uuid afterwards.
fn assert_wrong_uuid_is_refused(qemu: Peer) {
    if !needs(qemu) {
        return;
    }
    let plain = machine(qemu, qemu, 1);
    let mut journey = Journey::start(with_uuid(&plain, UUID).start_at_work());
    for to in [Peer::Whimbrel, qemu] {
        let mut wrong = with_uuid(&plain.on(to), OTHER_UUID).incoming().start();
        let source = journey.here();
        source.enable(&["return-path", "validate-uuid"]);
        wrong.enable(&["return-path", "validate-uuid"]);
        let uri = moves::listen(&mut wrong);
        source.qmp.ok("migrate", json!({ "uri": uri }));
        assert_eq!(moves::wait_end(source, LIMIT)["status"], "failed");
        source.let_run(std::time::Duration::from_millis(200));
        // Each program's own words, with both numbers.
        let said = wrong.process.wait(LIMIT);
        assert_eq!(said.code(), Some(1));
        assert!(
            wrong.process.log().contains(UUID) && wrong.process.log().contains(OTHER_UUID),
            "{}",
            wrong.process.log()
        );

        let right = with_uuid(&plain.on(to), UUID).incoming().start();
        journey.hop_by(right, |source, destination| {
            migrate_with(source, destination, &["return-path", "validate-uuid"]);
        });
    }
    journey.finish();
}

#[test]
fn another_machines_uuid_is_refused_and_the_guest_runs_on() {
    assert_wrong_uuid_is_refused(Peer::Qemu10);
}

/// `pre-switchover` is given up: the guest runs on where it was, and moves at the next attempt.
#[test]
fn a_guest_that_is_cancelled_while_it_is_held_before_the_switchover_runs_on() {
    for (qemu, from, to) in
        [(Peer::Qemu10, Peer::Whimbrel, Peer::Qemu10), (Peer::Qemu72, Peer::Qemu72, Peer::Whimbrel)]
    {
        if !needs(qemu) {
            return;
        }
        let launch = machine(from, qemu, 1);
        let mut journey = Journey::start(launch.start_at_work());
        let mut first = launch.on(to).incoming().start();
        let source = journey.here();
        source.enable(&["return-path", "pause-before-switchover"]);
        first.enable(&["return-path"]);
        let uri = moves::listen(&mut first);
        source.qmp.ok("migrate", json!({ "uri": uri }));
        moves::wait_status(source, &["pre-switchover"], LIMIT);
        source.qmp.ok("migrate_cancel", json!({}));
        assert_eq!(moves::wait_end(source, LIMIT)["status"], "cancelled");
        source.let_run(std::time::Duration::from_millis(300));
        first.process.wait(LIMIT);
        clear(journey.here());
        journey.hop(&launch.on(to));
        journey.finish();
    }
}
