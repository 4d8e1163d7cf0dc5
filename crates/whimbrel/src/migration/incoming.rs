//! A migration in, on its thread: does what [`Destination`] asks for.
//!
//! | module | holds |
//! |---|---|
//! | here | the loop, the channel, the end |
//! | [`handle`] | the engine's end: listen, status, give up |
//! | [`stream`] | reading what comes, each section to whom it is for |
//! | [`arrival`] | devices restored, the source answered, the guest started |

mod arrival;
mod handle;
mod stream;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::Receiver;
use std::time::Instant;

use whimbrel_proto::action::{Channel, DestinationAction};
use whimbrel_proto::capabilities::Capability;
use whimbrel_proto::destination::{Destination, DestinationConfig};
use whimbrel_proto::event::DestinationEvent;
use whimbrel_proto::outcome::{Outcome, Reason};
use whimbrel_proto::run_state::RunState;
use whimbrel_vmstate::SectionName;
use whimbrel_wire::Input;

pub(crate) use self::handle::Handle;
pub use self::handle::IncomingInfo;
use self::handle::Shared;
use self::stream::{Body, Stream};
use super::Context;
use super::live_destinations::LiveDestinations;
use crate::channel::{Address, LinkReader, Listener};
use crate::error::StreamError;
use crate::events::EngineEvent;
use crate::faults::{Crash, CrashPoint};
use crate::handlers::Digest;
use crate::lock;

struct Driver<'a> {
    context: &'a Context,
    destination: Destination,
    mailbox: Receiver<DestinationEvent>,
    shared: &'a Shared,
    start: Instant,
    stream: Option<Stream>,
    live: LiveDestinations<'a>,
    /// Device sections loaded so far.
    arrived: HashSet<SectionName>,
    /// The source's digests of the tables in guest RAM, by device.
    digests: HashMap<String, Digest>,
    /// The section whose header was read last.
    element: Option<Body>,
}

impl<'a> Driver<'a> {
    /// A migration that has done nothing yet.
    fn new(
        context: &'a Context,
        autostart: bool,
        mailbox: Receiver<DestinationEvent>,
        shared: &'a Shared,
    ) -> Self {
        Self {
            context,
            destination: Destination::new(DestinationConfig {
                autostart,
                switchover_ack: context.capabilities.has(Capability::SwitchoverAck),
            }),
            mailbox,
            shared,
            start: Instant::now(),
            stream: None,
            live: LiveDestinations::new(&context.registry),
            arrived: HashSet::new(),
            digests: HashMap::new(),
            element: None,
        }
    }

    fn run(mut self, listener: Listener, address: &Address) -> Outcome {
        let mut listener = Some(listener);
        loop {
            while let Ok(event) = self.mailbox.try_recv() {
                self.hand(event);
            }
            let action = self.destination.next(self.start.elapsed());
            tracing::trace!(?action, "destination");
            let answer = match action {
                DestinationAction::Finish(outcome) => {
                    if let Some(listener) = listener.take() {
                        listener.give_up();
                    }
                    return self.finish(outcome);
                }
                DestinationAction::Accept => self.accept(listener.take(), address),
                action => self.act(action),
            };
            if let Some(answer) = answer {
                self.hand(answer);
            }
            lock(&self.shared.info).error = self.destination.error().map(ToString::to_string);
        }
    }

    fn hand(&mut self, event: DestinationEvent) {
        // Sent while the guest was awaited, taken in after it has started: then it is about the guest itself.
        if let DestinationEvent::Autostart(run) = event
            && self.context.arbiter.state() != RunState::Inmigrate
        {
            let done =
                if run { self.context.arbiter.start() } else { self.context.arbiter.stop(RunState::Paused) };
            if let Err(error) = done {
                tracing::error!(%error, run, "the guest that has just arrived does not obey");
            }
            return;
        }
        if let Err(refused) = self.destination.handle(self.start.elapsed(), event) {
            tracing::info!(%refused, "not now");
        }
    }

    fn accept(&mut self, listener: Option<Listener>, address: &Address) -> Option<DestinationEvent> {
        let accepted = listener.ok_or_else(|| std::io::Error::other("nothing to accept on"));
        let accepted = accepted.and_then(|listener| {
            let (listener, bound) = listener.stand(address, &self.shared.cancel)?;
            lock(&self.shared.info).socket_address = Some(bound.clone());
            listener.accept(&bound, &self.shared.cancel)
        });
        let link = match accepted {
            Ok(link) => Arc::new(link),
            Err(error) => return Some(lost(format!("accepting on '{address}': {error}"))),
        };
        *lock(&self.shared.link) = Some(link.clone());
        if self.shared.cancelled.load(Ordering::Acquire) {
            link.give_up();
        }
        tracing::info!(peer = link.peer(), "incoming migration");
        let bidirectional = link.is_bidirectional();
        let reader = LinkReader::new(link.clone());
        let patience = reader.patience();
        self.stream = Some(Stream { link, input: Input::new(reader), patience });
        Some(DestinationEvent::Connected { bidirectional })
    }

    fn act(&mut self, action: DestinationAction) -> Option<DestinationEvent> {
        match action {
            DestinationAction::Status(status) => {
                lock(&self.shared.info).status = status;
                if self.has(Capability::Events) {
                    self.context.events.emit(EngineEvent::Migration(status));
                }
                None
            }
            DestinationAction::ReadHeader => {
                let read = self.read_header();
                Some(read.map_or_else(|error| self.failure(&error), |()| DestinationEvent::Announced))
            }
            DestinationAction::ReadElement => {
                let read = self.read_element();
                Some(read.map_or_else(|error| self.failure(&error), DestinationEvent::Element))
            }
            DestinationAction::Load => {
                let loaded = self.load();
                Some(loaded.map_or_else(|error| self.failure(&error), |()| DestinationEvent::Loaded))
            }
            DestinationAction::Apply => Some(self.apply()),
            DestinationAction::Reply(message) => self.reply(&message),
            DestinationAction::Start { run } => Some(self.start_guest(run)),
            DestinationAction::Tell(message) => Some(self.tell(&message)),
            DestinationAction::Drain => Some(self.drain()),
            other => Some(DestinationEvent::Refused(Reason(format!(
                "action not built into this engine: {other:?}"
            )))),
        }
    }

    fn has(&self, capability: Capability) -> bool {
        lock(&self.shared.capabilities).has(capability)
    }

    fn finish(mut self, outcome: Outcome) -> Outcome {
        match &outcome {
            Outcome::Completed => {
                tracing::info!(state = %self.context.arbiter.state(), "the guest has arrived")
            }
            Outcome::Failed { phase, reason } => {
                tracing::error!(%phase, %reason, "incoming migration failed")
            }
            other => tracing::error!(?other, "incoming migration ended"),
        }
        let mut info = lock(&self.shared.info);
        info.status = outcome.status();
        info.error = self.destination.error().map(ToString::to_string);
        drop(info);
        let link = lock(&self.shared.link).take();
        if let Some(link) = link.filter(|_| outcome != Outcome::Completed) {
            link.give_up();
        }
        self.stream = None;
        outcome
    }

    /// What is wrong with the stream, and whose it is.
    fn failure(&self, error: &StreamError) -> DestinationEvent {
        let peer = self.stream.as_ref().map_or("nobody", |stream| stream.link.peer());
        let text = format!("{error}, from '{peer}'");
        if error.is_channel() { lost(text) } else { DestinationEvent::Refused(Reason(text)) }
    }

    fn crash(&self, point: CrashPoint) {
        match self.context.faults.crash(point) {
            Some(Crash::Kill) => {
                let _gone =
                    rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
            }
            Some(Crash::Cut) => {
                if let Some(stream) = &self.stream {
                    stream.link.shut();
                }
            }
            None => {}
        }
    }

    fn stream(&mut self) -> Result<&mut Stream, StreamError> {
        self.stream.as_mut().ok_or_else(no_stream)
    }
}

fn no_stream() -> StreamError {
    let source = std::io::Error::from(std::io::ErrorKind::NotConnected);
    StreamError::Link { context: "reading the stream".into(), source, sent: false }
}

fn lost(text: String) -> DestinationEvent {
    DestinationEvent::ChannelLost(Channel::Main, Reason(text))
}
