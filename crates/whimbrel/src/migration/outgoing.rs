//! The source's thread: does what [`Source`] asks for.

use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use whimbrel_proto::Violation;
use whimbrel_proto::action::{Action, Channel, HandlerId};
use whimbrel_proto::capabilities::Capability;
use whimbrel_proto::event::Event;
use whimbrel_proto::outcome::{Outcome, Reason};
use whimbrel_proto::parameters::Parameters;
use whimbrel_proto::source::{Info, Source, SourceConfig, Transport};
use whimbrel_vmstate::Level;
use whimbrel_wire::element::Element;
use whimbrel_wire::{Configuration, Input, ReturnPathMessage, header, vmdescription};

use super::Context;
use super::live_sources::LiveSources;
use crate::cancel::Cancel;
use crate::channel::{Link, LinkReader, Target, connect};
use crate::error::StreamError;
use crate::events::EngineEvent;
use crate::faults::Fault;
use crate::global_state::GlobalState;
use crate::lock;
use crate::machine::MachineError;
use crate::outgoing::Outgoing;
use crate::ram;
use crate::sections::{self, Saved};

/// What is written while the guest is stopped must be taken in so long, or in twice the downtime limit if that is more; then
/// the attempt has failed and the guest goes on. The same as the wait for the destination's PONG.
const STOPPED_PATIENCE: Duration = Duration::from_secs(10);

/// The engine's end of a running outgoing migration.
#[derive(Clone)]
pub(crate) struct Handle {
    mailbox: Sender<Event>,
    shared: Arc<Shared>,
}

struct Shared {
    gate: Mutex<Gate>,
    cancel: Cancel,
    info: Mutex<Info>,
    start: Instant,
    /// The system's number of the migration's thread, while it runs.
    thread: Mutex<Option<i32>>,
}

/// Decides the race between a cancel and the commit.
#[derive(Default)]
struct Gate {
    state: GateState,
    link: Option<Arc<Link>>,
}

#[derive(Default, PartialEq, Eq, Clone, Copy)]
enum GateState {
    #[default]
    Open,
    Cancelled,
    Committed,
}

impl Handle {
    /// Starts the thread. `done` runs on it when the attempt is over.
    pub(crate) fn start(
        context: Context,
        parameters: Parameters,
        target: Target,
        done: impl FnOnce() + Send + 'static,
    ) -> std::io::Result<Self> {
        let (mailbox, events) = std::sync::mpsc::channel();
        let shared = Arc::new(Shared {
            gate: Mutex::default(),
            cancel: Cancel::new()?,
            info: Mutex::default(),
            start: Instant::now(),
            thread: Mutex::default(),
        });
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
        let configuration = context.identity.configuration(context.capabilities);
        let mut driver = Driver {
            saved: Saved::new(context.identity.level, first_device),
            downtime_limit,
            context,
            configuration,
            target: Some(target),
            source,
            mailbox: events,
            post: mailbox.clone(),
            shared: shared.clone(),
            out: None,
            live,
            trailer: None,
            syncs: 0,
        };
        // The first step is status setup: whoever asks after the command was answered sees an attempt that has begun.
        driver.step();
        std::thread::Builder::new().name("migration".into()).spawn(move || {
            *lock(&driver.shared.thread) = Some(rustix::thread::gettid().as_raw_nonzero().get());
            while driver.step() {}
            *lock(&driver.shared.thread) = None;
            done();
        })?;
        Ok(Self { mailbox, shared })
    }

    /// What `query-migrate` shows.
    pub(crate) fn info(&self) -> Info {
        let mut info = lock(&self.shared.info).clone();
        if let Some(total) = &mut info.total_time
            && info.status.is_running()
        {
            *total = self.shared.start.elapsed();
        }
        info
    }

    /// The system's number of its thread, while it runs.
    pub(crate) fn thread(&self) -> Option<i32> {
        *lock(&self.shared.thread)
    }

    /// Nothing follows any more.
    pub(crate) fn is_over(&self) -> bool {
        !lock(&self.shared.info).status.is_running()
    }

    /// Cancels, unless it is committed: then false. Returns at once, whatever the peer does.
    pub(crate) fn cancel(&self) -> bool {
        let mut gate = lock(&self.shared.gate);
        if gate.state == GateState::Committed {
            return false;
        }
        gate.state = GateState::Cancelled;
        self.tell(Event::Cancel);
        self.shared.cancel.raise();
        if let Some(link) = &gate.link {
            link.give_up();
        }
        true
    }

    /// Tells the machine what happened outside.
    pub(crate) fn tell(&self, event: Event) {
        let _over = self.mailbox.send(event);
    }
}

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
        {
            let mut gate = lock(&self.shared.gate);
            gate.link = Some(link.clone());
            if gate.state == GateState::Cancelled {
                link.give_up();
            }
        }
        let bidirectional = link.is_bidirectional();
        if bidirectional && self.context.capabilities.has(Capability::ReturnPath) {
            let (link, post) = (link.clone(), self.post.clone());
            let spawned = std::thread::Builder::new()
                .name("return-path".into())
                .spawn(move || read_return_path(link, &post));
            if let Err(error) = spawned {
                return Event::Broken(Reason(format!("cannot start the return path's thread: {error}")));
            }
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

    fn complete(&mut self, id: HandlerId, at_most: u64, until: Duration) -> Result<Vec<Event>, StreamError> {
        if let Err(error) = self.check_tables() {
            return Ok(vec![Event::Broken(Reason(error.to_string()))]);
        }
        let until = self.shared.start + until;
        let Some(out) = &mut self.out else { return Ok(vec![]) };
        Ok(vec![self.live.complete(id, at_most, until, out)?])
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

    fn save_devices(&mut self, early: bool) -> Result<u64, StreamError> {
        let Some(out) = &mut self.out else { return Ok(0) };
        let Context { registry, faults, arbiter, capabilities, .. } = &self.context;
        let mut bytes = self.saved.save(registry, early, faults, out)?;
        if !early {
            if capabilities.has(Capability::TableDigest) {
                bytes += self.saved.save_digests(registry, out)?;
            }
            bytes += self.saved.save_global_state(GlobalState::new(arbiter.guest_state()), out)?;
        }
        Ok(bytes)
    }

    fn barrier(&mut self) -> Result<Vec<Event>, StreamError> {
        self.write(Outgoing::flush)?;
        let total = self.out.as_ref().map_or(0, Outgoing::position);
        if self.source.has_stopped_guest() {
            self.prepare_trailer()?;
        }
        Ok(vec![Event::Flushed { total }])
    }

    /// EOF and vmdesc. Encoded after the barrier, so that it costs no pause where the destination confirms.
    fn prepare_trailer(&mut self) -> Result<(), StreamError> {
        if self.trailer.is_none() {
            let description = self.saved.describe(&self.configuration)?;
            let mut out = whimbrel_wire::Output::new();
            Element::Eof.encode(&mut out)?;
            vmdescription::encode(&mut out, &description)?;
            self.trailer = Some(out.into_vec());
        }
        Ok(())
    }

    fn stop(&mut self) -> Event {
        if self.context.faults.has(Fault::LastSync) {
            // Else there is often nothing to be missed: the guest stops within microseconds of the sync before.
            std::thread::sleep(Duration::from_millis(20));
        }
        match self.context.arbiter.stop_for_switchover() {
            Ok(took) => {
                self.limit_writes();
                Event::Stopped { took }
            }
            Err(error) => Event::StopFailed(Reason(format!("the guest could not be stopped: {error}"))),
        }
    }

    /// No live state may end before all tables in guest RAM are those of this stop.
    fn check_tables(&self) -> Result<(), MachineError> {
        let checked = self.context.arbiter.check_tables();
        if self.context.faults.has(Fault::NoStampCheck) { Ok(()) } else { checked }
    }

    /// From now on the guest stands still for what is written.
    fn limit_writes(&self) {
        let patience = STOPPED_PATIENCE.max(self.downtime_limit * 2);
        if let Some(out) = &self.out {
            out.link().set_write_deadline(Some(Instant::now() + patience));
        }
    }

    fn resume(&mut self) -> Event {
        if let Some(out) = &self.out {
            out.link().set_write_deadline(None);
        }
        if let Err(error) = self.context.arbiter.resume_from_switchover() {
            tracing::error!(%error, "the guest cannot go on after a failed switchover");
        }
        Event::Resumed
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

    /// The commit, as one send of a socket. Nothing before its first byte is one; anything after it may be.
    fn commit(&mut self) -> Vec<Event> {
        // Whatever fails here, not a byte of the commit has left.
        let not_left = |reason| vec![Event::ChannelLost(Channel::Main, reason)];
        if let Err(error) = self.write(Outgoing::flush).and_then(|()| self.prepare_trailer()) {
            return not_left(reason(&error));
        }
        let (Some(out), Some(trailer)) = (&mut self.out, &self.trailer) else {
            return not_left("no channel to commit on".into());
        };
        {
            let mut gate = lock(&self.shared.gate);
            if gate.state == GateState::Cancelled {
                // The cancel is in the mailbox.
                return not_left("cancelled".into());
            }
            gate.state = GateState::Committed;
        }
        let is_file = out.link().is_file();
        out.bytes(trailer);
        let result = out.flush().and_then(|()| {
            out.link().sync().map_err(|source| StreamError::Link {
                context: format!("writing '{}' to disk", out.link().peer()),
                source,
                sent: true,
            })
        });
        match result {
            Ok(()) => vec![Event::Committed],
            Err(error) if is_file || matches!(error, StreamError::Link { sent: false, .. }) => {
                lock(&self.shared.gate).state = GateState::Open;
                not_left(reason(&error))
            }
            Err(error) => vec![Event::Committed, Event::ChannelLost(Channel::Main, reason(&error))],
        }
    }

    fn finish(&mut self, outcome: &Outcome) {
        if matches!(outcome, Outcome::Completed | Outcome::Unknown { .. }) {
            self.context.arbiter.leave();
        }
        self.live.end();
        let link = lock(&self.shared.gate).link.take();
        match (link, outcome) {
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

/// The return path's thread: hands every message on, and says when there will be no more.
fn read_return_path(link: Arc<Link>, post: &Sender<Event>) {
    let reader = LinkReader::new(link);
    let patience = reader.patience();
    let mut input = Input::with_capacity(reader, 0);
    loop {
        patience.between_elements();
        let event = match input.at_end() {
            Ok(true) => Event::ChannelLost(Channel::ReturnPath, "Channel error: Input/output error".into()),
            Ok(false) => {
                patience.inside_element();
                match ReturnPathMessage::decode(&mut input, 0) {
                    Ok(message) => Event::Peer(message),
                    Err(error) => Event::ChannelLost(Channel::ReturnPath, Reason(error.to_string())),
                }
            }
            Err(error) => Event::ChannelLost(Channel::ReturnPath, Reason(format!("Channel error: {error}"))),
        };
        let last =
            !matches!(event, Event::Peer(ref message) if !matches!(message, ReturnPathMessage::Shut(_)));
        if post.send(event).is_err() || last {
            return;
        }
    }
}
