//! What an observer sees: events and statuses in their order, and the figures of query-migrate.

use std::time::Duration;

use whimbrel_proto::outcome::Outcome;
use whimbrel_proto::run_state::RunState;
use whimbrel_proto::source::Info;
use whimbrel_proto::status::MigrationStatus::{
    self, Active, Cancelled, Cancelling, Completed, Device, Failed, PreSwitchover, Setup,
};

use crate::guest::{Load, PAGE};
use crate::world::*;

fn scenario() -> Scenario {
    Scenario { pages: 1024, load: Load { rate: 60 * MIB, working_set: 400 }, ..Scenario::default() }
}

/// Notes of the source only, passes in a row as one.
fn events(world: &World) -> Vec<String> {
    let mut events: Vec<String> = Vec::new();
    for (_, note) in &world.notes {
        let event = match note {
            Note::Source(status) => status.name().to_string(),
            Note::Pass(1) => "PASS 1".into(),
            Note::Pass(_) => "PASS".into(),
            Note::Stop => "STOP".into(),
            Note::Resume => "RESUME".into(),
            _ => continue,
        };
        if events.last() != Some(&event) {
            events.push(event);
        }
    }
    events
}

fn in_status(world: &World, status: MigrationStatus) -> Vec<&Info> {
    world.source.infos.iter().filter(|info| info.status == status).collect()
}

#[test]
fn events_of_a_live_move_come_in_their_order() {
    let world = scenario().run();
    assert_eq!(events(&world), ["setup", "PASS 1", "active", "PASS", "STOP", "PASS", "device", "completed"]);
    let destination = world.notes.iter().filter_map(|(_, note)| match note {
        Note::Destination(status) => Some(status.name()),
        Note::Start(_) => Some("start"),
        _ => None,
    });
    let destination: Vec<_> = destination.collect();
    assert_eq!(destination, ["setup", "active", "start", "completed"]);
}

#[test]
fn events_of_a_cancel_and_of_a_failure_come_in_their_order() {
    let cancelled = scenario().fault(At::Time(MS * 50), What::Cancel).run();
    assert_eq!(events(&cancelled), ["setup", "PASS 1", "active", "cancelling", "cancelled"]);
    let failed = scenario().fault(At::Time(MS * 50), What::KillDestination).run();
    assert_eq!(events(&failed), ["setup", "PASS 1", "active", "failed"]);
    let late = Scenario { apply_fails: true, ..scenario() }.run();
    assert_eq!(
        events(&late),
        ["setup", "PASS 1", "active", "PASS", "STOP", "PASS", "device", "RESUME", "failed"]
    );
}

#[test]
fn members_are_present_exactly_in_the_statuses_that_have_them() {
    let worlds = [
        scenario().run(),
        scenario().fault(At::Time(MS * 50), What::Cancel).run(),
        scenario().fault(At::Time(MS * 50), What::KillDestination).run(),
    ];
    let mut seen = Vec::new();
    for world in &worlds {
        for info in &world.source.infos {
            let shown = matches!(info.status, Active | Cancelling | PreSwitchover | Device | Completed);
            assert_eq!(info.ram.is_some(), shown, "{}", info.status);
            assert_eq!(info.total_time.is_some(), shown);
            assert_eq!(info.setup_time.is_some(), shown);
            assert_eq!(info.expected_downtime.is_some(), shown && info.status != Completed);
            assert_eq!(info.downtime.is_some(), info.status == Completed);
            assert_eq!(info.error.is_some(), info.status == Failed);
            seen.push(info.status);
        }
    }
    for status in [Setup, Active, Device, Completed, Cancelling, Cancelled, Failed] {
        assert!(seen.contains(&status), "{status} was never seen");
    }
}

#[test]
fn the_figures_of_a_completed_move_add_up() {
    let world = scenario().run();
    let info = world.source.infos.last().unwrap();
    let ram = info.ram.unwrap();
    assert_eq!(info.status, Completed);
    assert!(info.fenced);
    assert_eq!((ram.remaining, ram.dirty_pages_rate), (0, 0));
    assert_eq!((ram.total, ram.page_size), (1024 * PAGE, PAGE));
    assert_eq!(ram.normal_bytes, ram.normal * PAGE);
    let live: u64 = world.source.sent.iter().map(|(_, bytes)| bytes).sum();
    assert_eq!(ram.precopy_bytes + ram.downtime_bytes, live);
    assert!(ram.transferred >= live && ram.transferred <= world.link.total);
    let passes = world.notes.iter().filter(|(_, note)| matches!(note, Note::Pass(_))).count();
    assert_eq!(ram.dirty_sync_count, passes as u64);
    // 200 MiB/s are 1678 megabit/s.
    assert!((1200.0..1700.0).contains(&ram.mbps), "{}", ram.mbps);
    let downtime = info.downtime.unwrap();
    assert!(downtime >= world.gap(), "it includes the wait for SHUT");
    assert!(downtime <= world.gap() + MS * 5);
    let pause = info.pause.unwrap();
    let parts = pause.stop + pause.ram + pause.devices + pause.confirm + pause.commit + pause.shut;
    assert!(parts.abs_diff(downtime) <= MS / 10, "{pause:?} against {downtime:?}");
    assert!(pause.confirm >= world.scenario.apply_time);
}

#[test]
fn expected_downtime_begins_as_the_limit_and_then_follows_the_measurement() {
    let scenario = Scenario { pages: 8192, load: Load { rate: 190 * MIB, working_set: 4000 }, ..scenario() };
    let world = scenario.fault(At::Time(SECOND * 8), What::Cancel).run();
    let active = in_status(&world, Active);
    assert_eq!(active[0].expected_downtime, Some(MS * 300));
    let last = active.last().unwrap();
    assert!(last.expected_downtime.unwrap() > MS * 300, "{:?}", last.expected_downtime);
    // 190 MiB/s in pages of 64 KiB.
    let rate = last.ram.unwrap().dirty_pages_rate;
    assert!((2000..3300).contains(&rate), "{rate}");
}

#[test]
fn a_paused_source_accounts_all_its_ram_to_the_downtime() {
    let world = Scenario { state: RunState::Paused, ..scenario() }.run();
    let ram = world.source.infos.last().unwrap().ram.unwrap();
    assert_eq!(ram.precopy_bytes, 0);
    assert!(ram.downtime_bytes >= 1024 * PAGE);
}

#[test]
fn times_never_run_backwards_and_stand_when_it_is_over() {
    let world = scenario().run();
    let mut before = Duration::ZERO;
    for total in world.source.infos.iter().filter_map(|info| info.total_time) {
        assert!(total >= before);
        before = total;
    }
    let machine = world.source.machine.as_ref().unwrap();
    assert_eq!(machine.info(world.now + SECOND).total_time, world.source.infos.last().unwrap().total_time);
}

#[test]
fn query_migrate_says_whether_a_move_is_fenced() {
    assert!(scenario().run().source.infos.last().unwrap().fenced);
    assert!(!scenario().without_return_path().run().source.infos.last().unwrap().fenced);
}

#[test]
fn the_destination_tells_its_parts_of_the_pause() {
    let world = scenario().run();
    let arrival = world.destination.machine.as_ref().unwrap().arrival();
    assert_eq!((arrival.apply, arrival.start), (world.scenario.apply_time, world.scenario.start_time));
    assert!(arrival.load > MS * 300, "64 MiB at 200 MiB/s: {:?}", arrival.load);
}

#[test]
fn a_failure_says_why() {
    let world = Scenario { save_fails: true, ..scenario() }.run();
    assert_eq!(world.source.infos.last().unwrap().error.as_deref(), Some("virtio-blk 3: save refused"));
    assert!(matches!(world.source.outcome, Some(Outcome::Failed { .. })));
}
