//! Tables in guest RAM: a device that keeps its mappings to itself while the guest runs, changes them until the last vCPU is
//! paused, and writes them into guest RAM at each stop. What is left out, made too early or lost on the way is caught before
//! the guest runs; with the checks off, the mappings that arrive are seen to be wrong.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use vm_memory::GuestAddress;
use whimbrel::faults::{Fault, Faults};
use whimbrel::handlers::{Digest, RamTables};
use whimbrel::machine::MachineError;
use whimbrel::memory::{PAGE_SIZE, RamBlock, Region};
use whimbrel::proto::run_state::RunState;
use whimbrel::proto::status::MigrationStatus;

use crate::guest::{Build, Call, Guest, Runners, TCP};

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
    let device = mapper.clone();
    let build = build.handlers(move |registry| registry.ram_tables(0, "mapper", device.clone()));
    (build, mapper)
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
fn a_guest_that_stands_is_moved_with_the_tables_of_the_stop_that_paused_it() {
    let runners = Runners::default();
    let (build, here) = with_tables(&runners, &[]);
    let source = build.source();
    source.command(|engine| engine.stop()).unwrap();
    let (build, there) = with_tables(&runners, &[]);
    let (destination, address) = build.destination(TCP);
    source.migrate(&address);
    source.wait_for(MigrationStatus::Completed);
    destination.wait_for_state(RunState::Paused);
    assert_eq!(here.saves.load(Ordering::Relaxed), 1);
    assert_eq!(there.mappings(), here.mappings());
    // On it goes, from where it has never run: there is nothing to save.
    let (build, further) = with_tables(&runners, &[]);
    let (last, address) = build.destination(TCP);
    destination.migrate(&address);
    destination.wait_for(MigrationStatus::Completed);
    last.wait_for_state(RunState::Paused);
    assert_eq!(there.saves.load(Ordering::Relaxed), 0);
    assert_eq!(further.mappings(), here.mappings());
}
