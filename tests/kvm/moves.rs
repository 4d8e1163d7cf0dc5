//! A working guest moves and loses nothing: over each transport, with each kind of RAM, running and stopped.

use std::time::Duration;

use beacon::control::Role;
use beacon::{CommandLine, command_line::Fill, command_line::Placement, heartbeat};
use serde_json::json;
use whimbrel_e2e::{Launch, Need, Vm, moves, needs, wait_for};

use super::{LIMIT, NEEDS, guest, machine};

/// Moves it, kills the source, lets it work on and checks everything.
pub(crate) fn assert_moves_whole(launch: &Launch) -> (Vm, Vm) {
    let (mut source, mut destination) = (launch.start(), launch.incoming().start());
    source.wait_ready();
    source.let_run(Duration::from_millis(300));
    moves::migrate(&mut source, &mut destination, LIMIT);
    assert_eq!(source.run_state(), "postmigrate");
    source.kill();
    destination.let_run(Duration::from_millis(500));
    destination.assert_clean();
    let beats = heartbeat::summarise([&source.heartbeat.beats(), &destination.heartbeat.beats()]);
    assert!(beats.is_whole(), "{:?}", beats.breaks);
    (source, destination)
}

#[test]
fn a_working_guest_with_one_vcpu_moves_whole() {
    if needs(NEEDS) {
        assert_moves_whole(&machine(guest()));
    }
}

#[test]
fn a_working_guest_with_two_vcpus_moves_whole() {
    if needs(NEEDS) {
        assert_moves_whole(&machine(CommandLine { cpus: 2, ..guest() }));
    }
}

#[test]
fn a_sleeping_vcpu_sleeps_on_and_one_that_waits_for_sipi_can_still_be_started() {
    if !needs(NEEDS) {
        return;
    }
    let launch = machine(CommandLine { sleeper: true, waiter: true, ..guest() });
    let (mut source, mut destination) = (launch.start(), launch.incoming().start());
    source.wait_ready();
    source.let_run(Duration::from_millis(200));
    source.qmp.ok("stop", json!({}));
    let before = source.check().control;
    source.qmp.ok("cont", json!({}));
    moves::migrate(&mut source, &mut destination, LIMIT);
    source.kill();
    destination.let_run(Duration::from_millis(300));
    destination.console.send(b"S");
    destination.let_run(Duration::from_millis(700));
    let after = destination.assert_clean().control;
    let wakeups = |control: &beacon::control::ControlBlock| -> u64 {
        control.vcpus.iter().map(|vcpu| vcpu.wakeups).sum()
    };
    assert!(wakeups(&after) > wakeups(&before), "the sleeper never woke again");
    assert!(before.vcpus.iter().any(|vcpu| vcpu.role == Role::Waiting && !vcpu.started), "nobody waited");
    assert!(
        after.vcpus.iter().take(3).all(|vcpu| vcpu.started),
        "the waiting vCPU did not start at the destination"
    );
}

#[test]
fn serial_bytes_and_timer_ticks_are_counted_across_the_move() {
    if !needs(NEEDS) {
        return;
    }
    let launch = machine(guest());
    let (mut source, mut destination) = (launch.start(), launch.incoming().start());
    source.wait_ready();
    source.console.send(&[1; 8]);
    source.let_run(Duration::from_millis(300));
    moves::migrate(&mut source, &mut destination, LIMIT);
    destination.console.send(&[2; 8]);
    destination.let_run(Duration::from_millis(500));
    let control = destination.assert_clean().control;
    let bytes: u64 = control.vcpus.iter().map(|vcpu| vcpu.serial_bytes).sum();
    let sum: u64 = control.vcpus.iter().map(|vcpu| vcpu.serial_sum).sum();
    assert_eq!((bytes, sum), (16, 24), "each byte arrives exactly once");
    assert!(control.vcpus[0].ticks > 50, "{} ticks", control.vcpus[0].ticks);
}

#[test]
fn memory_above_the_hole_moves_whole() {
    if needs(NEEDS) {
        let beacon = CommandLine { set_mib: 64, placement: Placement::High, ..guest() };
        assert_moves_whole(&Launch { memory_mib: 3584, ..machine(beacon) });
    }
}

#[test]
fn incompressible_memory_moves_whole() {
    if needs(NEEDS) {
        assert_moves_whole(&machine(CommandLine { fill: Fill::Random, ..guest() }));
    }
}

#[test]
fn anonymous_and_shared_file_ram_move_whole() {
    if !needs(NEEDS) {
        return;
    }
    let folder = whimbrel_e2e::scratch::Scratch::new("ram");
    for kind in ["anonymous", "file"] {
        let ram = |side: &str| match kind {
            "file" => format!("file:{}", folder.join(side).display()),
            other => other.to_owned(),
        };
        let launch = machine(CommandLine { set_mib: 32, ..guest() });
        let with = |launch: Launch, side: &str| Launch { extra: vec!["--ram".into(), ram(side)], ..launch };
        let (mut source, mut destination) =
            (with(launch.clone(), "source").start(), with(launch.incoming(), "destination").start());
        source.wait_ready();
        moves::migrate(&mut source, &mut destination, LIMIT);
        source.kill();
        destination.let_run(Duration::from_millis(300));
        destination.assert_clean();
    }
}

#[test]
fn without_a_return_path_the_guest_moves_too_and_query_migrate_says_that_nothing_was_confirmed() {
    if !needs(NEEDS) {
        return;
    }
    let launch = machine(guest());
    let (mut source, mut destination) = (launch.start(), launch.incoming().start());
    source.wait_ready();
    let uri = moves::listen(&mut destination);
    source.qmp.ok("migrate", json!({ "uri": uri }));
    let info = moves::wait_end(&mut source, LIMIT);
    assert_eq!(info["status"], "completed", "{info}");
    assert_eq!(info["whimbrel"]["fenced"], false, "{info}");
    wait_for("the guest", LIMIT, || (destination.run_state() == "running").then_some(()));
    source.kill();
    destination.let_run(Duration::from_millis(300));
    destination.assert_clean();
}

#[test]
fn a_guest_saved_to_a_file_is_loaded_from_it_whole() {
    if !needs(NEEDS) {
        return;
    }
    let folder = whimbrel_e2e::scratch::Scratch::new("saved");
    let uri = format!("file:{},offset=0x200000", folder.join("guest").display());
    let launch = machine(CommandLine { cpus: 2, ..guest() });
    let mut source = launch.start();
    source.wait_ready();
    source.let_run(Duration::from_millis(300));
    moves::save(&mut source, &uri, LIMIT);
    source.kill();
    let mut destination = launch.incoming().start();
    moves::load(&mut destination, &uri, LIMIT);
    destination.let_run(Duration::from_millis(500));
    destination.assert_clean();
    let beats = heartbeat::summarise([&source.heartbeat.beats(), &destination.heartbeat.beats()]);
    assert!(beats.is_whole(), "{:?}", beats.breaks);
}

/// A guest at work goes over `uri` (made from the destination), and is whole where it arrives.
#[track_caller]
fn assert_carries_a_move(uri: impl FnOnce(&Vm) -> String) {
    let launch = machine(guest());
    let (mut source, mut destination) = (launch.start(), launch.incoming().start());
    source.wait_ready();
    let uri = uri(&destination);
    moves::with_return_path(&mut source, &mut destination);
    destination.qmp.ok("migrate-incoming", json!({ "uri": uri }));
    source.qmp.ok("migrate", json!({ "uri": uri }));
    assert_eq!(moves::wait_end(&mut source, LIMIT)["status"], "completed");
    source.kill();
    destination.let_run(Duration::from_millis(300));
    destination.assert_clean();
}

#[test]
fn a_unix_socket_carries_a_move() {
    if needs(NEEDS) {
        assert_carries_a_move(|to| format!("unix:{}", to.scratch.join("move").display()));
    }
}

#[test]
fn vsock_carries_a_move() {
    if needs(NEEDS) && needs(&[Need::VsockLoopback]) {
        // 1 is this host itself. No other test is over vsock, so the port is free.
        assert_carries_a_move(|_| "vsock:1:49153".to_owned());
    }
}

#[test]
fn ipv6_carries_a_move() {
    if !needs(NEEDS) {
        return;
    }
    if std::net::TcpListener::bind("[::1]:0").is_err() {
        return whimbrel_e2e::need::skip("this host has no IPv6 loopback");
    }
    let launch = machine(guest());
    let (mut source, mut destination) = (launch.start(), launch.incoming().start());
    source.wait_ready();
    moves::with_return_path(&mut source, &mut destination);
    destination.qmp.ok("migrate-incoming", json!({ "uri": "tcp:[::1]:0" }));
    let port = destination.migration()["socket-address"][0]["port"].as_str().expect("a port").to_owned();
    source.qmp.ok("migrate", json!({ "uri": format!("tcp:[::1]:{port}") }));
    assert_eq!(moves::wait_end(&mut source, LIMIT)["status"], "completed");
}

#[test]
fn the_source_tells_what_happens_in_order() {
    if !needs(NEEDS) {
        return;
    }
    let launch = machine(guest());
    let (mut source, mut destination) = (launch.start(), launch.incoming().start());
    source.wait_ready();
    source.qmp.event_names();
    moves::migrate(&mut source, &mut destination, LIMIT);
    let names = source.qmp.event_names();
    let place = |name: &str| {
        names.iter().position(|event| event == name).unwrap_or_else(|| panic!("no {name}: {names:?}"))
    };
    let order = [
        "MIGRATION setup",
        "MIGRATION_PASS 1",
        "MIGRATION active",
        "STOP",
        "MIGRATION device",
        "MIGRATION completed",
    ];
    assert!(order.iter().map(|name| place(name)).is_sorted(), "{names:?}");
    assert_eq!(names.last().map(String::as_str), Some("MIGRATION completed"), "{names:?}");
    let names = destination.qmp.event_names();
    assert_eq!(names, ["MIGRATION setup", "MIGRATION active", "RESUME", "MIGRATION completed"]);
}
