//! Recordings: what is written is read; what is damaged is refused where it is damaged, and never panics.

mod stream;

use std::path::{Path, PathBuf};

use stream::Random;
use whimbrel_relay::recording::{Places, Reader, Recorder, Stream, What};
use whimbrel_relay::{Direction, RelayError};

struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        Self(std::env::temp_dir().join(format!("whimbrel-recording-{}-{name}", std::process::id())))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// What happened, without times.
type Event = (u16, What);

/// A possible history of up to four connections.
fn history(random: &mut Random) -> Vec<Event> {
    let mut events: Vec<Event> = Vec::new();
    let mut open: Vec<[bool; 2]> = Vec::new();
    for _ in 0..1 + random.below(40) {
        if open.is_empty() || (open.len() < 4 && random.below(8) == 0) {
            events.push((open.len() as u16, What::Open));
            open.push([true; 2]);
            continue;
        }
        let connection = random.below(open.len());
        let way = random.below(2);
        let direction = [Direction::Forward, Direction::Back][way];
        if !open[connection][way] {
            continue;
        }
        let what = match random.below(20) {
            0 => {
                open[connection] = [false; 2];
                What::Cut
            }
            1 => {
                open[connection][way] = false;
                What::End(direction)
            }
            kind => {
                let length = 1 + random.below([10, 300, 5000][kind % 3]);
                What::Data(direction, (0..length).map(|_| random.below(256) as u8).collect())
            }
        };
        events.push((connection as u16, what));
    }
    events
}

fn write(path: &Path, events: &[Event], whole: bool) {
    let mut recorder = Recorder::create(path).unwrap();
    for (connection, what) in events {
        match what {
            What::Open => recorder.open(*connection),
            What::Data(direction, bytes) => recorder.data(*connection, *direction, bytes),
            What::End(direction) => recorder.end(*connection, *direction),
            What::Cut => recorder.cut(*connection),
        }
        .unwrap();
    }
    if whole {
        recorder.finish().unwrap();
    }
}

fn read(bytes: &[u8]) -> Result<(Vec<Event>, bool), RelayError> {
    let mut reader = Reader::new(bytes, Path::new("r"))?;
    let mut events = Vec::new();
    while let Some(record) = reader.next()? {
        events.push((record.connection, record.what));
    }
    Ok((events, reader.is_whole()))
}

#[test]
fn what_is_written_is_read() {
    let (mut random, scratch) = (Random(0x77), Scratch::new("written"));
    for round in 0..200 {
        let events = history(&mut random);
        let whole = round % 2 == 0;
        write(&scratch.0, &events, whole);
        let bytes = std::fs::read(&scratch.0).unwrap();
        assert_eq!(read(&bytes).unwrap(), (events.clone(), whole));
        for direction in [Direction::Forward, Direction::Back] {
            let mut stream = Stream::open(&scratch.0, 0, direction).unwrap();
            let mut got = Vec::new();
            std::io::Read::read_to_end(&mut stream, &mut got).unwrap();
            let sent = events.iter().filter_map(|(connection, what)| match what {
                What::Data(way, bytes) if *connection == 0 && *way == direction => Some(bytes.as_slice()),
                _ => None,
            });
            assert_eq!(got, sent.collect::<Vec<_>>().concat());
            let places = Places::open(&scratch.0, 0, direction).unwrap();
            for _ in 0..20 {
                let from = random.below(got.len() + 1);
                let mut again = vec![0; random.below(got.len() - from + 1)];
                places.read_exact_at(&mut again, from as u64).unwrap();
                assert_eq!(again, got[from..from + again.len()]);
            }
            assert!(places.read_exact_at(&mut [0], got.len() as u64).is_err());
            assert!(places.read_exact_at(&mut [0], u64::MAX).is_err());
        }
        let connections = events.iter().filter(|(_, what)| *what == What::Open).count();
        let missing = Stream::open(&scratch.0, connections as u16, Direction::Forward).unwrap_err();
        assert!(
            matches!(missing, RelayError::NoConnection { connections: there, .. } if there == connections)
        );
    }
}

#[test]
fn a_recording_that_breaks_off_is_read_as_far_as_it_goes() {
    let (mut random, scratch) = (Random(0x5eed), Scratch::new("broken"));
    let events = history(&mut random);
    write(&scratch.0, &events, true);
    let bytes = std::fs::read(&scratch.0).unwrap();
    let mut boundaries = 0;
    for length in 0..bytes.len() {
        match read(&bytes[..length]) {
            Ok((read, whole)) => {
                boundaries += 1;
                assert!(!whole, "cut at {length}");
                assert_eq!(read, events[..read.len()]);
            }
            Err(RelayError::Recording { offset, .. }) => assert!(offset <= length as u64),
            Err(other) => panic!("{other}"),
        }
    }
    assert_eq!(boundaries, events.len() + 1, "only between records it ends without an error");
}

#[test]
fn no_damaged_recording_panics_or_is_read_as_another() {
    let (mut random, scratch) = (Random(0xdead), Scratch::new("damaged"));
    let (mut fine, mut refused) = (0, 0);
    for _ in 0..50 {
        let events = history(&mut random);
        write(&scratch.0, &events, true);
        let bytes = std::fs::read(&scratch.0).unwrap();
        for _ in 0..400 {
            let mut damaged = bytes.clone();
            for _ in 0..=random.below(3) {
                let at = random.below(damaged.len());
                match random.below(3) {
                    0 => damaged[at] = random.below(256) as u8,
                    1 => damaged[at] ^= 1 << random.below(8),
                    _ => damaged.truncate(at.max(1)),
                }
            }
            match read(&damaged) {
                Ok(_) => fine += 1,
                Err(RelayError::Recording { offset, path, .. }) => {
                    assert!(offset <= damaged.len() as u64 && path == Path::new("r"));
                    refused += 1;
                }
                Err(other) => panic!("{other}"),
            }
        }
    }
    assert!(fine > 1000 && refused > 1000, "{fine} read, {refused} refused: the damage tests nothing");
}

#[test]
fn every_fault_is_named_with_its_offset() {
    let scratch = Scratch::new("faults");
    let events = [
        (0, What::Open),
        (0, What::Data(Direction::Forward, vec![7; 3])),
        (0, What::End(Direction::Forward)),
    ];
    write(&scratch.0, &events, true);
    let good = std::fs::read(&scratch.0).unwrap();
    // Records begin at 24 (open), 40 (data, 3 bytes), 59 (end), 75 (the last).
    let fault = |damage: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = good.clone();
        damage(&mut bytes);
        read(&bytes).unwrap_err().to_string()
    };
    for (damage, text) in [
        (
            &(|b: &mut Vec<u8>| b[0] = 0) as &dyn Fn(&mut Vec<u8>),
            "does not begin with 'whimrec' (file offset 0x0)",
        ),
        (&|b| b[11] = 2, "version is not 1 (file offset 0x8)"),
        (&|b| b[15] = 2, "must be 0 (file offset 0xc)"),
        (&|b| b[24] = 9, "unknown kind (file offset 0x18)"),
        (&|b| b[27] = 1, "out of order (file offset 0x18)"),
        (&|b| b[43] = 1, "never opened (file offset 0x28)"),
        (&|b| b[41] = 2, "a direction that there is not (file offset 0x28)"),
        (&|b| b[44] = 0xff, "more than 1 MiB (file offset 0x28)"),
        (&|b| b[66] = 1, "nothing but data has a length (file offset 0x3b)"),
        (&|b| b[48] = 1, "time goes back (file offset 0x3b)"),
        (&|b| b[75] = 3, "has ended (file offset 0x4b)"),
        (&|b| b.extend([0; 16]), "behind the last (file offset 0x5b)"),
        (&|b| b.truncate(57), "breaks off inside a record (file offset 0x28)"),
        (&|b| b.truncate(20), "shorter than a recording's header (file offset 0x10)"),
    ] {
        let said = fault(damage);
        assert!(said.contains(text), "{said}: not '{text}'");
    }
}
