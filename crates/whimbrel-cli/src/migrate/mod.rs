//! `whimbrel migrate`: drives one move by the monitors of its ends, whimbrel's or QEMU's, and tells how it goes.
//!
//! ```text
//! connect ─▶ destination listens? ─▶ settings at both ends ─▶ migrate ─▶ follow ─▶ what both ends say ─▶ exit code
//!                                                               ▲  │        │ Ctrl-C
//!                                        refused and patient ───┘◀─┘        └─▶ migrate_cancel, follow on
//! ```
//!
//! It never starts the guest anywhere: what only an operator can know is left to the operator.

mod destination;
mod digest;
mod outcome;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use serde_json::{Value, json};
use whimbrel_qmp::{Endpoint, QmpError};

use self::destination::Destination;
use self::digest::Comparison;
use self::outcome::{End, Outcome, Side};
use crate::monitor::{ADDRESS, Monitor, PATIENCE, text};
use crate::progress::Screen;
use crate::{backend, interrupt};

/// How often the source is asked how it goes.
const POLL: Duration = Duration::from_millis(100);
/// How long after Ctrl-C the source may take to come to an end.
const CANCEL: Duration = Duration::from_secs(30);
/// How long after the hand-over the destination may take until it runs the guest.
const STARTS: Duration = Duration::from_secs(10);
/// How long after a failure it may take to say why, or to end. One that never got a byte listens on.
const FAILS: Duration = Duration::from_secs(2);

/// For `--help`.
const EXAMPLES: &str = "\
Examples:
  whimbrel migrate unix:/tmp/a.sock tcp:host-b:4444
    the destination listens, or will
  whimbrel migrate /tmp/a.sock --destination /tmp/b.sock
    it listens; its address is found
  whimbrel migrate /tmp/a.sock tcp:127.0.0.1:0 --destination /tmp/b.sock
    it was started with `defer`; the address it takes is found";

/// Moves a running guest to another machine, live.
///
/// Both ends may be whimbrel or QEMU, of the same shape. The destination awaits the guest (`--incoming`, QEMU's
/// `-incoming`), or is started while this waits for it. The return path is turned on, so that the source hands over
/// only what the destination has confirmed. With --destination, two whimbrels also compare the tables that devices keep in
/// guest RAM. There is no limit of bandwidth unless one is asked for. A source that keeps its guest gets its former limits
/// back.
///
/// Ctrl-C cancels: the guest runs on at the source. Pressed twice, it leaves without waiting for that.
#[derive(Debug, clap::Args)]
#[command(after_help = format!("{EXAMPLES}\n\n{}", outcome::EXIT_CODES))]
pub(crate) struct Args {
    /// The source's monitor.
    #[arg(value_name = "SOURCE_QMP", long_help = format!("The source's monitor: {ADDRESS}."))]
    source: Endpoint,

    /// Where the destination listens: tcp:HOST:PORT, unix:PATH, or file:PATH to save. May be left out with --destination.
    #[arg(value_name = "URI", required_unless_present = "destination")]
    uri: Option<String>,

    /// The destination's monitor: its address is found, its state and errors are told.
    #[arg(long, visible_alias = "destination-qmp", value_name = "DEST_QMP")]
    destination: Option<Endpoint>,

    /// Most bytes per second: 100M, 1G, or a number; 0 is no limit.
    #[arg(long, value_name = "BYTES", default_value = "0", value_parser = backend::rate)]
    max_bandwidth: u64,

    /// How long the guest may stand still, ms [default: as it is set at the source].
    #[arg(long, value_name = "MS")]
    downtime_limit: Option<u64>,

    /// How long to wait for the ends to be there, seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 10)]
    wait: u32,

    /// For programs: one JSON object a line, the last with "event": "end".
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    interrupt::watch()?;
    let mut screen = Screen::new(args.json);
    let end = Move::new(args, &mut screen).run();
    let outcome = end.outcome();
    screen.say(&end.text(), &end.json());
    Ok(ExitCode::from(outcome.exit_code()))
}

/// One move under way.
struct Move<'a> {
    args: &'a Args,
    screen: &'a mut Screen,
    source: Option<Monitor>,
    destination: Option<Destination>,
    /// The source's limits before ours.
    limits: Value,
    /// The comparison of tables as both ends had it before.
    digest: Option<Comparison>,
    end: End,
}

impl<'a> Move<'a> {
    fn new(args: &'a Args, screen: &'a mut Screen) -> Self {
        let (source, destination, digest) = (None, None, None);
        Self { args, screen, source, destination, limits: Value::Null, digest, end: End::default() }
    }

    fn run(mut self) -> End {
        if let Err(error) = self.attempt() {
            self.end.trouble = Some(format!("{error:#}"));
        }
        self.end.interrupted = interrupt::asked() > 0;
        self.hear_both();
        self.restore_limits();
        self.restore_digest();
        self.end
    }

    fn attempt(&mut self) -> anyhow::Result<()> {
        let patience = Duration::from_secs(self.args.wait.into());
        let mut source = Monitor::connect(&self.args.source, PATIENCE).context("source")?;
        let status = text(&source.migration().context("source")?["status"]).unwrap_or_default();
        let source = self.source.insert(source);
        if !is_over(&status) {
            bail!("source: a migration is in progress there already (its status is '{status}')");
        }
        let uri = match &self.args.destination {
            Some(endpoint) => {
                let destination = self.destination.insert(Destination::connect(endpoint, patience)?);
                destination.turn_return_path_on()?;
                destination.address(self.args.uri.as_deref(), patience)?
            }
            None => self.args.uri.clone().context("no address to move to")?,
        };
        // Only a socket has a way back.
        self.end.saved = uri.starts_with("file:");
        let confirmed = !["file:", "exec:", "fd:"].iter().any(|scheme| uri.starts_with(scheme));
        source.set_capability("return-path", confirmed).context("source")?;
        self.limits = limits(&source.execute("query-migrate-parameters", Value::Null).context("source")?);
        source.execute("migrate-set-parameters", parameters(self.args)).context("source")?;
        let tables = self.compare_tables()?;
        self.migrate_patiently(&uri, tables, Instant::now() + patience)
    }

    /// Has the ends compare tables in guest RAM, if they can: whether they will, and the word on it.
    fn compare_tables(&mut self) -> anyhow::Result<(bool, &'static str)> {
        let source = self.source.as_mut().context("the source was never reached")?;
        let Some(destination) = self.destination.as_mut().map(Destination::monitor) else {
            return digest::of_source_alone(source).context("source");
        };
        let digest = *self
            .digest
            .insert(Comparison::of(source, destination).context("comparison of tables in guest RAM")?);
        let on = digest.is_common() && !self.end.saved;
        digest.set(source, destination, on).context("comparison of tables in guest RAM")?;
        Ok((on, if self.end.saved { "" } else { digest.text() }))
    }

    /// Migrates and follows. Where nobody listens yet, it is tried again until `deadline`: asking first whether somebody
    /// does would take the one connection that a destination accepts.
    fn migrate_patiently(
        &mut self,
        uri: &str,
        (compared, tables): (bool, &str),
        deadline: Instant,
    ) -> anyhow::Result<()> {
        let source = self.source.as_ref().map(|source| source.endpoint().to_string()).unwrap_or_default();
        let start = json!({"event": "start", "source": source, "uri": uri, "table-digest": compared});
        self.screen.say(&format!("moving the guest of {source} to {uri}{tables}"), &start);
        let mut told = false;
        loop {
            if interrupt::asked() > 0 {
                self.end.begun = false;
                bail!("interrupted before the move began");
            }
            // A connection that breaks now leaves it open whether the move began.
            let answer = self.source_mut()?.execute("migrate", json!({ "uri": uri }));
            self.end.begun = answer.as_ref().err().is_none_or(|error| error.refusal().is_none());
            answer.context("source")?;
            self.follow()?;
            let error = self.end.migration["error-desc"].as_str().unwrap_or_default();
            let nobody =
                self.end.migration["status"] == "failed" && error.starts_with("Failed to connect to");
            if !nobody || Instant::now() >= deadline {
                return Ok(());
            }
            if !std::mem::replace(&mut told, true) {
                let waiting = json!({"event": "waiting", "error": error});
                self.screen.say(&format!("nobody there yet, trying on: {error}"), &waiting);
            }
            std::thread::sleep(POLL);
        }
    }

    /// Shows how it goes until the source's migration is over; cancels it at Ctrl-C.
    fn follow(&mut self) -> anyhow::Result<()> {
        let mut cancelled: Option<Instant> = None;
        loop {
            let info = self.ask("query-migrate", Value::Null)?;
            let over = is_over(info["status"].as_str().unwrap_or_default());
            self.end.migration = info;
            self.screen.progress(&self.end.migration);
            if over {
                self.screen.close();
                return Ok(());
            }
            match (interrupt::asked(), cancelled) {
                (0, _) => {}
                (_, None) => {
                    cancelled = Some(Instant::now());
                    self.cancel()?;
                }
                (1, Some(since)) if since.elapsed() < CANCEL => {}
                _ => bail!(
                    "left while the source was still '{}'",
                    self.end.migration["status"].as_str().unwrap_or("?")
                ),
            }
            std::thread::sleep(POLL);
        }
    }

    /// Asks the source to cancel. Refused, the move goes on to its end: the guest is the destination's by then.
    fn cancel(&mut self) -> anyhow::Result<()> {
        self.screen.say("cancelling", &json!({"event": "cancelling"}));
        match self.source_mut()?.execute("migrate_cancel", Value::Null) {
            Err(error @ QmpError::Refused { .. }) => {
                let refused = json!({"event": "cancel-refused", "error": error.to_string()});
                self.screen.say(&format!("too late to cancel: {error}"), &refused);
                Ok(())
            }
            answer => answer.map(drop).context("source"),
        }
    }

    /// A guest that stays has its limits back: they are not to surprise whoever moves it next.
    fn restore_limits(&mut self) {
        let stays = matches!(self.end.outcome(), Outcome::Failed | Outcome::Cancelled);
        if let Some(source) = self.source.as_mut().filter(|_| stays && !self.limits.is_null()) {
            // What was there before is in range; a source that has gone needs nothing.
            let _restored = source.execute("migrate-set-parameters", self.limits.clone());
        }
    }

    /// Neither end keeps what this move alone asked for: the next one may be with an end that cannot compare.
    fn restore_digest(&mut self) {
        if self.end.outcome() == Outcome::Unknown {
            return;
        }
        if let (Some(digest), Some(source), Some(destination)) =
            (self.digest, &mut self.source, &mut self.destination)
        {
            digest.restore(source, destination.monitor());
        }
    }

    /// The last word of both ends.
    fn hear_both(&mut self) {
        let error = text(&self.end.migration["error-desc"]);
        if let Some(source) = &mut self.source {
            self.end.source = match source.run_state() {
                Ok(state) => Side { run_state: Some(state), error },
                Err(gone) => Side { run_state: None, error: Some(gone.to_string()) },
            };
        }
        if let Some(destination) = &mut self.destination {
            let patience = match self.end.migration["status"].as_str() {
                _ if !self.end.begun => Duration::ZERO,
                Some("completed") => STARTS,
                _ => FAILS,
            };
            let side = destination.settle(patience);
            self.end.destination = Some(side.clone());
            if self.end.outcome() != Outcome::Unknown {
                destination.dismiss(&side);
            }
        }
    }

    fn ask(&mut self, command: &str, arguments: Value) -> anyhow::Result<Value> {
        self.source_mut()?.execute(command, arguments).context("source")
    }

    fn source_mut(&mut self) -> anyhow::Result<&mut Monitor> {
        self.source.as_mut().context("the source was never reached")
    }
}

/// Of all parameters those that a move sets here.
fn limits(all: &Value) -> Value {
    json!({"max-bandwidth": all["max-bandwidth"], "downtime-limit": all["downtime-limit"]})
}

fn parameters(args: &Args) -> Value {
    let mut parameters = json!({"max-bandwidth": args.max_bandwidth});
    if let Some(limit) = args.downtime_limit {
        parameters["downtime-limit"] = limit.into();
    }
    parameters
}

/// Whether a source's migration with this status has come to its end, or never began.
fn is_over(status: &str) -> bool {
    matches!(status, "" | "none" | "completed" | "failed" | "cancelled")
}
