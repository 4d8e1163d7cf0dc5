//! The link is cut at the boundaries of moves between whimbrel and real QEMU, while the guest works: never do two guests run,
//! and never none that could have been kept.
//!
//! | the cut falls | whimbrel → QEMU | QEMU → whimbrel |
//! |---|---|---|
//! | anywhere before the source has sent EOF | the source runs on | the source runs on |
//! | right before the EOF byte, which the source has sent | nobody: the source stays stopped, `outcome unknown`; an operator's `cont` | the source runs on |
//! | behind EOF, behind the vmdesc | the destination runs; the source stays stopped, `outcome unknown` | the source runs on |
//! | before SHUT, which the destination's host has seen acknowledged by the relay's | the same | **both**: the window that QEMU leaves open, see `docs/protocol.md` |
//! | behind SHUT | the destination runs, and the source knows it | the same |

use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::json;
use whimbrel_e2e::link::Link;
use whimbrel_e2e::{Launch, Peer, Vm, moves, now, rounds};
use whimbrel_relay::Rule;
use whimbrel_relay::relay::Seen;
use whimbrel_relay::rule::Act;
use whimbrel_relay::scan::{Edge, Kind, Mark};

use super::{LIMIT, machine, needs};

/// How long both ends are watched for a guest that runs.
const WATCH: Duration = Duration::from_millis(300);
/// How long a destination may take until it runs or ends; one that does neither keeps its guest stopped.
const SETTLE: Duration = Duration::from_secs(5);
/// How the source says that only an operator can tell.
const UNKNOWN: &str = "outcome unknown:";

/// Where the cut falls, as far as it matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    BeforeEofIsSent,
    BeforeEof,
    AfterEof,
    BeforeShut,
    AfterShut,
}

/// Who runs the guest after a cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Runs {
    Source,
    Destination,
    Nobody,
    Both,
}

fn place(rule: &Rule) -> Place {
    match rule.place.to_string().as_str() {
        "before:eof" => Place::BeforeEof,
        "after:eof" | "after:vmdesc" => Place::AfterEof,
        "before:message=SHUT:0" => Place::BeforeShut,
        "after:message=SHUT:0" => Place::AfterShut,
        _ => Place::BeforeEofIsSent,
    }
}

/// Who must run, and whether the source must say that only an operator can tell.
fn expected(from: Peer, place: Place) -> (Runs, bool) {
    match (from.is_qemu(), place) {
        (_, Place::BeforeEofIsSent) => (Runs::Source, false),
        (_, Place::AfterShut) => (Runs::Destination, false),
        (true, Place::BeforeShut) => (Runs::Both, false),
        (true, _) => (Runs::Source, false),
        (false, Place::BeforeEof) => (Runs::Nobody, true),
        (false, _) => (Runs::Destination, true),
    }
}

/// One guest, and destination after destination that it is sent to.
struct Bench {
    launch: Launch,
    to: Launch,
    source: Vm,
}

impl Bench {
    fn new(from: Peer, to: Peer) -> Self {
        let qemu = if from.is_qemu() { from } else { to };
        let launch = machine(from, qemu, 1);
        let source = launch.start_at_work();
        Self { launch, to: machine(to, qemu, 1), source }
    }

    /// One move that is cut there. Returns the boundaries that were seen.
    fn cut(&mut self, rule: Rule) -> Vec<Mark> {
        let mut destination = self.to.incoming().start();
        moves::with_return_path(&mut self.source, &mut destination);
        self.source.set(json!({"max-bandwidth": 0}));
        let marks = Arc::<Mutex<Vec<(Duration, Mark)>>>::default();
        let log = marks.clone();
        let link = Link::with(&moves::listen(&mut destination), vec![rule.clone()], move |seen| {
            if let Seen::Mark { mark, .. } = seen {
                log.lock().expect("nobody panics with it").push((now(), mark.clone()));
            }
        });
        self.source.qmp.ok("migrate", json!({ "uri": link.uri() }));
        let info = moves::wait_end(&mut self.source, LIMIT);
        assert_eq!(link.relay().unfired(), [], "{info}");
        let at = format!("{} → {}, cut {}", self.launch.peer, self.to.peer, rule.place);
        let error = info["error-desc"].as_str().unwrap_or_default().to_owned();
        let found = self.who_runs(&mut destination);
        let marks = marks.lock().expect("nobody panics with it").clone();
        // On a loaded host the last word may come to the relay, or pass it, before the cut behind the stream's last byte is made.
        let place = match place(&rule) {
            Place::AfterEof if info["status"] == "completed" => Place::AfterShut,
            Place::AfterEof if marks.iter().any(|(_, mark)| is_shut(mark)) => Place::BeforeShut,
            place => place,
        };
        let (runs, unknown) = expected(self.launch.peer, place);
        println!("{at}: {found:?}; {} {error}{}", info["status"], answer_time(&marks));
        assert_eq!(found, runs, "{at}: {info}\n{}", destination.process.log());
        assert_eq!(error.starts_with(UNKNOWN), unknown, "{at}: {info}");
        assert_eq!(info["status"] == "completed", place == Place::AfterShut, "{at}: {info}");
        self.keep_one(runs, destination);
        marks.into_iter().map(|(_, mark)| mark).collect()
    }

    fn who_runs(&mut self, destination: &mut Vm) -> Runs {
        let begin = now();
        while destination.process.ended().is_none()
            && destination.heartbeat.count() == 0
            && now() - begin < SETTLE
        {
            std::thread::sleep(Duration::from_millis(10));
        }
        match (self.source.beats_during(WATCH) > 0, destination.heartbeat.count() > 0) {
            (true, false) => Runs::Source,
            (false, true) => Runs::Destination,
            (false, false) => Runs::Nobody,
            (true, true) => Runs::Both,
        }
    }

    /// What an operator does, so that one guest goes on; it is whole.
    fn keep_one(&mut self, runs: Runs, mut destination: Vm) {
        match runs {
            Runs::Source => {}
            Runs::Nobody => {
                assert_ne!(destination.process.wait(LIMIT).code(), Some(0));
                self.source.qmp.ok("cont", json!({}));
                self.source.let_run(WATCH);
            }
            Runs::Destination | Runs::Both => {
                self.source.kill();
                destination.assert_clean();
                destination.qmp.ok("cont", json!({}));
                let mut back = self.launch.incoming().start();
                moves::migrate(&mut destination, &mut back, LIMIT);
                back.let_run(WATCH);
                self.source = back;
            }
        }
    }
}

/// How long after the stream's end the destination gives its last word.
fn answer_time(marks: &[(Duration, Mark)]) -> String {
    let time = |edge, kind| marks.iter().rfind(|(_, mark)| mark.edge == edge && mark.piece.kind == kind);
    match (time(Edge::End, Kind::Vmdesc), time(Edge::Begin, Kind::Message)) {
        (Some((end, _)), Some((shut, _))) if shut > end => {
            format!("; SHUT {:.1} ms behind the vmdesc", (*shut - *end).as_secs_f64() * 1e3)
        }
        _ => String::new(),
    }
}

/// The destination's last word, as the relay begins to read it.
fn is_shut(mark: &Mark) -> bool {
    mark.edge == Edge::Begin && mark.piece.kind == Kind::Message && mark.piece.name == "SHUT"
}

fn cut(place: &str) -> Rule {
    Rule::parse(Act::Cut, place).expect("a place")
}

/// Every boundary of the stream that each move has, and those of the last word.
fn all_boundaries(seen: &[Mark]) -> Vec<Rule> {
    let mut rules: Vec<Rule> = Vec::new();
    let ends = seen
        .iter()
        .filter(|mark| mark.edge == Edge::End && !matches!(mark.piece.kind, Kind::Vmdesc | Kind::Message));
    for mark in ends {
        let rule = Rule::at_piece(Act::Cut, Edge::End, &mark.piece, 1);
        // How many parts RAM has differs from one move to the next; each has one.
        if !rules.contains(&rule) {
            rules.push(rule);
        }
    }
    rules.extend(["after:vmdesc", "before:message=SHUT:0", "after:message=SHUT:0"].map(cut));
    rules
}

/// Cuts a guest's moves between the two at `places`; at all there are if it is a soak.
fn assert_one_guest_is_kept(from: Peer, to: Peer, places: &[&str]) {
    if !needs(if from.is_qemu() { from } else { to }) {
        return;
    }
    let mut bench = Bench::new(from, to);
    let seen = bench.cut(cut("before:eof"));
    let rounds = rounds(0);
    let mut count = 1;
    if rounds == 0 {
        places.iter().for_each(|place| drop(bench.cut(cut(place))));
        count += places.len();
    }
    for _ in 0..rounds {
        for rule in all_boundaries(&seen) {
            bench.cut(rule);
            count += 1;
        }
    }
    bench.source.assert_clean();
    println!("{from} → {to}: {count} cuts, one guest, whole");
}

#[test]
fn soak_cuts_from_qemu_7_2_to_whimbrel() {
    let places = ["after:full=cpu:0", "after:eof", "after:vmdesc", "before:message=SHUT:0"];
    assert_one_guest_is_kept(Peer::Qemu72, Peer::Whimbrel, &places);
}

#[test]
fn soak_cuts_from_qemu_10_0_to_whimbrel() {
    assert_one_guest_is_kept(
        Peer::Qemu10,
        Peer::Whimbrel,
        &["after:end=ram:0", "after:vmdesc", "after:message=SHUT:0"],
    );
}

#[test]
fn soak_cuts_from_whimbrel_to_qemu_7_2() {
    assert_one_guest_is_kept(
        Peer::Whimbrel,
        Peer::Qemu72,
        &["after:full=cpu:0", "after:full=globalstate:0", "after:eof"],
    );
}

#[test]
fn soak_cuts_from_whimbrel_to_qemu_10_0() {
    let places = ["after:end=ram:0", "before:message=SHUT:0"];
    assert_one_guest_is_kept(Peer::Whimbrel, Peer::Qemu10, &places);
}
