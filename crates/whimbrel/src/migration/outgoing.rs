//! A migration out, on its thread: does what [`Source`] asks for, while the guest runs and after.
//!
//! | module | holds |
//! |---|---|
//! | here | the loop, the channel, the live state |
//! | [`handle`] | the engine's end: start, status, cancel |
//! | [`gate`] | cancel against commit |
//! | [`switchover`] | stop, device state, commit; or the way back |
//! | [`return_path`] | the thread that reads the destination's answers |

mod gate;
mod handle;
mod return_path;
mod switchover;

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::time::Duration;

use whimbrel_proto::Violation;
use whimbrel_proto::action::{Action, Channel, HandlerId};
use whimbrel_proto::capabilities::Capability;
use whimbrel_proto::event::Event;
use whimbrel_proto::outcome::{Outcome, Reason};
use whimbrel_proto::parameters::Parameters;
use whimbrel_proto::source::{Source, SourceConfig, Transport};
use whimbrel_vmstate::Level;
use whimbrel_wire::element::Element;
use whimbrel_wire::{Configuration, header};

pub(crate) use self::handle::Handle;
use self::handle::Shared;
use super::Context;
use super::live_sources::LiveSources;
use crate::channel::{Target, connect};
use crate::error::StreamError;
use crate::events::EngineEvent;
use crate::lock;
use crate::outgoing::Outgoing;
use crate::ram;
use crate::sections::{self, Saved};

struct Driver {
    context: Context,
    /// As it was when the migration was accepted.
    downtime_limit: Duration,
    configuration: Configuration,
    /// Until it is connected to.
    target: Option<Target>,
    source: Source,
    mailbox: Receiver<Event>,
    post: Sender<Event>,
    shared: Arc<Shared>,
    out: Option<Outgoing>,
    live: LiveSources,
    saved: Saved,
    /// EOF and vmdesc, encoded while the destination applies what it has.
    trailer: Option<Vec<u8>>,
    syncs: u64,
}

impl Driver {
    /// A migration that has done nothing yet. What `mailbox` receives, others and itself post.
    fn new(
        context: Context,
        parameters: Parameters,
        target: Target,
        (mailbox, post): (Receiver<Event>, Sender<Event>),
        shared: Arc<Shared>,
    ) -> Self {
        let downtime_limit = parameters.downtime_limit();
        let live = LiveSources::new(context.registry.clone());
        let handlers = live.ids();
        let first_device = handlers.len() as u32 + 1;
        let source = Source::new(SourceConfig {
            transport: if target.is_file() { Transport::File } else { Transport::Socket },
            handlers,
            has_early_devices: context.registry.devices().iter().any(|handler| handler.early),
            capabilities: context.capabilities,
            parameters,
            guest: context.arbiter.state(),
            send_switchover_start: context.identity.level >= Level::V10_0,
            peer: target.address.to_string(),
            ram_total: ram::total(&*context.machine),
            ..SourceConfig::default()
        });
        Self {
            saved: Saved::new(context.identity.level, first_device),
            downtime_limit,
            configuration: context.identity.configuration(context.capabilities),
            context,
            target: Some(target),
            source,
            mailbox,
            post,
            shared,
            out: None,
            live,
            trailer: None,
            syncs: 0,
        }
    }

    /// Does one action; whether others follow.
    fn step(&mut self) -> bool {
        self.take_mail();
        let now = self.now();
        let action = self.source.next(now);
        tracing::trace!(?action, "source");
        if let Action::Finish(outcome) = action {
            self.finish(&outcome);
            return false;
        }
        let answers = self.act(action);
        // A cancel shuts the link: it must be known before the failure that comes of it.
        self.take_mail();
        for answer in answers {
            self.hand(answer);
        }
        self.publish();
        true
    }

    fn now(&self) -> Duration {
        self.shared.start.elapsed()
    }

    fn take_mail(&mut self) {
        while let Ok(event) = self.mailbox.try_recv() {
            self.hand(event);
        }
    }

    fn hand(&mut self, event: Event) {
        match self.source.handle(self.now(), event) {
            Ok(()) => {}
            Err(Violation::Unexpected { event, asked }) => {
                // A fault of this driver: going on could lose the guest, so the attempt ends, before the commit safely.
                tracing::error!(event, asked, "the source's machine refuses an event");
                let reason = Reason(format!("internal error: event {event} after {asked}"));
                let _also_refused = self.source.handle(self.now(), Event::Broken(reason));
            }
            Err(refused) => tracing::info!(%refused, "not now"),
        }
    }

    fn act(&mut self, action: Action) -> Vec<Event> {
        let result = match action {
            Action::Status(status) => {
                if self.source.has_stopped_guest() {
                    // A user may have taken any time in pre-switchover.
                    self.limit_writes();
                }
                self.publish();
                self.emit(EngineEvent::Migration(status));
                Ok(vec![])
            }
            Action::Connect(_) => return vec![self.connect()],
            Action::Announce => self.announce().map(done),
            Action::Command(command) => {
                self.write(|out| out.put(|out| Element::Command(command).encode(out))).map(done)
            }
            Action::Setup(handler) => {
                self.out.as_mut().map_or(Ok(()), |out| self.live.setup(handler, out)).map(done)
            }
            Action::Estimate => Ok(self.live.estimate()),
            Action::SyncDirty { last } => self.sync(last),
            Action::Iterate { handler, at_most, until } => self.iterate(handler, at_most, until),
            Action::Complete { handler, at_most, until } => self.complete(handler, at_most, until),
            Action::Measure => Ok(vec![self.measure()]),
            Action::SaveDevices { early, .. } => match self.save_devices(early) {
                Ok(bytes) => Ok(vec![Event::DevicesSaved { bytes }]),
                Err(error) if !error.is_channel() => Ok(vec![Event::SaveFailed(reason(&error))]),
                Err(error) => Err(error),
            },
            Action::Barrier | Action::SendBuffered => self.barrier(),
            Action::Predict(pause) => {
                tracing::info!(predicted_ms = pause.as_secs_f64() * 1e3, "switching over");
                Ok(vec![])
            }
            Action::StopVm => Ok(vec![self.stop()]),
            Action::ResumeVm => Ok(vec![self.resume()]),
            Action::Await { until } => {
                self.wait(until);
                Ok(vec![])
            }
            Action::Commit => return self.commit(),
            other => Ok(vec![Event::Broken(Reason(format!("action not built into this engine: {other:?}")))]),
        };
        result.unwrap_or_else(|error| vec![failure(&error)])
    }

    fn connect(&mut self) -> Event {
        let Some(target) = self.target.take() else {
            return Event::ChannelLost(Channel::Main, "nothing to connect to".into());
        };
        let link = match connect(target, &self.shared.cancel) {
            Ok(link) => Arc::new(link),
            Err(error) => return Event::ChannelLost(Channel::Main, Reason(error.to_string())),
        };
        self.shared.gate.guard(link.clone());
        let bidirectional = link.is_bidirectional();
        if bidirectional
            && self.context.capabilities.has(Capability::ReturnPath)
            && let Err(error) = return_path::start(link.clone(), self.post.clone())
        {
            return Event::Broken(Reason(format!("cannot start the return path's thread: {error}")));
        }
        self.out = Some(Outgoing::new(link));
        Event::Connected { channel: Channel::Main, bidirectional }
    }

    fn announce(&mut self) -> Result<(), StreamError> {
        let configuration = self.configuration.clone();
        self.write(|out| {
            out.put(|out| {
                header::encode(out);
                configuration.encode(out)
            })
        })
    }

    fn sync(&mut self, last: bool) -> Result<Vec<Event>, StreamError> {
        let answers = self.live.sync(last)?;
        self.syncs += 1;
        self.emit(EngineEvent::MigrationPass(self.syncs));
        Ok(answers)
    }

    fn iterate(&mut self, id: HandlerId, at_most: u64, until: Duration) -> Result<Vec<Event>, StreamError> {
        let until = self.shared.start + until;
        let Some(out) = &mut self.out else { return Ok(vec![]) };
        let iterate =
            if self.source.has_stopped_guest() { LiveSources::iterate_stopped } else { LiveSources::iterate };
        Ok(vec![iterate(&mut self.live, id, at_most, until, out)?])
    }

    fn measure(&self) -> Event {
        let bytes = sections::expected_size(&self.context.registry, self.context.identity.level);
        // A vmdesc is some ten times as long as the state it describes.
        Event::Measured { bytes, vmdesc: bytes * 10, fixed: self.context.machine.fixed_pause() }
    }

    /// What comes is handed on here: were it an answer, what came after it would overtake it.
    fn wait(&mut self, until: Option<Duration>) {
        let event = match until {
            Some(until) => match self.mailbox.recv_timeout(until.saturating_sub(self.now())) {
                Err(RecvTimeoutError::Timeout) => Ok(Event::Tick),
                other => other.map_err(|_| ()),
            },
            None => self.mailbox.recv().map_err(|_| ()),
        };
        if let Ok(event) = event {
            self.hand(event);
        }
    }

    fn finish(&mut self, outcome: &Outcome) {
        if matches!(outcome, Outcome::Completed | Outcome::Unknown { .. }) {
            self.context.arbiter.leave();
        }
        self.live.end();
        match (self.shared.gate.release(), outcome) {
            // What was sent is taken in, by a command too.
            (Some(link), Outcome::Completed | Outcome::Unknown { .. }) => link.shut(),
            (Some(link), _) => link.give_up(),
            (None, _) => {}
        }
        self.out = None;
        match outcome {
            Outcome::Completed => tracing::info!("migration completed"),
            Outcome::Cancelled => tracing::info!("migration cancelled; the guest is here"),
            Outcome::Failed { phase, reason } => {
                tracing::error!(%phase, %reason, "migration failed; the guest is here")
            }
            Outcome::Unknown { reason } => tracing::error!(%reason, "migration ended after its commit"),
            other => tracing::info!(?other, "migration ended"),
        }
        self.publish();
        self.emit(EngineEvent::Migration(outcome.status()));
    }

    fn write(
        &mut self,
        write: impl FnOnce(&mut Outgoing) -> Result<(), StreamError>,
    ) -> Result<(), StreamError> {
        self.out.as_mut().map_or(Ok(()), write)
    }

    fn publish(&self) {
        *lock(&self.shared.info) = self.source.info(self.now());
    }

    fn emit(&self, event: EngineEvent) {
        if self.context.capabilities.has(Capability::Events) {
            self.context.events.emit(event);
        }
    }
}

fn done(_: ()) -> Vec<Event> {
    vec![Event::Done]
}

fn reason(error: &StreamError) -> Reason {
    Reason(error.to_string())
}

fn failure(error: &StreamError) -> Event {
    match error {
        StreamError::Link { .. } => Event::ChannelLost(Channel::Main, reason(error)),
        _ => Event::Broken(reason(error)),
    }
}
