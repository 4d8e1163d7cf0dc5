//! Tables in guest RAM: a device that keeps its mappings to itself while the guest runs, changes them until the last vCPU is
//! paused, and writes them into guest RAM at each stop. What is left out or made too early is caught at the source by the stop's
//! number, what is lost on the way at the destination by the digest, both before the guest runs there; with the checks off, the
//! mappings that arrive are seen to be wrong.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use vm_memory::GuestAddress;
use whimbrel::channel::Address;
use whimbrel::faults::{Fault, Faults};
use whimbrel::handlers::Registry;
use whimbrel::handlers::{Digest, RamTables};
use whimbrel::machine::MachineError;
use whimbrel::memory::{PAGE_SIZE, RamBlock, Region};
use whimbrel::proto::capabilities::Capability;
use whimbrel::proto::run_state::RunState;
use whimbrel::proto::status::MigrationStatus;

use crate::guest::{Build, Call, Guest, Runners, Scratch, TCP, wait_until};

/// The device: like an ITS, event n is mapped to a number. Its table is one page of guest RAM, 0 for no mapping.
struct Mapper {
    table: RamBlock,
    mappings: Mutex<[u64; MAPPINGS]>,
    saves: AtomicU64,
}

const MAPPINGS: usize = 16;

impl Mapper {
    fn new() -> Arc<Self> {
        let region = Region::from_range(GuestAddress(1 << 40), PAGE_SIZE as usize, None).unwrap();
        let table = RamBlock::new("tables", vec![Arc::new(region)], true);
        Arc::new(Self { table, mappings: Mutex::default(), saves: AtomicU64::new(0) })
    }

    fn mappings(&self) -> [u64; MAPPINGS] {
        *self.mappings.lock().unwrap()
    }

    /// What a vCPU's last instructions do before it is paused.
    fn remap(&self) {
        self.mappings.lock().unwrap().iter_mut().enumerate().for_each(|(n, to)| *to += 8192 + n as u64);
    }

    fn table(&self) -> [u64; MAPPINGS] {
        let mut bytes = [0; MAPPINGS * 8];
        self.table.read(0, &mut bytes).unwrap();
        std::array::from_fn(|n| u64::from_le_bytes(bytes[n * 8..][..8].try_into().unwrap()))
    }

    fn restore(&self, faults: &Faults) {
        if faults.has(Fault::TablesZeroed) {
            self.table.write(0, &[0; MAPPINGS * 8]).unwrap();
        }
        *self.mappings.lock().unwrap() = self.table();
    }
}

impl RamTables for Mapper {
    fn save(&self) -> Result<(), MachineError> {
        self.saves.fetch_add(1, Ordering::Relaxed);
        let bytes: Vec<u8> = self.mappings().iter().flat_map(|to| to.to_le_bytes()).collect();
        self.table.write(0, &bytes).map_err(|error| error.to_string().into())
    }

    fn digest(&self) -> Result<Digest, MachineError> {
        let mut digest = Digest::new();
        for (event, to) in self.table().into_iter().enumerate().filter(|(_, to)| *to != 0) {
            digest.add(&[event as u64, to]);
        }
        Ok(digest)
    }
}

/// A guest with the device, and with these faults.
fn with_tables(runners: &Runners, faults: &[&str]) -> (Build, Arc<Mapper>) {
    let mapper = Mapper::new();
    let mut build = Build::new(runners);
    build.config.faults = Faults::parse(faults.iter().copied()).unwrap();
    build.ram.push(mapper.table.clone());
    let (device, faults) = (mapper.clone(), build.config.faults.clone());
    build.hook = Some(Arc::new(move |engine, call| {
        match call {
            Call::PauseVcpus if matches!(engine.run_state(), RunState::FinishMigrate | RunState::Paused) => {
                device.remap();
            }
            Call::Apply => device.restore(&faults),
            _ => {}
        }
        Ok(())
    }));
    let build = named(build, "mapper", &mapper);
    (build, mapper)
}

fn named(build: Build, name: &'static str, mapper: &Arc<Mapper>) -> Build {
    let device = mapper.clone();
    build.handlers(move |registry: &mut Registry| registry.ram_tables(0, name, device.clone()))
}

struct Move {
    source: Guest,
    destination: Guest,
    /// The devices' mappings were the same when the guest had moved.
    whole: bool,
}

fn moved(source_faults: &[&str], destination_faults: &[&str]) -> Move {
    let runners = Runners::default();
    let (build, here) = with_tables(&runners, source_faults);
    let source = build.source();
    // A stop before: an earlier save is no excuse.
    source.command(|engine| engine.stop().and_then(|()| engine.cont())).unwrap();
    let (build, there) = with_tables(&runners, destination_faults);
    let (destination, address) = build.destination(TCP);
    source.migrate(&address);
    source.wait_for(MigrationStatus::Completed);
    destination.mismatches_on_arrival();
    Move { whole: here.mappings() == there.mappings(), source, destination }
}

/// The switchover fails with this error; the guest runs on here.
fn refused(fault: &str) -> (Guest, String) {
    let runners = Runners::default();
    let (build, _) = with_tables(&runners, &[fault]);
    let source = build.source();
    let (build, _) = with_tables(&runners, &[]);
    let (_destination, address) = build.destination(TCP);
    source.migrate(&address);
    let why = source.failed();
    (source, why)
}

#[test]
fn tables_that_change_until_the_last_vcpu_is_paused_arrive() {
    let Move { source, destination, whole } = moved(&[], &[]);
    assert!(whole);
    source.moved_to(&destination);
}

#[test]
fn tables_that_were_not_saved_at_this_stop_keep_the_guest_at_the_source() {
    let (_source, why) = refused("tables-left-out");
    let expected = "device 'mapper': its tables in guest RAM are those of stop 0, but this is stop 1: they were not saved, or \
                    saved before the last vCPU was paused";
    assert_eq!(why, expected);
    assert!(!moved(&["tables-left-out", "no-stamp-check"], &[]).whole, "the count finds it too");
}

#[test]
fn tables_that_were_saved_before_the_vcpus_stopped_keep_the_guest_at_the_source() {
    let (source, why) = refused("tables-too-early");
    assert!(
        why.starts_with("device 'mapper': its tables in guest RAM are those of stop 0, but this is stop 1"),
        "{why}"
    );
    source.command(|engine| engine.stop().and_then(|()| engine.cont())).unwrap();
    let (build, _) = with_tables(&source.runners, &[]);
    let (_destination, address) = build.destination(TCP);
    source.migrate(&address);
    let why = source.failed();
    assert!(
        why.starts_with("device 'mapper': its tables in guest RAM are those of stop 2, but this is stop 3"),
        "{why}"
    );
    assert!(!moved(&["tables-too-early", "no-stamp-check"], &[]).whole, "the count finds it too");
}

#[test]
fn tables_that_cannot_be_saved_leave_the_guest_at_the_source_and_the_next_attempt_succeeds() {
    let (source, why) = refused("tables-fail");
    assert_eq!(why, "the guest could not be stopped: device 'mapper': EIO, as asked for by a fault switch");
    let (build, _) = with_tables(&source.runners, &[]);
    source.moves_next_time(build);
}

#[test]
fn tables_that_cannot_be_saved_keep_nobody_from_stopping_the_guest() {
    let runners = Runners::default();
    let (build, here) = with_tables(&runners, &["tables-fail"]);
    let source = build.source();
    source.command(|engine| engine.stop()).unwrap();
    assert_eq!(source.engine.run_state(), RunState::Paused);
    assert_eq!(here.saves.load(Ordering::Relaxed), 0);
    let (build, there) = with_tables(&runners, &[]);
    let (destination, address) = build.destination(TCP);
    source.migrate(&address);
    source.wait_for(MigrationStatus::Completed);
    destination.wait_for_state(RunState::Paused);
    assert_eq!(there.mappings(), here.mappings(), "saved at the switchover");
}

#[test]
fn a_guest_that_stands_is_moved_with_tables_saved_at_the_switchover() {
    let runners = Runners::default();
    let (build, here) = with_tables(&runners, &[]);
    let source = build.source();
    source.command(|engine| engine.stop()).unwrap();
    let paused = here.mappings();
    let (build, there) = with_tables(&runners, &[]);
    let (destination, address) = build.destination(TCP);
    source.migrate(&address);
    source.wait_for(MigrationStatus::Completed);
    destination.wait_for_state(RunState::Paused);
    assert_ne!(here.mappings(), paused, "the device worked on while the guest stood");
    assert_eq!(there.mappings(), here.mappings());
    // On it goes, from where it has never run.
    let (build, further) = with_tables(&runners, &[]);
    let (last, address) = build.destination(TCP);
    destination.migrate(&address);
    destination.wait_for(MigrationStatus::Completed);
    last.wait_for_state(RunState::Paused);
    assert_ne!(there.mappings(), here.mappings(), "and here");
    assert_eq!(further.mappings(), there.mappings());
}

#[test]
fn a_guest_that_stands_stays_if_its_tables_were_not_saved_at_the_switchover() {
    let runners = Runners::default();
    let source = with_tables(&runners, &["tables-left-out"]).0.source();
    source.command(|engine| engine.stop()).unwrap();
    let (_destination, address) = with_tables(&runners, &[]).0.destination(TCP);
    source.migrate(&address);
    let info = source.wait_for(MigrationStatus::Failed);
    let expected = "device 'mapper': its tables in guest RAM are those of stop 0, but this is stop 2";
    assert!(info.error.as_ref().unwrap().starts_with(expected), "{info:?}");
    source.wait_for_state(RunState::Paused);
    source.command(|engine| engine.cont()).unwrap();
    source.runs();
}

/// A migration between two machines like this, the capability on at these ends; and what the destination says, if it fails.
fn digested(source: Build, destination: Build, on: [bool; 2]) -> (Guest, Result<Guest, String>) {
    let source = source.source();
    let (destination, address) = destination.destination(TCP);
    for guest in [&source, &destination].into_iter().zip(on).filter(|(_, on)| *on).map(|(guest, _)| guest) {
        guest.set(Capability::TableDigest);
    }
    source.migrate(&address);
    wait_until("the end", || !source.info().status.is_running());
    if source.info().status == MigrationStatus::Completed {
        return (source, Ok(destination));
    }
    source.failed();
    (source, Err(destination.refusal()))
}

#[test]
fn tables_that_are_lost_on_the_way_are_refused_before_the_guest_runs() {
    let runners = Runners::default();
    let (zeroing, _) = with_tables(&runners, &["tables-zeroed"]);
    let (source, refusal) = digested(with_tables(&runners, &[]).0, zeroing, [true, true]);
    let refusal = refusal.err().unwrap();
    let text = "apply: device 'mapper': its tables in guest RAM are not what the source saved: 0 entries, cbf29ce484222325 here, \
                16 entries, ";
    assert!(refusal.starts_with(text), "{refusal}");
    assert_eq!(source.info().error.unwrap(), "Sibling indicated error 1");
    // The next destination has the capability and sound memory.
    let (destination, address) = with_tables(&runners, &[]).0.destination(TCP);
    destination.set(Capability::TableDigest);
    source.migrate(&address);
    source.moved_to(&destination);
}

#[test]
fn without_the_digest_lost_tables_arrive_and_only_the_count_finds_it() {
    assert!(!moved(&[], &["tables-zeroed"]).whole, "the capability is off");
    let runners = Runners::default();
    let (build, there) = with_tables(&runners, &["tables-zeroed", "no-digest-check"]);
    let (_source, moved) = digested(with_tables(&runners, &[]).0, build, [true, true]);
    moved.unwrap().mismatches_on_arrival();
    assert_eq!(there.mappings(), [0; MAPPINGS], "the check is off");
}

#[test]
fn the_digest_is_for_both_ends_or_none() {
    for (on, received, local) in [([true, false], "on", "off"), ([false, true], "off", "on")] {
        let runners = Runners::default();
        let (_, refusal) = digested(with_tables(&runners, &[]).0, with_tables(&runners, &[]).0, on);
        let text = format!(
            "setup: Capability x-whimbrel-table-digest is {local}, but received capability is {received}"
        );
        assert_eq!(refusal.err().unwrap(), text);
    }
}

#[test]
fn a_digest_that_is_missing_or_of_no_device_of_ours_is_named() {
    let runners = Runners::default();
    let with = |name| {
        let (build, mapper) = with_tables(&runners, &[]);
        named(build, name, &mapper)
    };
    let none = with("mapper").handlers(|_| {});
    let (_, refusal) = digested(none, with("mapper"), [true, true]);
    assert_eq!(
        refusal.err().unwrap(),
        "apply: device 'mapper': the source sent no digest of its tables in guest RAM"
    );
    let (_, refusal) = digested(with("other"), with("mapper"), [true, true]);
    let refusal = refusal.err().unwrap();
    let text = "load: Unknown savevm section or instance 'other/x-whimbrel-table-digest' 0";
    assert!(refusal.starts_with(text), "{refusal}");
}

#[test]
fn a_stream_without_the_capability_does_not_know_of_it() {
    for on in [false, true] {
        let scratch = Scratch::new();
        let path = scratch.path("stream");
        let source = with_tables(&Runners::default(), &[]).0.ram(1, 8).source();
        if on {
            source.set(Capability::TableDigest);
        }
        source.migrate(&Address::File { path: path.clone(), offset: 0 });
        source.wait_for(MigrationStatus::Completed);
        let stream = std::fs::read(path).unwrap();
        assert_eq!(stream.windows(10).any(|window| window == b"x-whimbrel"), on);
    }
}
