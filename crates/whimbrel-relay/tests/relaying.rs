//! A relay between two real sockets: what it carries arrives, what a rule says happens at the byte it names, and what was
//! recorded arrives again at another destination.

mod stream;

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use stream::Stream;
use whimbrel::channel::Address;
use whimbrel_relay::recording::Reader;
use whimbrel_relay::relay::Seen;
use whimbrel_relay::replay::{Options, Outcome, replay};
use whimbrel_relay::rule::Act;
use whimbrel_relay::{Config, Direction, Relay, Rule};

const LIMIT: Duration = Duration::from_secs(60);
/// SHUT 0.
const SHUT: [u8; 8] = [0, 1, 0, 4, 0, 0, 0, 0];

/// A place for sockets, a destination that listens there, and the address at which the relay is reached.
struct Place(PathBuf);

impl Place {
    fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("whimbrel-relaying-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn listen(&self) -> UnixListener {
        UnixListener::bind(self.0.join("to")).unwrap()
    }

    fn config(&self) -> Config {
        let at = |name| Address::Unix(self.0.join(name));
        Config::new(at("relay"), at("to"))
    }

    fn recording(&self) -> PathBuf {
        self.0.join("recording")
    }

    fn connect(&self) -> UnixStream {
        let stream = UnixStream::connect(self.0.join("relay")).unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        stream
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Source and destination, joined by a relay.
fn joined(config: impl FnOnce(&mut Config)) -> (Place, Relay, UnixStream, UnixStream) {
    let place = Place::new();
    let listener = place.listen();
    let mut settings = place.config();
    config(&mut settings);
    let relay = Relay::start(settings).unwrap();
    let source = place.connect();
    let (destination, _) = listener.accept().unwrap();
    destination.set_read_timeout(Some(LIMIT)).unwrap();
    (place, relay, source, destination)
}

fn all(stream: &mut UnixStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    match stream.read_to_end(&mut bytes) {
        Err(error) if error.kind() != ErrorKind::ConnectionReset => panic!("{error}"),
        _ => bytes,
    }
}

fn wait_for(what: &str, mut ready: impl FnMut() -> bool) {
    let start = Instant::now();
    while !ready() {
        assert!(start.elapsed() < LIMIT, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn is_silent(stream: &mut UnixStream, time: Duration) -> bool {
    stream.set_read_timeout(Some(time)).unwrap();
    let silent = matches!(stream.read(&mut [0]), Err(error) if error.kind() == ErrorKind::WouldBlock);
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    silent
}

#[test]
fn everything_is_carried_both_ways_and_each_direction_ends_alone() {
    let (_place, relay, mut source, mut destination) = joined(|_| ());
    let sent: Vec<u8> = (0..3_000_000_u32).map(|byte| (byte % 251) as u8).collect();
    let expected = sent.clone();
    let writer = std::thread::spawn(move || {
        source.write_all(&sent).unwrap();
        source.shutdown(Shutdown::Write).unwrap();
        source
    });
    assert!(all(&mut destination) == expected);
    let mut source = writer.join().unwrap();
    destination.write_all(&SHUT).unwrap();
    drop(destination);
    assert_eq!(all(&mut source), SHUT);
    wait_for("the connection's end", || !relay.connections()[0].open);
    assert_eq!((relay.carried(Direction::Forward), relay.carried(Direction::Back)), (3_000_000, 8));
}

#[test]
fn a_cut_falls_on_every_boundary_exactly() {
    let stream = Stream::whole();
    for mark in stream.marks() {
        let edge = mark.edge;
        // Which of the pieces that are called so it is.
        let same = |other: &&whimbrel_relay::scan::Mark| other.edge == edge && other.piece == mark.piece;
        let nth = stream.marks().iter().filter(same).position(|other| other.at == mark.at).unwrap() + 1;
        let rule = Rule::at_piece(Act::Cut, edge, &mark.piece, nth as u32);
        let (_place, relay, mut source, mut destination) = joined(|config| config.rules.push(rule));
        // The first piece ends inside what says that the boundary is one: till the rest comes, nothing behind it may pass.
        let (first, rest) = stream.bytes.split_at((mark.at as usize + 3).min(stream.bytes.len()));
        source.write_all(first).unwrap();
        std::thread::sleep(Duration::from_millis(20));
        for chunk in rest.chunks(997) {
            if source.write_all(chunk).is_err() {
                break;
            }
        }
        let arrived = all(&mut destination);
        assert!(arrived == stream.bytes[..mark.at as usize], "{mark:?}: {} bytes", arrived.len());
        assert_eq!(relay.fired().len(), 1, "{mark:?}");
        assert_eq!(relay.fired()[0].at, mark.at);
        assert!(all(&mut source).is_empty(), "both ends see it");
    }
}

#[test]
fn nobody_waits_for_bytes_whose_meaning_is_open() {
    let rule = Rule::parse(Act::Cut, "before:section=never").unwrap();
    let (_place, relay, mut source, mut destination) = joined(|config| config.rules.push(rule));
    let mut stream = Stream::header();
    stream.full(1, "timer", 0, &[0; 24]);
    let half = [&stream.bytes[..], &[4, 0, 0]].concat();
    source.write_all(&half).unwrap();
    let mut arrived = vec![0; half.len()];
    destination.read_exact(&mut arrived).unwrap();
    assert_eq!(arrived, half);
    assert_eq!(relay.unfired().len(), 1);
}

#[test]
fn what_comes_back_is_cut_by_message() {
    let rule = Rule::parse(Act::Cut, "before:message=SHUT").unwrap();
    let (_place, _relay, mut source, mut destination) = joined(|config| config.rules.push(rule));
    let pong = [0, 2, 0, 4, 0, 0, 0, 1];
    destination.write_all(&[&pong[..], &SHUT].concat()).unwrap();
    assert_eq!(all(&mut source), pong);
}

#[test]
fn a_link_that_is_held_carries_nothing_and_goes_on_when_it_is_released() {
    let (_place, relay, mut source, mut destination) = joined(|_| ());
    source.write_all(b"a").unwrap();
    destination.read_exact(&mut [0]).unwrap();
    relay.hold();
    source.write_all(b"b").unwrap();
    destination.write_all(b"c").unwrap();
    assert!(
        is_silent(&mut destination, Duration::from_millis(100))
            && is_silent(&mut source, Duration::from_millis(1))
    );
    assert_eq!((relay.carried(Direction::Forward), relay.carried(Direction::Back)), (1, 0));
    relay.release();
    destination.read_exact(&mut [0]).unwrap();
    source.read_exact(&mut [0]).unwrap();
    relay.cut();
    assert_eq!((all(&mut source), all(&mut destination)), (vec![], vec![]));
}

#[test]
fn a_link_that_swallows_takes_everything_and_says_nothing() {
    let (_place, relay, mut source, mut destination) =
        joined(|config| config.rules.push(Rule::after_bytes(Act::Swallow, 3)));
    source.write_all(b"abcdef").unwrap();
    let mut three = [0; 3];
    destination.read_exact(&mut three).unwrap();
    assert_eq!(&three, b"abc");
    wait_for("the rule", || !relay.fired().is_empty());
    source.write_all(&vec![0; 8 << 20]).unwrap();
    drop(source);
    assert!(is_silent(&mut destination, Duration::from_millis(100)), "not even the end of it passes");
}

#[test]
fn one_byte_is_corrupted_at_its_place_and_no_other() {
    let stream = Stream::whole();
    let rule = Rule::parse(Act::Corrupt, "before:full=cpu:0+20").unwrap();
    let (_place, _relay, mut source, mut destination) = joined(|config| config.rules.push(rule));
    source.write_all(&stream.bytes).unwrap();
    drop(source);
    let arrived = all(&mut destination);
    let cpu = stream.marks().iter().find(|mark| mark.piece.to_string() == "full=cpu:0").unwrap().at as usize;
    let mut expected = stream.bytes.clone();
    expected[cpu + 20] = !expected[cpu + 20];
    assert!(arrived == expected);
}

#[test]
fn a_rate_is_kept_and_latency_is_added_to_every_byte() {
    let (_place, _relay, mut source, mut destination) = joined(|config| {
        config.rate = Some(10 << 20);
        config.latency = Duration::from_millis(80);
    });
    let start = Instant::now();
    source.write_all(b"x").unwrap();
    destination.read_exact(&mut [0]).unwrap();
    destination.write_all(b"y").unwrap();
    source.read_exact(&mut [0]).unwrap();
    assert!(start.elapsed() >= Duration::from_millis(160), "there and back: {:?}", start.elapsed());
    let start = Instant::now();
    let writer = std::thread::spawn(move || source.write_all(&vec![7; 3 << 20]));
    destination.read_exact(&mut vec![0; 3 << 20]).unwrap();
    assert!(start.elapsed() >= Duration::from_millis(290), "3 MiB at 10 MiB/s: {:?}", start.elapsed());
    writer.join().unwrap().unwrap();
}

#[test]
fn a_destination_that_is_not_there_closes_the_sources_connection() {
    let place = Place::new();
    let seen = Arc::<Mutex<Vec<Seen>>>::default();
    let mut config = place.config();
    let log = seen.clone();
    config.observer = Some(Box::new(move |event| log.lock().unwrap().push(event.clone())));
    let _relay = Relay::start(config).unwrap();
    assert!(all(&mut place.connect()).is_empty());
    let seen = seen.lock().unwrap();
    assert!(
        matches!(&seen[..], [Seen::Unreachable(why)] if why.starts_with("Failed to connect")),
        "{seen:?}"
    );
}

/// A destination that reads to the EOF of each connection and says SHUT on the first.
fn take(listener: &UnixListener, connections: usize) -> Vec<Vec<u8>> {
    let open: Vec<_> = (0..connections).map(|_| listener.accept().unwrap().0).collect();
    let mut taken = Vec::new();
    for (number, mut stream) in open.into_iter().enumerate() {
        if number == 0 {
            let mut bytes = vec![0; Stream::whole().bytes.len()];
            stream.read_exact(&mut bytes).unwrap();
            stream.write_all(&SHUT).unwrap();
            taken.push(bytes);
        } else {
            taken.push(all(&mut stream));
        }
    }
    taken
}

#[test]
fn what_was_recorded_arrives_again_with_its_times() {
    let place = Place::new();
    let listener = place.listen();
    let mut config = place.config();
    config.recording = Some(place.recording());
    let relay = Relay::start(config).unwrap();
    let sender = {
        let (mut main, mut second) = (place.connect(), place.connect());
        std::thread::spawn(move || {
            main.write_all(&Stream::whole().bytes[..500]).unwrap();
            second.write_all(b"multifd").unwrap();
            std::thread::sleep(Duration::from_millis(300));
            main.write_all(&Stream::whole().bytes[500..]).unwrap();
            assert_eq!(all(&mut main), SHUT);
        })
    };
    let first = take(&listener, 2);
    sender.join().unwrap();
    wait_for("both connections' ends", || relay.connections().iter().all(|connection| !connection.open));
    let bytes = relay.finish().unwrap();
    assert_eq!(bytes as usize, Stream::whole().bytes.len() + b"multifd".len() + SHUT.len());

    let recording = place.recording();
    let to = Address::Unix(place.0.join("to"));
    let again = std::thread::spawn(move || take(&listener, 2));
    let options = Options { timing: true, wait: LIMIT };
    let start = Instant::now();
    let replayed = replay(&recording, &to, &options).unwrap();
    assert!(start.elapsed() >= Duration::from_millis(290), "{:?}", start.elapsed());
    assert_eq!((&replayed.outcome, replayed.connections), (&Outcome::Taken, 2));
    assert_eq!((replayed.sent, replayed.breaks_off), (replayed.recorded, false));
    assert!(again.join().unwrap() == first);
}

#[test]
fn a_recording_of_a_cut_move_is_refused_and_one_without_answers_is_unknown() {
    let record = |rule: Option<Rule>, bytes: &[u8]| {
        let place = Place::new();
        let listener = place.listen();
        let mut config = place.config();
        config.recording = Some(place.recording());
        config.rules.extend(rule);
        let relay = Relay::start(config).unwrap();
        let mut source = place.connect();
        source.write_all(bytes).unwrap();
        source.shutdown(Shutdown::Write).unwrap();
        drop(all(&mut listener.accept().unwrap().0));
        drop(source);
        wait_for("the end", || !relay.connections()[0].open);
        relay.finish().unwrap();
        (place, listener)
    };
    let outcome = |place: &Place, listener: UnixListener| {
        let destination = std::thread::spawn(move || all(&mut listener.accept().unwrap().0));
        let options = Options { timing: false, wait: LIMIT };
        let replayed = replay(&place.recording(), &Address::Unix(place.0.join("to")), &options).unwrap();
        (replayed.outcome, destination.join().unwrap())
    };
    let whole = Stream::whole().bytes;
    let (place, listener) = record(Some(Rule::parse(Act::Cut, "before:eof").unwrap()), &whole);
    let (refused, arrived) = outcome(&place, listener);
    assert!(matches!(&refused, Outcome::Refused(why) if why.contains("without its EOF byte")), "{refused:?}");
    assert!(whole.starts_with(&arrived));
    let mut reader = Reader::open(&place.recording()).unwrap();
    let mut last = None;
    while let Some(record) = reader.next().unwrap() {
        last = Some(record.what);
    }
    assert_eq!(last, Some(whimbrel_relay::recording::What::Cut));

    let mut silent = Stream::header();
    silent.eof();
    silent.vmdesc(b"{}");
    let (place, listener) = record(None, &silent.bytes);
    let (unknown, arrived) = outcome(&place, listener);
    assert!(matches!(&unknown, Outcome::Unknown(why) if why.contains("no return path")), "{unknown:?}");
    assert_eq!(arrived, silent.bytes);
}

#[test]
fn a_destination_that_leaves_early_has_not_taken_it() {
    let place = Place::new();
    let listener = place.listen();
    let mut recorder = whimbrel_relay::recording::Recorder::create(&place.recording()).unwrap();
    recorder.open(0).unwrap();
    let mut stream = Stream::header();
    for _ in 0..64 {
        stream.full(1, "large", 0, &[1; 100_000]);
    }
    stream.eof();
    stream.vmdesc(b"{}");
    recorder.data(0, Direction::Forward, &stream.bytes).unwrap();
    recorder.finish().unwrap();
    let destination =
        std::thread::spawn(move || listener.accept().unwrap().0.read_exact(&mut [0; 1000]).unwrap());
    let options = Options { timing: false, wait: LIMIT };
    let replayed = replay(&place.recording(), &Address::Unix(place.0.join("to")), &options).unwrap();
    destination.join().unwrap();
    assert!(
        matches!(&replayed.outcome, Outcome::Refused(why) if why.contains("before the EOF byte")),
        "{replayed:?}"
    );
}
