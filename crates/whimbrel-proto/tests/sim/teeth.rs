//! The simulation's own assertions, seen to fail: each test breaks one rule in a driver and must panic for it.

use whimbrel_proto::outcome::Outcome;

use crate::world::*;

fn broken(broken: Broken) -> Scenario {
    Scenario { broken, ..Scenario::default() }
}

#[test]
#[should_panic(expected = "started before the commit")]
fn a_destination_that_starts_before_eof_is_noticed() {
    broken(Broken::StartsBeforeEof).run();
}

#[test]
#[should_panic(expected = "two runners")]
fn an_engine_that_commits_unasked_is_noticed() {
    // The PONG never comes, so the source resumes, rightly; the destination has read an EOF that nobody allowed.
    broken(Broken::CommitsUnasked).fault(At::Time(MS * 2), What::ReverseVanishes).run();
}

#[test]
#[should_panic(expected = "two runners")]
fn a_source_that_resumes_when_the_outcome_is_unknown_is_noticed() {
    let scenario = Scenario { swallows_shut: true, ..broken(Broken::ResumesWhenUnknown) };
    scenario.run();
}

#[test]
#[should_panic(expected = "not resumed")]
fn a_destination_that_answers_before_it_has_applied_is_noticed() {
    let world = Scenario { apply_fails: true, ..broken(Broken::AnswersBeforeApply) }.run();
    assert!(matches!(world.source.outcome, Some(Outcome::Failed { .. })), "not resumed: {}", world.story());
}

#[test]
#[should_panic(expected = "pages lost")]
fn a_last_sync_that_is_left_out_is_noticed() {
    let mut scenario = broken(Broken::OmitsLastSync);
    scenario.load.rate = 150 * MIB;
    scenario.run();
}

#[test]
#[should_panic(expected = "pages lost")]
fn one_dirty_page_that_is_not_sent_is_noticed() {
    let mut scenario = broken(Broken::DropsOnePage);
    scenario.load.working_set = 1;
    scenario.run();
}
