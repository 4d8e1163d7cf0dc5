//! The harness, seen with real QEMUs at both ends: what moves between two of them arrives whole, and the same check
//! reports a page that is changed behind the guest's back. What the other tests say of whimbrel rests on this.

use std::os::unix::fs::FileExt;
use std::time::Duration;

use whimbrel_e2e::link::Link;
use whimbrel_e2e::{Launch, Machine, Peer, moves};

use super::{LIMIT, machine, needs};

fn assert_arrives_whole_between_two_qemus(kind: Machine) {
    if !(needs(Peer::Qemu72) && needs(Peer::Qemu10)) {
        return;
    }
    let launch = Launch { machine: kind, ..machine(Peer::Qemu72, Peer::Qemu72, 2) };
    let (mut source, mut destination) = (launch.start_at_work(), launch.on(Peer::Qemu10).incoming().start());
    source.let_run(Duration::from_millis(300));
    moves::migrate(&mut source, &mut destination, LIMIT);
    assert_eq!(source.run_state(), "postmigrate");
    source.kill();
    destination.let_run(Duration::from_millis(500));
    let report = destination.assert_clean();
    assert!(report.pages_verified >= (24 << 20) / 4096, "{}", report.pages_verified);
    let beats = beacon::heartbeat::summarise([&source.heartbeat.beats(), &destination.heartbeat.beats()]);
    assert!(beats.is_whole(), "{:?}", beats.breaks);
}

#[test]
fn a_guest_between_two_real_qemus_arrives_whole() {
    assert_arrives_whole_between_two_qemus(Machine::Plain);
}

#[test]
fn a_guest_in_the_default_machine_between_two_real_qemus_arrives_whole() {
    assert_arrives_whole_between_two_qemus(Machine::Default);
}

#[test]
fn a_page_changed_behind_the_guests_back_is_reported_by_guest_and_host() {
    if !needs(Peer::Qemu72) {
        return;
    }
    let folder = whimbrel_e2e::scratch::Scratch::new("ram");
    let ram = folder.join("ram");
    let mut launch = Launch { memory_mib: 64, ..machine(Peer::Qemu72, Peer::Qemu72, 1) };
    let backend = format!("memory-backend-file,id=ram,size=64M,share=on,mem-path={}", ram.display());
    launch.extra = ["-object", &backend, "-machine", "memory-backend=ram"].map(str::to_owned).to_vec();
    let mut vm = launch.start();
    vm.wait_ready();
    let set = vm.assert_clean().control.vcpus[0].set;
    let page = vm.check().control.data_page(set.first + set.pages / 2).expect("a page of the set");
    let file = std::fs::File::options().write(true).open(&ram).expect("the RAM file");
    file.write_all_at(&[0xa5; 64], page * 4096 + 1024).expect("the page is in the file");

    let report = vm.check();
    assert_eq!(report.mismatch_count, 1);
    assert_eq!(report.mismatches[0].page, page);
    vm.qmp.ok("cont", serde_json::json!({}));
    whimbrel_e2e::wait_for("the guest's own report", LIMIT, || vm.complaints().first().cloned());
}

#[test]
fn a_link_cut_midway_fails_the_move_and_the_source_runs_on() {
    if !needs(Peer::Qemu72) {
        return;
    }
    let launch = machine(Peer::Qemu72, Peer::Qemu72, 1);
    let (mut source, mut destination) = (launch.start_at_work(), launch.incoming().start());
    moves::with_return_path(&mut source, &mut destination);
    let link = Link::to(&moves::listen(&mut destination));
    link.cut_after(1 << 20);
    source.qmp.ok("migrate", serde_json::json!({ "uri": link.uri() }));
    assert_eq!(moves::wait_end(&mut source, LIMIT)["status"], "failed");
    assert_eq!(link.carried(), 1 << 20);
    source.let_run(Duration::from_millis(300));
    assert_eq!(destination.process.wait(LIMIT).code(), Some(1));
    source.assert_clean();
}
