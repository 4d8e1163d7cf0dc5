//! Every fault of the tables' way is seen: by the engine's own checks, and with those off by the guest's count.

use std::time::Duration;

use whimbrel_e2e::l1::{Arch, inside};
use whimbrel_e2e::{now, wait_for};

use super::machine::{LIMIT, Launch, Machine, Sent};
use super::{assert_all_arrive, send_remapped, send_steady};

/// How long MSIs that were not lost may take to arrive.
const ARRIVAL: Duration = Duration::from_secs(2);
/// What the engine says of tables that were not what was saved.
pub(super) const DIGEST: &str = "its tables in guest RAM are not what the source saved";

#[test]
fn each_fault_of_the_tables_is_caught_and_without_the_checks_seen_by_the_count() {
    inside(
        Arch::Arm,
        |_| {},
        || {
            stale_tables_are_caught_before_the_commit();
            a_save_that_fails_leaves_the_guest_at_the_source_and_the_next_attempt_arrives();
            let (bitmap, ring) = (Launch::default(), Launch { ring: true, ..Launch::default() });
            refused_there(&bitmap, &[], &["tables-zeroed"], &[DIGEST]);
            // What KVM writes into guest RAM when it is told to save, no vCPU's ring has.
            refused_there(&ring, &["backup-bitmap"], &[], &[DIGEST]);
            assert_eq!(counted(&bitmap, &[], &[]), (0, 0), "without a fault there is nothing to be seen");
            seen_by_the_count(&bitmap, &["tables-left-out", "no-stamp-check"], &[]);
            seen_by_the_count(&bitmap, &["tables-too-early", "no-stamp-check"], &[]);
            seen_by_the_count(&bitmap, &[], &["tables-zeroed", "no-digest-check"]);
            seen_by_the_count(&ring, &["backup-bitmap"], &["no-digest-check"]);
        },
    );
}

/// The switchover is refused at the source, where the guest runs on.
fn refused_here(launch: &Launch, source: Machine, words: &[&str]) {
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
        refused_here(&launch, source, &["arm_gicv3", "those of stop", "but this is stop"]);
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

/// What is wrong with the tables is caught before the guest runs: the destination says these words, and ends as one that is told
/// why; the guest stays at the source, sound.
pub(super) fn refused_there(
    launch: &Launch,
    source_faults: &[&'static str],
    destination_faults: &[&'static str],
    words: &[&str],
) {
    let mut source = launch.faults(source_faults).boot();
    let mut destination = launch.faults(destination_faults).await_guest();
    source.begin_move(&mut destination);
    let info = wait_for("the move's end", LIMIT, || source.ended());
    assert_eq!(
        (&info["status"], &info["error-desc"]),
        (&"failed".into(), &"Sibling indicated error 1".into())
    );
    wait_for("the guest to run on", LIMIT, || (source.run_state() == "running").then_some(()));
    let log = refusal(destination);
    assert!(words.iter().all(|word| log.contains(word)), "{words:?} in: {log}");
    let mut sent = Sent::default();
    send_steady(&mut source, &mut sent);
    assert_all_arrive(&mut source, &sent);
}

/// What the log of a machine says that did not take the guest. It ends by itself.
#[track_caller]
pub(super) fn refusal(mut destination: Machine) -> String {
    let status = destination.process.wait(LIMIT);
    let log = destination.process.log();
    assert_eq!(status.code(), Some(1), "{log}");
    log
}

/// With the checks off: the guest's own count has something to say of a move with these faults.
pub(super) fn seen_by_the_count(
    launch: &Launch,
    source_faults: &[&'static str],
    destination_faults: &[&'static str],
) {
    let (lost, differ) = counted(launch, source_faults, destination_faults);
    assert!(lost + differ > 0, "the fault was not seen: the check has no teeth");
}

/// How many MSIs were not taken by the ITS, and how many LPIs have not arrived once, after a move with these faults.
fn counted(
    launch: &Launch,
    source_faults: &[&'static str],
    destination_faults: &[&'static str],
) -> (usize, usize) {
    let launch = Launch { digest: false, ..launch.clone() };
    let mut source = launch.faults(source_faults).boot();
    source.wait_control("some remapping", |control| control.churns > 100);
    let mut destination = launch.faults(destination_faults).await_guest();
    source.begin_move(&mut destination);
    source.finish_move(&mut destination);
    let mut sent = Sent::default();
    let lost = send_remapped(&mut destination, &mut sent);
    destination.qmp.ok("cont", serde_json::json!({}));
    let begin = now();
    let differ = loop {
        let differ = sent.differences(&destination.control()).len();
        if differ == 0 || now() - begin > ARRIVAL {
            break differ;
        }
        std::thread::sleep(Duration::from_millis(10));
    };
    println!("{source_faults:?} {destination_faults:?}: {} lost, {differ} differ", lost.len());
    (lost.len(), differ)
}
