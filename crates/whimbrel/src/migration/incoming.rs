//! The destination's thread: does what [`Destination`] asks for.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use whimbrel_proto::action::{Channel, DestinationAction};
use whimbrel_proto::capabilities::{Capabilities, Capability};
use whimbrel_proto::destination::{Destination, DestinationConfig};
use whimbrel_proto::event::{DestinationEvent, ElementHeader};
use whimbrel_proto::outcome::{Outcome, Reason};
use whimbrel_proto::run_state::RunState;
use whimbrel_proto::source::FENCE;
use whimbrel_proto::status::MigrationStatus;
use whimbrel_vmstate::SectionName;
use whimbrel_wire::element::{self, Element, SectionHeader};
use whimbrel_wire::{
    Configuration, Input, Output, ReturnPathMessage, WireError, header, qemu_texts, vmdescription,
};

use super::Context;
use super::live_destinations::LiveDestinations;
use crate::cancel::Cancel;
use crate::channel::{Address, Delivery, Gather, Link, LinkReader, Listener, Patience, Target};
use crate::error::StreamError;
use crate::events::EngineEvent;
use crate::faults::{Crash, CrashPoint, Fault};
use crate::handlers::Digest;
use crate::live::LivePart;
use crate::lock;
use crate::machine::MachineError;
use crate::sections;

/// x86-64's and aarch64's target pages, which a stream without the subsection has.
const DEFAULT_PAGE_BITS: u32 = 12;
/// How long the vmdesc of a source that has handed over may take; the guest runs meanwhile.
const DRAIN: Duration = Duration::from_secs(5);
/// How long it may take where the guest stands still until it is there.
const TRAILER: Duration = Duration::from_secs(1);
/// How long the source's host may take to have heard that the guest is here.
const HEAR: Duration = Duration::from_secs(10);

/// What `query-migrate` shows of it.
#[derive(Debug, Clone, Default)]
pub struct IncomingInfo {
    /// As last published.
    pub status: MigrationStatus,
    /// Why it failed.
    pub error: Option<String>,
    /// Where it listens, with the port the kernel chose.
    pub socket_address: Option<Address>,
}

/// The engine's end of an incoming migration.
#[derive(Clone)]
pub(crate) struct Handle {
    mailbox: Sender<DestinationEvent>,
    shared: Arc<Shared>,
}

struct Shared {
    cancel: Cancel,
    link: Mutex<Option<Arc<Link>>>,
    info: Mutex<IncomingInfo>,
    cancelled: AtomicBool,
    /// As they are now: they may still be set while a guest is awaited.
    capabilities: Mutex<Capabilities>,
}

impl Handle {
    /// Listens, then starts the thread. `done` runs on it when the attempt is over.
    ///
    /// # Errors
    /// If the address cannot be listened on.
    pub(crate) fn start(
        context: Context,
        autostart: bool,
        target: Target,
        done: impl FnOnce(&Outcome) + Send + 'static,
    ) -> std::io::Result<Self> {
        let (listener, bound) = Listener::bind(target)?;
        let (mailbox, events) = std::sync::mpsc::channel();
        let socket_address = listener.is_bound().then(|| bound.clone());
        let info = IncomingInfo { socket_address, ..IncomingInfo::default() };
        let shared = Arc::new(Shared {
            cancel: Cancel::new()?,
            link: Mutex::default(),
            info: Mutex::new(info),
            cancelled: AtomicBool::new(false),
            capabilities: Mutex::new(context.capabilities),
        });
        let destination = Destination::new(DestinationConfig {
            autostart,
            switchover_ack: context.capabilities.has(Capability::SwitchoverAck),
        });
        let handle = Self { mailbox, shared: shared.clone() };
        std::thread::Builder::new().name("incoming".into()).spawn(move || {
            let driver = Driver {
                context: &context,
                destination,
                mailbox: events,
                shared: &shared,
                start: Instant::now(),
                stream: None,
                live: LiveDestinations::new(&context.registry),
                arrived: HashSet::new(),
                digests: HashMap::new(),
                element: None,
            };
            let outcome = driver.run(listener, &bound);
            done(&outcome);
        })?;
        Ok(handle)
    }

    pub(crate) fn info(&self) -> IncomingInfo {
        lock(&self.shared.info).clone()
    }

    /// `cont` (true) or `stop` (false) while incoming.
    pub(crate) fn autostart(&self, on: bool) {
        let _over = self.mailbox.send(DestinationEvent::Autostart(on));
    }

    /// Capabilities may still be set while a guest is awaited.
    pub(crate) fn capabilities(&self, capabilities: Capabilities) {
        *lock(&self.shared.capabilities) = capabilities;
        let acknowledge = capabilities.has(Capability::SwitchoverAck);
        let _over = self.mailbox.send(DestinationEvent::SwitchoverAck(acknowledge));
    }

    /// Gives up, unless the guest is already ours.
    pub(crate) fn cancel(&self) {
        self.shared.cancelled.store(true, Ordering::Release);
        let _over = self.mailbox.send(DestinationEvent::Cancel);
        self.shared.cancel.raise();
        if let Some(link) = &*lock(&self.shared.link) {
            link.give_up();
        }
    }
}

/// The accepted channel, both ways.
struct Stream {
    link: Arc<Link>,
    input: Input<LinkReader>,
    patience: Arc<Patience>,
}

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

/// What a section's header has announced.
enum Body {
    Device {
        header: SectionHeader,
        /// Where it starts.
        at: u64,
    },
    Live {
        section_id: u32,
        part: LivePart,
    },
}

impl Driver<'_> {
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

    fn read_header(&mut self) -> Result<(), StreamError> {
        let identity = &self.context.identity;
        // A uuid is compared if the source sends its own, whatever is set here.
        let local =
            Configuration { uuid: identity.uuid, ..identity.configuration(*lock(&self.shared.capabilities)) };
        let stream = self.stream()?;
        // Nobody connects without something to say.
        stream.patience.inside_element();
        header::decode(&mut stream.input)?;
        Configuration::decode(&mut stream.input)?.check(&local, DEFAULT_PAGE_BITS)?;
        Ok(())
    }

    fn read_element(&mut self) -> Result<ElementHeader, StreamError> {
        let stream = self.stream()?;
        stream.patience.between_elements();
        stream.input.reading("an element's type").peek_u8()?;
        stream.patience.inside_element();
        let at = stream.input.offset();
        let element = Element::decode(&mut stream.input)?;
        tracing::trace!(?element, at, "element");
        Ok(match element {
            Element::Eof => {
                self.live.check_whole(at)?;
                self.crash(CrashPoint::AfterEof);
                ElementHeader::Eof
            }
            Element::Command(command) => ElementHeader::Command(command),
            Element::SectionFull(header) => {
                let idstr = header.idstr.clone();
                self.element = Some(Body::Device { header, at });
                ElementHeader::Device { idstr }
            }
            Element::SectionStart(header) => {
                self.live.begin(&header, at)?;
                self.announced(header.section_id, at, LivePart::Start)?
            }
            Element::SectionPart { section_id } => self.announced(section_id, at, LivePart::Part)?,
            Element::SectionEnd { section_id } => self.announced(section_id, at, LivePart::End)?,
            _ => {
                return Err(WireError::UnknownElement { offset: at, element: element::VM_DESCRIPTION }.into());
            }
        })
    }

    /// The body of a live section follows.
    fn announced(&mut self, section_id: u32, at: u64, part: LivePart) -> Result<ElementHeader, StreamError> {
        let idstr = self.live.name(section_id, at)?;
        self.element = Some(Body::Live { section_id, part });
        Ok(ElementHeader::Live { idstr, end: part == LivePart::End })
    }

    fn load(&mut self) -> Result<(), StreamError> {
        let Some(body) = self.element.take() else {
            return Err(StreamError::Section { text: "no section to load".into(), offset: 0 });
        };
        let Some(stream) = &mut self.stream else { return Err(no_stream()) };
        let (header, at) = match body {
            Body::Device { header, at } => (header, at),
            Body::Live { section_id, part } => {
                self.live.load(section_id, part, &mut stream.input)?;
                let setup = part == LivePart::Start;
                self.crash(if setup { CrashPoint::Setup } else { CrashPoint::Iterate });
                return Ok(());
            }
        };
        let Context { registry, identity, .. } = self.context;
        let digests =
            lock(&self.shared.capabilities).has(Capability::TableDigest).then_some(&mut self.digests);
        self.arrived.insert(SectionName::new(&header.idstr, header.instance_id));
        if let Some(global) =
            sections::load(registry, identity.level, digests, &header, at, &mut stream.input)?
        {
            let state = global.run_state().map_err(|text| StreamError::Section { text, offset: at })?;
            self.hand(DestinationEvent::SourceState(state));
        }
        self.crash(CrashPoint::BeforePong);
        Ok(())
    }

    fn apply(&mut self) -> DestinationEvent {
        if self.context.faults.once(Fault::ApplyFails) {
            return DestinationEvent::ApplyFailed(
                "a register is refused, as asked for by a fault switch".into(),
            );
        }
        if let Err(why) = sections::tell_absent(&self.context.registry, &self.arrived) {
            return DestinationEvent::ApplyFailed(Reason(why));
        }
        let begin = Instant::now();
        match self.context.machine.apply().and_then(|()| self.check_digests()) {
            Ok(()) => {
                tracing::debug!(took_us = begin.elapsed().as_micros() as u64, "applied");
                DestinationEvent::Applied
            }
            Err(error) => DestinationEvent::ApplyFailed(Reason(error.to_string())),
        }
    }

    /// Whether the tables that the devices have restored themselves from say what the source's did.
    fn check_digests(&self) -> Result<(), MachineError> {
        if !self.has(Capability::TableDigest) || self.context.faults.has(Fault::NoDigestCheck) {
            return Ok(());
        }
        self.context.registry.tables().try_for_each(|tables| tables.compare(self.digests.get(tables.name())))
    }

    fn has(&self, capability: Capability) -> bool {
        lock(&self.shared.capabilities).has(capability)
    }

    fn reply(&mut self, message: &ReturnPathMessage) -> Option<DestinationEvent> {
        let result = self.stream().and_then(|stream| {
            let mut out = Output::new();
            message.encode(&mut out)?;
            let mut gather = Gather::default();
            gather.bytes(out.as_slice());
            stream.link.send(&gather).map_err(|(sent, source)| StreamError::Link {
                context: format!("answering '{}'", stream.link.peer()),
                source,
                sent: sent > 0,
            })
        });
        if *message == ReturnPathMessage::Pong(FENCE) {
            self.crash(CrashPoint::AfterPong);
        }
        let error = result.err()?;
        Some(DestinationEvent::ChannelLost(Channel::ReturnPath, Reason(error.to_string())))
    }

    fn start_guest(&mut self, run: bool) -> DestinationEvent {
        if self.context.faults.once(Fault::StartFails) {
            return DestinationEvent::StartFailed(
                "the vCPUs do not start, as asked for by a fault switch".into(),
            );
        }
        match self.context.arbiter.arrive(self.destination.final_run_state(), run) {
            Ok(()) => {
                self.crash(CrashPoint::AfterStart);
                DestinationEvent::Started
            }
            Err(error) => DestinationEvent::StartFailed(Reason(error.to_string())),
        }
    }

    /// Says what lets the source's guest go for ever; it must have it before the guest starts here.
    fn tell(&mut self, message: &ReturnPathMessage) -> DestinationEvent {
        let lost = |why: &str| {
            let text = format!("the source is gone before it could hear that the guest is here: {why}");
            DestinationEvent::ChannelLost(Channel::ReturnPath, Reason(text))
        };
        let Ok(stream) = self.stream() else { return lost("no stream") };
        if stream.link.peer_left() {
            return lost("it has closed the connection");
        }
        if let Some(failed) = self.reply(message) {
            return failed;
        }
        let Ok(stream) = self.stream() else { return lost("no stream") };
        match stream.link.delivered(HEAR) {
            Delivery::Done => DestinationEvent::Heard,
            Delivery::Refused => lost("it has reset the connection"),
            Delivery::Unknown => DestinationEvent::Unheard(Reason(format!(
                "outcome unknown: '{}' may have heard that the guest is here, and may have resumed it; it is stopped here: \
                 `cont` only if it does not run there",
                stream.link.peer()
            ))),
        }
    }

    /// What follows EOF is read so that the source sees an orderly end. Nothing in it matters; but while the source may still
    /// take its guest back, whether it is there does.
    fn drain(&mut self) -> DestinationEvent {
        let committed = self.destination.committed();
        let Some(stream) = &mut self.stream else { return DestinationEvent::Drained };
        stream.patience.limit_to(if committed { DRAIN } else { TRAILER });
        match vmdescription::decode_trailer(&mut stream.input) {
            Ok(vmdescription::Trailer::Description(_)) => {}
            Ok(vmdescription::Trailer::Other(byte)) => {
                tracing::warn!("{}", qemu_texts::expected_vmdescription(byte))
            }
            Ok(vmdescription::Trailer::Nothing) if !committed => {
                return lost(
                    "the connection ended before the source could hear that the guest is here".into(),
                );
            }
            Ok(vmdescription::Trailer::Nothing) => tracing::debug!("no vmdesc"),
            Err(error) if !committed && !is_silence(&error) => return self.failure(&error.into()),
            Err(error) => tracing::debug!(%error, "the vmdesc broke off"),
        }
        DestinationEvent::Drained
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

/// Nothing came in time: a source that sends no vmdesc.
fn is_silence(error: &WireError) -> bool {
    matches!(error, WireError::Io { source, .. } if source.kind() == std::io::ErrorKind::TimedOut)
}

fn no_stream() -> StreamError {
    let source = std::io::Error::from(std::io::ErrorKind::NotConnected);
    StreamError::Link { context: "reading the stream".into(), source, sent: false }
}

fn lost(text: String) -> DestinationEvent {
    DestinationEvent::ChannelLost(Channel::Main, Reason(text))
}
