//! `whimbrel migrate` and its companions, between two whimbrels, as a script runs them: with standard output in a pipe.

use std::time::Duration;

use serde_json::{Value, json};
use whimbrel_e2e::operator::{Operator, endpoint, whimbrel};
use whimbrel_e2e::{Launch, moves, needs, wait_for};

use super::{LIMIT, NEEDS, guest, machine};

const DIGEST: &str = "x-whimbrel-table-digest";

#[test]
fn a_guest_moves_to_a_deferred_destination_by_one_command() {
    if !needs(NEEDS) {
        return;
    }
    let launch = machine(guest());
    let (mut source, mut destination) = (launch.start(), launch.incoming().start());
    source.wait_ready();
    source.let_run(Duration::from_millis(200));
    let mut operator = Operator::start(&[
        "migrate",
        &endpoint(&source),
        "tcp:127.0.0.1:0",
        "--destination",
        &endpoint(&destination),
    ]);
    assert_eq!(operator.exit_code(LIMIT), 0, "{}", operator.said());
    let said = operator.said();
    assert!(said.contains("moved in ") && said.contains("downtime "), "{said}");
    assert!(said.contains("source:      postmigrate") && said.contains("destination: running"), "{said}");
    assert!(!said.contains('\r'), "a pipe gets lines: {said:?}");
    assert_eq!(source.migration()["whimbrel"]["fenced"], true, "the return path is on");
    source.kill();
    destination.let_run(Duration::from_millis(500));
    destination.assert_clean();
}

#[test]
fn a_program_reads_one_object_a_line_and_the_address_is_found() {
    if !needs(NEEDS) {
        return;
    }
    let launch = machine(guest());
    let (mut source, mut destination) = (launch.start(), launch.incoming().start());
    source.wait_ready();
    moves::listen(&mut destination);
    let mut operator =
        Operator::start(&["migrate", &endpoint(&source), "--json", "--destination", &endpoint(&destination)]);
    assert_eq!(operator.exit_code(LIMIT), 0, "{}", operator.said());
    let said = operator.said();
    let objects: Vec<Value> =
        said.lines().map(|line| serde_json::from_str(line).expect("an object a line")).collect();
    let last = objects.last().expect("an end");
    assert_eq!((&objects[0]["event"], &last["event"]), (&json!("start"), &json!("end")));
    assert_eq!(objects[0]["table-digest"], true);
    assert_eq!((&last["outcome"], &last["exit-code"]), (&json!("moved"), &json!(0)));
    assert_eq!(last["source"]["run-state"], "postmigrate");
    assert_eq!(last["destination"]["run-state"], "running");
    assert_eq!(last["migration"]["status"], "completed");
}

#[test]
fn a_destination_that_starts_to_listen_later_is_waited_for() {
    if !needs(NEEDS) {
        return;
    }
    let launch = machine(guest());
    let (mut source, mut destination) = (launch.start(), launch.incoming().start());
    source.wait_ready();
    let uri = format!("unix:{}", destination.scratch.join("move").display());
    let mut operator = Operator::start(&["migrate", &endpoint(&source), &uri, "--wait", "240"]);
    wait_for("the first attempt to fail", LIMIT, || {
        operator.said().contains("nobody there yet").then_some(())
    });
    destination.qmp.ok("migrate-incoming", json!({ "uri": uri }));
    assert_eq!(operator.exit_code(LIMIT), 0, "{}", operator.said());
    destination.let_run(Duration::from_millis(300));
}

#[test]
fn ctrl_c_cancels_and_the_guest_runs_on_at_the_source() {
    if !needs(NEEDS) {
        return;
    }
    let launch = machine(guest());
    let (mut source, destination) = (launch.start(), launch.incoming().start());
    source.wait_ready();
    let mut operator = Operator::start(&[
        "migrate",
        &endpoint(&source),
        "tcp:127.0.0.1:0",
        "--destination",
        &endpoint(&destination),
        "--max-bandwidth",
        "20M",
    ]);
    moves::wait_status(&mut source, &["active"], LIMIT);
    wait_for("two progress lines", LIMIT, || {
        (operator.said().lines().filter(|line| line.starts_with("active ")).count() >= 2).then_some(())
    });
    operator.interrupt();
    assert_eq!(operator.exit_code(LIMIT), 130, "{}", operator.said());
    let said = operator.said();
    assert!(said.contains("cancelled: the guest is at the source"), "{said}");
    assert!(said.contains("source:      running") && said.contains("destination: "), "{said}");
    assert_eq!(source.migration_status(), "cancelled");
    source.let_run(Duration::from_millis(300));

    // With the limits that were there before.
    let mut second = launch.incoming().start();
    moves::migrate(&mut source, &mut second, LIMIT);
    second.let_run(Duration::from_millis(300));
    second.assert_clean();
}

#[test]
fn both_ends_compare_tables_as_long_as_a_move_lasts() {
    if !needs(NEEDS) {
        return;
    }
    let launch = machine(guest());
    let (mut source, mut destination) = (launch.start(), launch.incoming().start());
    source.wait_ready();
    moves::listen(&mut destination);
    let from = endpoint(&source);
    let to = endpoint(&destination);
    let mut operator = Operator::start(&["migrate", &from, "--destination", &to, "--max-bandwidth", "20M"]);
    moves::wait_status(&mut source, &["active"], LIMIT);
    assert_eq!((source.capability(DIGEST), destination.capability(DIGEST)), (Some(true), Some(true)));
    operator.interrupt();
    assert_eq!(operator.exit_code(LIMIT), 130, "{}", operator.said());
    assert!(operator.said().contains("tables in guest RAM are compared"), "{}", operator.said());
    assert_eq!(source.capability(DIGEST), Some(false), "after a cancelled move");

    let another = Launch { memory_mib: 128, ..launch.incoming() }.start();
    let mut operator =
        Operator::start(&["migrate", &from, "tcp:127.0.0.1:0", "--destination", &endpoint(&another)]);
    assert_eq!(operator.exit_code(LIMIT), 1, "{}", operator.said());
    assert_eq!(source.capability(DIGEST), Some(false), "after a failed move");

    // Somebody has it on at one end: no reason to fail, and nothing to leave behind.
    source.enable(&[DIGEST]);
    let mut second = launch.incoming().start();
    let mut operator =
        Operator::start(&["migrate", &from, "tcp:127.0.0.1:0", "--destination", &endpoint(&second)]);
    assert_eq!(operator.exit_code(LIMIT), 0, "{}", operator.said());
    assert_eq!((source.capability(DIGEST), second.capability(DIGEST)), (Some(false), Some(false)));
    second.let_run(Duration::from_millis(300));
}

#[test]
fn without_a_monitor_of_the_destination_the_source_stays_as_it_was_set() {
    if !needs(NEEDS) {
        return;
    }
    let launch = machine(guest());
    let (mut source, mut destination) = (launch.start(), launch.incoming().start());
    source.wait_ready();
    source.enable(&[DIGEST]);
    destination.enable(&[DIGEST]);
    let uri = moves::listen(&mut destination);
    let mut operator = Operator::start(&["migrate", &endpoint(&source), &uri]);
    assert_eq!(operator.exit_code(LIMIT), 0, "{}", operator.said());
    assert!(operator.said().contains("are compared, as set at the source"), "{}", operator.said());
    assert_eq!((source.capability(DIGEST), destination.capability(DIGEST)), (Some(true), Some(true)));
}

#[test]
fn ctrl_c_while_the_destination_is_not_there_yet_changes_nothing() {
    if !needs(NEEDS) {
        return;
    }
    let mut source = machine(guest()).start();
    source.wait_ready();
    let at = endpoint(&source);
    let mut operator = Operator::start(&["migrate", &at, "tcp:127.0.0.1:1", "--wait", "600"]);
    wait_for("the first attempt to fail", LIMIT, || {
        operator.said().contains("nobody there yet").then_some(())
    });
    operator.interrupt();
    assert_eq!(operator.exit_code(LIMIT), 130, "{}", operator.said());
    let nobody = format!("unix:{}", source.scratch.join("nobody").display());
    let mut operator = Operator::start(&["migrate", &at, "--destination", &nobody, "--wait", "600"]);
    std::thread::sleep(Duration::from_millis(500));
    operator.interrupt();
    assert_eq!(operator.exit_code(LIMIT), 130, "{}", operator.said());
    source.let_run(Duration::from_millis(200));
}

#[test]
fn a_guest_is_saved_to_a_file_by_one_command() {
    if !needs(NEEDS) {
        return;
    }
    let launch = machine(guest());
    let (mut source, mut destination) = (launch.start(), launch.incoming().start());
    source.wait_ready();
    let uri = format!("file:{}", source.scratch.join("saved").display());
    let (code, said) = whimbrel(&["migrate", &endpoint(&source), &uri]);
    assert!(code == 0 && said.contains("saved in "), "{code}: {said}");
    moves::load(&mut destination, &uri, LIMIT);
    destination.let_run(Duration::from_millis(300));
    destination.assert_clean();
}

#[test]
fn a_failed_move_exits_with_1_and_names_both_ends_errors() {
    if !needs(NEEDS) {
        return;
    }
    let launch = machine(guest());
    let mut source = launch.start();
    let destination = Launch { memory_mib: 256, ..launch.incoming() }.start();
    source.wait_ready();
    let mut operator = Operator::start(&[
        "migrate",
        &endpoint(&source),
        "tcp:127.0.0.1:0",
        "--destination",
        &endpoint(&destination),
    ]);
    assert_eq!(operator.exit_code(LIMIT), 1, "{}", operator.said());
    let said = operator.said();
    assert!(said.contains("failed: the guest is at the source"), "{said}");
    assert!(said.contains("source:      running: ") && said.contains("destination: "), "{said}");
    source.let_run(Duration::from_millis(200));
}

#[test]
fn nobody_to_move_to_exits_with_1_and_leaves_the_guest_alone() {
    if !needs(NEEDS) {
        return;
    }
    let mut source = machine(guest()).start();
    source.wait_ready();
    let at = endpoint(&source);
    let mut operator = Operator::start(&["migrate", &at, "tcp:127.0.0.1:1", "--wait", "0"]);
    assert_eq!(operator.exit_code(LIMIT), 1);
    assert!(operator.said().contains("Connection refused"), "{}", operator.said());
    source.let_run(Duration::from_millis(200));
}

#[test]
fn a_lost_answer_after_the_commit_exits_with_3_and_cont_asks_who_has_the_guest() {
    if !needs(NEEDS) {
        return;
    }
    let launch = machine(guest());
    let mut source = launch.start();
    let mut destination = launch.incoming().fault("kill@after-eof").start();
    source.wait_ready();
    let uri = moves::listen(&mut destination);
    let at = endpoint(&source);
    let mut operator = Operator::start(&["migrate", &at, &uri]);
    assert_eq!(operator.exit_code(LIMIT), 3, "{}", operator.said());
    assert!(operator.said().contains("OUTCOME UNKNOWN"), "{}", operator.said());

    let (code, said) = whimbrel(&["cont", &at]);
    assert!(code == 1 && said.contains("--destination-is-dead"), "{code}: {said}");
    assert_eq!(source.beats_during(Duration::from_millis(200)), 0, "nobody runs until an operator says so");
    assert_eq!(whimbrel(&["cont", &at, "--destination-is-dead"]), (0, "running\n".to_owned()));
    source.let_run(Duration::from_millis(300));
    source.assert_clean();
}

#[test]
fn status_stop_cont_and_quit_do_what_they_say() {
    if !needs(NEEDS) {
        return;
    }
    let mut vm = machine(guest()).start();
    vm.wait_ready();
    let at = endpoint(&vm);
    assert_eq!(whimbrel(&["stop", &at]), (0, "paused\n".to_owned()));
    assert_eq!(vm.beats_during(Duration::from_millis(200)), 0);
    let (code, said) = whimbrel(&["status", &at]);
    assert!(code == 0 && said.contains("whimbrel ") && said.contains("guest       paused"), "{said}");
    assert_eq!(whimbrel(&["cont", &at]), (0, "running\n".to_owned()));
    vm.let_run(Duration::from_millis(200));
    let (_, said) = whimbrel(&["status", "--json", &at]);
    let all: Value = serde_json::from_str(&said).expect("one object");
    assert_eq!(all["status"], json!({"status": "running", "running": true}));
    assert_eq!(whimbrel(&["quit", &at]), (0, String::new()));
    assert_eq!(vm.process.wait(LIMIT).code(), Some(0));
    let (code, said) = whimbrel(&["status", &at]);
    assert!(code == 1 && said.contains("cannot connect"), "{said}");
}

#[test]
fn the_prompt_answers_each_line_of_a_pipe_and_shows_events() {
    if !needs(NEEDS) {
        return;
    }
    let mut vm = machine(guest()).start();
    vm.wait_ready();
    let at = endpoint(&vm);
    let lines = "stop\n# a comment\nquery-status\n{\"execute\": \"cont\", \"id\": \"x\"}\n";
    let mut operator = Operator::typing(&["qmp", &at], lines);
    assert_eq!(operator.exit_code(LIMIT), 0, "{}", operator.said());
    let said: Vec<Value> =
        operator.said().lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert_eq!(said[0]["event"], "STOP", "{said:?}");
    assert_eq!(said[1], json!({"return": {}}));
    assert_eq!(said[2]["return"]["status"], "paused");
    assert_eq!(said[3]["event"], "RESUME");
    assert_eq!(said[4], json!({"return": {}, "id": "x"}));
    let mut operator = Operator::typing(&["qmp", &at], "bogus\n");
    assert_eq!(operator.exit_code(LIMIT), 1, "a refused command shows in the exit code");
    assert!(operator.said().contains("CommandNotFound"), "{}", operator.said());
}

#[test]
fn a_command_line_of_qemu_runs_here_and_what_is_not_built_is_a_usage_error() {
    if !needs(NEEDS) {
        return;
    }
    let folder = whimbrel_e2e::scratch::Scratch::new("qemu-line");
    let qmp = format!("unix:{}", folder.join("qmp").display());
    let listening = format!("{qmp},server=on,wait=off");
    let shape = "microvm,acpi=off,pic=off,pit=off,rtc=off,isa-serial=on";
    let mut machine = Operator::start(&[
        "run",
        "-M",
        shape,
        "-accel",
        "kvm",
        "-nodefaults",
        "-display",
        "none",
        "-m",
        "64M",
        "-smp",
        "1",
        "-kernel",
        "@beacon",
        "-name",
        "guest=web",
        "-qmp",
        &listening,
        "-S",
    ]);
    wait_for("the monitor", LIMIT, || folder.join("qmp").exists().then_some(()));
    let (_, said) = whimbrel(&["status", &qmp]);
    assert!(said.contains("name        web") && said.contains("guest       prelaunch"), "{said}");
    assert_eq!(whimbrel(&["quit", &qmp]).0, 0);
    assert_eq!(machine.exit_code(LIMIT), 0);
    let (code, said) = whimbrel(&["run", "-M", "q35"]);
    assert!(code == 2 && said.contains("q35"), "{code}: {said}");
}
