//! The relay: listens, and carries each connection to the destination on two threads, one a direction.
//!
//! | thread | owns | ends when |
//! |---|---|---|
//! | accepting | the listener | the [`Relay`] is dropped |
//! | two a connection | what is between receiving and passing on, at most [`Config::buffer`] | its end closes, or it is cut |
//!
//! [`Relay::hold`] and [`Relay::cut`] act at once: when they return, nothing more passes.

mod flow;
mod pace;
mod rules;
mod shared;

use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use whimbrel::channel::{Address, Cancel, SocketListener, connect_socket};

use self::flow::Flow;
pub use self::rules::Fired;
pub use self::shared::{Connection, Observer, Seen};
use self::shared::{Shared, Wires};
use crate::recording::Recorder;
use crate::{Direction, RelayError, Rule};

/// Connections that may wait to be accepted: more than a source with multifd opens at once.
const BACKLOG: i32 = 300;
/// Least buffer of a direction of a connection, bytes.
const LEAST_BUFFER: usize = 1 << 20;

/// What a relay does.
pub struct Config {
    /// Where it listens: a socket's address. With `tcp:…:0` the kernel chooses the port.
    pub listen: Address,
    /// The destination's address.
    pub to: Address,
    /// Most bytes a second in each direction, all connections together.
    pub rate: Option<u64>,
    /// How long every byte is on its way, in addition to the way itself.
    pub latency: Duration,
    /// Most bytes kept of one direction of a connection, at least 1 MiB; with latency, what is on its way is kept here: rate ×
    /// latency must fit.
    pub buffer: usize,
    /// The file that everything is recorded in.
    pub recording: Option<PathBuf>,
    /// What is to happen where.
    pub rules: Vec<Rule>,
    /// Is told what happens, on the thread to which it happens: it must not wait.
    pub observer: Option<Observer>,
}

impl Config {
    /// Carries, and no more.
    pub fn new(listen: Address, to: Address) -> Self {
        Self {
            listen,
            to,
            rate: None,
            latency: Duration::ZERO,
            buffer: LEAST_BUFFER,
            recording: None,
            rules: Vec::new(),
            observer: None,
        }
    }
}

/// A running relay. Dropping it ends all connections.
#[derive(Debug)]
pub struct Relay {
    address: Address,
    shared: Arc<Shared>,
    cancel: Arc<Cancel>,
    accepting: Option<JoinHandle<()>>,
}

impl Relay {
    /// Listens, and starts to carry.
    ///
    /// # Errors
    /// The address cannot be listened on, or the recording cannot be created.
    pub fn start(mut config: Config) -> Result<Self, RelayError> {
        let start = |what| move |source| RelayError::Start { what, source };
        let cancel = Arc::new(Cancel::new().map_err(start("a relay"))?);
        let (listener, address) =
            SocketListener::bind(&config.listen, BACKLOG, &cancel).map_err(RelayError::Socket)?;
        let recorder = config.recording.as_deref().map(Recorder::create).transpose()?;
        let observer = config.observer.take();
        let shared = Arc::new(Shared::new(&config, recorder, observer));
        let (share, stop) = (shared.clone(), cancel.clone());
        let buffer = config.buffer.max(LEAST_BUFFER);
        let to = config.to;
        let accepting = std::thread::Builder::new()
            .name("relay".into())
            .spawn(move || accept(&listener, &to, &share, &stop, buffer))
            .map_err(start("the relay's thread"))?;
        Ok(Self { address, shared, cancel, accepting: Some(accepting) })
    }

    /// Where it listens.
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// Bytes that were passed on in one direction, all connections together.
    pub fn carried(&self, direction: Direction) -> u64 {
        self.shared.carried(direction)
    }

    /// Every connection there was, in the order in which they opened.
    pub fn connections(&self) -> Vec<Connection> {
        self.shared.connections()
    }

    /// Closes all connections now: both ends see it. Later ones are carried again.
    pub fn cut(&self) {
        self.shared.cut();
    }

    /// Takes and passes nothing more, without closing: a stuck network.
    pub fn hold(&self) {
        self.shared.hold(true);
    }

    /// Carries on.
    pub fn release(&self) {
        self.shared.hold(false);
    }

    /// Takes everything from now on, and passes nothing on: a network that loses all and says nothing.
    pub fn swallow(&self) {
        self.shared.swallow();
    }

    /// One thing more to do at a place. A place that has been passed is where the stream is.
    pub fn add(&self, rule: Rule) {
        self.shared.rules.add(rule);
    }

    /// What the rules did so far.
    pub fn fired(&self) -> Vec<Fired> {
        self.shared.rules.fired()
    }

    /// Rules whose place was not reached.
    pub fn unfired(&self) -> Vec<Rule> {
        self.shared.rules.unfired()
    }

    /// Ends all connections and the recording. Returns how many bytes were recorded.
    ///
    /// # Errors
    /// The recording could not be written, now or before.
    pub fn finish(mut self) -> Result<u64, RelayError> {
        self.end();
        self.shared.finish()
    }

    fn end(&mut self) {
        self.cancel.raise();
        self.shared.cut();
        if let Some(accepting) = self.accepting.take() {
            let _panicked = accepting.join();
        }
        // What was accepted meanwhile.
        self.shared.cut();
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.end();
    }
}

fn accept(listener: &SocketListener, to: &Address, shared: &Arc<Shared>, cancel: &Cancel, buffer: usize) {
    loop {
        let (source, peer) = match listener.accept(cancel) {
            Ok(accepted) => accepted,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => return,
            Err(error) => {
                tracing::error!(%error, "cannot accept a connection");
                if cancel.sleep(Duration::from_millis(100)).is_err() {
                    return;
                }
                continue;
            }
        };
        let destination = match connect_socket(to, cancel) {
            Ok(destination) => destination,
            // The source sees its connection closed.
            Err(error) => {
                shared.say(&Seen::Unreachable(error.to_string()));
                continue;
            }
        };
        let Some(wires) = Wires::open(shared, source, destination, peer) else { continue };
        for direction in [Direction::Forward, Direction::Back] {
            let flow = Flow::new(wires.clone(), direction, buffer);
            let name = format!("relay {direction}");
            if let Err(error) = std::thread::Builder::new().name(name).spawn(move || flow.run()) {
                tracing::error!(%error, "cannot start a thread");
                shared.cut();
            }
        }
    }
}
