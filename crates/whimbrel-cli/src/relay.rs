//! `whimbrel relay`: stands between the two ends of a move, shows what goes over the link, and makes it go wrong on request.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use anyhow::bail;
use serde_json::{Value, json};
use whimbrel::channel::Address;
use whimbrel_relay::relay::{Observer, Seen};
use whimbrel_relay::rule::Act;
use whimbrel_relay::scan::{Edge, Kind};
use whimbrel_relay::{Config, Direction, Relay, Rule};

use crate::progress::Screen;
use crate::{backend, interrupt};

/// How often it is looked at what happened.
const POLL: Duration = Duration::from_millis(50);
/// The least time over which a rate is measured.
const WINDOW: Duration = Duration::from_millis(500);
/// Most bytes on their way at once, where latency is asked for.
const ON_THE_WAY: usize = 64 << 20;

/// For `--help`.
const PLACES: &str = "\
Places:
  before:WHAT  at:WHAT      right before the first byte of what is there
  after:WHAT                right behind its last byte
  WHAT is byte=N, header, eof, vmdesc, section=NAME[:INSTANCE][#K], start=, part=, end= or full= (a body of that
  kind only), command=NAME[:VALUE][#K] or message=NAME[:VALUE][#K] (of the return path); +N behind it moves on by
  N bytes; then may follow ,connection=N and, for bytes, ,direction=back

Examples:
  whimbrel relay tcp:0.0.0.0:4445 tcp:host-b:4444 --record move.rec
  whimbrel relay tcp::4445 tcp:host-b:4444 --rate 10M --latency 20
  whimbrel relay tcp::4445 tcp:host-b:4444 --cut after:section=cpu:0
  whimbrel relay tcp::4445 tcp:host-b:4444 --cut before:message=SHUT

Exit codes:
    0  the move is over, whatever became of it
    1  it could not be carried or recorded, or a place was never reached";

/// Carries a migration from its source to its destination, and shows, records, slows or breaks it.
///
/// Give the source the relay's address instead of the destination's. Any number of connections is carried, between any
/// programs; what it doesn't understand (TLS, multifd) unread. It ends with the last connection, or by Ctrl-C.
#[derive(Debug, clap::Args)]
#[command(after_help = PLACES)]
pub(crate) struct Args {
    /// Where the source will connect: tcp:HOST:PORT (port 0: any), unix:PATH, vsock:CID:PORT.
    #[arg(value_name = "LISTEN", value_parser = whimbrel_relay::address)]
    listen: Address,

    /// Where the destination listens.
    #[arg(value_name = "URI", value_parser = whimbrel_relay::address)]
    to: Address,

    /// Record everything that passes in this file, for `whimbrel replay`.
    #[arg(long, value_name = "FILE")]
    record: Option<PathBuf>,

    /// Most bytes per second each way: 100M, 1G, or a number.
    #[arg(long, value_name = "BYTES", value_parser = backend::rate)]
    rate: Option<u64>,

    /// How long every byte is on its way, ms.
    #[arg(long, value_name = "MS", default_value_t = 0)]
    latency: u32,

    /// Close all connections at this place: both ends see it.
    #[arg(long, value_name = "PLACE")]
    cut: Vec<String>,

    /// From this place on take everything and pass nothing on: a network that loses all and says nothing.
    #[arg(long, value_name = "PLACE")]
    black_hole: Vec<String>,

    /// From this place on carry nothing, without closing: a stuck network.
    #[arg(long, value_name = "PLACE")]
    hold: Vec<String>,

    /// Invert the bits of the byte at this place.
    #[arg(long, value_name = "PLACE")]
    corrupt: Vec<String>,

    /// Stay for further connections until Ctrl-C.
    #[arg(long)]
    keep: bool,

    /// For programs: one JSON object a line, the last with "event": "end".
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    interrupt::watch()?;
    let (sender, seen) = channel();
    let observer: Observer = Box::new(move |event: &Seen| {
        let _nobody_looks = sender.send((Instant::now(), event.clone()));
    });
    let relay = Relay::start(Config {
        rate: args.rate,
        latency: Duration::from_millis(args.latency.into()),
        buffer: if args.latency > 0 { ON_THE_WAY } else { 0 },
        recording: args.record.clone(),
        rules: rules(args)?,
        observer: Some(observer),
        ..Config::new(args.listen.clone(), args.to.clone())
    })?;
    let mut watch = Watch::new(args, seen);
    let listening = json!({"event": "listening", "address": relay.address().to_string()});
    watch.screen.say(&format!("listening at {} for {}", relay.address(), args.to), &listening);
    while interrupt::asked() == 0 {
        watch.look(&relay);
        let connections = relay.connections();
        if !args.keep && !connections.is_empty() && connections.iter().all(|connection| !connection.open) {
            break;
        }
        std::thread::sleep(POLL);
    }
    watch.finish(relay)
}

fn rules(args: &Args) -> anyhow::Result<Vec<Rule>> {
    let all = [
        (Act::Cut, &args.cut),
        (Act::Swallow, &args.black_hole),
        (Act::Hold, &args.hold),
        (Act::Corrupt, &args.corrupt),
    ];
    let mut rules = Vec::new();
    for (act, places) in all {
        for place in places {
            rules.push(Rule::parse(act, place)?);
        }
    }
    Ok(rules)
}

/// What was seen, and how it is told.
struct Watch<'a> {
    args: &'a Args,
    screen: Screen,
    seen: Receiver<(Instant, Seen)>,
    start: Instant,
    /// Boundaries that were passed of the pieces that have begun: where each began.
    begun: Vec<(u16, Direction, u64)>,
    pieces: u64,
    last: String,
    /// For the rate: when, and bytes each way.
    window: (Instant, [u64; 2]),
    rate: f64,
}

impl<'a> Watch<'a> {
    fn new(args: &'a Args, seen: Receiver<(Instant, Seen)>) -> Self {
        let start = Instant::now();
        Self {
            args,
            screen: Screen::new(args.json),
            seen,
            start,
            begun: Vec::new(),
            pieces: 0,
            last: "-".to_owned(),
            window: (start, [0; 2]),
            rate: 0.0,
        }
    }

    fn look(&mut self, relay: &Relay) {
        while let Ok((when, event)) = self.seen.try_recv() {
            self.tell(when, &event);
        }
        let carried = [Direction::Forward, Direction::Back].map(|direction| relay.carried(direction));
        let (since, before) = self.window;
        if since.elapsed() >= WINDOW {
            self.rate = carried[0].saturating_sub(before[0]) as f64 / since.elapsed().as_secs_f64();
            self.window = (Instant::now(), carried);
        }
        let open = relay.connections().iter().filter(|connection| connection.open).count();
        if open > 0 {
            let line = format!(
                "sent {:>8.1} MiB  {:>7.1} MiB/s  back {:>6} bytes  connections {open}  pieces {}, last {}",
                carried[0] as f64 / MIB,
                self.rate / MIB,
                carried[1],
                self.pieces,
                self.last
            );
            let object = json!({
                "event": "progress",
                "forward-bytes": carried[0],
                "back-bytes": carried[1],
                "bytes-per-second": self.rate.round() as u64,
                "connections": open,
                "pieces": self.pieces,
                "last": self.last,
            });
            self.screen.show(|| line, || object);
        }
    }

    fn tell(&mut self, when: Instant, event: &Seen) {
        let ms = when.saturating_duration_since(self.start).as_secs_f64() * 1e3;
        let (text, object) = match event {
            Seen::Opened { connection, peer } => (
                format!("connection {connection} from {}", peer.as_deref().unwrap_or("the source")),
                json!({"event": "opened", "connection": connection, "peer": peer}),
            ),
            Seen::Unreachable(why) => {
                (format!("a connection was refused: {why}"), json!({"event": "unreachable", "error": why}))
            }
            Seen::Mark { connection, direction, mark } if mark.edge == Edge::Begin => {
                self.begun.retain(|(number, way, _)| (number, way) != (connection, direction));
                self.begun.push((*connection, *direction, mark.at));
                return;
            }
            Seen::Mark { connection, direction, mark } => {
                let of = |(number, way, _): &&(u16, Direction, u64)| (number, way) == (connection, direction);
                let begin = self.begun.iter().find(of).map_or(mark.at, |(_, _, begin)| *begin);
                self.pieces += 1;
                self.last = mark.piece.to_string();
                let object = json!({"event": "piece", "connection": connection, "direction": direction.to_string(),
                    "piece": self.last, "begin": begin, "end": mark.at});
                // Of RAM there are too many for a person.
                if mark.piece.kind == Kind::Part && !self.args.json {
                    return;
                }
                let arrow = if *direction == Direction::Forward { "─▶" } else { "◀─" };
                let length = mark.at - begin;
                (format!("{arrow} {:#010x} {length:>9} bytes  {}", begin, self.last), object)
            }
            Seen::Unread { connection, direction, why } => (
                format!("connection {connection} {direction} is carried unread from here on: {why}"),
                json!({"event": "unread", "connection": connection, "direction": direction.to_string(), "why": why}),
            ),
            Seen::Fired(fired) => (
                format!(
                    "{} at {}: {} bytes of connection {} had passed",
                    fired.act.past(),
                    fired.place,
                    fired.at,
                    fired.connection
                ),
                json!({"event": "fired", "act": fired.act.past(), "place": fired.place.to_string(),
                    "connection": fired.connection, "at": fired.at}),
            ),
            Seen::Closed { connection } => (
                format!("connection {connection} is closed"),
                json!({"event": "closed", "connection": connection}),
            ),
            Seen::RecordingFailed(why) => (
                format!("{why}; the move is carried on without"),
                json!({"event": "recording-failed", "error": why}),
            ),
            _ => return,
        };
        let mut object = object;
        object["ms"] = ms.into();
        self.screen.say(&format!("{:>10.1} ms  {text}", ms), &object);
    }

    fn finish(mut self, relay: Relay) -> anyhow::Result<ExitCode> {
        self.look(&relay);
        let carried = [Direction::Forward, Direction::Back].map(|direction| relay.carried(direction));
        let unfired: Vec<String> = relay.unfired().iter().map(|rule| rule.place.to_string()).collect();
        let connections = relay.connections().len();
        let recorded = relay.finish();
        while let Ok((when, event)) = self.seen.try_recv() {
            self.tell(when, &event);
        }
        let recorded = recorded?;
        let mut text = format!(
            "carried {} bytes and {} back over {connections} connection{}",
            carried[0],
            carried[1],
            if connections == 1 { "" } else { "s" }
        );
        if let Some(file) = &self.args.record {
            text += &format!("; recorded {recorded} bytes in {}", file.display());
        }
        let object: Value = json!({"event": "end", "forward-bytes": carried[0], "back-bytes": carried[1],
            "connections": connections, "recorded-bytes": recorded, "unfired": unfired});
        self.screen.say(&text, &object);
        if !unfired.is_empty() {
            bail!("never reached: {}", unfired.join(" "));
        }
        Ok(ExitCode::SUCCESS)
    }
}

const MIB: f64 = (1 << 20) as f64;
