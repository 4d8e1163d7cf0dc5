//! The source's machine alone: its limits of time and size to the millisecond, and the order of what it writes.

use std::time::Duration;

use whimbrel_proto::Violation;
use whimbrel_proto::action::{Action, HandlerId};
use whimbrel_proto::capabilities::{Capabilities, Capability};
use whimbrel_proto::event::{Event, Pages};
use whimbrel_proto::outcome::Outcome;
use whimbrel_proto::parameters::Parameters;
use whimbrel_proto::source::{FENCE, Source, SourceConfig, Transport};
use whimbrel_wire::command::Command;
use whimbrel_wire::return_path::ReturnPathMessage;

use crate::source_rules::{NOW, answers, is_stop, peer, source, until};

/// A source without return path whose guest has 100 MiB dirty, at the first question how much is left.
fn with_pending(handlers: u32) -> Source {
    let parameters = Parameters { avail_switchover_bandwidth: 1 << 30, ..Parameters::default() };
    let handlers = (0..handlers).map(HandlerId).collect();
    let mut source = Source::new(SourceConfig { handlers, parameters, ..SourceConfig::default() });
    until(&mut source, |action| *action == Action::Estimate);
    source
}

fn tell_pending(source: &mut Source, now: Duration, handler: u32, must: u64) {
    let handler = HandlerId(handler);
    let pending = Event::Pending { handler, must, may_postcopy: 0, exact: true, newly: 0 };
    source.handle(now, pending).unwrap();
}

fn progress(source: &mut Source, now: Duration, handler: u32, bytes: u64, left: u64) {
    let progress = Event::Progress { handler: HandlerId(handler), bytes, pages: Pages::default(), left };
    source.handle(now, progress).unwrap();
}

#[test]
fn a_turn_takes_no_longer_than_50_ms_and_sends_no_more_than_the_quota() {
    let mut source = with_pending(2);
    for handler in [0, 1] {
        tell_pending(&mut source, NOW, handler, 1 << 30);
    }
    source.handle(NOW, Event::Done).unwrap();
    let quota = (128 << 20) / 10;
    let until = NOW + Duration::from_millis(50);
    let first = Action::Iterate { handler: HandlerId(0), at_most: quota + 1, until };
    assert_eq!(source.next(NOW), first);
    progress(&mut source, NOW, 0, quota - 9, 1 << 20);
    assert_eq!(source.next(NOW), Action::Iterate { handler: HandlerId(1), at_most: 10, until });
    progress(&mut source, NOW, 1, 4096, 1 << 20);
    let window = NOW + Duration::from_millis(100);
    assert_eq!(source.next(NOW), Action::Await { until: Some(window) });
    assert_eq!(source.next(window), Action::Estimate);
}

#[test]
fn a_handler_whose_turn_used_the_quota_up_ends_the_window_for_all() {
    let mut source = with_pending(2);
    for handler in [0, 1] {
        tell_pending(&mut source, NOW, handler, 1 << 30);
    }
    source.handle(NOW, Event::Done).unwrap();
    source.next(NOW);
    progress(&mut source, NOW, 0, 14 << 20, 1 << 20);
    assert!(matches!(source.next(NOW), Action::Await { until: Some(_) }));
}

#[test]
fn how_much_is_left_of_an_unknown_handler_is_refused() {
    let mut source = with_pending(1);
    let stray = Event::Pending { handler: HandlerId(9), must: 0, may_postcopy: 0, exact: false, newly: 0 };
    assert!(matches!(source.handle(NOW, stray), Err(Violation::Unexpected { .. })));
}

#[test]
fn an_extra_round_that_takes_too_long_is_ended() {
    let mut source = with_pending(1);
    tell_pending(&mut source, NOW, 0, 100 << 20);
    source.handle(NOW, Event::Done).unwrap();
    assert_eq!(source.next(NOW), Action::SyncDirty { last: false }, "below the threshold");
    tell_pending(&mut source, NOW, 0, 100 << 20);
    source.handle(NOW, Event::Done).unwrap();
    assert!(matches!(source.next(NOW), Action::Iterate { .. }), "an extra round is worth it");
    // But the link stalls for two seconds.
    let later = NOW + Duration::from_secs(2);
    progress(&mut source, later, 0, 1 << 20, 99 << 20);
    assert_eq!(source.next(later), Action::Estimate);
    tell_pending(&mut source, later, 0, 99 << 20);
    source.handle(later, Event::Done).unwrap();
    assert_eq!(source.next(later), Action::SyncDirty { last: false });
    tell_pending(&mut source, later, 0, 99 << 20);
    source.handle(later, Event::Done).unwrap();
    assert!(matches!(source.next(later), Action::Predict(_)));
}

#[test]
fn a_stop_that_took_longer_than_the_limit_still_leaves_time_for_a_little_ram() {
    let mut source = source();
    until(&mut source, is_stop);
    let late = NOW + Duration::from_secs(1);
    source.handle(late, Event::Stopped { took: Duration::from_secs(1) }).unwrap();
    assert_eq!(source.next(late), Action::SyncDirty { last: true });
    tell_pending(&mut source, late, 0, 4096);
    source.handle(late, Event::Done).unwrap();
    assert_eq!(source.next(late), Action::Command(Command::SwitchoverStart));
    source.handle(late, Event::Done).unwrap();
    let until = late + Duration::from_millis(30);
    assert_eq!(source.next(late), Action::Complete { handler: HandlerId(0), at_most: u64::MAX, until });
}

#[test]
fn the_rest_of_ram_has_what_the_fixed_costs_leave_of_the_limit_from_the_stop_on() {
    let mut source = source();
    let stopped = NOW + Duration::from_millis(5);
    until(&mut source, is_stop);
    source.handle(stopped, Event::Stopped { took: NOW }).unwrap();
    source.next(stopped);
    source.handle(stopped, Event::Done).unwrap();
    source.next(stopped);
    source.handle(stopped, Event::Done).unwrap();
    // 300 ms less the 1 ms that was measured.
    let until = stopped + Duration::from_millis(299);
    let expected = Action::Complete { handler: HandlerId(0), at_most: u64::MAX, until };
    assert_eq!(source.next(stopped), expected);
}

#[test]
fn the_wait_for_the_pong_is_ten_seconds_or_twice_the_downtime_limit() {
    for (limit, wait) in [(300, 10), (60_000, 120)] {
        let mut source = Source::new(SourceConfig {
            capabilities: Capabilities::NONE.with(Capability::ReturnPath),
            parameters: Parameters { downtime_limit: limit, ..Parameters::default() },
            ..SourceConfig::default()
        });
        until(&mut source, |action| *action == Action::Barrier);
        source.handle(NOW, Event::Flushed { total: 0 }).unwrap();
        let deadline = NOW + Duration::from_secs(wait);
        assert_eq!(source.next(NOW), Action::Await { until: Some(deadline) });
        assert_eq!(source.next(deadline), Action::ResumeVm);
    }
}

/// What a whole attempt writes, in order.
fn stream(mut source: Source) -> Vec<String> {
    let mut order = Vec::new();
    loop {
        let action = source.next(NOW);
        match &action {
            Action::Finish(outcome) => {
                assert_eq!(*outcome, Outcome::Completed);
                return order;
            }
            Action::Await { .. } if source.may_cancel() => {
                peer(&mut source, ReturnPathMessage::Pong(FENCE));
            }
            Action::Await { .. } => peer(&mut source, ReturnPathMessage::Shut(0)),
            Action::Announce => order.push("header".to_string()),
            Action::Command(command) => order.push(format!("{command:?}")),
            Action::Setup(_) => order.push("START".into()),
            Action::Complete { .. } => order.push("END".into()),
            Action::SaveDevices { early, .. } => {
                order.push(if *early { "early devices" } else { "devices" }.into());
            }
            Action::Commit => order.push("EOF".into()),
            _ => {}
        }
        for answer in answers(&action) {
            source.handle(NOW, answer).unwrap();
        }
    }
}

#[test]
fn the_order_of_a_stream_is_qemus() {
    let fence = format!("Ping({FENCE})");
    let begin = ["header", "OpenReturnPath", "Ping(1)", "START"];
    let end = ["SwitchoverStart", "END", "devices", &fence, "EOF"];
    assert_eq!(stream(source()), [&begin[..], &end[..]].concat());
}

#[test]
fn without_a_return_path_nothing_is_asked_of_the_peer() {
    let plain = ["header", "START", "SwitchoverStart", "END", "devices", "EOF"];
    for transport in [Transport::Socket, Transport::File] {
        let config = SourceConfig { transport, ..SourceConfig::default() };
        assert_eq!(stream(Source::new(config)), plain);
    }
    // A file carries no answers, even if the capability is on.
    let capabilities = Capabilities::NONE.with(Capability::ReturnPath);
    let config = SourceConfig { transport: Transport::File, capabilities, ..SourceConfig::default() };
    assert_eq!(stream(Source::new(config)), plain);
}

#[test]
fn early_devices_come_before_ram_and_old_peers_get_no_switchover_start() {
    let config =
        SourceConfig { has_early_devices: true, send_switchover_start: false, ..SourceConfig::default() };
    assert_eq!(stream(Source::new(config)), ["header", "early devices", "START", "END", "devices", "EOF"]);
}
