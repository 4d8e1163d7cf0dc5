//! The right side ends in the right run state, whatever is done to the guest and whenever.
//!
//! | done | guest runs at the source | finish-migrate, or postmigrate with the other side inmigrate | guest runs at the destination |
//! |---|---|---|---|
//! | `stop` at the source | paused, wherever it ends | nothing: it stands still already | nothing |
//! | `cont` at the source | nothing | refused | (an operator's decision) |
//! | `system_reset`, triple fault | runs on | nothing | runs on |
//! | poweroff, internal error | shutdown, internal-error, wherever it ends | cannot happen | so at the destination |
//! | `stop` at the destination | paused there (source: nothing) | paused there | paused |
//! | `cont` at the destination | nothing, or undoes a `stop` | the same | the same |

use whimbrel_proto::outcome::Outcome;
use whimbrel_proto::run_state::RunState;

use crate::guest::Load;
use crate::world::*;

fn base() -> Scenario {
    Scenario { pages: 64, load: Load { rate: 20 * MIB, working_set: 48 }, ..Scenario::default() }
}

fn points(scenario: &Scenario) -> Vec<At> {
    let world = scenario.clone().run();
    let both = |at: fn(usize, Moment) -> At, steps: usize| {
        (0..steps).flat_map(move |step| [at(step, Moment::Before), at(step, Moment::After)])
    };
    both(At::Source, world.source.steps).chain(both(At::Destination, world.destination.steps)).collect()
}

/// The module's table: where `what` leaves a guest that ran when all began.
fn table(what: &What, source: RunState, destination: RunState) -> RunState {
    let runs_somewhere = source == RunState::Running || destination == RunState::Running;
    match what {
        What::SourceStop if source == RunState::Running => RunState::Paused,
        What::DestinationStop => RunState::Paused,
        What::Poweroff if runs_somewhere => RunState::Shutdown,
        What::InternalError if runs_somewhere => RunState::InternalError,
        _ => RunState::Running,
    }
}

const COMMANDS: [What; 8] = [
    What::SourceStop,
    What::SourceCont,
    What::SourceReset,
    What::TripleFault,
    What::Poweroff,
    What::InternalError,
    What::DestinationStop,
    What::DestinationCont,
];

#[test]
fn whatever_is_done_at_any_step_the_destination_ends_in_the_right_run_state() {
    for what in COMMANDS {
        for at in points(&base()) {
            let world = base().fault(at, what.clone()).run();
            assert_eq!(
                world.outcomes(),
                (Some(&Outcome::Completed), Some(&Outcome::Completed)),
                "{}",
                world.story()
            );
            let (_, source, destination) = world.struck[0];
            assert_eq!(world.destination.state, table(&what, source, destination), "{}", world.story());
            assert_eq!(world.source.state, RunState::Postmigrate);
        }
    }
}

#[test]
fn whatever_is_done_at_any_step_a_failed_move_leaves_the_source_in_the_right_run_state() {
    let failing = Scenario { apply_fails: true, ..base() };
    for what in COMMANDS {
        for at in points(&failing) {
            let world = failing.clone().fault(at, what.clone()).run();
            assert!(matches!(world.source.outcome, Some(Outcome::Failed { .. })), "{}", world.story());
            let (_, source, _) = world.struck[0];
            let expected = match what {
                // It acts on the destination, where the guest never arrives.
                What::DestinationStop => RunState::Running,
                _ => table(&what, source, RunState::Inmigrate),
            };
            assert_eq!(world.source.state, expected, "{}", world.story());
            assert_eq!(world.source.running, expected == RunState::Running);
            let second = world.again();
            assert_eq!(second.destination.state, expected, "{}", second.story());
        }
    }
}

#[test]
fn cont_at_the_source_of_a_paused_guest_counts_until_the_switchover() {
    let paused = Scenario { state: RunState::Paused, ..base() };
    for at in points(&paused) {
        let world = paused.clone().fault(at, What::SourceCont).run();
        assert_eq!(world.source.outcome, Some(Outcome::Completed));
        let (_, source, _) = world.struck[0];
        let expected = if source == RunState::Paused { RunState::Running } else { RunState::Paused };
        assert_eq!(world.destination.state, expected, "{}", world.story());
    }
}

#[test]
fn a_guest_moves_in_any_state_and_keeps_it() {
    let resting = [
        RunState::Paused,
        RunState::Prelaunch,
        RunState::Shutdown,
        RunState::InternalError,
        RunState::IoError,
        RunState::GuestPanicked,
        RunState::Watchdog,
        RunState::Suspended,
    ];
    for state in resting {
        let world = Scenario { state, ..base() }.run();
        assert_eq!(world.source.outcome, Some(Outcome::Completed), "{}", world.story());
        assert_eq!(world.destination.state, state);
        assert!(!world.destination.running);
    }
}

#[test]
fn without_autostart_a_live_guest_waits_paused_and_another_keeps_its_state() {
    for (state, expected) in [
        (RunState::Running, RunState::Paused),
        (RunState::Suspended, RunState::Paused),
        (RunState::Shutdown, RunState::Shutdown),
        (RunState::Prelaunch, RunState::Prelaunch),
    ] {
        let world = Scenario { state, autostart: false, ..base() }.run();
        assert_eq!(world.source.outcome, Some(Outcome::Completed), "{}", world.story());
        assert_eq!(world.destination.state, expected);
        assert!(!world.destination.running);
    }
}

#[test]
fn stop_then_cont_while_incoming_ends_running() {
    let world = base()
        .fault(At::Time(MS * 3), What::DestinationStop)
        .fault(At::Time(MS * 4), What::DestinationCont)
        .run();
    assert_eq!(world.destination.state, RunState::Running);
    assert!(world.destination.running);
}

#[test]
fn a_guest_that_stops_itself_while_pages_flow_moves_as_it_is() {
    let world = base().fault(At::Time(MS * 5), What::Poweroff).run();
    assert_eq!(world.outcomes(), (Some(&Outcome::Completed), Some(&Outcome::Completed)));
    assert_eq!(world.destination.state, RunState::Shutdown);
}
