//! The link is cut at each boundary of a move between whimbrel and real QEMU: never two guests run, and never none that
//! could have been kept.
//!
//! | the cut falls | whimbrel → QEMU | QEMU → whimbrel |
//! |---|---|---|
//! | before the source has sent EOF | the source runs on | the source runs on |
//! | before the EOF byte, or right behind it, once it was sent | nobody, or the destination; the source stays stopped: `outcome unknown` | the source runs on |
//! | behind the vmdesc | the destination runs; the source stays stopped: `outcome unknown` | the source runs on |
//! | before SHUT, which the destination sees arrive at the relay | the same | **both**: what QEMU leaves open, see `docs/protocol.md` |
//! | behind SHUT | the destination runs, the source knows it | the same |

use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::json;
use whimbrel_e2e::link::Link;
use whimbrel_e2e::{Launch, Peer, Vm, moves, wait_for};
use whimbrel_relay::Rule;
use whimbrel_relay::relay::Seen;
use whimbrel_relay::rule::Act;
use whimbrel_relay::scan::{Edge, Kind, Mark, Piece};

use super::{LIMIT, machine, needs};

/// How long both ends are watched for a guest that runs.
const WATCH: Duration = Duration::from_millis(250);

/// A boundary: that edge of the piece, of those that are called so the n-th.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Boundary {
    edge: Edge,
    piece: Piece,
    nth: u32,
}

/// Who runs the guest after a cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Runs {
    Source,
    Destination,
    Nobody,
    Both,
}

/// One source, and destination after destination.
struct Bench {
    launch: Launch,
    to: Launch,
    source: Vm,
}

/// What came of one cut.
#[derive(Debug)]
struct Cut {
    runs: Runs,
    /// The source's `status` and `error-desc`.
    status: String,
    error: String,
    /// What was seen on the link.
    marks: Vec<Mark>,
}

impl Bench {
    fn new(from: Peer, to: Peer) -> Self {
        let qemu = if from.is_qemu() { from } else { to };
        let launch = machine(from, qemu, 1);
        let to = machine(to, qemu, 1).incoming();
        let source = Self::started(&launch);
        Self { launch, to, source }
    }

    fn started(launch: &Launch) -> Vm {
        let mut source = launch.start();
        source.wait_ready();
        source
    }

    /// One move that is cut there.
    fn cut(&mut self, rule: Rule) -> Cut {
        let mut destination = self.to.start();
        moves::with_return_path(&mut self.source, &mut destination);
        self.source.set(json!({"max-bandwidth": 0}));
        let marks = Arc::<Mutex<Vec<Mark>>>::default();
        let log = marks.clone();
        let link = Link::with(&moves::listen(&mut destination), vec![rule.clone()], move |seen| {
            if let Seen::Mark { mark, .. } = seen {
                log.lock().expect("nobody panics with it").push(mark.clone());
            }
        });
        self.source.qmp.ok("migrate", json!({ "uri": link.uri() }));
        let info = moves::wait_end(&mut self.source, LIMIT);
        assert_eq!(link.relay().unfired(), [], "{}: {info}", rule.place);
        let text = |member: &str| info[member].as_str().unwrap_or_default().to_owned();
        let runs = self.who_runs(&mut destination);
        drop(link);
        println!(
            "{} → {}: {}: {runs:?}, {} {}",
            self.launch.peer,
            self.to.peer,
            rule.place,
            text("status"),
            text("error-desc")
        );
        self.keep_one(runs, destination);
        let marks = marks.lock().expect("nobody panics with it").clone();
        Cut { runs, status: text("status"), error: text("error-desc"), marks }
    }

    fn who_runs(&mut self, destination: &mut Vm) -> Runs {
        let settled = |vm: &mut Vm| vm.process.ended().is_some() || vm.heartbeat.count() > 0;
        // One that keeps its guest stopped neither beats nor ends.
        let patience = whimbrel_e2e::now() + Duration::from_secs(3);
        while !settled(destination) && whimbrel_e2e::now() < patience {
            std::thread::sleep(Duration::from_millis(10));
        }
        let before = [self.source.heartbeat.count(), destination.heartbeat.count()];
        std::thread::sleep(WATCH);
        let source = self.source.heartbeat.count() > before[0];
        let destination = destination.heartbeat.count() > 0;
        match (source, destination) {
            (true, false) => Runs::Source,
            (false, true) => Runs::Destination,
            (false, false) => Runs::Nobody,
            (true, true) => Runs::Both,
        }
    }

    /// What an operator does: the guest that is left goes on, whole.
    fn keep_one(&mut self, runs: Runs, mut destination: Vm) {
        match runs {
            Runs::Source => {}
            Runs::Nobody => {
                destination.kill();
                self.source.qmp.ok("cont", json!({}));
                self.source.let_run(WATCH);
            }
            Runs::Destination | Runs::Both => {
                destination.assert_clean();
                self.source = Self::started(&self.launch);
            }
        }
    }
}

#[test]
fn prototype() {
    for (from, to) in [
        (Peer::Qemu72, Peer::Whimbrel),
        (Peer::Whimbrel, Peer::Qemu72),
        (Peer::Qemu10, Peer::Whimbrel),
        (Peer::Whimbrel, Peer::Qemu10),
    ] {
        let mut bench = Bench::new(from, to);
        for place in [
            "after:header",
            "after:end=ram",
            "before:command=PING:1195461702",
            "before:eof",
            "after:eof",
            "after:vmdesc",
            "before:message=SHUT",
            "after:message=SHUT",
        ] {
            if place.contains("PING:119") {
                continue;
            }
            let cut = bench.cut(Rule::parse(Act::Cut, place).unwrap());
            if place == "before:eof" {
                for m in cut.marks {
                    if m.edge == Edge::End {
                        println!("   {} {}", m.piece, m.at);
                    }
                }
            }
        }
    }
}
