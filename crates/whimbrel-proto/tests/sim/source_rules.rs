//! The source's machine alone: what it makes of a hostile peer, of a faulty engine, and of events that cross.

use std::time::Duration;

use whimbrel_proto::Violation;
use whimbrel_proto::action::{Action, Channel, HandlerId};
use whimbrel_proto::capabilities::{Capabilities, Capability};
use whimbrel_proto::event::{Event, Pages};
use whimbrel_proto::outcome::{Outcome, Phase};
use whimbrel_proto::run_state::RunState;
use whimbrel_proto::source::{FENCE, Source, SourceConfig};
use whimbrel_wire::command::Command;
use whimbrel_wire::return_path::ReturnPathMessage;

pub const NOW: Duration = Duration::from_millis(1);

pub fn source() -> Source {
    Source::new(SourceConfig {
        capabilities: Capabilities::NONE.with(Capability::ReturnPath),
        peer: "peer".into(),
        ..SourceConfig::default()
    })
}

/// What an engine for which everything works would answer.
pub fn answers(action: &Action) -> Vec<Event> {
    let pending = |exact| Event::Pending { handler: HandlerId(0), must: 0, may_postcopy: 0, exact, newly: 0 };
    match action {
        Action::Connect(channel) => vec![Event::Connected { channel: *channel, bidirectional: true }],
        Action::Announce | Action::Command(_) | Action::Setup(_) => vec![Event::Done],
        Action::Estimate => vec![pending(false), Event::Done],
        Action::SyncDirty { .. } => vec![pending(true), Event::Done],
        Action::Iterate { handler, .. } | Action::Complete { handler, .. } => {
            vec![Event::Progress { handler: *handler, bytes: 8, pages: Pages::default(), left: 0 }]
        }
        Action::Measure => vec![Event::Measured { bytes: 1, vmdesc: 1, fixed: NOW }],
        Action::SaveDevices { .. } => vec![Event::DevicesSaved { bytes: 1 }],
        Action::Barrier => vec![Event::Flushed { total: 1 }],
        Action::StopVm => vec![Event::Stopped { took: NOW }],
        Action::ResumeVm => vec![Event::Resumed],
        Action::Commit => vec![Event::Committed],
        _ => vec![],
    }
}

/// Runs the source until it asks for something like that, which is left unanswered.
pub fn until(source: &mut Source, wanted: impl Fn(&Action) -> bool) -> Action {
    for _ in 0..100 {
        let action = source.next(NOW);
        if wanted(&action) {
            return action;
        }
        for answer in answers(&action) {
            source.handle(NOW, answer).unwrap();
        }
        if let Action::Await { .. } = action {
            // It waits for the PONG, or for SHUT.
            source.handle(NOW, Event::Peer(ReturnPathMessage::Pong(FENCE))).unwrap();
        }
    }
    panic!("it never came");
}

fn finish(source: &mut Source) -> Outcome {
    match until(source, |action| matches!(action, Action::Finish(_))) {
        Action::Finish(outcome) => outcome,
        _ => unreachable!(),
    }
}

fn committed() -> Source {
    let mut source = source();
    until(&mut source, |action| *action == Action::Commit);
    source
}

pub fn is_stop(action: &Action) -> bool {
    *action == Action::StopVm
}

pub fn peer(source: &mut Source, message: ReturnPathMessage) {
    source.handle(NOW, Event::Peer(message)).unwrap();
}

#[test]
fn a_pong_that_was_not_asked_for_does_not_open_the_commit() {
    let mut source = source();
    until(&mut source, is_stop);
    peer(&mut source, ReturnPathMessage::Pong(FENCE));
    source.handle(NOW, Event::Stopped { took: NOW }).unwrap();
    until(&mut source, |action| *action == Action::Command(Command::Ping(FENCE)));
    source.handle(NOW, Event::Done).unwrap();
    assert_eq!(source.next(NOW), Action::Barrier);
    source.handle(NOW, Event::Flushed { total: 0 }).unwrap();
    assert!(matches!(source.next(NOW), Action::Await { until: Some(_) }), "the early PONG was not counted");
    peer(&mut source, ReturnPathMessage::Pong(1));
    assert!(matches!(source.next(NOW), Action::Await { .. }), "nor is another value");
    peer(&mut source, ReturnPathMessage::Pong(FENCE));
    assert_eq!(source.next(NOW), Action::Commit);
}

#[test]
fn a_pong_during_the_barrier_is_not_lost() {
    let mut source = source();
    until(&mut source, |action| *action == Action::Barrier);
    peer(&mut source, ReturnPathMessage::Pong(FENCE));
    source.handle(NOW, Event::Flushed { total: 0 }).unwrap();
    assert_eq!(source.next(NOW), Action::Commit);
}

#[test]
fn messages_that_have_no_place_in_precopy_fail_the_attempt_and_resume_the_guest() {
    let messages = [
        ReturnPathMessage::Shut(0),
        ReturnPathMessage::Shut(1),
        ReturnPathMessage::ResumeAck(1),
        ReturnPathMessage::RequestPages { block: None, start: 0, length: 4096 },
        ReturnPathMessage::RecvBitmap { block: "pc.ram".into(), bitmap: vec![0; 8] },
    ];
    for message in messages {
        let mut source = source();
        until(&mut source, |action| *action == Action::Barrier);
        peer(&mut source, message);
        source.handle(NOW, Event::Flushed { total: 0 }).unwrap();
        assert_eq!(source.next(NOW), Action::ResumeVm);
        source.handle(NOW, Event::Resumed).unwrap();
        assert!(matches!(finish(&mut source), Outcome::Failed { phase: Phase::Switchover, .. }));
    }
}

#[test]
fn an_answer_that_was_not_asked_for_is_refused_and_changes_nothing() {
    let mut source = source();
    until(&mut source, is_stop);
    for stray in [
        Event::Done,
        Event::Committed,
        Event::Resumed,
        Event::Flushed { total: 9 },
        Event::Connected { channel: Channel::Main, bidirectional: true },
        Event::DevicesSaved { bytes: 9 },
    ] {
        let refused = source.handle(NOW, stray);
        assert!(matches!(refused, Err(Violation::Unexpected { asked: "StopVm", .. })), "{refused:?}");
    }
    assert_eq!(source.next(NOW), Action::Await { until: None }, "its answer is still missing");
    source.handle(NOW, Event::Stopped { took: NOW }).unwrap();
    assert_eq!(source.next(NOW), Action::SyncDirty { last: true });
}

#[test]
fn progress_of_another_handler_is_refused() {
    let mut source = source();
    until(&mut source, |action| matches!(action, Action::Complete { .. }));
    let stray = Event::Progress { handler: HandlerId(7), bytes: 1, pages: Pages::default(), left: 0 };
    assert!(matches!(source.handle(NOW, stray), Err(Violation::Unexpected { .. })));
}

#[test]
fn a_cancel_while_the_guest_is_being_stopped_waits_for_the_stop_and_resumes() {
    let mut source = source();
    until(&mut source, is_stop);
    source.handle(NOW, Event::Cancel).unwrap();
    assert_eq!(source.next(NOW), Action::Await { until: None });
    source.handle(NOW, Event::Stopped { took: NOW }).unwrap();
    assert!(matches!(source.next(NOW), Action::Status(_)));
    assert_eq!(source.next(NOW), Action::ResumeVm);
    source.handle(NOW, Event::Resumed).unwrap();
    assert_eq!(finish(&mut source), Outcome::Cancelled);
}

#[test]
fn a_link_lost_while_the_guest_is_being_stopped_resumes_it() {
    for channel in [Channel::Main, Channel::ReturnPath] {
        let mut source = source();
        until(&mut source, is_stop);
        source.handle(NOW, Event::ChannelLost(channel, "gone".into())).unwrap();
        source.handle(NOW, Event::Stopped { took: NOW }).unwrap();
        assert_eq!(source.next(NOW), Action::ResumeVm);
        source.handle(NOW, Event::Resumed).unwrap();
        let reason = "gone".into();
        assert_eq!(finish(&mut source), Outcome::Failed { phase: Phase::Switchover, reason });
    }
}

#[test]
fn a_guest_that_cannot_be_resumed_is_told_of_beside_what_ended_the_attempt() {
    let refused = |source: &mut Source| {
        until(source, |action| *action == Action::ResumeVm);
        source.handle(NOW, Event::ResumeFailed("it stands".into())).unwrap();
        finish(source)
    };
    let stopped = || {
        let mut source = source();
        until(&mut source, is_stop);
        source.handle(NOW, Event::Stopped { took: NOW }).unwrap();
        source
    };
    let phase = Phase::Switchover;
    let mut source = stopped();
    source.handle(NOW, Event::ChannelLost(Channel::Main, "gone".into())).unwrap();
    let reason = "gone; and it stands".into();
    assert_eq!(refused(&mut source), Outcome::Failed { phase, reason });
    let mut source = stopped();
    source.handle(NOW, Event::Cancel).unwrap();
    assert_eq!(refused(&mut source), Outcome::Cancelled);
    // After a pause that took too long, nobody else has failed.
    let mut source = stopped();
    let mut now = NOW;
    let resume = loop {
        now += Duration::from_secs(1);
        match source.next(now) {
            Action::ResumeVm => break source.handle(now, Event::ResumeFailed("it stands".into())),
            Action::Complete { handler, .. } => {
                let progress = Event::Progress { handler, bytes: 1, pages: Pages::default(), left: 4096 };
                source.handle(now, progress).unwrap();
            }
            action => answers(&action).into_iter().for_each(|event| source.handle(now, event).unwrap()),
        }
    };
    resume.unwrap();
    assert_eq!(finish(&mut source), Outcome::Failed { phase: Phase::Iterate, reason: "it stands".into() });
}

#[test]
fn a_broken_engine_still_tells_whether_the_guest_was_stopped() {
    let mut source = source();
    until(&mut source, is_stop);
    source.handle(NOW, Event::Broken("no memory".into())).unwrap();
    assert_eq!(source.next(NOW), Action::Await { until: None });
    source.handle(NOW, Event::Stopped { took: NOW }).unwrap();
    assert_eq!(source.next(NOW), Action::ResumeVm);
    source.handle(NOW, Event::Resumed).unwrap();
    assert!(matches!(finish(&mut source), Outcome::Failed { .. }));
}

#[test]
fn the_first_cause_is_the_one_that_is_told() {
    let mut source = source();
    until(&mut source, is_stop);
    peer(&mut source, ReturnPathMessage::Shut(1));
    source.handle(NOW, Event::ChannelLost(Channel::Main, "broken pipe".into())).unwrap();
    source.handle(NOW, Event::Cancel).unwrap();
    source.handle(NOW, Event::Stopped { took: NOW }).unwrap();
    let reason = "Sibling indicated error 1".into();
    assert_eq!(finish(&mut source), Outcome::Failed { phase: Phase::Switchover, reason });
}

#[test]
fn a_commit_of_which_nothing_left_is_no_commit() {
    let mut source = committed();
    assert!(!source.may_cancel());
    source.handle(NOW, Event::ChannelLost(Channel::Main, "broken pipe".into())).unwrap();
    assert_eq!(source.next(NOW), Action::ResumeVm);
    source.handle(NOW, Event::Resumed).unwrap();
    let reason = "broken pipe".into();
    assert_eq!(finish(&mut source), Outcome::Failed { phase: Phase::Switchover, reason });
}

#[test]
fn a_cancel_that_crosses_a_commit_taken_back_is_granted_after_all() {
    let mut source = committed();
    assert_eq!(source.handle(NOW, Event::Cancel), Err(Violation::Committed));
    source.handle(NOW, Event::ChannelLost(Channel::Main, "cancelled".into())).unwrap();
    until(&mut source, |action| *action == Action::ResumeVm);
    source.handle(NOW, Event::Resumed).unwrap();
    assert_eq!(finish(&mut source), Outcome::Cancelled);
}

#[test]
fn a_commit_that_may_have_left_is_a_commit() {
    let mut source = committed();
    source.handle(NOW, Event::Broken("the engine's thread died".into())).unwrap();
    let reason = "outcome unknown: peer: the engine's thread died".into();
    assert_eq!(source.next(NOW), Action::Finish(Outcome::Unknown { reason }));
}

#[test]
fn a_lost_return_path_during_the_commit_never_resumes_the_guest() {
    let mut source = committed();
    source.handle(NOW, Event::ChannelLost(Channel::ReturnPath, "gone".into())).unwrap();
    assert_eq!(source.next(NOW), Action::Await { until: None }, "the commit's answer comes first");
    source.handle(NOW, Event::Committed).unwrap();
    let reason = "outcome unknown: peer: gone".into();
    assert_eq!(source.next(NOW), Action::Finish(Outcome::Unknown { reason }));
}

#[test]
fn a_shut_that_overtakes_the_engines_word_of_the_commit_counts() {
    let mut source = committed();
    peer(&mut source, ReturnPathMessage::Shut(0));
    source.handle(NOW, Event::ChannelLost(Channel::ReturnPath, "closed".into())).unwrap();
    source.handle(NOW, Event::Committed).unwrap();
    assert_eq!(source.next(NOW), Action::Finish(Outcome::Completed));
}

#[test]
fn a_peer_that_claims_to_run_before_any_byte_of_the_commit_left_is_not_raced() {
    let mut source = committed();
    peer(&mut source, ReturnPathMessage::Shut(0));
    source.handle(NOW, Event::ChannelLost(Channel::Main, "broken pipe".into())).unwrap();
    assert!(matches!(source.next(NOW), Action::Finish(Outcome::Unknown { .. })), "nobody, rather than both");
}

#[test]
fn after_the_commit_nothing_resumes_the_guest() {
    let blows = [
        Event::ChannelLost(Channel::Main, "gone".into()),
        Event::ChannelLost(Channel::ReturnPath, "gone".into()),
        Event::Broken("gone".into()),
        Event::SaveFailed("gone".into()),
        Event::Peer(ReturnPathMessage::Shut(1)),
        Event::Peer(ReturnPathMessage::ResumeAck(1)),
    ];
    for blow in blows {
        let mut source = committed();
        source.handle(NOW, Event::Committed).unwrap();
        assert_eq!(source.handle(NOW, Event::Cancel), Err(Violation::Committed));
        source.handle(NOW, blow.clone()).unwrap();
        assert!(matches!(source.next(NOW), Action::Finish(Outcome::Unknown { .. })), "{blow:?}");
    }
}

#[test]
fn without_a_return_path_trouble_with_the_commit_makes_the_outcome_unknown() {
    let mut source = Source::new(SourceConfig { peer: "peer".into(), ..SourceConfig::default() });
    until(&mut source, |action| *action == Action::Commit);
    source.handle(NOW, Event::Committed).unwrap();
    source.handle(NOW, Event::ChannelLost(Channel::Main, "cut in the vmdesc".into())).unwrap();
    let reason = "outcome unknown: peer: cut in the vmdesc".into();
    assert_eq!(source.next(NOW), Action::Finish(Outcome::Unknown { reason }));
}

#[test]
fn migrate_continue_is_refused_where_nothing_waits_for_it() {
    let mut source = source();
    assert_eq!(source.handle(NOW, Event::Continue), Err(Violation::NotWaiting));
    until(&mut source, is_stop);
    assert_eq!(source.handle(NOW, Event::Continue), Err(Violation::NotWaiting));
}

#[test]
fn a_cancel_before_anything_was_done_still_shows_every_status() {
    let mut source = source();
    source.handle(NOW, Event::Cancel).unwrap();
    let mut shown = Vec::new();
    while let Action::Status(status) = source.next(NOW) {
        shown.push(status.name());
    }
    assert_eq!(shown, ["setup", "cancelling"]);
    assert_eq!(source.next(NOW), Action::Finish(Outcome::Cancelled));
    assert_eq!(source.next(NOW), Action::Finish(Outcome::Cancelled), "and so again");
}

#[test]
fn no_order_of_events_resumes_a_guest_that_was_given_away() {
    let mut seed = 3u64;
    let mut pick = |count: usize| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) as usize % count
    };
    let (mut completed, mut resumed) = (0, 0);
    for _ in 0..20_000 {
        let mut source = source();
        let (mut given_away, mut stopped) = (false, false);
        for _ in 0..200 {
            let action = source.next(NOW);
            match &action {
                Action::ResumeVm => {
                    assert!(stopped && !given_away);
                    resumed += 1;
                }
                Action::Finish(outcome) => {
                    let ours = matches!(outcome, Outcome::Failed { .. } | Outcome::Cancelled);
                    assert_eq!(ours, !given_away, "{outcome:?}");
                    assert!(!ours || !stopped, "it ended with the guest stopped: {outcome:?}");
                    completed += usize::from(*outcome == Outcome::Completed);
                    break;
                }
                _ => {}
            }
            if pick(20) == 0 {
                let reason = || "random".into();
                let blow = match pick(10) {
                    0 => Event::ChannelLost(Channel::ReturnPath, reason()),
                    1 => Event::Peer(ReturnPathMessage::Shut(0)),
                    2 => Event::Peer(ReturnPathMessage::Shut(1)),
                    3 => Event::SaveFailed(reason()),
                    4 => Event::Cancel,
                    5 => Event::Continue,
                    6 => Event::Committed,
                    7 => Event::Resumed,
                    8 => Event::Guest(RunState::Paused),
                    _ => Event::Peer(ReturnPathMessage::Pong(FENCE)),
                };
                let stray = matches!(blow, Event::Committed | Event::Resumed);
                let told = source.handle(NOW, blow);
                // A stray answer is refused; one that was asked for is its action's.
                if stray && told.is_ok() {
                    given_away |= action == Action::Commit;
                    stopped &= action != Action::ResumeVm;
                }
            }
            match &action {
                Action::StopVm if pick(10) == 0 => {
                    source.handle(NOW, Event::StopFailed("random".into())).unwrap();
                }
                Action::Commit if pick(3) == 0 && !given_away => {
                    source.handle(NOW, Event::ChannelLost(Channel::Main, "random".into())).unwrap();
                    // Taken back, unless the peer claimed to run.
                    given_away = matches!(source.clone().next(NOW), Action::Finish(Outcome::Unknown { .. }));
                }
                _ => {
                    stopped |= action == Action::StopVm;
                    stopped &= action != Action::ResumeVm;
                    given_away |= action == Action::Commit;
                    for answer in answers(&action) {
                        let _late = source.handle(NOW, answer);
                    }
                }
            }
            if let Action::Await { until: Some(_) } = action {
                let message =
                    if given_away { ReturnPathMessage::Shut(0) } else { ReturnPathMessage::Pong(FENCE) };
                peer(&mut source, message);
            }
        }
    }
    assert!(completed > 100 && resumed > 100, "{completed} {resumed}");
}
