//! Moves with KVM's dirty ring instead of its bitmap: the smallest ring there is, and a guest that fills it over and over.

use std::time::Duration;

use beacon::{CommandLine, command_line::Fill};
use serde_json::json;
use whimbrel_e2e::{Launch, moves, needs};

use super::{LIMIT, NEEDS, guest, machine, moves::assert_moves_whole, teeth::assert_caught};

/// 1024 entries; the guest writes 25,600 pages a second and more.
fn with_ring(beacon: CommandLine) -> Launch {
    Launch { extra: vec!["--dirty".into(), "ring,1024".into()], ..machine(beacon) }
}

fn fast() -> CommandLine {
    CommandLine { set_mib: 16, rate_mib_per_s: 400, ..guest() }
}

#[test]
fn a_working_guest_with_one_vcpu_moves_whole() {
    if needs(NEEDS) {
        assert_moves_whole(&with_ring(guest()));
    }
}

#[test]
fn a_fast_guest_with_two_vcpus_moves_whole() {
    if needs(NEEDS) {
        assert_moves_whole(&with_ring(CommandLine { cpus: 2, fill: Fill::Random, ..fast() }));
    }
}

#[test]
fn one_dirty_page_not_sent_is_caught() {
    if needs(NEEDS) {
        assert_caught("dirty-page", true, &with_ring(guest()), "page");
    }
}

#[test]
fn the_last_sync_left_out_is_caught() {
    if needs(NEEDS) {
        assert_caught("last-sync", true, &with_ring(guest()), "page");
    }
}

#[test]
fn a_cancelled_attempt_is_followed_by_one_that_moves_the_guest_whole() {
    if !needs(NEEDS) {
        return;
    }
    let launch = with_ring(CommandLine { cpus: 2, ..fast() });
    let mut source = launch.start();
    source.wait_ready();
    for _ in 0..3 {
        let mut given_up = launch.incoming().start();
        source.set(json!({ "max-bandwidth": 8 << 20 }));
        let uri = moves::listen(&mut given_up);
        source.qmp.ok("migrate", json!({ "uri": uri }));
        // Far from its end: RAM alone takes seconds.
        source.let_run(Duration::from_millis(500));
        source.qmp.ok("migrate_cancel", json!({}));
        assert_eq!(moves::wait_end(&mut source, LIMIT)["status"], "cancelled");
        source.let_run(Duration::from_millis(200));
    }
    source.set(json!({ "max-bandwidth": 0 }));
    let mut destination = launch.incoming().start();
    moves::migrate(&mut source, &mut destination, LIMIT);
    source.kill();
    destination.let_run(Duration::from_millis(300));
    destination.assert_clean();
}

#[test]
fn the_ends_of_a_move_need_not_track_alike() {
    if !needs(NEEDS) {
        return;
    }
    let launch = machine(guest());
    let (mut first, mut second) = (launch.start(), with_ring(guest()).incoming().start());
    first.wait_ready();
    moves::migrate(&mut first, &mut second, LIMIT);
    first.kill();
    let mut third = launch.incoming().start();
    moves::migrate(&mut second, &mut third, LIMIT);
    second.kill();
    third.let_run(Duration::from_millis(300));
    third.assert_clean();
}
