//! The destination's machine alone: the order of apply, answer and start, and what it makes of a hostile source.

use std::time::Duration;

use whimbrel_proto::Violation;
use whimbrel_proto::action::{Channel, DestinationAction};
use whimbrel_proto::destination::{Destination, DestinationConfig};
use whimbrel_proto::event::{DestinationEvent, ElementHeader};
use whimbrel_proto::outcome::{Outcome, Phase};
use whimbrel_proto::run_state::RunState;
use whimbrel_proto::status::MigrationStatus;
use whimbrel_wire::command::{Command, PageSizes};
use whimbrel_wire::return_path::ReturnPathMessage;

const NOW: Duration = Duration::ZERO;

fn device() -> ElementHeader {
    ElementHeader::Device { idstr: "cpu".into() }
}

fn live() -> ElementHeader {
    ElementHeader::Live { idstr: "ram".into(), end: false }
}

fn command(command: Command) -> ElementHeader {
    ElementHeader::Command(command)
}

/// Plays a stream; returns what was done, in words, and the outcome.
fn play(
    config: DestinationConfig,
    bidirectional: bool,
    stream: Vec<ElementHeader>,
) -> (Vec<String>, Outcome) {
    play_with(config, bidirectional, stream, |_| None)
}

/// As [`play`]; what `otherwise` answers counts.
fn play_with(
    config: DestinationConfig,
    bidirectional: bool,
    stream: Vec<ElementHeader>,
    otherwise: impl Fn(&DestinationAction) -> Option<DestinationEvent>,
) -> (Vec<String>, Outcome) {
    let mut destination = Destination::new(config);
    let mut stream = stream.into_iter();
    let mut done = Vec::new();
    loop {
        let action = destination.next(NOW);
        let answer = match &action {
            DestinationAction::Finish(outcome) => return (done, outcome.clone()),
            DestinationAction::Accept => Some(DestinationEvent::Connected { bidirectional }),
            DestinationAction::ReadHeader => Some(DestinationEvent::Announced),
            DestinationAction::ReadElement => Some(match stream.next() {
                Some(header) => DestinationEvent::Element(header),
                None => DestinationEvent::ChannelLost(Channel::Main, "end of stream".into()),
            }),
            DestinationAction::Load => Some(DestinationEvent::Loaded),
            DestinationAction::Apply => Some(DestinationEvent::Applied),
            DestinationAction::Tell(_) => Some(DestinationEvent::Heard),
            DestinationAction::Start { .. } => Some(DestinationEvent::Started),
            DestinationAction::Drain => Some(DestinationEvent::Drained),
            _ => None,
        };
        let answer = otherwise(&action).or(answer);
        match action {
            DestinationAction::Load => done.push("load".into()),
            DestinationAction::Apply => done.push("apply".into()),
            DestinationAction::Start { run } => done.push(format!("start {run}")),
            DestinationAction::Reply(message) => done.push(format!("{message:?}")),
            DestinationAction::Tell(message) => done.push(format!("tell {message:?}")),
            DestinationAction::Drain => done.push("drain".into()),
            _ => {}
        }
        if let Some(answer) = answer {
            destination.handle(NOW, answer).unwrap();
        }
    }
}

fn plain(stream: Vec<ElementHeader>) -> (Vec<String>, Outcome) {
    play(DestinationConfig::default(), true, stream)
}

#[test]
fn a_ping_after_devices_is_answered_only_when_they_are_applied() {
    let (done, outcome) = plain(vec![
        command(Command::OpenReturnPath),
        command(Command::Ping(1)),
        live(),
        device(),
        device(),
        command(Command::Ping(7)),
        command(Command::Ping(8)),
        device(),
        command(Command::Ping(9)),
        ElementHeader::Eof,
    ]);
    assert_eq!(
        done,
        [
            "Pong(1)",
            "load",
            "load",
            "load",
            "apply",
            "Pong(7)",
            "Pong(8)",
            "load",
            "apply",
            "Pong(9)",
            "start true",
            "Shut(0)",
            "drain"
        ]
    );
    assert_eq!(outcome, Outcome::Completed);
}

#[test]
fn everything_is_applied_once_even_if_nothing_was_loaded() {
    let (done, outcome) = plain(vec![ElementHeader::Eof]);
    assert_eq!(done, ["apply", "start true", "drain"]);
    assert_eq!(outcome, Outcome::Completed);
}

#[test]
fn devices_after_the_fence_are_applied_before_the_start() {
    let (done, _) = plain(vec![device(), ElementHeader::Eof]);
    assert_eq!(done, ["load", "apply", "start true", "drain"]);
    let open = command(Command::OpenReturnPath);
    let (done, _) = plain(vec![open, device(), command(Command::Ping(7)), device(), ElementHeader::Eof]);
    assert_eq!(done, ["load", "apply", "Pong(7)", "load", "apply", "drain", "tell Shut(0)", "start true"]);
}

/// A source with a return path that asks for no confirmation, as QEMU's: it resumes its guest unless it hears SHUT 0.
fn unfenced() -> Vec<ElementHeader> {
    let open = command(Command::OpenReturnPath);
    vec![open, command(Command::Ping(1)), live(), device(), ElementHeader::Eof]
}

/// Plays an unfenced source up to `asked`, and answers that.
fn unfenced_until(asked: fn(&DestinationAction) -> bool, answer: DestinationEvent) -> (Vec<String>, Outcome) {
    play_with(DestinationConfig::default(), true, unfenced(), |action| asked(action).then(|| answer.clone()))
}

#[test]
fn a_source_that_is_not_fenced_hears_shut_before_the_guest_starts() {
    let (done, outcome) = plain(unfenced());
    assert_eq!(done, ["Pong(1)", "load", "load", "apply", "drain", "tell Shut(0)", "start true"]);
    assert_eq!(outcome, Outcome::Completed);
}

#[test]
fn a_source_that_is_gone_before_it_could_hear_shut_keeps_its_guest() {
    let lost = |channel| DestinationEvent::ChannelLost(channel, "reset".into());
    for (asked, answer) in [
        (
            (|action| matches!(action, DestinationAction::Drain)) as fn(&DestinationAction) -> bool,
            lost(Channel::Main),
        ),
        (|action| matches!(action, DestinationAction::Tell(_)), lost(Channel::ReturnPath)),
    ] {
        let (done, outcome) = unfenced_until(asked, answer);
        assert!(!done.iter().any(|step| step.starts_with("start")), "{done:?}");
        assert!(matches!(outcome, Outcome::Failed { .. }), "{outcome:?}");
    }
}

#[test]
fn a_guest_whose_source_may_have_heard_shut_stays_here_stopped() {
    let unheard = DestinationEvent::Unheard("no answer".into());
    let (done, outcome) = unfenced_until(|action| matches!(action, DestinationAction::Tell(_)), unheard);
    assert_eq!(done.last().map(String::as_str), Some("start false"));
    assert_eq!(outcome, Outcome::Unknown { reason: "no answer".into() });
}

#[test]
fn until_an_unfenced_source_may_have_heard_it_the_arrival_can_be_given_up() {
    let mut destination = Destination::new(DestinationConfig::default());
    let mut stream = unfenced().into_iter();
    loop {
        let answer = match destination.next(NOW) {
            DestinationAction::Accept => DestinationEvent::Connected { bidirectional: true },
            DestinationAction::ReadHeader => DestinationEvent::Announced,
            DestinationAction::ReadElement => DestinationEvent::Element(stream.next().unwrap()),
            DestinationAction::Load => DestinationEvent::Loaded,
            DestinationAction::Apply => DestinationEvent::Applied,
            DestinationAction::Drain => {
                assert!(!destination.committed() && destination.may_cancel());
                DestinationEvent::Drained
            }
            DestinationAction::Tell(_) => break,
            _ => continue,
        };
        destination.handle(NOW, answer).unwrap();
    }
    // It may have heard it already: what happens now ends nothing.
    assert!(!destination.may_cancel());
    assert_eq!(destination.handle(NOW, DestinationEvent::Cancel), Err(Violation::Committed));
    destination.handle(NOW, DestinationEvent::ChannelLost(Channel::Main, "closed".into())).unwrap();
    destination.handle(NOW, DestinationEvent::Heard).unwrap();
    assert_eq!(destination.next(NOW), DestinationAction::Start { run: true });
}

#[test]
fn a_stream_that_ends_before_eof_starts_nothing() {
    let whole = [command(Command::OpenReturnPath), live(), device(), command(Command::Ping(7))];
    for length in 0..=whole.len() {
        let (done, outcome) = plain(whole[..length].to_vec());
        assert!(!done.iter().any(|step| step.starts_with("start")), "{done:?}");
        let reason = "end of stream".into();
        assert_eq!(outcome, Outcome::Failed { phase: Phase::Load, reason });
        assert_eq!(done.contains(&"Shut(1)".to_string()), length > 0, "told if there is a return path");
    }
}

#[test]
fn switchover_ack_is_said_as_soon_as_the_return_path_is_open() {
    let config = DestinationConfig { switchover_ack: true, ..DestinationConfig::default() };
    let stream = vec![command(Command::OpenReturnPath), command(Command::Ping(1)), ElementHeader::Eof];
    let (done, _) = play(config, true, stream);
    assert_eq!(done[..2], ["SwitchoverAck", "Pong(1)"]);
}

#[test]
fn switchover_ack_may_be_switched_while_a_guest_is_awaited() {
    for on in [true, false] {
        let config = DestinationConfig { switchover_ack: !on, ..DestinationConfig::default() };
        let mut destination = Destination::new(config);
        destination.handle(NOW, DestinationEvent::SwitchoverAck(on)).unwrap();
        destination.handle(NOW, DestinationEvent::Connected { bidirectional: true }).unwrap();
        let mut done = Vec::new();
        loop {
            let answer = match destination.next(NOW) {
                DestinationAction::ReadHeader => DestinationEvent::Announced,
                DestinationAction::ReadElement if done.is_empty() => {
                    done.push("opened".to_owned());
                    DestinationEvent::Element(command(Command::OpenReturnPath))
                }
                DestinationAction::ReadElement => break,
                DestinationAction::Reply(message) => {
                    done.push(format!("{message:?}"));
                    continue;
                }
                _ => continue,
            };
            destination.handle(NOW, answer).unwrap();
        }
        assert_eq!(done.contains(&"SwitchoverAck".to_owned()), on);
    }
}

#[test]
fn a_second_open_return_path_is_ignored() {
    let open = command(Command::OpenReturnPath);
    let (_, outcome) = plain(vec![open.clone(), open, command(Command::SwitchoverStart), ElementHeader::Eof]);
    assert_eq!(outcome, Outcome::Completed);
}

#[test]
fn commands_that_cannot_be_are_refused_with_a_reason() {
    let table = [
        (Command::Ping(1), "PING came before OPEN_RETURN_PATH"),
        (
            Command::PostcopyAdvise(Some(PageSizes { summary: 4096, target: 4096 })),
            "asks for a mode that is not built",
        ),
        (Command::PostcopyListen, "asks for a mode that is not built"),
        (Command::PostcopyRun, "asks for a mode that is not built"),
        (Command::Packaged { length: 5 }, "asks for a mode that is not built"),
        (Command::EnableColo, "asks for a mode that is not built"),
        (Command::PostcopyResume, "asks for a mode that is not built"),
        (Command::RecvBitmap { block: "pc.ram".into() }, "asks for a mode that is not built"),
    ];
    for (refused, text) in table {
        let (_, outcome) = plain(vec![command(refused), ElementHeader::Eof]);
        let Outcome::Failed { phase: Phase::Load, reason } = outcome else { panic!("{outcome:?}") };
        assert!(reason.0.contains(text), "{reason}");
    }
    let (_, outcome) = play(DestinationConfig::default(), false, vec![command(Command::OpenReturnPath)]);
    assert!(matches!(outcome, Outcome::Failed { reason, .. } if reason.0.contains("cannot carry")));
}

#[test]
fn a_run_state_that_no_guest_can_arrive_in_is_refused() {
    for state in RunState::ALL {
        let mut destination = Destination::new(DestinationConfig::default());
        destination.next(NOW);
        destination.handle(NOW, DestinationEvent::SourceState(state)).unwrap();
        assert_eq!(destination.error().is_none(), RunState::Inmigrate.may_become(state), "{state}");
    }
}

#[test]
fn nothing_that_happens_to_a_fenced_link_after_eof_keeps_the_guest_from_starting() {
    let mut destination = Destination::new(DestinationConfig::default());
    destination.handle(NOW, DestinationEvent::Connected { bidirectional: true }).unwrap();
    let mut lost = false;
    let mut steps = Vec::new();
    let fence = command(Command::Ping(7));
    let mut stream = vec![ElementHeader::Eof, fence, device(), command(Command::OpenReturnPath)];
    loop {
        let action = destination.next(NOW);
        if destination.committed() && !lost {
            lost = true;
            for channel in [Channel::Main, Channel::ReturnPath] {
                destination.handle(NOW, DestinationEvent::ChannelLost(channel, "gone".into())).unwrap();
            }
            assert_eq!(destination.handle(NOW, DestinationEvent::Cancel), Err(Violation::Committed));
        }
        let answer = match action {
            DestinationAction::Finish(outcome) => {
                assert_eq!(outcome, Outcome::Completed);
                break;
            }
            DestinationAction::ReadHeader => DestinationEvent::Announced,
            DestinationAction::ReadElement => DestinationEvent::Element(stream.pop().unwrap()),
            DestinationAction::Load => DestinationEvent::Loaded,
            DestinationAction::Apply => DestinationEvent::Applied,
            DestinationAction::Start { run } => {
                steps.push(run);
                DestinationEvent::Started
            }
            DestinationAction::Drain => DestinationEvent::Drained,
            DestinationAction::Status(_) | DestinationAction::Reply(ReturnPathMessage::Pong(7)) => continue,
            other => panic!("{other:?}"),
        };
        destination.handle(NOW, answer).unwrap();
    }
    assert!(lost && steps == [true]);
}

#[test]
fn a_failed_apply_at_the_fence_says_shut_1_instead_of_pong() {
    let mut destination = Destination::new(DestinationConfig::default());
    let mut stream = vec![command(Command::Ping(7)), device(), command(Command::OpenReturnPath)];
    let mut said = Vec::new();
    let outcome = loop {
        let answer = match destination.next(NOW) {
            DestinationAction::Finish(outcome) => break outcome,
            DestinationAction::Reply(message) => {
                said.push(message);
                continue;
            }
            DestinationAction::Status(_) => continue,
            DestinationAction::Accept => DestinationEvent::Connected { bidirectional: true },
            DestinationAction::ReadHeader => DestinationEvent::Announced,
            DestinationAction::ReadElement => DestinationEvent::Element(stream.pop().unwrap()),
            DestinationAction::Load => DestinationEvent::Loaded,
            DestinationAction::Apply => DestinationEvent::ApplyFailed("KVM_SET_SREGS: EINVAL".into()),
            other => panic!("{other:?}"),
        };
        destination.handle(NOW, answer).unwrap();
    };
    assert_eq!(said, [ReturnPathMessage::Shut(1)]);
    let reason = "KVM_SET_SREGS: EINVAL".into();
    assert_eq!(outcome, Outcome::Failed { phase: Phase::Apply, reason });
    assert_eq!(destination.status(), MigrationStatus::Failed);
}

#[test]
fn an_answer_that_was_not_asked_for_is_refused_and_changes_nothing() {
    let mut destination = Destination::new(DestinationConfig::default());
    destination.next(NOW);
    assert_eq!(destination.next(NOW), DestinationAction::Accept);
    for stray in
        [DestinationEvent::Started, DestinationEvent::Element(ElementHeader::Eof), DestinationEvent::Applied]
    {
        assert!(matches!(destination.handle(NOW, stray), Err(Violation::Unexpected { asked: "Accept", .. })));
    }
    assert_eq!(destination.next(NOW), DestinationAction::Await, "its answer is still missing");
    assert!(!destination.committed());
}

#[test]
fn no_order_of_events_starts_a_guest_before_eof_or_twice() {
    let mut seed = 7u64;
    let mut pick = |count: usize| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) as usize % count
    };
    let mut completed = 0;
    for _ in 0..20_000 {
        let mut destination = Destination::new(DestinationConfig::default());
        let (mut started, mut failed) = (0, false);
        for _ in 0..60 {
            match destination.next(NOW) {
                DestinationAction::Start { .. } => {
                    assert!(destination.committed() && !failed);
                    started += 1;
                }
                DestinationAction::Reply(ReturnPathMessage::Shut(0)) => assert_eq!(started, 1),
                DestinationAction::Status(MigrationStatus::Failed) => failed = true,
                DestinationAction::Finish(Outcome::Completed) => {
                    assert_eq!(started, 1);
                    completed += 1;
                    break;
                }
                DestinationAction::Finish(_) => break,
                _ => {}
            }
            let reason = || "random".into();
            let event = match pick(43) {
                0 => DestinationEvent::ChannelLost(Channel::Main, reason()),
                1 => DestinationEvent::ChannelLost(Channel::ReturnPath, reason()),
                2 => DestinationEvent::Refused(reason()),
                3 => DestinationEvent::ApplyFailed(reason()),
                4 => DestinationEvent::StartFailed(reason()),
                5 => DestinationEvent::Cancel,
                6..=8 => DestinationEvent::Element(ElementHeader::Eof),
                9..=11 => DestinationEvent::Element(device()),
                12..=14 => DestinationEvent::Element(command(Command::Ping(3))),
                15..=17 => DestinationEvent::Element(command(Command::OpenReturnPath)),
                18..=20 => DestinationEvent::Announced,
                21..=25 => DestinationEvent::Connected { bidirectional: true },
                26..=28 => DestinationEvent::Loaded,
                29..=31 => DestinationEvent::Applied,
                32..=34 => DestinationEvent::Started,
                35..=37 => DestinationEvent::Drained,
                38 => DestinationEvent::Heard,
                39 => DestinationEvent::Unheard(reason()),
                other => DestinationEvent::Autostart(other == 40),
            };
            let _refused = destination.handle(NOW, event);
        }
        assert!(started <= 1);
    }
    assert!(completed > 100, "{completed}");
}

#[test]
fn a_cancel_while_nobody_has_connected_ends_the_wait() {
    let mut destination = Destination::new(DestinationConfig::default());
    destination.next(NOW);
    assert_eq!(destination.next(NOW), DestinationAction::Accept);
    assert!(destination.may_cancel());
    destination.handle(NOW, DestinationEvent::Cancel).unwrap();
    destination.handle(NOW, DestinationEvent::ChannelLost(Channel::Main, "shut down".into())).unwrap();
    assert_eq!(destination.next(NOW), DestinationAction::Status(MigrationStatus::Failed));
    let reason = "cancelled".into();
    let expected = Outcome::Failed { phase: Phase::Connect, reason };
    assert_eq!(destination.next(NOW), DestinationAction::Finish(expected));
}
