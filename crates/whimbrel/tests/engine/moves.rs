//! Moves that succeed: over every transport, with every page recomputed at the destination.

use std::time::Duration;

use whimbrel::channel::Address;
use whimbrel::proto::capabilities::Capability;
use whimbrel::proto::parameters::ParametersPatch;
use whimbrel::proto::run_state::RunState;
use whimbrel::proto::status::MigrationStatus;

use crate::guest::{Build, Runners, Scratch, TCP, wait_until};

fn moves_over(uri: &str) {
    let runners = Runners::default();
    let source = Build::new(&runners).busy_to_the_end().source();
    let (destination, address) = Build::new(&runners).destination(uri);
    source.migrate(&address);
    source.moved_to(&destination);
    let info = source.info();
    let ram = info.ram.unwrap();
    assert!(info.fenced && ram.dirty_sync_count >= 3, "{info:?}");
    assert_eq!((ram.total, ram.remaining), (8 << 20, 0));
    assert!(
        ram.normal * 4096 < ram.transferred && info.downtime.unwrap() < Duration::from_secs(5),
        "{info:?}"
    );
}

#[test]
fn a_working_guest_moves_over_tcp_with_ipv4() {
    moves_over(TCP);
}

#[test]
fn a_working_guest_moves_over_tcp_with_ipv6() {
    moves_over("tcp:[::1]:0");
}

#[test]
fn a_working_guest_moves_over_a_unix_socket() {
    let scratch = Scratch::new();
    moves_over(&scratch.unix());
    assert!(!scratch.path("socket").exists(), "the socket's file is left behind");
}

#[test]
fn a_guest_moves_on_and_on() {
    let runners = Runners::default();
    let mut guest = Build::new(&runners).source();
    for _ in 0..10 {
        let (next, address) = Build::new(&runners).destination(TCP);
        guest.migrate(&address);
        guest.moved_to(&next);
        next.set(Capability::ReturnPath);
        next.unlimited();
        guest = next;
    }
}

#[test]
fn a_guest_that_writes_without_pause_moves() {
    let runners = Runners::default();
    let source = Build::new(&runners).rate(u32::MAX).source();
    let (destination, address) = Build::new(&runners).rate(u32::MAX).destination(TCP);
    source.migrate(&address);
    source.moved_to(&destination);
}

#[test]
fn a_move_without_return_path_is_not_fenced_and_arrives_all_the_same() {
    let runners = Runners::default();
    let source = Build::new(&runners).source();
    source.command(|engine| engine.set_capabilities(&[(Capability::ReturnPath, false)])).unwrap();
    let (destination, address) = Build::new(&runners).destination(TCP);
    source.migrate(&address);
    source.moved_to(&destination);
    assert!(!source.info().fenced);
}

#[test]
fn a_guest_saved_to_a_file_with_an_offset_is_loaded_from_it() {
    let (runners, scratch) = (Runners::default(), Scratch::new());
    let path = scratch.path("image");
    std::fs::write(&path, [0xa5; 8192]).unwrap();
    let at = Address::File { path: path.clone(), offset: 4096 };
    let source = Build::new(&runners).source();
    source.migrate(&at);
    source.wait_for(MigrationStatus::Completed);
    assert_eq!(source.engine.run_state(), RunState::Postmigrate);
    source.stands();
    let bytes = std::fs::read(&path).unwrap();
    assert!(bytes[..4096].iter().all(|byte| *byte == 0xa5), "what stands before the offset was changed");
    assert_eq!(&bytes[4096..4100], b"QEVM");
    let (destination, _) = Build::new(&runners).destination(&at.to_string());
    source.moved_to(&destination);
}

#[test]
fn a_file_is_created_for_its_owner_only() {
    use std::os::unix::fs::PermissionsExt;
    let (runners, scratch) = (Runners::default(), Scratch::new());
    let path = scratch.path("image");
    let source = Build::new(&runners).ram(1, 16).source();
    source.migrate(&Address::File { path: path.clone(), offset: 0 });
    source.wait_for(MigrationStatus::Completed);
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
}

#[test]
fn statuses_come_in_order_with_a_pass_for_every_sync() {
    let runners = Runners::default();
    let source = Build::new(&runners).source();
    source.set(Capability::Events);
    let (destination, address) = Build::new(&runners).destination(TCP);
    destination.set(Capability::Events);
    source.migrate(&address);
    source.moved_to(&destination);
    wait_until("the last event", || destination.has_arrived());
    assert_eq!(source.statuses(), ["setup", "active", "device", "completed"]);
    // It is in setup since it listens, perhaps before its capability was set.
    assert!(destination.statuses().ends_with(&["active", "completed"]));
}

#[test]
fn the_bandwidth_limit_holds_at_every_moment() {
    const LIMIT: u64 = 4 << 20;
    let runners = Runners::default();
    let source = Build::new(&runners).source();
    source.parameters(ParametersPatch {
        max_bandwidth: Some(LIMIT),
        downtime_limit: Some(1),
        ..ParametersPatch::default()
    });
    let (_destination, address) = Build::new(&runners).destination(TCP);
    source.migrate(&address);
    wait_until("4 MiB sent", || {
        let info = source.info();
        let (Some(ram), Some(elapsed)) = (info.ram, info.total_time) else { return false };
        // A window of 100 ms may be used up at its very start; a page once begun is finished.
        let windows = elapsed.as_millis() as u64 / 100 + 1;
        assert!(
            ram.transferred <= windows * (LIMIT / 10 + 8192),
            "{} bytes after {elapsed:?}",
            ram.transferred
        );
        ram.transferred > LIMIT
    });
    assert_eq!(source.info().status, MigrationStatus::Active);
    source.cancel().unwrap();
    source.cancelled();
}

#[test]
fn a_running_move_takes_new_parameters() {
    let runners = Runners::default();
    let source = Build::heavy(&runners).source();
    source.crawl();
    let (destination, address) = Build::heavy(&runners).destination(TCP);
    source.migrate(&address);
    source.wait_for(MigrationStatus::Active);
    source.unlimited();
    source.moved_to(&destination);
}

#[test]
fn zero_pages_are_not_sent() {
    let runners = Runners::default();
    let source = Build::new(&runners).ram(2, 8192).source();
    let (destination, address) = Build::new(&runners).ram(2, 8192).destination(TCP);
    source.migrate(&address);
    source.moved_to(&destination);
    let ram = source.info().ram.unwrap();
    assert!(ram.duplicate > 4096 && ram.transferred < 32 << 20, "{ram:?}");
}

#[test]
fn a_pause_that_takes_too_long_is_given_up_and_the_move_goes_on() {
    let runners = Runners::default();
    let large = || Build::new(&runners).ram(2, 4096).rate(1 << 15);
    let source = large().full_source();
    // All of RAM is expected to fit a pause of a millisecond.
    source.parameters(ParametersPatch {
        avail_switchover_bandwidth: Some(1 << 50),
        downtime_limit: Some(1),
        ..ParametersPatch::default()
    });
    let (destination, address) = large().destination(TCP);
    source.migrate(&address);
    wait_until("an overrun", || source.info().overruns > 0);
    source.parameters(ParametersPatch {
        avail_switchover_bandwidth: Some(0),
        downtime_limit: Some(300),
        ..ParametersPatch::default()
    });
    source.moved_to(&destination);
    assert!(source.info().overruns > 0);
}

#[test]
fn a_destination_that_listens_already_takes_in_switchover_ack() {
    let runners = Runners::default();
    let source = Build::new(&runners).source();
    source.set(Capability::SwitchoverAck);
    let (destination, address) = Build::new(&runners).destination(TCP);
    destination.set(Capability::ReturnPath);
    destination.set(Capability::SwitchoverAck);
    source.migrate(&address);
    source.moved_to(&destination);
}
