//! What could not be moved is told, and refused, while the guest runs; and no longer than it is so.

use std::time::Duration;

use serde_json::json;
use whimbrel_e2e::{Launch, Need, Peer, moves, needs, wait_for};

const LIMIT: Duration = Duration::from_secs(120);

#[test]
fn a_register_that_the_stream_has_no_place_for_refuses_the_move_by_name() {
    if !needs(&[Need::Kvm, Need::Beacon]) {
        return;
    }
    let launch = Launch { memory_mib: 64, kernel: beacon::CPU_DUMP, ..Launch::new(Peer::Whimbrel) };
    let (mut source, mut destination) = (launch.start(), launch.incoming().start());
    let blocked = |source: &mut whimbrel_e2e::Vm| {
        let reason = source.migration()["blocked-reasons"][0].clone();
        reason.as_str().map(str::to_owned)
    };
    let dumped = |source: &whimbrel_e2e::Vm, count: usize| {
        wait_for("the guest's account of its CPU", LIMIT, || {
            beacon::CpuDump::parse(&source.heartbeat.bytes()).into_iter().nth(count - 1)
        })
    };
    assert_eq!(dumped(&source, 1).msrs[&0x140], Some(0));
    assert_eq!(blocked(&mut source), None);

    source.console.send(b"M");
    assert_eq!(dumped(&source, 2).msrs[&0x140], Some(1), "this KVM lets a guest write the MSR");
    let reason = wait_for("the blocker", LIMIT, || blocked(&mut source));
    assert!(reason.starts_with("vCPU 0: MSR 0x140 holds 0x1"), "{reason}");
    let refused = source.qmp.try_execute("migrate", json!({"uri": "tcp:127.0.0.1:1"}));
    assert!(format!("{refused:?}").contains("MSR 0x140"), "{refused:?}");
    assert_eq!(source.run_state(), "running");

    source.console.send(b"m");
    assert_eq!(dumped(&source, 3).msrs[&0x140], Some(0));
    wait_for("the end of the blocker", LIMIT, || blocked(&mut source).is_none().then_some(()));
    moves::migrate(&mut source, &mut destination, LIMIT);
    destination.console.send(b"?");
    assert_eq!(dumped(&destination, 1).msrs[&0x140], Some(0));
}
