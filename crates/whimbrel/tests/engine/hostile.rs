//! Streams that break off or were damaged, byte by byte: the destination says what and where, never runs half a guest, never
//! hangs, never panics.

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::sync::OnceLock;
use std::time::Duration;

use whimbrel::channel::Address;
use whimbrel::engine::Exit;
use whimbrel::proto::capabilities::Capability;
use whimbrel::proto::run_state::RunState;
use whimbrel::proto::source::FENCE;
use whimbrel::proto::status::MigrationStatus;
use whimbrel::wire::ReturnPathMessage;

use crate::guest::{Build, Guest, Runners, Scratch, wait_until};
use crate::peer::{Manner, Peer, bytes_of};

/// A small machine: the framing is what matters.
pub(crate) fn small() -> Build {
    Build::new(&Runners::default()).ram(2, 8)
}

/// A whole stream of the small machine.
pub(crate) fn recorded() -> &'static [u8] {
    static STREAM: OnceLock<Vec<u8>> = OnceLock::new();
    STREAM.get_or_init(|| {
        let scratch = Scratch::new();
        let path = scratch.path("stream");
        let source = small().source();
        source.migrate(&Address::File { path: path.clone(), offset: 0 });
        source.wait_for(MigrationStatus::Completed);
        std::fs::read(path).unwrap()
    })
}

/// Where the stream proper ends: the offset of the EOF byte. The vmdesc follows it: 0x06, be32 length, text to the end.
pub(crate) fn eof() -> usize {
    let stream = recorded();
    let is_vmdesc = |at: &usize| {
        let length = u32::try_from(stream.len() - at - 5).unwrap();
        stream[*at] == 0x06 && stream[at + 1..at + 5] == length.to_be_bytes()
    };
    (0..stream.len() - 5).rfind(is_vmdesc).unwrap() - 1
}

/// Every offset outside of page contents (and a little beyond EOF), and every `step`th inside.
fn offsets(step: usize) -> impl Iterator<Item = usize> {
    let eof = eof();
    (0..400).chain((400..eof - 300).step_by(step)).chain(eof - 300..eof + 20)
}

/// How a fresh destination takes these bytes: why it refused them, or `Ok` if a guest arrived.
fn taken(bytes: &[u8]) -> Result<Guest, String> {
    let scratch = Scratch::new();
    let (destination, address) = small().destination(&scratch.unix());
    let Address::Unix(path) = address else { unreachable!() };
    let mut stream = UnixStream::connect(path).unwrap();
    let _refused_early = stream.write_all(bytes);
    drop(stream);
    wait_until("an end", || destination.engine.run_state() != RunState::Inmigrate || destination.has_ended());
    if destination.has_ended() {
        assert_eq!(destination.runners.now(), 0, "it failed and runs");
        match destination.exit() {
            Exit::IncomingFailed(why) => Err(why),
            other => panic!("{other:?}"),
        }
    } else {
        Ok(destination)
    }
}

#[test]
fn the_recorded_stream_is_taken_whole_and_without_its_description() {
    for end in [recorded().len(), eof() + 1] {
        let arrived = taken(&recorded()[..end]).unwrap();
        assert_eq!(arrived.mismatches(), 0);
    }
}

#[test]
fn a_stream_that_breaks_off_anywhere_before_its_end_is_refused_with_the_offset() {
    let (stream, eof) = (recorded(), eof());
    for end in offsets(997).filter(|end| *end <= eof) {
        let why = taken(&stream[..end]).err().unwrap_or_else(|| panic!("{end} bytes made a guest"));
        let offset = why.rsplit_once("stream offset 0x").and_then(|(_, rest)| rest.split_once(")"));
        let offset = offset.and_then(|(hex, _peer)| usize::from_str_radix(hex, 16).ok());
        assert!(offset.is_some_and(|offset| offset <= end), "cut after {end:#x} bytes: {why}");
    }
}

#[test]
fn a_stream_that_breaks_off_inside_a_device_names_the_section_and_the_field() {
    let state = recorded().windows(7).rposition(|window| window == b"\x06worker").unwrap() + 15;
    let why = taken(&recorded()[..state + 10]).err().unwrap();
    let expected = format!(
        "load: section 'worker' instance 1, field last, offset {:#x}: stream ends inside the section's state: 6 more \
         bytes wanted (stream offset {:#x})",
        state + 8,
        state + 10
    );
    assert!(why.starts_with(&expected), "{why}");
}

#[test]
fn a_flipped_byte_is_refused_with_a_reason_or_changes_only_content() {
    let stream = recorded();
    let mut refused = 0;
    for at in offsets(1009) {
        for flip in [0x01, 0x80] {
            let mut damaged = stream.to_vec();
            damaged[at] ^= flip;
            if let Err(why) = taken(&damaged) {
                refused += 1;
                assert!(why.len() > 20, "byte {at:#x} flipped by {flip:#x}: '{why}'");
            }
        }
    }
    assert!(refused > 300, "only {refused} flips were noticed");
}

#[test]
fn what_is_refused_is_named() {
    let stream = recorded();
    let damage = |find: &[u8], replace: &[u8]| {
        let at = stream.windows(find.len()).position(|window| window == find).unwrap();
        let mut damaged = stream.to_vec();
        damaged[at..at + find.len()].copy_from_slice(replace);
        taken(&damaged).err().unwrap()
    };
    assert!(damage(b"QEVM", b"QEVN").starts_with("setup: Not a migration stream"));
    let section = damage(b"\x06worker\0\0\0\0", b"\x06walker\0\0\0\0");
    assert!(section.contains("Unknown savevm section or instance 'walker' 0"), "{section}");
    let instance = damage(b"\x06worker\0\0\0\0", b"\x06worker\0\0\0\x07");
    assert!(instance.contains("Unknown savevm section or instance 'worker' 7"), "{instance}");
    let version = damage(b"\x06worker\0\0\0\0\0\0\0\x01", b"\x06worker\0\0\0\0\0\0\0\x02");
    assert!(version.contains("worker") && version.contains('2'), "{version}");
    let block = damage(b"\x0bworker1.ram", b"\x0bworker7.ram");
    assert!(block.contains("Unknown ramblock \"worker7.ram\""), "{block}");
    let state = damage(b"running\0", b"sprints\0");
    assert!(state.contains("'sprints' is no run state"), "{state}");
}

/// Where the header and the configuration end: at the RAM section's start.
fn configuration() -> usize {
    recorded().windows(4).position(|window| window == b"\x03ram").unwrap() - 5
}

#[test]
fn a_stream_without_ram_makes_no_guest() {
    let empty = [&recorded()[..configuration()], &[0]].concat();
    let why = taken(&empty).err().unwrap();
    assert!(why.contains("section 'ram': the stream ends before all of it was sent"), "{why}");
}

#[test]
fn a_stream_whose_ram_has_no_end_makes_no_guest() {
    let stream = recorded();
    // The setup section alone: up to its end mark and footer.
    let footer = stream.windows(5).position(|window| window == b"\x7e\0\0\0\x01").unwrap() + 5;
    let announced = [&stream[..footer], &[0]].concat();
    let why = taken(&announced).err().unwrap();
    assert!(why.contains("section 'ram': the stream ends before all of it was sent"), "{why}");
    let start = &stream[configuration()..footer];
    let twice = [&stream[..footer], start, &stream[footer..]].concat();
    let why = taken(&twice).err().unwrap();
    assert!(why.contains("section 'ram': it starts twice"), "{why}");
}

/// A peer of the source says this in the middle of a move: why the source gave up.
fn said(bytes: Vec<u8>) -> String {
    let runners = Runners::default();
    let source = Build::heavy(&runners).source();
    source.crawl();
    let peer = Peer::new(Manner::Says(bytes));
    source.migrate(&peer.address);
    let why = source.failed();
    source.moves_next_time(Build::heavy(&runners));
    why
}

#[test]
fn a_return_path_that_makes_no_sense_ends_the_attempt_and_not_the_guest() {
    assert_eq!(said(bytes_of(&ReturnPathMessage::Shut(0))), "the destination finished before the commit");
    assert_eq!(said(bytes_of(&ReturnPathMessage::Shut(5))), "Sibling indicated error 5");
    assert!(said(vec![0xff; 64]).starts_with("Received invalid message 0xffff length 0xffff"));
    assert!(said(vec![0, 1, 0, 200]).contains("return path offset 0x0"));
}

#[test]
fn a_confirmation_before_the_question_counts_for_nothing() {
    let source = Build::new(&Runners::default()).source();
    // There is no switchover, and so no question, before the word that comes after the confirmation has been taken in.
    source.set(Capability::SwitchoverAck);
    let early = [ReturnPathMessage::Pong(FENCE), ReturnPathMessage::SwitchoverAck];
    let peer = Peer::new(Manner::Says(early.iter().flat_map(bytes_of).collect()));
    source.migrate(&peer.address);
    source.wait_for(MigrationStatus::Device);
    std::thread::sleep(Duration::from_millis(200));
    assert!(source.info().pause.unwrap().commit.is_zero(), "it committed");
    source.cancel().unwrap();
    source.cancelled();
}

#[test]
fn bytes_that_are_no_stream_are_refused() {
    for bytes in [&b""[..], b"GET / HTTP/1.1\r\n\r\n", &[0; 4096], &[0xff; 4096]] {
        let why = taken(bytes).err().unwrap();
        assert!(why.starts_with("setup: ") && why.contains("stream offset"), "{why}");
    }
}
