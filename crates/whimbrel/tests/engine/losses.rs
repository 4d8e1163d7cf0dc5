//! Links that are cut and destinations that are killed, at every named point. Before the commit the source works on and can move
//! the next time; after it, it stands still. In no case do two run.

use std::time::Duration;

use whimbrel::handlers::Priority;
use whimbrel::proto::status::MigrationStatus;

use crate::child::Child;
use crate::guest::{Build, Guest, Runners, Scratch, Stopwatch, TCP, wait_until};
use crate::order::with_device;
use crate::peer::{Manner, Peer};

/// The source is as after a failure before the commit.
fn kept(source: &Guest) {
    assert!(!source.failed().is_empty());
    assert_eq!(source.runners.now(), 1);
    source.moves_next_time(Build::new(&source.runners));
}

/// Whether the commit was made is known by the source alone: it either kept the guest, or stands still.
fn kept_or_unknown(source: &Guest, peer: &whimbrel::channel::Address) {
    let info = source.wait_for(MigrationStatus::Failed);
    if info.error.is_some_and(|error| error.starts_with("outcome unknown: ")) {
        source.outcome_unknown(peer);
        assert_eq!(source.runners.now(), 0);
    } else {
        kept(source);
    }
}

fn cut_at(point: &str, uri: &str) -> (Guest, Guest, whimbrel::channel::Address) {
    let runners = Runners::default();
    let source = Build::new(&runners).source();
    let (destination, address) = Build::new(&runners).fault(&format!("cut@{point}")).destination(uri);
    source.migrate(&address);
    (source, destination, address)
}

#[test]
fn a_link_cut_before_the_confirmation_leaves_the_guest_at_the_source() {
    for point in ["setup", "iterate", "before-pong"] {
        let scratch = Scratch::new();
        for uri in [TCP, &scratch.unix()] {
            let (source, destination, _) = cut_at(point, uri);
            kept(&source);
            assert!(!destination.refusal().is_empty());
        }
    }
}

#[test]
fn a_link_cut_between_confirmation_and_commit_leaves_one_or_none() {
    let scratch = Scratch::new();
    for uri in [TCP, &scratch.unix()] {
        let (source, destination, address) = cut_at("after-pong", uri);
        kept_or_unknown(&source, &address);
        assert!(!destination.refusal().is_empty(), "the EOF byte never came, so it must not run");
    }
}

#[test]
fn a_link_cut_after_the_commit_leaves_the_guest_at_the_destination_alone() {
    for point in ["after-eof", "after-start"] {
        let (source, destination, address) = cut_at(point, TCP);
        source.outcome_unknown(&address);
        assert_eq!(destination.mismatches_on_arrival(), 0);
        destination.runs();
        assert_eq!(source.runners.now(), 1);
        source.stands();
        source.runners.allow_two();
        source.command(|engine| engine.cont()).unwrap();
        source.runs();
    }
}

fn kill_at(point: &str) -> (Guest, Child) {
    let source = Build::new(&Runners::default()).source();
    let child = Child::destination(&format!("kill@{point}"));
    source.migrate(&child.address);
    (source, child)
}

#[test]
fn a_destination_killed_before_the_confirmation_leaves_the_guest_at_the_source() {
    for point in ["setup", "iterate", "before-pong"] {
        let (source, child) = kill_at(point);
        kept(&source);
        child.died();
    }
}

#[test]
fn a_destination_killed_between_confirmation_and_commit_leaves_one_or_none() {
    let (source, child) = kill_at("after-pong");
    kept_or_unknown(&source, &child.address);
    child.died();
}

#[test]
fn a_destination_killed_after_the_commit_leaves_the_guest_stopped_until_an_operator_decides() {
    for point in ["after-eof", "after-start"] {
        let (source, child) = kill_at(point);
        source.outcome_unknown(&child.address);
        child.died();
        source.command(|engine| engine.cont()).unwrap();
        source.runs();
        source.moves_next_time(Build::new(&source.runners));
    }
}

#[test]
fn a_destination_that_quits_leaves_the_guest_at_the_source() {
    let runners = Runners::default();
    let source = Build::heavy(&runners).source();
    source.crawl();
    let (destination, address) = Build::heavy(&runners).destination(TCP);
    source.migrate(&address);
    wait_until("pages flow", || source.info().ram.unwrap_or_default().normal > 100);
    drop(destination);
    assert!(!source.failed().is_empty());
    assert_eq!(runners.now(), 1);
    source.moves_next_time(Build::heavy(&runners));
}

#[test]
fn a_peer_that_takes_no_device_state_keeps_the_guest_stopped_for_seconds_only() {
    let runners = Runners::default();
    // More than fits the buffers of a socket.
    let state = vec![7; 32 << 20];
    let (build, _) = with_device(Build::new(&runners), "opaque", Priority::Default, false, &state);
    let source = build.source();
    let peer = Peer::new(Manner::NeverReads);
    let watch = Stopwatch::start();
    source.migrate(&peer.address);
    let why = source.failed();
    assert!(why.contains("the peer takes no data (deadline while the guest is stopped)"), "{why}");
    assert!(watch.time() < Duration::from_secs(20), "the guest stood still for {:?}", watch.time());
}
