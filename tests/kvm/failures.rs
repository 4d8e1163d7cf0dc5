//! What goes wrong, at every point of a move: before the commit the guest runs on where it was, and the next move to a fresh
//! destination succeeds; after it the source stays stopped until an operator decides. Never two run.
//!
//! | when | source | destination |
//! |---|---|---|
//! | before the EOF byte left | `failed`, guest runs | ends with 1 (or is dead) |
//! | after it, no SHUT | `failed`, `outcome unknown: …`, guest stopped, `cont` starts it | runs, or is dead |

use std::time::Duration;

use serde_json::{Value, json};
use whimbrel_e2e::{Launch, Vm, moves, needs};

use super::{LIMIT, NEEDS, guest, machine};

/// Moves with a fault at one side; the machines, and the source's last word.
fn attempt(source_fault: Option<&str>, destination_fault: Option<&str>) -> (Launch, Vm, Vm, Value) {
    let launch = machine(guest());
    let with =
        |launch: Launch, fault: Option<&str>| fault.map_or(launch.clone(), |fault| launch.fault(fault));
    let mut source = with(launch.clone(), source_fault).start();
    let mut destination = with(launch.incoming(), destination_fault).start();
    source.wait_ready();
    source.let_run(Duration::from_millis(100));
    moves::with_return_path(&mut source, &mut destination);
    let uri = moves::listen(&mut destination);
    source.qmp.ok("migrate", json!({ "uri": uri }));
    let info = moves::wait_end(&mut source, LIMIT);
    (launch, source, destination, info)
}

/// The guest runs on at the source, the destination does not run, and the next move succeeds.
#[track_caller]
fn assert_failed_safely(source_fault: Option<&str>, destination_fault: Option<&str>, says: &str) {
    let (launch, mut source, mut destination, info) = attempt(source_fault, destination_fault);
    let error = info["error-desc"].as_str().unwrap_or_default().to_owned();
    assert_eq!(info["status"], "failed", "{info}");
    assert!(error.contains(says) && !error.starts_with("outcome unknown"), "{error}");
    assert_eq!(source.run_state(), "running");
    let ended = destination.process.wait(LIMIT);
    assert_ne!(ended.code(), Some(0), "a destination that failed says so by its exit code");
    assert_eq!(destination.heartbeat.count(), 0, "the destination never ran");
    source.let_run(Duration::from_millis(200));

    let mut second = launch.incoming().start();
    moves::migrate(&mut source, &mut second, LIMIT);
    source.kill();
    second.let_run(Duration::from_millis(300));
    second.assert_clean();
}

/// The source stays stopped and says why; nobody else is started from here. Then an operator decides.
#[track_caller]
fn assert_outcome_unknown(destination_fault: &str, destination_runs: bool) {
    let (_, mut source, mut destination, info) = attempt(None, Some(destination_fault));
    let error = info["error-desc"].as_str().unwrap_or_default().to_owned();
    assert_eq!(info["status"], "failed", "{info}");
    assert!(error.starts_with("outcome unknown:") && error.contains("127.0.0.1"), "{error}");
    assert_eq!(source.run_state(), "postmigrate");
    assert_eq!(source.beats_during(Duration::from_millis(300)), 0, "the source runs by itself");
    source.qmp.refused("migrate", json!({ "uri": "tcp:127.0.0.1:1" }));
    if destination_runs {
        destination.let_run(Duration::from_millis(300));
        destination.assert_clean();
        destination.kill();
    } else {
        assert_eq!(destination.beats_during(Duration::from_millis(100)), 0);
    }
    source.qmp.ok("cont", json!({}));
    source.let_run(Duration::from_millis(300));
    source.assert_clean();
}

macro_rules! fails_safely {
    ($($name:ident: $source:expr, $destination:expr, $says:literal;)*) => {$(
        #[test]
        fn $name() {
            if needs(NEEDS) {
                assert_failed_safely($source, $destination, $says);
            }
        }
    )*};
}

fails_safely! {
    source_runs_on_when_the_destination_is_killed_in_setup: None, Some("kill@setup"), "";
    source_runs_on_when_the_destination_is_killed_while_iterating: None, Some("kill@iterate"), "";
    source_runs_on_when_the_destination_is_killed_after_the_stop: None, Some("kill@before-pong"), "";
    source_runs_on_when_the_link_is_cut_in_setup: None, Some("cut@setup"), "";
    source_runs_on_when_the_link_is_cut_while_iterating: None, Some("cut@iterate"), "";
    source_runs_on_when_the_link_is_cut_after_the_stop: None, Some("cut@before-pong"), "";
    source_runs_on_when_the_destinations_kvm_refuses_a_register: None, Some("apply-fails"), "";
    source_runs_on_when_a_device_cannot_be_saved: Some("save-fails"), None, "as asked for";
    source_runs_on_when_the_stop_fails_half_way: Some("stop-fails"), None, "could not be stopped";
}

/// Between the PONG and the EOF byte lie microseconds: whichever came first, there is one runner or none.
#[track_caller]
fn assert_one_runner_or_none(fault: &str) {
    let (_, mut source, mut destination, info) = attempt(None, Some(fault));
    let error = info["error-desc"].as_str().unwrap_or_default();
    let unknown = error.starts_with("outcome unknown:");
    let source_beats = source.beats_during(Duration::from_millis(300));
    let destination_beats = destination.beats_during(Duration::from_millis(300));
    assert_eq!(source_beats == 0, unknown, "{error}");
    assert!(source_beats == 0 || destination_beats == 0, "two run");
    assert_eq!(source.run_state(), if unknown { "postmigrate" } else { "running" });
    if unknown {
        destination.kill();
        source.qmp.ok("cont", json!({}));
    }
    source.let_run(Duration::from_millis(300));
    source.assert_clean();
}

#[test]
fn never_two_when_the_destination_is_killed_after_its_pong() {
    if needs(NEEDS) {
        assert_one_runner_or_none("kill@after-pong");
    }
}

#[test]
fn never_two_when_the_link_is_cut_after_the_pong() {
    if needs(NEEDS) {
        assert_one_runner_or_none("cut@after-pong");
    }
}

#[test]
fn the_outcome_is_unknown_when_the_destination_is_killed_just_after_eof() {
    if needs(NEEDS) {
        assert_outcome_unknown("kill@after-eof", false);
    }
}

#[test]
fn the_outcome_is_unknown_when_the_link_is_cut_just_after_eof() {
    if needs(NEEDS) {
        assert_outcome_unknown("cut@after-eof", true);
    }
}

#[test]
fn the_outcome_is_unknown_when_the_destination_is_killed_after_its_start() {
    if needs(NEEDS) {
        assert_outcome_unknown("kill@after-start", false);
    }
}

#[test]
fn the_outcome_is_unknown_when_the_link_is_cut_after_the_start() {
    if needs(NEEDS) {
        assert_outcome_unknown("cut@after-start", true);
    }
}

#[test]
fn the_source_stays_stopped_when_the_destinations_vcpus_do_not_start() {
    if needs(NEEDS) {
        assert_outcome_unknown("start-fails", false);
    }
}

#[test]
fn a_refused_connection_is_named_and_the_guest_runs_on() {
    if !needs(NEEDS) {
        return;
    }
    let mut source = machine(guest()).start();
    source.wait_ready();
    source.qmp.ok("migrate", json!({ "uri": "tcp:127.0.0.1:1" }));
    let info = moves::wait_end(&mut source, LIMIT);
    assert_eq!(info["error-desc"], "Failed to connect to '127.0.0.1:1': Connection refused", "{info}");
    source.let_run(Duration::from_millis(200));
}

#[test]
fn another_ram_size_is_named_by_both_ends() {
    if !needs(NEEDS) {
        return;
    }
    let launch = machine(guest());
    let mut source = launch.start();
    let mut destination = Launch { memory_mib: 256, ..launch.incoming() }.start();
    source.wait_ready();
    moves::with_return_path(&mut source, &mut destination);
    let uri = moves::listen(&mut destination);
    source.qmp.ok("migrate", json!({ "uri": uri }));
    assert_eq!(moves::wait_end(&mut source, LIMIT)["status"], "failed");
    assert_eq!(destination.process.wait(LIMIT).code(), Some(1));
    let said = destination.process.log();
    assert!(
        said.contains("section 'ram'")
            && said.contains("Size mismatch: microvm.ram: 0x6000000 != 0x10000000"),
        "{said}"
    );
    source.let_run(Duration::from_millis(200));
}

#[test]
fn another_number_of_vcpus_names_the_section() {
    if !needs(NEEDS) {
        return;
    }
    let cases = [
        (2, 1, "Unknown savevm section or instance 'cpu_common' 1"),
        (1, 2, "the stream has no section 'cpu_common' instance 1"),
    ];
    for (here, there, says) in cases {
        let with = |cpus| machine(beacon::CommandLine { cpus, ..guest() });
        let (mut source, mut destination) = (with(here).start(), with(there).incoming().start());
        source.wait_ready();
        moves::with_return_path(&mut source, &mut destination);
        let uri = moves::listen(&mut destination);
        source.qmp.ok("migrate", json!({ "uri": uri }));
        assert_eq!(moves::wait_end(&mut source, LIMIT)["status"], "failed");
        assert_eq!(destination.process.wait(LIMIT).code(), Some(1));
        let said = destination.process.log();
        assert!(said.contains(says), "{said}");
        assert_eq!(source.run_state(), "running");
        source.let_run(Duration::from_millis(200));
        source.assert_clean();
    }
}
