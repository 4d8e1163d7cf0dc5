//! The guest's clocks after a stop that failed and after a switchover that came to nothing: never back, and forward by no more than the
//! time that has passed. They are read from what the stopped guest would take along; whether it ever saw kvmclock go back, the guest
//! says itself.

use std::time::Duration;

use beacon::CommandLine;
use serde_json::{Value, json};
use whimbrel_e2e::{Launch, Vm, moves, needs, now, operator, wait_for};

use super::{LIMIT, NEEDS, guest, machine};

/// How long the guest stands in a switchover before that is called off.
const PAUSE: Duration = Duration::from_millis(500);
const RUN: Duration = Duration::from_millis(200);
/// Between the host's clock and KVM's, over seconds.
const SLACK: Duration = Duration::from_millis(2);

/// A stopped guest's clocks.
#[derive(Debug)]
struct Clocks {
    kvmclock: Duration,
    /// Each vCPU's.
    tscs: Vec<u64>,
    /// When the guest had been stopped.
    stopped: Duration,
    /// When they had been read.
    read: Duration,
}

/// Stops the guest, and reads its clocks from a stream.
fn stop_and_read(vm: &mut Vm) -> Clocks {
    vm.qmp.ok("stop", json!({}));
    let stopped = now();
    let stream = vm.scratch.join("clocks").display().to_string();
    moves::save(vm, &format!("file:{stream}"), LIMIT);
    let read = now();
    let (code, said) = operator::whimbrel(&["inspect", "--json", &stream]);
    assert_eq!(code, 0, "{said}");
    let report: Value = serde_json::from_str(&said).expect("JSON");
    let elements = report["elements"].as_array().expect("elements").iter();
    let numbers = |idstr: &str, field: &str| -> Vec<u64> {
        let sections = elements.clone().filter(|element| element["idstr"] == idstr);
        sections.filter_map(|section| section["fields"][field].as_u64()).collect()
    };
    let [kvmclock] = numbers("kvmclock", "clock")[..] else { panic!("one kvmclock") };
    let tscs = numbers("cpu", "env.tsc");
    assert_eq!(tscs.len(), vm.launch.cpus() as usize);
    Clocks { kvmclock: Duration::from_nanos(kvmclock), tscs, stopped, read }
}

/// Stops the guest, which has run for two times [`RUN`] at least since `start`, when its clocks went on from `before`.
#[track_caller]
fn assert_went_on(vm: &mut Vm, before: &Clocks, start: Duration) {
    assert_eq!(vm.run_state(), "running");
    vm.let_run(RUN);
    let after = stop_and_read(vm);
    let (forward, passed) = (after.kvmclock.checked_sub(before.kvmclock), after.stopped - start);
    println!("kvmclock went on by {:?} in {passed:?}", forward.unwrap_or_default());
    assert!(
        forward.is_some_and(|forward| forward <= passed + SLACK && forward + SLACK >= 2 * RUN),
        "{forward:?}"
    );
    vm.qmp.ok("cont", json!({}));
    vm.let_run(RUN);
    // It says, too, if kvmclock ever went back.
    let tsc_khz = vm.assert_clean().control.tsc_khz;
    // Where KVM can set no TSC it goes on in a stop: all that has passed is its limit.
    let passed = after.read + SLACK - before.stopped;
    for (after, before) in after.tscs.iter().zip(&before.tscs) {
        let forward = after.checked_sub(*before).expect("a TSC went back");
        assert!(
            forward as f64 / tsc_khz as f64 <= passed.as_secs_f64() * 1e3,
            "{forward} ticks in {passed:?}"
        );
    }
}

fn with_two_vcpus() -> Launch {
    machine(CommandLine { cpus: 2, ..guest() })
}

#[test]
fn clocks_go_on_after_a_stop_that_failed() {
    if !needs(NEEDS) {
        return;
    }
    let start = now();
    let mut vm = with_two_vcpus().fault("stop-fails").boot();
    // The clock of a new machine begins at 0; its TSCs may be the host's.
    let before = Clocks { kvmclock: Duration::ZERO, tscs: vec![], stopped: start, read: start };
    vm.let_run(RUN);
    let refused = vm.qmp.try_execute("stop", json!({})).expect("an answer").expect_err("the stop fails");
    assert!(refused.desc.contains("as asked for"), "{refused:?}");
    assert_went_on(&mut vm, &before, start);
}

/// What becomes of the switchover of a guest with two vCPUs.
#[track_caller]
fn switchover(destination_fault: Option<&str>, end: &str, come_to_nothing: impl FnOnce(&mut Vm)) {
    if !needs(NEEDS) {
        return;
    }
    let launch = with_two_vcpus();
    let mut source = launch.boot();
    let incoming = launch.incoming();
    let mut destination = destination_fault.map_or(incoming.clone(), |fault| incoming.fault(fault)).start();
    moves::with_return_path(&mut source, &mut destination);
    source.set(json!({ "max-bandwidth": 0 }));
    let before = stop_and_read(&mut source);
    let start = now();
    source.qmp.ok("cont", json!({}));
    source.let_run(RUN);
    pause_before_switchover(&mut source, true);
    let uri = moves::listen(&mut destination);
    source.qmp.ok("migrate", json!({ "uri": uri }));
    moves::wait_status(&mut source, &["pre-switchover"], LIMIT);
    std::thread::sleep(PAUSE);
    come_to_nothing(&mut source);
    assert_eq!(moves::wait_end(&mut source, LIMIT)["status"], end);
    wait_for("the guest to run on", LIMIT, || (source.run_state() == "running").then_some(()));
    pause_before_switchover(&mut source, false);
    assert_went_on(&mut source, &before, start);
}

/// A save into a file would wait there, too.
fn pause_before_switchover(vm: &mut Vm, state: bool) {
    let change = json!([{ "capability": "pause-before-switchover", "state": state }]);
    vm.qmp.ok("migrate-set-capabilities", json!({ "capabilities": change }));
}

#[test]
fn clocks_go_on_after_a_switchover_that_was_cancelled() {
    switchover(None, "cancelled", |source| {
        source.qmp.ok("migrate_cancel", json!({}));
    });
}

#[test]
fn clocks_go_on_after_a_switchover_that_failed_when_all_was_saved() {
    switchover(Some("apply-fails"), "failed", |source| {
        source.qmp.ok("migrate-continue", json!({ "state": "pre-switchover" }));
    });
}
