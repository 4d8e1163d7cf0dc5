//! `stop`, `cont`, `system_reset`, `quit` and the guest's own requests in every status of a move, and pause-before-switchover:
//! the right side ends in the right run state.

use whimbrel::channel::Address;
use whimbrel::engine::Exit;
use whimbrel::proto::capabilities::Capability;
use whimbrel::proto::run_state::RunState;
use whimbrel::proto::status::MigrationStatus;

use crate::guest::{Build, Guest, Runners, TCP, wait_until};
use crate::peer::{Manner, Peer};

/// A move that stays in its rounds.
fn active() -> (Guest, Guest) {
    let runners = Runners::default();
    let source = Build::heavy(&runners).config(|config| config.no_shutdown = true).source();
    source.crawl();
    let (destination, address) = Build::heavy(&runners).destination(TCP);
    source.migrate(&address);
    source.wait_for(MigrationStatus::Active);
    (source, destination)
}

/// A move that waits in pre-switchover.
fn pre_switchover() -> (Guest, Guest) {
    let runners = Runners::default();
    let source = Build::new(&runners).source();
    source.set(Capability::PauseBeforeSwitchover);
    let (destination, address) = Build::new(&runners).destination(TCP);
    source.migrate(&address);
    source.wait_for(MigrationStatus::PreSwitchover);
    (source, destination)
}

/// A move whose peer takes everything and never confirms.
fn device() -> (Guest, Peer) {
    let peer = Peer::new(Manner::NeverAnswers);
    let source = Build::new(&Runners::default()).source();
    source.migrate(&peer.address);
    source.wait_for(MigrationStatus::Device);
    (source, peer)
}

fn continue_from(source: &Guest, state: MigrationStatus) -> Result<(), String> {
    source.command(move |engine| engine.migrate_continue(state))
}

/// The guest arrived and stands in `state`, whole.
fn arrived_in(source: &Guest, destination: &Guest, state: RunState) {
    source.wait_for(MigrationStatus::Completed);
    assert_eq!(source.engine.run_state(), RunState::Postmigrate);
    destination.wait_for_state(state);
    destination.stands();
    source.stands();
    assert_eq!((destination.mismatches(), source.runners.now()), (0, 0));
}

#[test]
fn pre_switchover_waits_for_continue_with_the_guest_stopped() {
    let (source, destination) = pre_switchover();
    assert_eq!(source.engine.run_state(), RunState::FinishMigrate);
    source.stands();
    let wrong = continue_from(&source, MigrationStatus::Device).unwrap_err();
    assert_eq!(wrong, "Migration not in expected state: pre-switchover");
    continue_from(&source, MigrationStatus::PreSwitchover).unwrap();
    source.moved_to(&destination);
    let again = continue_from(&source, MigrationStatus::PreSwitchover).unwrap_err();
    assert_eq!(again, "Migration not in expected state: completed");
}

#[test]
fn a_peer_that_is_lost_in_pre_switchover_leaves_the_guest_at_the_source() {
    let (source, destination) = pre_switchover();
    drop(destination);
    source.failed();
}

#[test]
fn stop_during_the_rounds_moves_a_stopped_guest() {
    let (source, destination) = active();
    source.command(|engine| engine.stop()).unwrap();
    assert_eq!(source.engine.run_state(), RunState::Paused);
    source.unlimited();
    arrived_in(&source, &destination, RunState::Paused);
    destination.command(|engine| engine.cont()).unwrap();
    destination.runs();
}

#[test]
fn cont_during_the_rounds_moves_a_working_guest() {
    let (source, destination) = active();
    source.command(|engine| engine.stop()).unwrap();
    source.command(|engine| engine.cont()).unwrap();
    source.runs();
    source.unlimited();
    source.moved_to(&destination);
}

#[test]
fn a_guest_that_was_never_started_moves_and_stays_so() {
    let runners = Runners::default();
    let source = Build::new(&runners).source();
    source.command(|engine| engine.system_reset()).unwrap();
    source.command(|engine| engine.stop()).unwrap();
    source.command(|engine| engine.system_reset()).unwrap();
    assert_eq!(source.engine.run_state(), RunState::Prelaunch);
    let (destination, address) = Build::new(&runners).destination(TCP);
    source.migrate(&address);
    arrived_in(&source, &destination, RunState::Prelaunch);
    assert_eq!(destination.machine.stamps(), 0);
}

#[test]
fn stop_in_pre_switchover_moves_a_stopped_guest() {
    let (source, destination) = pre_switchover();
    source.command(|engine| engine.stop()).unwrap();
    continue_from(&source, MigrationStatus::PreSwitchover).unwrap();
    arrived_in(&source, &destination, RunState::Paused);
}

#[test]
fn stop_in_pre_switchover_holds_after_a_cancel() {
    let (source, _destination) = pre_switchover();
    source.command(|engine| engine.stop()).unwrap();
    source.cancel().unwrap();
    source.wait_for(MigrationStatus::Cancelled);
    assert_eq!(source.engine.run_state(), RunState::Paused);
    source.stands();
    source.command(|engine| engine.cont()).unwrap();
    source.runs();
}

#[test]
fn cont_and_reset_are_refused_while_the_guest_is_stopped_for_the_switchover() {
    let refused = "Migration is not finalized yet";
    let (waiting, destination) = pre_switchover();
    let (confirming, _peer) = device();
    for source in [&waiting, &confirming] {
        assert_eq!(source.command(|engine| engine.cont()).unwrap_err(), refused);
        assert_eq!(source.command(|engine| engine.system_reset()).unwrap_err(), refused);
        source.stands();
    }
    continue_from(&waiting, MigrationStatus::PreSwitchover).unwrap();
    waiting.moved_to(&destination);
    confirming.cancel().unwrap();
    confirming.cancelled();
}

#[test]
fn stop_while_the_peer_confirms_holds_after_a_failure() {
    let (source, peer) = device();
    source.command(|engine| engine.stop()).unwrap();
    peer.hang_up();
    source.wait_for(MigrationStatus::Failed);
    assert_eq!(source.engine.run_state(), RunState::Paused);
    source.stands();
}

#[test]
fn reset_during_the_rounds_moves_a_fresh_guest() {
    for by_guest in [false, true] {
        let (source, destination) = active();
        // A second's, so that a slow host sees the count start again before it is as high.
        const WORK: u64 = 8192;
        wait_until("some work", || source.machine.stamps() > WORK);
        if by_guest {
            source.engine.guest_reset();
        } else {
            source.command(|engine| engine.system_reset()).unwrap();
        }
        wait_until("the reset", || source.machine.stamps() < WORK);
        source.runs();
        source.unlimited();
        source.moved_to(&destination);
    }
}

#[test]
fn a_reset_that_the_guest_asked_for_just_before_the_stop_is_carried_out() {
    let runners = Runners::default();
    let mut build = Build::new(&runners);
    build.last_act = Some(|engine| engine.guest_reset());
    let source = build.source();
    wait_until("some work", || source.machine.stamps() > 1000);
    let (destination, address) = Build::new(&runners).destination(TCP);
    source.migrate(&address);
    source.wait_for(MigrationStatus::Completed);
    assert_eq!((source.machine.stamps(), destination.mismatches_on_arrival()), (0, 0));
    destination.runs();
}

#[test]
fn a_guest_that_powers_off_just_before_the_stop_arrives_powered_off() {
    let mut build = Build::new(&Runners::default());
    build.last_act = Some(|engine| engine.guest_shutdown());
    let source = build.source();
    let (destination, address) = Build::new(&source.runners).destination(TCP);
    source.migrate(&address);
    arrived_in(&source, &destination, RunState::Shutdown);
}

#[test]
fn cont_at_any_moment_starts_no_guest_that_is_stopped_for_the_switchover() {
    let runners = Runners::default();
    let source = Build::new(&runners).source();
    source.set(Capability::PauseBeforeSwitchover);
    for _ in 0..20 {
        let (_destination, address) = Build::new(&runners).destination(TCP);
        source.migrate(&address);
        while source.info().status != MigrationStatus::PreSwitchover {
            let answer = source.command(|engine| engine.cont());
            assert!(answer.is_ok() || answer.unwrap_err() == "Migration is not finalized yet");
        }
        source.stands();
        source.cancel().unwrap();
        source.cancelled();
    }
}

#[test]
fn a_guest_that_powers_off_during_the_rounds_arrives_powered_off() {
    let (source, destination) = active();
    source.engine.guest_shutdown();
    source.wait_for_state(RunState::Shutdown);
    source.unlimited();
    arrived_in(&source, &destination, RunState::Shutdown);
    let refused = destination.command(|engine| engine.cont()).unwrap_err();
    assert_eq!(refused, "Resetting the Virtual Machine is required");
    destination.command(|engine| engine.system_reset()).unwrap();
    destination.command(|engine| engine.cont()).unwrap();
    destination.runs();
}

#[test]
fn a_guest_that_fails_during_the_rounds_arrives_failed() {
    let (source, destination) = active();
    source.engine.guest_failed("KVM_EXIT_INTERNAL_ERROR".into());
    source.wait_for_state(RunState::InternalError);
    source.unlimited();
    arrived_in(&source, &destination, RunState::InternalError);
}

#[test]
fn quit_of_the_source_ends_the_move_and_the_destination_never_runs() {
    let quit = |source: Guest| {
        source.engine.post(|engine| engine.quit());
        assert_eq!(source.exit(), Exit::Ended);
    };
    for (source, destination) in [active(), pre_switchover()] {
        quit(source);
        assert!(!destination.refusal().is_empty());
    }
    let (source, _peer) = device();
    quit(source);
}

#[test]
fn quit_after_the_commit_runs_nobody_here() {
    let runners = Runners::default();
    let source = Build::new(&runners).source();
    let peer = Peer::new(Manner::Confirms);
    source.migrate(&peer.address);
    wait_until("the commit", || source.info().pause.is_some_and(|pause| !pause.commit.is_zero()));
    source.engine.post(|engine| engine.quit());
    assert_eq!(source.exit(), Exit::Ended);
    assert_eq!(runners.now(), 0);
}

#[test]
fn stop_and_cont_of_a_destination_say_whether_the_guest_will_run() {
    let runners = Runners::default();
    let source = Build::new(&runners).source();
    let (destination, address) = Build::new(&runners).destination(TCP);
    destination.command(|engine| engine.cont()).unwrap();
    destination.command(|engine| engine.stop()).unwrap();
    assert_eq!(destination.engine.run_state(), RunState::Inmigrate);
    source.migrate(&address);
    arrived_in(&source, &destination, RunState::Paused);
}

#[test]
fn a_destination_refuses_to_migrate_to_reset_and_to_listen_twice() {
    let (destination, address) = Build::new(&Runners::default()).destination(TCP);
    let to = address.clone();
    let out = destination.command(move |engine| engine.migrate(to, false)).unwrap_err();
    assert_eq!(out, "Guest is waiting for an incoming migration");
    let reset = destination.command(|engine| engine.system_reset()).unwrap_err();
    assert_eq!(reset, "Guest is waiting for an incoming migration");
    let twice = destination.command(move |engine| engine.migrate_incoming(address, true)).unwrap_err();
    assert_eq!(twice, "The incoming migration has already been started");
}

#[test]
fn a_machine_that_awaits_nobody_refuses_to_listen() {
    let source = Build::new(&Runners::default()).source();
    let at = Address::parse(TCP).unwrap();
    let refused = source.command(move |engine| engine.migrate_incoming(at, true)).unwrap_err();
    assert_eq!(refused, "'-incoming' was not specified on the command line");
}
