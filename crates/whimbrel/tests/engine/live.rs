//! Live state of a VMM's own beside RAM: it counts when it is decided to stop the guest, arrives whole together with RAM, leaves
//! no trace of an attempt that ends, and believes nothing of what the peer sends.

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use whimbrel::channel::Address;
use whimbrel::engine::Exit;
use whimbrel::handlers::Priority;
use whimbrel::proto::status::MigrationStatus;

use crate::disk::{CHUNK, Disk, NO_MORE};
use crate::guest::{Build, Guest, Runners, Scratch, TCP, wait_until};

const CHUNKS: usize = 1024;

/// A guest with a disk that it writes to at some 4 MiB/s.
fn with_disk(runners: &Runners) -> (Build, Arc<Disk>) {
    let disk = Disk::new(CHUNKS, Duration::from_millis(1));
    (disk.in_guest(Build::new(runners), Priority::Default), disk)
}

/// A destination with an empty disk.
fn destination(runners: &Runners) -> (Guest, Address, Arc<Disk>) {
    let (build, disk) = with_disk(runners);
    let (guest, address) = build.destination(TCP);
    (guest, address, disk)
}

/// The next attempt brings everything there.
fn moves(source: &Guest, disk: &Arc<Disk>) {
    let (guest, address, there) = destination(&source.runners);
    source.unlimited();
    source.migrate(&address);
    source.moved_to(&guest);
    assert!(disk.arrived_at(&there), "the disk is another");
    assert!(!disk.is_tracked());
}

#[test]
fn a_disk_that_is_written_to_arrives_together_with_ram() {
    let runners = Runners::default();
    let (build, disk) = with_disk(&runners);
    let source = build.busy_to_the_end().source();
    wait_until("the disk is written to", || disk.writes() > 10);
    moves(&source, &disk);
}

#[test]
fn the_guest_is_not_stopped_before_the_disk_fits_the_downtime_limit() {
    let runners = Runners::default();
    let (build, disk) = with_disk(&runners);
    let source = build.ram(1, 8).rate(32).source();
    source.crawl();
    let (build, there) = with_disk(&runners);
    let (guest, address) = build.ram(1, 8).destination(TCP);
    source.migrate(&address);
    // At 1 MiB/s RAM's 32 KiB alone would be there by now.
    std::thread::sleep(Duration::from_millis(300));
    let info = source.info();
    assert_eq!(info.status, MigrationStatus::Active, "{:?}", info.error);
    assert!(info.ram.unwrap().remaining > (CHUNKS * CHUNK / 2) as u64);
    source.unlimited();
    source.moved_to(&guest);
    assert!(disk.arrived_at(&there));
}

#[test]
fn a_cancel_half_way_ends_tracking_and_the_next_attempt_brings_everything() {
    let runners = Runners::default();
    let (build, disk) = with_disk(&runners);
    let source = build.source();
    source.crawl();
    let (_guest, address, _) = destination(&runners);
    source.migrate(&address);
    source.wait_for(MigrationStatus::Active);
    wait_until("some of it is sent", || source.info().ram.unwrap().transferred > 64 << 10);
    assert!(disk.is_tracked());
    source.cancel().unwrap();
    source.cancelled();
    assert!(!disk.is_tracked());
    moves(&source, &disk);
}

#[test]
fn what_fails_in_it_is_named_and_leaves_the_guest_at_the_source() {
    for at in ["source", "setup", "sync", "iterate", "last sync", "complete"] {
        let runners = Runners::default();
        let (build, disk) = with_disk(&runners);
        let source = build.source();
        disk.fail(at);
        let (_guest, address, _) = destination(&runners);
        source.migrate(&address);
        assert_eq!(source.failed(), format!("device 'disk': EIO in {at}"));
        assert!(!disk.is_tracked());
        moves(&source, &disk);
    }
}

/// A stream of a small guest whose disk stands there with this priority.
fn recorded(priority: Priority) -> Vec<u8> {
    let scratch = Scratch::new();
    let path = scratch.path("stream");
    let disk = Disk::new(8, Duration::from_millis(1));
    let source = disk.in_guest(Build::new(&Runners::default()).ram(1, 8), priority).source();
    source.migrate(&Address::File { path: path.clone(), offset: 0 });
    source.wait_for(MigrationStatus::Completed);
    std::fs::read(path).unwrap()
}

#[test]
fn live_states_stand_in_the_stream_by_priority_and_ram_first_among_equals() {
    for (priority, disk_first) in [(Priority::Default, false), (Priority::Iommu, true)] {
        let stream = recorded(priority);
        let at = |start: &[u8]| stream.windows(start.len()).position(|window| window == start).unwrap();
        assert_eq!(at(b"\x04disk") < at(b"\x03ram"), disk_first);
    }
}

/// Why a destination with such a disk refuses these bytes; nothing runs there.
fn refusal(bytes: &[u8]) -> String {
    let scratch = Scratch::new();
    let disk = Disk::new(8, Duration::from_millis(1));
    let build = disk.in_guest(Build::new(&Runners::default()).ram(1, 8), Priority::Default);
    let (guest, address) = build.destination(&scratch.unix());
    let Address::Unix(path) = address else { unreachable!() };
    let mut stream = UnixStream::connect(path).unwrap();
    let _refused_early = stream.write_all(bytes);
    drop(stream);
    wait_until("an end", || guest.has_ended() || guest.runners.now() > 0);
    assert_eq!(guest.runners.now(), 0, "half a guest runs");
    match guest.exit() {
        Exit::IncomingFailed(why) => why,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_disk_that_makes_no_sense_is_refused_by_name_and_offset() {
    let stream = recorded(Priority::Default);
    let find = |what: &[u8]| stream.windows(what.len()).position(|window| window == what).unwrap();
    let start = find(b"\x01\0\0\0\x02\x04disk");
    let changed = |at: usize, bytes: &[u8]| {
        let mut stream = stream.clone();
        stream[at..at + bytes.len()].copy_from_slice(bytes);
        refusal(&stream)
    };
    let size = start + 18;
    assert_eq!(stream[size..size + 8], (8 * CHUNK as u64).to_be_bytes());
    let why = changed(size, &[0xff]);
    assert!(why.contains("device 'disk': 18374686479671656448 bytes, here 32768 (stream offset"), "{why}");
    // The header before it: name, instance, version.
    let why = changed(start + 6, b"disc");
    assert!(why.contains("Unknown savevm section or instance 'disc' 0"), "{why}");
    let why = changed(start + 13, &[7]);
    assert!(why.contains("Unknown savevm section or instance 'disk' 7"), "{why}");
    let why = changed(start + 17, &[2]);
    assert!(why.contains("unsupported version 2 for 'disk' v1"), "{why}");
    let why = changed(start + 4, &[1]);
    assert!(why.contains("section 'disk': its number 1 is another's"), "{why}");
    let chunk = find(b"\x02\0\0\0\x02") + 5;
    let why = changed(chunk, &9_u32.to_be_bytes());
    assert!(why.contains(&format!("device 'disk': no chunk 9 (stream offset {chunk:#x})")), "{why}");
    let why = changed(chunk, &NO_MORE.to_be_bytes());
    assert!(why.contains("Missing section footer for disk"), "{why}");
}

#[test]
fn a_disk_that_comes_twice_or_not_whole_makes_no_guest() {
    let stream = recorded(Priority::Default);
    let find = |what: &[u8]| stream.windows(what.len()).position(|window| window == what).unwrap();
    let start = find(b"\x01\0\0\0\x02\x04disk");
    let section = &stream[start..start + 31];
    assert!(section.ends_with(b"\x7e\0\0\0\x02"));
    let why = refusal(&[&stream[..start], section, &stream[start..]].concat());
    assert!(why.contains("section 'disk': it starts twice"), "{why}");
    let end = find(&[b"\x03\0\0\0\x02", &NO_MORE.to_be_bytes()[..], b"\x7e\0\0\0\x02"].concat());
    let why = refusal(&[&stream[..end], &stream[end + 14..]].concat());
    assert!(why.contains("section 'disk': the stream ends before all of it was sent"), "{why}");
    for cut in (start..end + 14).step_by(499) {
        let why = refusal(&stream[..cut]);
        assert!(why.contains("stream offset"), "cut after {cut:#x} bytes: {why}");
    }
}
