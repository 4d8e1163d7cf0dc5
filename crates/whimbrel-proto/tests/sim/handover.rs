//! One runner, whatever is lost or killed, and a failed attempt leaves no trace.
//!
//! | the source ends | the destination | whose guest |
//! |---|---|---|
//! | completed (fenced) | has started | the destination's |
//! | failed, cancelled: EOF has not left | has never started | the source's, in the run state it was in |
//! | unknown: EOF has left, no SHUT 0 came | has started, or never will | not the source's until an operator decides |
//! | killed | has started if EOF reached it | the destination's, or nobody's |
//!
//! `check_runners` (never two) is asserted at every change of every simulation; this table at the end of each.

use whimbrel_proto::capabilities::Capability;
use whimbrel_proto::outcome::{Outcome, Phase};
use whimbrel_proto::run_state::RunState;
use whimbrel_proto::source::Transport;

use crate::world::*;

/// The scenarios in which every step is tried.
fn scenarios() -> Vec<(&'static str, Scenario)> {
    let base = Scenario { pages: 64, ..Scenario::default() };
    let base = Scenario { load: crate::guest::Load { working_set: 48, ..base.load }, ..base };
    let mut two = base.clone();
    (two.handlers, two.early_devices) = (2, true);
    vec![
        ("return path", base.clone()),
        ("no return path", base.clone().without_return_path()),
        ("pause before switchover", base.clone().with(Capability::PauseBeforeSwitchover)),
        ("two handlers and early devices", two),
        ("switchover ack", base.clone().with(Capability::SwitchoverAck)),
        ("paused guest", Scenario { state: RunState::Paused, ..base }),
    ]
}

/// Every point at which something can happen in this scenario.
fn points(scenario: &Scenario) -> Vec<At> {
    let world = scenario.clone().run();
    assert_eq!(world.outcomes(), (Some(&Outcome::Completed), Some(&Outcome::Completed)), "{}", world.story());
    let both = |at: fn(usize, Moment) -> At, steps: usize| {
        (0..steps).flat_map(move |step| [at(step, Moment::Before), at(step, Moment::After)])
    };
    both(At::Source, world.source.steps).chain(both(At::Destination, world.destination.steps)).collect()
}

fn is_fenced(world: &World) -> bool {
    world.scenario.capabilities.has(Capability::ReturnPath) && world.scenario.transport == Transport::Socket
}

/// The module's table.
fn check(world: &World) {
    let story = || world.story();
    match &world.source.outcome {
        Some(Outcome::Completed) => {
            assert!(world.source.eof_left && !world.source.running);
            assert!(world.destination.started || !is_fenced(world), "{}", story());
            assert_eq!(world.source.state, RunState::Postmigrate);
        }
        Some(Outcome::Failed { .. } | Outcome::Cancelled) => {
            assert!(!world.source.eof_left, "{}", story());
            assert!(!world.destination.started, "{}", story());
            let alive = world.source.machine.is_some();
            assert_eq!(world.source.running, alive && world.source.state == RunState::Running, "{}", story());
            assert_ne!(world.source.state, RunState::FinishMigrate);
        }
        Some(Outcome::Unknown { reason }) => {
            assert!(world.source.eof_left, "{}", story());
            assert!(reason.0.starts_with("outcome unknown: tcp:sim:4444: "), "{reason}");
            assert!(!world.source.running);
            assert_eq!(world.source.state, RunState::Postmigrate);
        }
        Some(other) => panic!("{other:?}"),
        None => assert!(!world.source.running),
    }
    match &world.destination.outcome {
        Some(Outcome::Completed) => assert!(world.destination.started),
        Some(Outcome::Failed { .. }) => assert!(!world.destination.started && !world.destination.running),
        Some(other) => panic!("{other:?}"),
        None => {}
    }
}

/// The guest is whole at the source, and moves when it is tried again.
fn check_second_attempt(world: &World) {
    assert_eq!(world.source.running, world.scenario.state.is_live(), "{}", world.story());
    let second = world.again();
    assert_eq!(
        second.outcomes(),
        (Some(&Outcome::Completed), Some(&Outcome::Completed)),
        "{}",
        second.story()
    );
    assert_eq!(second.destination.state, world.scenario.state);
}

/// Runs `what` at every point of every scenario; returns how many ended in each way.
fn everywhere(what: What) -> Tally {
    let mut tally = Tally::default();
    for (name, scenario) in scenarios() {
        for at in points(&scenario) {
            let world = scenario.clone().fault(at, what.clone()).run();
            check(&world);
            match &world.source.outcome {
                Some(Outcome::Completed) => tally.completed += 1,
                _ if world.source.machine.is_none() => tally.killed += 1,
                Some(Outcome::Failed { .. }) => {
                    tally.failed += 1;
                    check_second_attempt(&world);
                }
                Some(Outcome::Cancelled) => {
                    tally.cancelled += 1;
                    check_second_attempt(&world);
                }
                Some(Outcome::Unknown { .. }) => {
                    assert!(is_fenced(&world), "{name}: only a fenced source waits for SHUT");
                    tally.unknown += 1;
                }
                other => panic!("{other:?}"),
            }
        }
    }
    println!("{what:?}: {tally:?}");
    tally
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Tally {
    completed: usize,
    failed: usize,
    cancelled: usize,
    unknown: usize,
    killed: usize,
}

#[test]
fn link_cut_at_every_step_leaves_one_runner_or_none() {
    let tally = everywhere(What::Cut { lossy: false });
    assert!(tally.failed > 100 && tally.completed > 0, "{tally:?}");
}

#[test]
fn link_cut_with_everything_under_way_lost_at_every_step() {
    let tally = everywhere(What::Cut { lossy: true });
    assert!(tally.failed > 100 && tally.unknown > 0, "{tally:?}");
}

#[test]
fn messages_to_the_destination_vanish_from_every_step_on() {
    let tally = everywhere(What::ForwardVanishes);
    assert!(tally.failed > 100 && tally.unknown > 0, "{tally:?}");
}

#[test]
fn messages_to_the_source_vanish_from_every_step_on() {
    let tally = everywhere(What::ReverseVanishes);
    assert!(tally.failed > 100 && tally.unknown > 0, "{tally:?}");
}

#[test]
fn destination_killed_at_every_step() {
    let tally = everywhere(What::KillDestination);
    assert!(tally.failed > 100 && tally.unknown > 0, "{tally:?}");
}

#[test]
fn destination_quit_at_every_step() {
    let tally = everywhere(What::DestinationQuit);
    assert!(tally.failed > 100 && tally.unknown > 0, "{tally:?}");
}

#[test]
fn source_killed_at_every_step() {
    let tally = everywhere(What::KillSource);
    assert!(tally.killed > 100, "{tally:?}");
}

#[test]
fn source_quit_at_every_step() {
    let tally = everywhere(What::SourceQuit);
    assert!(tally.killed > 100 && tally.unknown == 0 && tally.cancelled == 0, "{tally:?}");
}

#[test]
fn cancel_at_every_step_is_taken_before_the_commit_and_refused_after() {
    let mut refused = 0;
    for (_, scenario) in scenarios() {
        for at in points(&scenario) {
            let world = scenario.clone().fault(at, What::Cancel).run();
            check(&world);
            let cancelled = world.source.outcome == Some(Outcome::Cancelled);
            assert_eq!(cancelled, !world.source.eof_left, "{}", world.story());
            if cancelled {
                check_second_attempt(&world);
            } else {
                assert_eq!(world.source.outcome, Some(Outcome::Completed), "{}", world.story());
                refused += world.refused.len();
            }
        }
    }
    assert!(refused > 0, "no cancel came between the commit and the end");
}

#[test]
fn two_faults_at_once_leave_one_runner_or_none() {
    let kinds = [
        What::Cut { lossy: false },
        What::Cut { lossy: true },
        What::ForwardVanishes,
        What::ReverseVanishes,
        What::KillSource,
        What::KillDestination,
        What::Cancel,
        What::SourceStop,
        What::SourceCont,
        What::DestinationStop,
        What::DestinationQuit,
        What::SourceQuit,
        What::Poweroff,
        What::TripleFault,
        What::InternalError,
    ];
    let mut seed = 1u64;
    let mut pick = |count: usize| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) as usize % count
    };
    for (_, scenario) in scenarios() {
        let points = points(&scenario);
        for _ in 0..400 {
            let mut tried = scenario.clone();
            for _ in 0..2 {
                tried = tried.fault(points[pick(points.len())], kinds[pick(kinds.len())].clone());
            }
            check(&tried.run());
        }
    }
}

#[test]
fn apply_failure_resumes_the_source_before_the_commit() {
    for (name, scenario) in scenarios() {
        let world = Scenario { apply_fails: true, ..scenario }.run();
        check(&world);
        assert!(matches!(world.destination.outcome, Some(Outcome::Failed { phase: Phase::Apply, .. })));
        if is_fenced(&world) {
            let expected =
                Outcome::Failed { phase: Phase::Switchover, reason: "Sibling indicated error 1".into() };
            assert_eq!(world.source.outcome, Some(expected), "{name}");
            check_second_attempt(&world);
        } else {
            assert_eq!(world.source.outcome, Some(Outcome::Completed), "no fence, no word of it");
        }
    }
}

#[test]
fn start_failure_after_the_commit_is_an_unknown_outcome_and_nobody_runs() {
    let world = Scenario { start_fails: true, ..Scenario::default() }.run();
    check(&world);
    let reason = "outcome unknown: tcp:sim:4444: Sibling indicated error 1".into();
    assert_eq!(world.source.outcome, Some(Outcome::Unknown { reason }));
    assert!(!world.source.running && !world.destination.running);
    assert!(RunState::Postmigrate.may_become(RunState::Running), "an operator's cont starts it");
}

#[test]
fn save_failure_resumes_the_source() {
    for (_, scenario) in scenarios() {
        let world = Scenario { save_fails: true, ..scenario }.run();
        check(&world);
        let reason = "virtio-blk 3: save refused".into();
        assert_eq!(world.source.outcome, Some(Outcome::Failed { phase: Phase::Switchover, reason }));
        check_second_attempt(&world);
    }
}

#[test]
fn stop_failure_leaves_the_guest_as_it_was() {
    for (_, scenario) in scenarios() {
        let world = Scenario { stop_fails: true, ..scenario }.run();
        check(&world);
        let reason = "vCPU 1 hangs".into();
        assert_eq!(world.source.outcome, Some(Outcome::Failed { phase: Phase::Switchover, reason }));
        assert!(!world.notes.iter().any(|(_, note)| *note == Note::Resume), "it never stopped");
        check_second_attempt(&world);
    }
}

#[test]
fn a_dirty_log_that_fails_at_any_pass_leaves_the_guest_at_the_source() {
    for (_, scenario) in scenarios() {
        let passes =
            scenario.clone().run().notes.iter().filter(|(_, note)| matches!(note, Note::Pass(_))).count();
        for pass in 0..passes {
            let world = Scenario { sync_fails_at: Some(pass), ..scenario.clone() }.run();
            check(&world);
            assert!(matches!(&world.source.outcome, Some(Outcome::Failed { .. })), "{}", world.story());
            check_second_attempt(&world);
        }
    }
}

#[test]
fn connection_refused_fails_in_connect_and_nothing_else_happens() {
    let world = Scenario::default().fault(At::Time(std::time::Duration::ZERO), What::KillDestination).run();
    let expected = Outcome::Failed { phase: Phase::Connect, reason: "connection refused".into() };
    assert_eq!(world.source.outcome, Some(expected));
    assert!(!world.notes.iter().any(|(_, note)| matches!(note, Note::Stop | Note::Pass(_))));
    check_second_attempt(&world);
}

#[test]
fn a_pong_within_its_deadline_lets_the_move_complete() {
    let world = Scenario { pong_delay: SECOND * 9, ..Scenario::default() }.run();
    check(&world);
    assert_eq!(world.source.outcome, Some(Outcome::Completed));
}

#[test]
fn a_late_pong_resumes_the_source_and_the_destination_never_runs() {
    let world = Scenario { pong_delay: SECOND * 11, ..Scenario::default() }.run();
    check(&world);
    assert!(matches!(&world.source.outcome, Some(Outcome::Failed { phase: Phase::Switchover, reason })
        if reason.0 == "tcp:sim:4444 did not confirm in time that it has applied everything"));
    check_second_attempt(&world);
}

#[test]
fn a_missing_shut_is_an_unknown_outcome_while_the_destination_runs() {
    let world = Scenario { swallows_shut: true, ..Scenario::default() }.run();
    check(&world);
    assert!(matches!(world.source.outcome, Some(Outcome::Unknown { .. })));
    assert!(world.destination.started);
}

#[test]
fn a_file_is_committed_by_its_fsync_and_any_failure_before_resumes_the_guest() {
    let scenario = Scenario { transport: Transport::File, ..Scenario::default() };
    let whole = scenario.clone().run();
    assert_eq!(whole.source.outcome, Some(Outcome::Completed));
    assert!(!whole.source.machine.as_ref().unwrap().fenced());
    let mut failed = 0;
    for step in 0..whole.source.steps {
        for moment in [Moment::Before, Moment::After] {
            // The disk is full.
            let world = scenario.clone().fault(At::Source(step, moment), What::Cut { lossy: true }).run();
            if world.source.eof_left {
                assert_eq!(world.source.outcome, Some(Outcome::Completed));
            } else {
                assert!(matches!(world.source.outcome, Some(Outcome::Failed { .. })));
                assert!(world.source.running && world.source.state == RunState::Running);
                assert_eq!(world.again().source.outcome, Some(Outcome::Completed));
                failed += 1;
            }
        }
    }
    assert!(failed > 20);
}
