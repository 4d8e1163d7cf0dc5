//! `whimbrel migrate` moves a guest between two real QEMUs, and from whimbrel to one: their monitors have no member of ours, and
//! 7.2 and 10.0 differ in what they have.

use std::time::Duration;

use serde_json::{Value, json};
use whimbrel_e2e::operator::{Operator, endpoint, whimbrel};
use whimbrel_e2e::scratch::Scratch;
use whimbrel_e2e::{Launch, Peer, Vm, moves};

use super::{LIMIT, machine, needs};

/// A machine, its guest at work unless it waits for one, and a monitor for the command: a QEMU's monitor serves one client at a time, and the test holds the first.
fn start(launch: &Launch) -> (Vm, String, Scratch) {
    let folder = Scratch::new("operator");
    let monitor = format!("unix:{}", folder.join("qmp").display());
    let mut launch = launch.clone();
    launch.extra.extend(["-qmp".to_owned(), format!("{monitor},server=on,wait=off")]);
    let vm = if launch.incoming.is_some() { launch.start() } else { launch.start_at_work() };
    (vm, monitor, folder)
}

/// A machine's capabilities but the one that the command turns on.
fn other_capabilities(vm: &mut Vm) -> Vec<Value> {
    let mut all = vm.qmp.ok("query-migrate-capabilities", json!({})).as_array().expect("a list").clone();
    all.retain(|entry| entry["capability"] != "return-path");
    all
}

#[test]
fn a_guest_moves_between_two_real_qemus_by_one_command() {
    if !(needs(Peer::Qemu72) && needs(Peer::Qemu10)) {
        return;
    }
    let launch = machine(Peer::Qemu72, Peer::Qemu72, 1);
    let (mut source, from, _a) = start(&launch);
    let (mut destination, to, _b) = start(&launch.on(Peer::Qemu10).incoming());
    let before = [&mut source, &mut destination].map(other_capabilities);
    let words = ["migrate", &from, "tcp:127.0.0.1:0", "--destination", &to, "--downtime-limit", "500"];
    let mut operator = Operator::start(&words);
    assert_eq!(operator.exit_code(LIMIT), 0, "{}", operator.said());
    let said = operator.said();
    assert!(said.contains("moved in ") && said.contains("destination: running"), "{said}");
    assert_eq!(source.run_state(), "postmigrate");
    let parameters = source.qmp.ok("query-migrate-parameters", json!({}));
    assert_eq!((&parameters["max-bandwidth"], &parameters["downtime-limit"]), (&json!(0), &json!(500)));
    assert!(!said.contains("tables"), "neither knows of them: {said}");
    assert_eq!([&mut source, &mut destination].map(other_capabilities), before);
    assert_eq!(
        (source.capability("return-path"), destination.capability("return-path")),
        (Some(true), Some(true))
    );
    let (_, status) = whimbrel(&["status", &to]);
    assert!(status.contains("QEMU 10.0.2") && status.contains("running"), "{status}");
    source.kill();
    destination.let_run(Duration::from_millis(500));
    destination.assert_clean();
}

#[test]
fn a_guest_moves_from_whimbrel_to_qemu_which_cannot_compare_tables() {
    const DIGEST: &str = "x-whimbrel-table-digest";
    if !needs(Peer::Qemu10) {
        return;
    }
    let launch = machine(Peer::Whimbrel, Peer::Qemu10, 1);
    let mut source = launch.start_at_work();
    // Somebody had it on: QEMU would refuse the stream.
    source.enable(&[DIGEST]);
    let (mut destination, to, _b) = start(&launch.on(Peer::Qemu10).incoming());
    let mut operator =
        Operator::start(&["migrate", &endpoint(&source), "tcp:127.0.0.1:0", "--destination", &to]);
    assert_eq!(operator.exit_code(LIMIT), 0, "{}", operator.said());
    assert!(operator.said().contains("not compared: the destination cannot"), "{}", operator.said());
    assert_eq!((source.capability(DIGEST), destination.capability(DIGEST)), (Some(false), None));
    source.kill();
    destination.let_run(Duration::from_millis(500));
}

#[test]
fn a_guest_moves_to_qemu_7_2_which_tells_its_address() {
    if !needs(Peer::Qemu72) {
        return;
    }
    let launch = machine(Peer::Qemu72, Peer::Qemu72, 1);
    let (mut source, from, _a) = start(&launch);
    let (mut destination, to, _b) = start(&launch.incoming());
    moves::listen(&mut destination);
    let mut operator = Operator::start(&["migrate", &from, "--destination", &to]);
    assert_eq!(operator.exit_code(LIMIT), 0, "{}", operator.said());
    assert_eq!(source.run_state(), "postmigrate");
    destination.let_run(Duration::from_millis(500));
}

#[test]
fn a_real_qemu_that_is_cancelled_runs_on() {
    if !needs(Peer::Qemu10) {
        return;
    }
    let launch = machine(Peer::Qemu10, Peer::Qemu10, 1);
    let (mut source, from, _a) = start(&launch);
    let (_destination, to, _b) = start(&launch.incoming());
    let mut operator = Operator::start(&[
        "migrate",
        &from,
        "tcp:127.0.0.1:0",
        "--destination",
        &to,
        "--max-bandwidth",
        "5M",
    ]);
    moves::wait_status(&mut source, &["active"], LIMIT);
    operator.interrupt();
    assert_eq!(operator.exit_code(LIMIT), 130, "{}", operator.said());
    source.let_run(Duration::from_millis(300));
}

#[test]
fn a_destination_of_another_size_says_why_it_failed() {
    if !needs(Peer::Qemu10) {
        return;
    }
    let launch = machine(Peer::Qemu10, Peer::Qemu10, 1);
    let (mut source, from, _a) = start(&launch);
    let (mut destination, to, _b) = start(&Launch { memory_mib: 128, ..launch.incoming() });
    let mut operator = Operator::start(&["migrate", &from, "tcp:127.0.0.1:0", "--destination", &to]);
    assert_eq!(operator.exit_code(LIMIT), 1, "{}", operator.said());
    let said = operator.said();
    // QEMU tells the size on its own standard error only.
    assert!(said.contains("destination: inmigrate: load of migration failed"), "{said}");
    destination.process.wait(LIMIT);
    source.let_run(Duration::from_millis(300));
}
