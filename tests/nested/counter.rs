//! arm's virtual counter after a switchover that was cancelled and after one that failed: the guest runs on where it was, and has not
//! seen how long it stood. It measures itself by how much the counter went on from one of its rounds to the next.

use std::time::Duration;

use serde_json::json;
use whimbrel_e2e::l1::{Arch, inside};
use whimbrel_e2e::{now, wait_for};

use crate::its::machine::{LIMIT, Launch, Machine};

/// How long the guest stands.
const PAUSE: Duration = Duration::from_secs(2);
/// How long the guest may not come to its next round, on an emulated host.
const ROUND: Duration = Duration::from_secs(1);

/// The guest runs on, and its counter does from where it was.
#[track_caller]
fn assert_runs_on(source: &mut Machine, status: &str) {
    let info = wait_for("the move's end", LIMIT, || source.ended());
    assert_eq!(info["status"], status, "{info}");
    wait_for("the guest to run on", LIMIT, || (source.run_state() == "running").then_some(()));
    let beats = source.control().beats;
    let control = source.wait_control("rounds", |control| control.beats > beats + 10);
    assert_eq!(control.backwards, 0, "the counter went back");
    let step = Duration::from_micros(control.biggest_step);
    println!("{status}: the counter went on by {step:?} at once, at most");
    assert!(step < ROUND, "the counter went on by {step:?} at once: it saw the pause");
}

#[test]
fn the_counter_stands_in_a_switchover_that_comes_to_nothing() {
    inside(
        Arch::Arm,
        |_| {},
        || {
            let launch = Launch::default();
            let mut source = launch.boot();
            let on = json!([{ "capability": "pause-before-switchover", "state": true }]);
            source.qmp.ok("migrate-set-capabilities", json!({ "capabilities": on }));
            for (fault, command, arguments, status) in [
                (None, "migrate_cancel", json!({}), "cancelled"),
                (Some("apply-fails"), "migrate-continue", json!({ "state": "pre-switchover" }), "failed"),
            ] {
                let mut destination = launch.faults(&Vec::from_iter(fault)).await_guest();
                let before = source.control();
                let start = now();
                source.begin_move(&mut destination);
                wait_for("the pause", LIMIT, || {
                    (source.migration()["status"] == "pre-switchover").then_some(())
                });
                let stood = source.control();
                std::thread::sleep(PAUSE);
                assert_eq!(source.control().count, stood.count, "the guest stands");
                source.qmp.ok(command, arguments);
                assert_runs_on(&mut source, status);
                let after = source.control();
                let went = (after.count - before.count) as f64 / after.frequency as f64;
                let ran = (now() - start).saturating_sub(PAUSE);
                assert!(went <= ran.as_secs_f64(), "the counter went on by {went} s, the guest ran {ran:?}");
            }
        },
    );
}
