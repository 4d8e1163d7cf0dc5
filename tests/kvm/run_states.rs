//! Commands and the guest's own acts at every status of a move: the right side ends in the right run state.
//!
//! | act | source `active` | source stopped for the switchover | destination `inmigrate` |
//! |---|---|---|---|
//! | `stop` | paused; arrives paused | arrives paused; paused if the move fails | arrives paused |
//! | `cont` | runs; arrives running | refused | arrives running |
//! | `system_reset` | reset; arrives reset | refused | refused |
//! | `quit` | ends; the destination fails | ends; the destination fails | ends; the source runs on |
//! | triple fault | reset; arrives reset | (cannot: it is stopped) | – |
//! | the same with `--no-reboot` | ends; with `--no-shutdown` arrives `shutdown` | – | – |
//! | `migrate_cancel` | runs on | runs on | – |

use std::time::Duration;

use serde_json::json;
use whimbrel_e2e::link::Link;
use whimbrel_e2e::{Launch, Vm, moves, needs, wait_for};

use super::{LIMIT, NEEDS, guest, machine};

/// A move that stays `active` until [`Move::go_on`]: the guest dirties faster than the limit.
struct Move {
    source: Vm,
    destination: Vm,
}

impl Move {
    fn active() -> Self {
        Self::active_as(&machine(guest()))
    }

    fn active_as(launch: &Launch) -> Self {
        let mut this = Self::prepared(launch);
        let uri = moves::listen(&mut this.destination);
        this.source.qmp.ok("migrate", json!({ "uri": uri }));
        moves::wait_status(&mut this.source, &["active"], LIMIT);
        wait_for("pages on their way", LIMIT, || {
            let sent = this.source.migration()["ram"]["transferred"].as_u64();
            sent.is_some_and(|sent| sent > 1 << 20).then_some(())
        });
        this
    }

    fn prepared(launch: &Launch) -> Self {
        let (mut source, mut destination) = (launch.start(), launch.incoming().start());
        source.wait_ready();
        moves::with_return_path(&mut source, &mut destination);
        source.set(json!({"max-bandwidth": 16 << 20}));
        Self { source, destination }
    }

    /// Stopped, waiting for `migrate-continue`.
    fn pre_switchover() -> Self {
        let mut this = Self::prepared(&machine(guest()));
        this.source.enable(&["pause-before-switchover"]);
        this.source.set(json!({"max-bandwidth": 0}));
        let uri = moves::listen(&mut this.destination);
        this.source.qmp.ok("migrate", json!({ "uri": uri }));
        moves::wait_status(&mut this.source, &["pre-switchover"], LIMIT);
        this
    }

    /// Stopped, device state under way, and the link carries nothing.
    fn device() -> (Self, Link) {
        let mut this = Self::prepared(&machine(guest()));
        this.source.enable(&["pause-before-switchover"]);
        this.source.set(json!({"max-bandwidth": 0}));
        let link = Link::to(&moves::listen(&mut this.destination));
        this.source.qmp.ok("migrate", json!({ "uri": link.uri() }));
        moves::wait_status(&mut this.source, &["pre-switchover"], LIMIT);
        link.hold();
        this.source.qmp.ok("migrate-continue", json!({"state": "pre-switchover"}));
        moves::wait_status(&mut this.source, &["device"], LIMIT);
        (this, link)
    }

    fn go_on(&mut self) {
        self.source.set(json!({"max-bandwidth": 0}));
    }

    #[track_caller]
    fn assert_arrives(&mut self, state: &str) {
        let info = moves::wait_end(&mut self.source, LIMIT);
        assert_eq!(info["status"], "completed", "{info}");
        assert_eq!(self.source.run_state(), "postmigrate");
        wait_for("the guest", LIMIT, || (self.destination.run_state() != "inmigrate").then_some(()));
        assert_eq!(self.destination.run_state(), state);
        self.source.kill();
    }

    /// `stuck`: a link that carries nothing; it ends only after the source has decided.
    #[track_caller]
    fn assert_stays(&mut self, status: &str, state: &str, stuck: Option<Link>) {
        assert_eq!(moves::wait_end(&mut self.source, LIMIT)["status"], status);
        assert_eq!(self.source.run_state(), state);
        if let Some(link) = stuck {
            link.cut();
        }
        assert_eq!(self.destination.process.wait(LIMIT).code(), Some(1));
        assert_eq!(self.destination.heartbeat.count(), 0, "the destination ran");
    }
}

#[track_caller]
fn assert_runs_whole(vm: &mut Vm) {
    vm.let_run(Duration::from_millis(400));
    vm.assert_clean();
}

#[test]
fn a_guest_stopped_while_active_arrives_paused() {
    if !needs(NEEDS) {
        return;
    }
    let mut this = Move::active();
    this.source.qmp.ok("stop", json!({}));
    assert_eq!(this.source.run_state(), "paused");
    this.go_on();
    this.assert_arrives("paused");
    this.destination.qmp.ok("cont", json!({}));
    assert_runs_whole(&mut this.destination);
}

#[test]
fn a_guest_stopped_and_continued_while_active_arrives_running() {
    if !needs(NEEDS) {
        return;
    }
    let mut this = Move::active();
    this.source.qmp.ok("stop", json!({}));
    this.source.qmp.ok("cont", json!({}));
    this.go_on();
    this.assert_arrives("running");
    assert_runs_whole(&mut this.destination);
}

#[test]
fn a_guest_reset_while_active_arrives_reset() {
    if !needs(NEEDS) {
        return;
    }
    let mut this = Move::active();
    this.source.qmp.ok("system_reset", json!({}));
    wait_for("the guest to boot again", LIMIT, || {
        (this.source.console.text().matches("beacon: ready").count() == 2).then_some(())
    });
    this.go_on();
    this.assert_arrives("running");
    assert_runs_whole(&mut this.destination);
}

#[test]
fn a_triple_fault_while_active_resets_the_guest_and_it_arrives() {
    if !needs(NEEDS) {
        return;
    }
    let mut this = Move::active();
    this.source.console.send(b"P");
    let reset = this.source.qmp.wait_event("RESET", LIMIT);
    assert_eq!(reset["data"], json!({"guest": true, "reason": "guest-reset"}));
    wait_for("the guest to boot again", LIMIT, || {
        (this.source.console.text().matches("beacon: ready").count() == 2).then_some(())
    });
    this.go_on();
    this.assert_arrives("running");
    assert_runs_whole(&mut this.destination);
}

#[test]
fn a_guest_that_powers_off_while_active_ends_the_move() {
    if !needs(NEEDS) {
        return;
    }
    let launch = Launch { extra: vec!["--no-reboot".into()], ..machine(guest()) };
    let mut this = Move::active_as(&launch);
    this.source.console.send(b"P");
    assert_eq!(this.source.process.wait(LIMIT).code(), Some(0));
    assert_eq!(this.destination.process.wait(LIMIT).code(), Some(1));
    assert_eq!(this.destination.heartbeat.count(), 0);
}

#[test]
fn a_guest_that_powers_off_while_active_and_may_stay_arrives_shut_down() {
    if !needs(NEEDS) {
        return;
    }
    let launch = Launch { extra: vec!["--no-reboot".into(), "--no-shutdown".into()], ..machine(guest()) };
    let mut this = Move::active_as(&launch);
    this.source.console.send(b"P");
    this.source.qmp.wait_event("SHUTDOWN", LIMIT);
    wait_for("run state shutdown", LIMIT, || (this.source.run_state() == "shutdown").then_some(()));
    this.go_on();
    this.assert_arrives("shutdown");
    let refusal = this.destination.qmp.refused("cont", json!({}));
    assert_eq!(refusal.desc, "Resetting the Virtual Machine is required");
}

#[test]
fn quitting_the_source_while_active_ends_both() {
    if !needs(NEEDS) {
        return;
    }
    let mut this = Move::active();
    assert_eq!(this.source.quit().code(), Some(0));
    assert_eq!(this.destination.process.wait(LIMIT).code(), Some(1));
}

#[test]
fn quitting_the_destination_while_active_leaves_the_guest_at_the_source() {
    if !needs(NEEDS) {
        return;
    }
    let mut this = Move::active();
    this.destination.quit();
    assert_eq!(moves::wait_end(&mut this.source, LIMIT)["status"], "failed");
    assert_eq!(this.source.run_state(), "running");
    assert_runs_whole(&mut this.source);
}

#[test]
fn cancel_while_active_answers_at_once_and_leaves_the_guest_running() {
    if !needs(NEEDS) {
        return;
    }
    let mut this = Move::active();
    this.source.qmp.ok("migrate_cancel", json!({}));
    this.assert_stays("cancelled", "running", None);
    assert_runs_whole(&mut this.source);
}

#[test]
fn in_pre_switchover_stop_is_kept_and_cont_and_reset_are_refused() {
    if !needs(NEEDS) {
        return;
    }
    let mut this = Move::pre_switchover();
    assert_eq!(this.source.run_state(), "finish-migrate");
    assert_eq!(this.source.qmp.refused("cont", json!({})).desc, "Migration is not finalized yet");
    this.source.qmp.refused("system_reset", json!({}));
    this.source.qmp.ok("stop", json!({}));
    this.source.qmp.ok("migrate-continue", json!({"state": "pre-switchover"}));
    this.assert_arrives("paused");
    this.destination.qmp.ok("cont", json!({}));
    assert_runs_whole(&mut this.destination);
}

#[test]
fn cancel_in_pre_switchover_lets_the_guest_run_on() {
    if !needs(NEEDS) {
        return;
    }
    let mut this = Move::pre_switchover();
    this.source.qmp.ok("migrate_cancel", json!({}));
    this.assert_stays("cancelled", "running", None);
    assert_runs_whole(&mut this.source);
}

#[test]
fn continue_is_refused_where_nothing_waits_for_it() {
    if !needs(NEEDS) {
        return;
    }
    let mut this = Move::active();
    let refusal = this.source.qmp.refused("migrate-continue", json!({"state": "pre-switchover"}));
    assert_eq!(refusal.desc, "Migration not in expected state: active");
    this.go_on();
    this.assert_arrives("running");
}

#[test]
fn cancel_with_a_stuck_peer_in_the_pause_answers_at_once_and_the_guest_runs_on() {
    if !needs(NEEDS) {
        return;
    }
    let (mut this, link) = Move::device();
    this.source.qmp.ok("migrate_cancel", json!({}));
    this.assert_stays("cancelled", "running", Some(link));
    assert_runs_whole(&mut this.source);
}

#[test]
fn stop_in_the_pause_of_a_move_that_is_then_cancelled_leaves_the_guest_paused() {
    if !needs(NEEDS) {
        return;
    }
    let (mut this, link) = Move::device();
    this.source.qmp.ok("stop", json!({}));
    this.source.qmp.ok("migrate_cancel", json!({}));
    this.assert_stays("cancelled", "paused", Some(link));
    assert_eq!(this.source.beats_during(Duration::from_millis(200)), 0);
    this.source.qmp.ok("cont", json!({}));
    assert_runs_whole(&mut this.source);
}

#[test]
fn quit_in_the_pause_ends_both() {
    if !needs(NEEDS) {
        return;
    }
    let (mut this, link) = Move::device();
    assert_eq!(this.source.quit().code(), Some(0));
    link.cut();
    assert_eq!(this.destination.process.wait(LIMIT).code(), Some(1));
    assert_eq!(this.destination.heartbeat.count(), 0);
}

#[test]
fn stop_and_cont_at_the_destination_decide_whether_the_guest_runs_when_it_arrives() {
    if !needs(NEEDS) {
        return;
    }
    for (commands, state) in [(&["stop"][..], "paused"), (&["stop", "cont"], "running")] {
        let mut this = Move::active();
        for command in commands {
            this.destination.qmp.ok(command, json!({}));
        }
        assert_eq!(this.destination.run_state(), "inmigrate");
        this.go_on();
        this.assert_arrives(state);
        if state == "paused" {
            this.destination.qmp.ok("cont", json!({}));
        }
        assert_runs_whole(&mut this.destination);
    }
}

#[test]
fn a_reset_of_a_waiting_destination_is_refused_and_the_guest_arrives() {
    if !needs(NEEDS) {
        return;
    }
    let mut this = Move::active();
    let refusal = this.destination.qmp.refused("system_reset", json!({}));
    assert_eq!(refusal.desc, "Guest is waiting for an incoming migration");
    this.go_on();
    this.assert_arrives("running");
    assert_runs_whole(&mut this.destination);
}

#[test]
fn a_guest_can_reboot_where_it_has_arrived() {
    if !needs(NEEDS) {
        return;
    }
    let mut this = Move::active();
    this.go_on();
    this.assert_arrives("running");
    this.destination.console.send(b"P");
    this.destination.qmp.wait_event("RESET", LIMIT);
    wait_for("the guest to boot again", LIMIT, || {
        this.destination.console.text().contains("beacon: ready").then_some(())
    });
    assert_runs_whole(&mut this.destination);
}

#[test]
fn a_guest_that_moved_away_cannot_be_moved_again_until_an_operator_says_so() {
    if !needs(NEEDS) {
        return;
    }
    let mut this = Move::active();
    this.go_on();
    assert_eq!(moves::wait_end(&mut this.source, LIMIT)["status"], "completed");
    let refusal = this.source.qmp.refused("migrate", json!({"uri": "tcp:127.0.0.1:1"}));
    assert_eq!(refusal.desc, "Can't migrate the vm that was paused due to previous migration");
    this.destination.kill();
    this.source.qmp.ok("cont", json!({}));
    assert_runs_whole(&mut this.source);
}

#[test]
fn bandwidth_changed_during_a_move_takes_effect() {
    if !needs(NEEDS) {
        return;
    }
    let mut this = Move::active();
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(this.source.migration_status(), "active", "the guest dirties faster than the limit");
    this.go_on();
    this.assert_arrives("running");
    assert_runs_whole(&mut this.destination);
}
