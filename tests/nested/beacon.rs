//! The beacon on `virt`, moved live over TCP between two whimbrel processes while it dirties memory: every page is recomputed, and the
//! guest checks its registers, timers and interrupts itself. One of four vCPUs sleeps, and one is powered off until it has arrived.

use std::time::Duration;

use beacon::CommandLine;
use serde_json::{Value, json};
use whimbrel_e2e::l1::{Arch, inside};
use whimbrel_e2e::{Launch, Machine, Peer, Vm, moves, wait_for};

/// For one step of an emulated guest.
const LIMIT: Duration = Duration::from_secs(60);
const RUN: Duration = Duration::from_millis(500);

fn machine(line: CommandLine) -> Launch {
    Launch { machine: Machine::Virt, beacon: line, memory_mib: 64, ..Launch::new(Peer::Whimbrel) }
}

/// A guest at work, moved: source, destination, the source's last word.
fn moved(launch: &Launch) -> (Vm, Vm, Value) {
    let (mut source, mut destination) = (launch.boot(), launch.incoming().start());
    // The emulated host is slow to stop and to load.
    source.set(json!({ "downtime-limit": 5000, "max-bandwidth": 0 }));
    source.let_run(RUN);
    let info = moves::migrate(&mut source, &mut destination, LIMIT);
    (source, destination, info)
}

/// The same, but one page that was written again is not sent again: the check must see it.
fn a_page_left_out_is_seen(line: CommandLine) {
    let (_, mut destination, _) = moved(&machine(line).fault("dirty-page"));
    destination.let_run(RUN);
    let report = destination.check();
    println!("{} pages wrong, the guest counts {} faults", report.mismatch_count, report.control.faults());
    assert!(!report.is_clean(), "the check has no teeth");
}

fn moves_whole(line: CommandLine) {
    let (waiter, vcpus) = (line.waiter, line.vcpus());
    let (mut source, mut destination, info) = moved(&machine(line));
    let passes = info["ram"]["dirty-sync-count"].as_u64().expect("a count");
    assert!(passes >= 2, "it was not moved live: {info}");
    let left = source.check().control;
    source.kill();
    destination.let_run(RUN);
    if waiter {
        assert!(!destination.console.text().contains("started"), "a vCPU that is off stays off");
        destination.console.send(b"S");
        wait_for("the vCPU that was off", LIMIT, || {
            destination.console.text().contains(" started").then_some(())
        });
        destination.let_run(RUN);
    }
    let report = destination.assert_clean();
    let workers = left.vcpus.iter().zip(&report.control.vcpus).filter(|(before, _)| before.progress > 0);
    assert!(
        workers.clone().count() > 0 && workers.clone().all(|(before, now)| now.progress > before.progress)
    );
    println!(
        "{vcpus} vCPUs: {passes} passes, {} bytes, downtime {} ms, {} pages verified",
        info["ram"]["transferred"], info["downtime"], report.pages_verified
    );
}

#[test]
fn the_beacon_moves_whole_and_its_vcpu_that_is_off_starts_where_it_has_arrived() {
    inside(
        Arch::Arm,
        |_| {},
        || {
            let line =
                CommandLine { cpus: 2, set_mib: 8, rate_mib_per_s: 20, pend: true, ..CommandLine::default() };
            a_page_left_out_is_seen(line.clone());
            moves_whole(line.clone());
            moves_whole(CommandLine { sleeper: true, waiter: true, ..line });
        },
    );
}
