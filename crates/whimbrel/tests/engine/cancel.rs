//! `migrate_cancel` in every phase: it returns at once whatever the peer does, and the guest works on, here.

use std::time::Duration;

use whimbrel::channel::Address;
use whimbrel::events::EngineEvent;
use whimbrel::proto::capabilities::Capability;
use whimbrel::proto::parameters::ParametersPatch;
use whimbrel::proto::run_state::RunState;
use whimbrel::proto::status::MigrationStatus;

use crate::guest::{Build, Guest, Runners, Scratch, Stopwatch, TCP, wait_until};
use crate::peer::{FullQueue, Manner, Peer};

/// A cancel takes no longer: what is waited for otherwise takes 10 s and more.
const AT_ONCE: Duration = Duration::from_secs(3);

/// Cancels: the call returns and the attempt ends at once, the guest works, and the next attempt succeeds.
fn cancel(source: &Guest) {
    cancel_at_once(source);
    source.moves_next_time(Build::new(&source.runners));
}

fn cancel_at_once(source: &Guest) {
    let watch = Stopwatch::start();
    source.cancel().unwrap();
    source.cancelled();
    assert!(watch.time() < AT_ONCE, "cancelling took {:?}", watch.time());
    assert_eq!(source.info().error, None);
}

fn migrating(to: &Address, status: MigrationStatus) -> Guest {
    let source = Build::new(&Runners::default()).source();
    source.migrate(to);
    source.wait_for(status);
    source
}

#[test]
fn while_a_host_does_not_answer() {
    let peer = FullQueue::tcp();
    cancel(&migrating(&peer.address, MigrationStatus::Setup));
}

#[test]
fn while_a_unix_listener_is_busy() {
    let scratch = Scratch::new();
    let peer = FullQueue::unix(&scratch.path("busy"));
    let source = migrating(&peer.address, MigrationStatus::Setup);
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(source.info().status, MigrationStatus::Setup, "{:?}", source.info().error);
    cancel(&source);
}

#[test]
fn while_the_peer_takes_nothing_and_the_guest_runs() {
    let peer = Peer::new(Manner::NeverReads);
    let large = |runners: &Runners| Build::new(runners).ram(2, 4096).rate(1 << 15);
    let source = large(&Runners::default()).full_source();
    source.migrate(&peer.address);
    source.wait_for(MigrationStatus::Active);
    // Until the socket's buffers are full.
    let mut before = u64::MAX;
    wait_until("the link is stuck", || {
        std::thread::sleep(Duration::from_millis(100));
        let sent = source.info().ram.unwrap_or_default().transferred;
        std::mem::replace(&mut before, sent) == sent
    });
    source.runs();
    cancel_at_once(&source);
    source.moves_next_time(large(&source.runners));
}

#[test]
fn while_the_peer_takes_nothing_and_the_guest_is_stopped() {
    let peer = Peer::new(Manner::NeverReads);
    let large = |runners: &Runners| Build::new(runners).ram(2, 4096).rate(1 << 15);
    let source = large(&Runners::default()).full_source();
    // All of RAM is expected to fit the pause, which is not given up while this test looks.
    let (avail_switchover_bandwidth, downtime_limit) = (Some(1 << 40), Some(60_000));
    source.parameters(ParametersPatch {
        avail_switchover_bandwidth,
        downtime_limit,
        ..ParametersPatch::default()
    });
    source.migrate(&peer.address);
    // Told when the last vCPU is paused; the run state is set before.
    wait_until("the stop", || source.events.try_iter().any(|event| event.event == EngineEvent::Stop));
    assert_eq!(source.engine.run_state(), RunState::FinishMigrate);
    std::thread::sleep(Duration::from_millis(100));
    source.stands();
    cancel_at_once(&source);
    source.parameters(ParametersPatch { avail_switchover_bandwidth: Some(0), ..ParametersPatch::default() });
    source.moves_next_time(large(&source.runners));
}

#[test]
fn while_pages_flow() {
    let runners = Runners::default();
    let source = Build::heavy(&runners).source();
    source.crawl();
    let (destination, address) = Build::heavy(&runners).destination(TCP);
    source.migrate(&address);
    wait_until("pages flow", || source.info().ram.unwrap_or_default().normal > 100);
    cancel_at_once(&source);
    assert!(destination.refusal().contains("stream offset"), "the destination says where the stream ended");
    source.moves_next_time(Build::heavy(&runners));
}

#[test]
fn in_pre_switchover() {
    let runners = Runners::default();
    let source = Build::new(&runners).source();
    source.set(Capability::PauseBeforeSwitchover);
    let (destination, address) = Build::new(&runners).destination(TCP);
    source.migrate(&address);
    source.wait_for(MigrationStatus::PreSwitchover);
    source.stands();
    source.command(|e| e.set_capabilities(&[(Capability::PauseBeforeSwitchover, false)])).unwrap_err();
    source.cancel().unwrap();
    source.cancelled();
    destination.refusal();
    source.command(|e| e.set_capabilities(&[(Capability::PauseBeforeSwitchover, false)])).unwrap();
    source.moves_next_time(Build::new(&runners));
}

#[test]
fn while_the_peer_does_not_confirm() {
    let peer = Peer::new(Manner::NeverAnswers);
    let source = migrating(&peer.address, MigrationStatus::Device);
    source.stands();
    cancel(&source);
}

#[test]
fn after_the_commit_it_is_refused_and_nobody_runs_here() {
    let peer = Peer::new(Manner::Confirms);
    let source = migrating(&peer.address, MigrationStatus::Device);
    wait_until("the commit", || source.info().pause.is_some_and(|pause| !pause.commit.is_zero()));
    let refused = source.cancel().unwrap_err();
    assert!(refused.contains("committed"), "{refused}");
    source.stands();
    assert_eq!(source.info().status, MigrationStatus::Device);
    peer.hang_up();
    source.outcome_unknown(&peer.address);
}

#[test]
fn without_a_migration_it_changes_nothing() {
    let runners = Runners::default();
    let source = Build::new(&runners).source();
    source.cancel().unwrap();
    source.runs();
    source.moves_next_time(Build::new(&runners));
    source.cancel().unwrap();
    assert_eq!(source.info().status, MigrationStatus::Completed);
    assert_eq!(source.engine.run_state(), RunState::Postmigrate);
}

#[test]
fn at_random_moments_it_either_keeps_the_guest_or_is_too_late() {
    let runners = Runners::default();
    let source = Build::new(&runners).source();
    let mut delay = Duration::ZERO;
    for attempt in 0..40_u64 {
        let (destination, address) = Build::new(&runners).destination(TCP);
        source.migrate(&address);
        std::thread::sleep(delay);
        delay += Duration::from_micros(300 + attempt * 97 % 500);
        let answer = source.cancel();
        wait_until("the end", || !source.info().status.is_running());
        match source.info().status {
            MigrationStatus::Cancelled => source.runs(),
            MigrationStatus::Completed => {
                // Cancelling a finished migration is no error; during its last moments it is one.
                assert!(answer.is_ok() || answer.unwrap_err().contains("committed"));
                source.moved_to(&destination);
                return;
            }
            other => panic!("{}: {:?}", other.name(), source.info().error),
        }
    }
    source.moves_next_time(Build::new(&runners));
}
