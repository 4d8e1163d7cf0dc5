//! Failures by fault switch and by disagreement: before the commit the source's guest works on, `query-migrate` says why, and
//! the next attempt succeeds; after it the guest stands still until an operator decides.

use std::time::Duration;

use whimbrel::channel::Address;
use whimbrel::proto::capabilities::Capability;
use whimbrel::proto::parameters::ParametersPatch;
use whimbrel::proto::run_state::RunState;
use whimbrel::proto::status::MigrationStatus;

use crate::guest::{Build, Guest, Runners, Scratch, Stopwatch, TCP, wait_until};
use crate::peer::held_link;

/// A migration to `destination` fails before its commit. Returns what source and destination say.
fn fails(source: Build, destination: Build) -> (String, String) {
    let runners = source.runners.clone();
    let source = source.source();
    let (destination, address) = destination.destination(TCP);
    source.migrate(&address);
    let why = source.failed();
    let refusal = destination.refusal();
    assert_eq!(runners.now(), 1);
    source.moves_next_time(Build::new(&runners));
    (why, refusal)
}

#[test]
fn a_refused_connection_is_told_in_qemus_words() {
    let runners = Runners::default();
    let source = Build::new(&runners).source();
    source.migrate(&Address::parse("tcp:127.0.0.1:1").unwrap());
    assert_eq!(source.failed(), "Failed to connect to '127.0.0.1:1': Connection refused");
    let scratch = Scratch::new();
    source.migrate(&Address::parse(&scratch.unix()).unwrap());
    let path = scratch.path("socket");
    let expected = format!("Failed to connect to '{}': No such file or directory", path.display());
    assert_eq!(source.failed(), expected);
    source.migrate(&Address::parse("file:/nowhere/image").unwrap());
    assert_eq!(source.failed(), "Could not create '/nowhere/image': No such file or directory");
    source.moves_next_time(Build::new(&runners));
}

#[test]
fn a_register_that_the_destination_refuses_leaves_the_guest_at_the_source() {
    let runners = Runners::default();
    let (why, refusal) = fails(Build::new(&runners), Build::new(&runners).fault("apply-fails"));
    assert_eq!(why, "Sibling indicated error 1");
    assert_eq!(refusal, "apply: a register is refused, as asked for by a fault switch");
}

#[test]
fn a_device_that_cannot_be_saved_leaves_the_guest_at_the_source() {
    let runners = Runners::default();
    let (why, refusal) = fails(Build::new(&runners).fault("save-fails"), Build::new(&runners));
    assert_eq!(why, "device 'worker': saving fails, as asked for by a fault switch");
    // The end of the link; or its reset, where the source had not yet read an answer when it gave up.
    assert!(refusal.starts_with("load: ") && refusal.contains("stream offset"), "{refusal}");
}

#[test]
fn a_guest_that_does_not_stop_runs_on() {
    let runners = Runners::default();
    let (why, _) = fails(Build::new(&runners).fault("stop-fails"), Build::new(&runners));
    assert_eq!(
        why,
        "the guest could not be stopped: the stop fails half way, as asked for by a fault switch"
    );
}

#[test]
fn a_destination_that_does_not_start_after_the_commit_leaves_the_guest_stopped() {
    let runners = Runners::default();
    let source = Build::new(&runners).source();
    let (destination, address) = Build::new(&runners).fault("start-fails").destination(TCP);
    source.migrate(&address);
    assert!(source.outcome_unknown(&address).ends_with("Sibling indicated error 1"));
    assert_eq!(destination.refusal(), "start: the vCPUs do not start, as asked for by a fault switch");
    assert_eq!(runners.now(), 0);
    source.command(|engine| engine.cont()).unwrap();
    source.runs();
    source.moves_next_time(Build::new(&runners));
}

#[test]
fn another_machine_type_is_named() {
    let runners = Runners::default();
    let other = Build::new(&runners).config(|config| config.machine_name = "maximal".into());
    let (_, refusal) = fails(Build::new(&runners), other);
    assert_eq!(refusal, "setup: Machine type received is 'minimal' and local is 'maximal'");
}

#[test]
fn another_size_of_ram_is_named() {
    let runners = Runners::default();
    let (_, refusal) = fails(Build::new(&runners), Build::new(&runners).ram(2, 512));
    assert!(
        refusal.starts_with(
            "load: section 'ram': Size mismatch: worker0.ram: 0x400000 != 0x200000 (stream offset "
        ),
        "{refusal}"
    );
}

#[test]
fn a_ram_block_that_the_source_does_not_have_is_named() {
    let runners = Runners::default();
    let source = Build::new(&runners).ram(1, 1024).source();
    let (destination, address) = Build::new(&runners).destination(TCP);
    source.migrate(&address);
    source.failed();
    let refusal = destination.refusal();
    assert!(refusal.starts_with("load: section 'ram': the source has no block 'worker1.ram'"), "{refusal}");
}

/// A migration of 32 MiB that is believed to take no time at all, so that the guest is stopped with nothing sent; over a link that
/// takes nothing. The guest must soon go on.
fn overruns(runners: &Runners, link: &Address) -> Guest {
    let source = Build::new(runners).ram(2, 4096).full_source();
    source.parameters(ParametersPatch {
        avail_switchover_bandwidth: Some(100 << 30),
        ..ParametersPatch::default()
    });
    source.migrate(link);
    wait_until("the stop", || source.engine.run_state() == RunState::FinishMigrate);
    let stopped = Stopwatch::start();
    wait_until("the guest goes on", || source.engine.run_state() == RunState::Running);
    // The limit is 300 ms; all else that would end it takes 10 s.
    assert!(stopped.time() < Duration::from_secs(3), "{:?}", stopped.time());
    assert_eq!(source.info().status, MigrationStatus::Active, "{:?}", source.info().error);
    source.runs();
    source
}

#[test]
fn a_stuck_link_costs_the_stopped_guest_no_more_than_the_downtime_limit() {
    let (runners, scratch) = (Runners::default(), Scratch::new());
    let (_destination, address) = Build::new(&runners).ram(2, 4096).destination(TCP);
    let source = overruns(&runners, &held_link(&scratch.path("link"), &address, Duration::from_secs(60)));
    source.cancel().unwrap();
    source.cancelled();
    source.moves_next_time(Build::new(&runners).ram(2, 4096));
}

#[test]
fn a_link_that_was_held_up_in_the_pause_goes_on_where_it_stood() {
    let (runners, scratch) = (Runners::default(), Scratch::new());
    let (destination, address) = Build::new(&runners).ram(2, 4096).destination(TCP);
    let source = overruns(&runners, &held_link(&scratch.path("link"), &address, Duration::from_secs(2)));
    source.moved_to(&destination);
    assert!(source.info().overruns > 0);
}

#[test]
fn what_blocks_a_migration_is_told_and_nothing_begins() {
    let mut build = Build::new(&Runners::default());
    build.blocker = Some("a passed-through device");
    let source = build.source();
    let to = Address::parse("tcp:127.0.0.1:1").unwrap();
    let refused = source.command(move |engine| engine.migrate(to, false)).unwrap_err();
    assert_eq!(refused, "a passed-through device");
    source.runs();
}

#[test]
fn a_ram_block_or_device_that_is_not_here_is_named() {
    let runners = Runners::default();
    let (_, refusal) = fails(Build::new(&runners), Build::new(&runners).ram(1, 1024));
    assert!(
        refusal.starts_with("load: Unknown ramblock \"worker1.ram\", cannot accept migration (stream offset"),
        "{refusal}"
    );
}

#[test]
fn uuids_are_compared_where_both_sides_ask_for_it() {
    let runners = Runners::default();
    let with = |first: u8| {
        let mut uuid = [0; 16];
        uuid[0] = first;
        Build::new(&runners).config(|config| config.uuid = Some(uuid))
    };
    let source = with(1).source();
    source.set(Capability::ValidateUuid);
    let (destination, address) = with(2).destination(TCP);
    source.migrate(&address);
    source.failed();
    assert_eq!(
        destination.refusal(),
        "setup: UUID received is 01000000-0000-0000-0000-000000000000 and local is \
         02000000-0000-0000-0000-000000000000"
    );
    source.moves_next_time(with(1));
}

#[test]
fn uuids_are_not_compared_otherwise() {
    let runners = Runners::default();
    let with = |byte| Build::new(&runners).config(|config| config.uuid = Some([byte; 16]));
    let source = with(1).source();
    source.moves_next_time(with(2));
}

#[test]
fn a_file_that_cannot_hold_the_stream_leaves_the_guest_at_the_source() {
    let runners = Runners::default();
    let source = Build::new(&runners).source();
    source.migrate(&Address::parse("file:/dev/full").unwrap());
    let info = source.wait_for(MigrationStatus::Failed);
    assert!(info.error.unwrap().contains("/dev/full"));
    source.runs();
    source.moves_next_time(Build::new(&runners));
}

#[test]
fn a_second_migration_is_refused_while_one_is_under_way() {
    let runners = Runners::default();
    let source = Build::heavy(&runners).source();
    source.crawl();
    let (destination, address) = Build::heavy(&runners).destination(TCP);
    source.migrate(&address);
    source.wait_for(MigrationStatus::Active);
    let again = source.command(move |engine| engine.migrate(address, false)).unwrap_err();
    assert_eq!(again, "There's a migration process in progress");
    source.unlimited();
    source.moved_to(&destination);
    assert_eq!(source.engine.run_state(), RunState::Postmigrate);
}
