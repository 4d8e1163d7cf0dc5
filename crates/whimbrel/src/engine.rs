//! The engine of one machine: the main loop, and every command that changes something.
//!
//! ```text
//! QMP threads ──┐                                        ┌─▶ run-state arbiter ─▶ Machine
//! vCPU threads ─┼─▶ jobs ─▶ main loop (Engine::run) ─────┼─▶ migration thread (out), incoming thread
//! signals ──────┘                                        └─▶ events ─▶ watchers
//! ```

use std::sync::mpsc::{Receiver, Sender};
use std::sync::{Arc, Mutex};

use whimbrel_proto::capabilities::{Capabilities, Capability, CapabilityContext};
use whimbrel_proto::event::Event;
use whimbrel_proto::outcome::Outcome;
use whimbrel_proto::parameters::{Parameters, ParametersPatch};
use whimbrel_proto::run_state::RunState;
use whimbrel_proto::source::Info;
use whimbrel_proto::status::MigrationStatus;
use whimbrel_vmstate::Level;
use whimbrel_wire::qemu_texts;

use crate::channel::{Address, Target};
use crate::descriptors::{Access, Descriptors};
use crate::error::CommandError;
use crate::events::{EngineEvent, Events, TimedEvent};
use crate::faults::Faults;
use crate::handlers::Registry;
use crate::lock;
use crate::machine::Machine;
use crate::migration::{Context, Identity, incoming, outgoing};
use crate::ram;
use crate::run_state::{Arbiter, GuestRequest};

pub use crate::migration::incoming::IncomingInfo;

/// How a machine is to be run and moved.
#[derive(Debug, Clone, Default)]
pub struct Config {
    /// Machine type in the stream: `microvm`.
    pub machine_name: String,
    /// Bits of a page's offset, for a machine whose stream tells them (QEMU's Arm machines: 12).
    pub target_page_bits: Option<u32>,
    /// Compatibility level of the peers: what is sent to them.
    pub level: Level,
    /// Identity, checked with capability validate-uuid.
    pub uuid: Option<[u8; 16]>,
    /// Name, for people.
    pub name: Option<String>,
    /// Run when the guest is ready (no `-S`).
    pub autostart: bool,
    /// A reset asked for by the guest ends it instead.
    pub no_reboot: bool,
    /// A guest that powers off stays, stopped.
    pub no_shutdown: bool,
    /// Await a guest instead of booting one.
    pub incoming: Option<Incoming>,
    /// Fault switches.
    pub faults: Faults,
}

/// How a guest is awaited.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Incoming {
    /// `migrate-incoming` will say where.
    Defer,
    /// Listen at once.
    At(Address),
}

/// Why the main loop ended.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Exit {
    /// `quit`, or the guest powered off.
    Ended,
    /// The incoming migration failed; the text says why. The process should exit with 1.
    IncomingFailed(String),
}

/// What `query-migrate` shows.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum MigrationInfo {
    /// Nothing ever happened.
    None,
    /// The last outgoing migration.
    Outgoing(Box<Info>),
    /// The incoming one.
    Incoming(IncomingInfo),
}

type Job = Box<dyn FnOnce(&Arc<Engine>) + Send>;

/// One machine's engine. Commands are called on the main loop; see [`on_main`](Engine::on_main).
pub struct Engine {
    machine: Arc<dyn Machine>,
    registry: Arc<Registry>,
    config: Config,
    events: Arc<Events>,
    arbiter: Arc<Arbiter>,
    jobs: Sender<Job>,
    queue: Mutex<Option<Receiver<Job>>>,
    exit: Mutex<Option<Exit>>,
    control: Mutex<Control>,
    descriptors: Descriptors,
}

/// What the user has set, and the migrations that are under way.
struct Control {
    capabilities: Capabilities,
    parameters: Parameters,
    autostart: bool,
    outgoing: Option<outgoing::Handle>,
    incoming: Option<incoming::Handle>,
}

impl Engine {
    /// An engine for a machine whose state is listed in `registry`.
    pub fn new(machine: Arc<dyn Machine>, mut registry: Registry, config: Config) -> Arc<Self> {
        registry.ram(ram::handler(machine.clone(), config.faults.clone()));
        let (jobs, queue) = std::sync::mpsc::channel();
        let registry = Arc::new(registry);
        let events = Arc::new(Events::default());
        let state = if config.incoming.is_some() { RunState::Inmigrate } else { RunState::Prelaunch };
        let arbiter =
            Arbiter::new(machine.clone(), registry.clone(), events.clone(), config.faults.clone(), state);
        Arc::new(Self {
            machine,
            registry,
            events,
            arbiter: Arc::new(arbiter),
            jobs,
            queue: Mutex::new(Some(queue)),
            exit: Mutex::default(),
            descriptors: Descriptors::default(),
            control: Mutex::new(Control {
                capabilities: Capabilities::NONE,
                parameters: Parameters::default(),
                autostart: config.autostart,
                outgoing: None,
                incoming: None,
            }),
            config,
        })
    }

    /// The main loop, on the caller's thread, until the machine ends.
    pub fn run(self: &Arc<Self>) -> Exit {
        let Some(queue) = lock(&self.queue).take() else { return Exit::Ended };
        match &self.config.incoming {
            Some(Incoming::At(address)) => {
                if let Err(error) = self.migrate_incoming(address.clone(), true) {
                    return Exit::IncomingFailed(error.desc);
                }
            }
            Some(Incoming::Defer) => {}
            None if self.config.autostart => {
                if let Err(error) = self.arbiter.start() {
                    tracing::error!(%error, "the guest does not start");
                }
            }
            None => {}
        }
        while let Ok(job) = queue.recv() {
            job(self);
            if let Some(exit) = lock(&self.exit).take() {
                self.end_migrations();
                return exit;
            }
        }
        Exit::Ended
    }

    /// Runs `f` on the main loop and waits for what it gives; `None` if the loop has ended.
    pub fn on_main<R: Send + 'static>(&self, f: impl FnOnce(&Arc<Self>) -> R + Send + 'static) -> Option<R> {
        let (answer, wait) = std::sync::mpsc::sync_channel(1);
        let job = move |engine: &Arc<Self>| {
            let _gone = answer.send(f(engine));
        };
        self.jobs.send(Box::new(job)).ok()?;
        wait.recv().ok()
    }

    /// Runs `f` on the main loop some time later.
    pub fn post(&self, f: impl FnOnce(&Arc<Self>) + Send + 'static) {
        let _ended = self.jobs.send(Box::new(f));
    }

    // ---- read-only, from any thread --------------------------------------------------------------------------------------

    /// The run state.
    pub fn run_state(&self) -> RunState {
        self.arbiter.state()
    }

    /// How the machine was configured.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// What `query-migrate` shows.
    pub fn migration_info(&self) -> MigrationInfo {
        let control = lock(&self.control);
        match (&control.outgoing, &control.incoming) {
            (Some(outgoing), _) => MigrationInfo::Outgoing(Box::new(outgoing.info())),
            (None, Some(incoming)) => MigrationInfo::Incoming(incoming.info()),
            (None, None) => MigrationInfo::None,
        }
    }

    /// Reasons why the machine cannot be migrated now.
    pub fn blockers(&self) -> Vec<String> {
        self.machine.blockers()
    }

    /// The capabilities that are on.
    pub fn capabilities(&self) -> Capabilities {
        lock(&self.control).capabilities
    }

    /// The parameters.
    pub fn parameters(&self) -> Parameters {
        lock(&self.control).parameters.clone()
    }

    /// The file descriptors that are held for migrations to come.
    pub fn descriptors(&self) -> &Descriptors {
        &self.descriptors
    }

    /// The threads that migrate, as `query-migrationthreads` shows them: QEMU's names, and the system's numbers.
    pub fn migration_threads(&self) -> Vec<(&'static str, i32)> {
        let outgoing = lock(&self.control).outgoing.clone();
        outgoing
            .and_then(|outgoing| outgoing.thread())
            .map(|thread| ("mig/src/main", thread))
            .into_iter()
            .collect()
    }

    /// Everything that happens from now on. A watcher that falls far behind is dropped.
    pub fn events(&self) -> Receiver<TimedEvent> {
        self.events.subscribe()
    }

    // ---- from vCPU threads: queued for the main loop ---------------------------------------------------------------------

    /// The guest asks for a reset (or fell into a triple fault). Call it before the vCPU lets itself be paused.
    pub fn guest_reset(&self) {
        let ends = self.config.no_reboot;
        self.guest_asks(if ends { GuestRequest::Shutdown("guest-reset") } else { GuestRequest::Reset });
    }

    /// The guest powers off. Call it before the vCPU lets itself be paused.
    pub fn guest_shutdown(&self) {
        self.guest_asks(GuestRequest::Shutdown("guest-shutdown"));
    }

    /// The guest is to stop, as by `stop`. It returns at once: a vCPU's thread could not wait for its own vCPU to be paused. Call
    /// it before that vCPU lets itself be paused.
    pub fn request_stop(&self) {
        self.guest_asks(GuestRequest::Stop);
    }

    /// KVM cannot run the guest any further.
    pub fn guest_failed(&self, why: String) {
        tracing::error!(why, "the guest stops: KVM cannot go on");
        self.guest_asks(GuestRequest::Failed);
    }

    // ---- commands, on the main loop --------------------------------------------------------------------------------------

    /// `stop`: a running guest stops; an awaited one will not run when it arrives.
    ///
    /// # Errors
    /// If a state-change handler refuses; the guest runs on.
    pub fn stop(&self) -> Result<(), CommandError> {
        if self.set_autostart(false) {
            return Ok(());
        }
        self.arbiter.stop(RunState::Paused).map_err(|error| CommandError::generic(error.to_string()))?;
        self.tell_migration(Event::Guest(self.arbiter.guest_state()));
        Ok(())
    }

    /// `cont`: a stopped guest runs; an awaited one will when it arrives.
    ///
    /// # Errors
    /// QEMU's texts for a guest that may not run now.
    pub fn cont(&self) -> Result<(), CommandError> {
        if self.set_autostart(true) {
            return Ok(());
        }
        self.arbiter.start().map_err(|error| CommandError::generic(error.to_string()))?;
        self.tell_migration(Event::Guest(RunState::Running));
        Ok(())
    }

    /// `system_reset`.
    ///
    /// # Errors
    /// While a switchover is under way or a guest is awaited, or if KVM refuses the reset state.
    pub fn system_reset(&self) -> Result<(), CommandError> {
        self.arbiter.reset().map_err(|error| CommandError::generic(error.to_string()))?;
        self.events.emit(EngineEvent::Reset { guest: false, reason: "host-qmp-system-reset" });
        self.tell_migration(Event::Guest(self.arbiter.guest_state()));
        Ok(())
    }

    /// `quit`: ends the main loop, and with it every migration.
    pub fn quit(&self) {
        self.events.emit(EngineEvent::Shutdown { guest: false, reason: "host-qmp-quit" });
        self.end(Exit::Ended);
    }

    /// `migrate`: starts to move the guest to `address`; how it goes is told by [`migration_info`](Engine::migration_info).
    ///
    /// # Errors
    /// QEMU's texts: a migration is under way, the guest is awaited or gone, something blocks.
    pub fn migrate(self: &Arc<Self>, address: Address, resume: bool) -> Result<(), CommandError> {
        let mut control = lock(&self.control);
        if control.outgoing.as_ref().is_some_and(|outgoing| !outgoing.is_over()) {
            return Err(CommandError::generic(qemu_texts::MIGRATION_IN_PROGRESS));
        }
        if resume {
            return Err(CommandError::generic(qemu_texts::NOTHING_TO_RESUME));
        }
        match self.arbiter.state() {
            RunState::Inmigrate => return Err(CommandError::generic(qemu_texts::WAITING_FOR_INCOMING)),
            RunState::Postmigrate => return Err(CommandError::generic(qemu_texts::ALREADY_POSTMIGRATE)),
            _ => {}
        }
        if let Some(blocker) = self.machine.blockers().into_iter().next() {
            return Err(CommandError::generic(blocker));
        }
        let target = Target::resolve(address, &self.descriptors, Access::Write)?;
        let engine = Arc::downgrade(self);
        let done = move || {
            if let Some(engine) = engine.upgrade() {
                engine.post(|engine| engine.serve_guest());
            }
        };
        let started =
            outgoing::Handle::start(self.context(&control), control.parameters.clone(), target, done);
        control.outgoing = Some(
            started.map_err(|error| CommandError::generic(format!("cannot start a migration: {error}")))?,
        );
        Ok(())
    }

    /// `migrate_cancel`: at once, whatever the peer does. Without a migration nothing happens.
    ///
    /// # Errors
    /// After the commit: the guest is the destination's.
    pub fn migrate_cancel(&self) -> Result<(), CommandError> {
        let outgoing = lock(&self.control).outgoing.clone();
        match outgoing {
            Some(outgoing) if !outgoing.is_over() && !outgoing.cancel() => Err(CommandError::generic(
                "The migration is committed: the guest is the destination's and cannot be cancelled back",
            )),
            _ => Ok(()),
        }
    }

    /// `migrate-continue` from the state the caller believes it is in.
    ///
    /// # Errors
    /// QEMU's text if it is in another.
    pub fn migrate_continue(&self, state: MigrationStatus) -> Result<(), CommandError> {
        let outgoing = lock(&self.control).outgoing.clone();
        let now = outgoing.as_ref().map_or(MigrationStatus::None, |outgoing| outgoing.info().status);
        match outgoing {
            Some(outgoing) if now == state && now == MigrationStatus::PreSwitchover => {
                outgoing.tell(Event::Continue);
                Ok(())
            }
            _ => Err(CommandError::generic(qemu_texts::not_in_expected_state(now.name()))),
        }
    }

    /// `migrate-incoming`: listens on `address` for the one guest this machine awaits. If the guest doesn't arrive, the machine
    /// ends, or with `exit_on_error` off stays as it is, for the error to be asked for; it awaits nobody any more.
    ///
    /// # Errors
    /// QEMU's texts: not awaiting, or already; or why it cannot be listened there.
    pub fn migrate_incoming(
        self: &Arc<Self>,
        address: Address,
        exit_on_error: bool,
    ) -> Result<(), CommandError> {
        let mut control = lock(&self.control);
        if self.config.incoming.is_none() {
            return Err(CommandError::generic(qemu_texts::NOT_AN_INCOMING_VM));
        }
        if control.incoming.is_some() {
            return Err(CommandError::generic(qemu_texts::INCOMING_ALREADY_STARTED));
        }
        let engine = Arc::downgrade(self);
        let done = move |outcome: &Outcome| {
            let (Some(engine), Outcome::Failed { phase, reason }) = (engine.upgrade(), outcome) else {
                return;
            };
            if !exit_on_error {
                return;
            }
            let text = format!("{phase}: {reason}");
            engine.post(move |engine| engine.end(Exit::IncomingFailed(text)));
        };
        let target = Target::resolve(address, &self.descriptors, Access::Read)?;
        let started = incoming::Handle::start(self.context(&control), control.autostart, target, done);
        control.incoming = Some(started.map_err(|error| CommandError::generic(error.to_string()))?);
        Ok(())
    }

    /// `migrate-set-capabilities`: all of them or none.
    ///
    /// # Errors
    /// QEMU's texts: a conflict, an unbuilt capability, a migration under way.
    pub fn set_capabilities(&self, changes: &[(Capability, bool)]) -> Result<(), CommandError> {
        let mut control = lock(&self.control);
        let mut new = control.capabilities;
        for (capability, on) in changes {
            new.set(*capability, *on);
        }
        let context = CapabilityContext {
            migrating: control.is_migrating(),
            incoming_started: control.incoming.is_some(),
            ..CapabilityContext::default()
        };
        Capabilities::check(new, control.capabilities, context).map_err(CommandError::generic)?;
        control.capabilities = new;
        if let Some(incoming) = &control.incoming {
            incoming.capabilities(new);
        }
        Ok(())
    }

    /// `migrate-set-parameters`: all of them or none; a running migration takes them in.
    ///
    /// # Errors
    /// QEMU's texts: out of range.
    pub fn set_parameters(&self, patch: ParametersPatch) -> Result<(), CommandError> {
        let mut control = lock(&self.control);
        control.parameters = control.parameters.apply(patch).map_err(CommandError::generic)?;
        if let Some(outgoing) = &control.outgoing {
            outgoing.tell(Event::Parameters(Box::new(control.parameters.clone())));
        }
        Ok(())
    }

    // ---- inside ----------------------------------------------------------------------------------------------------------

    fn context(&self, control: &Control) -> Context {
        let Config { machine_name, target_page_bits, uuid, level, .. } = &self.config;
        Context {
            machine: self.machine.clone(),
            registry: self.registry.clone(),
            arbiter: self.arbiter.clone(),
            events: self.events.clone(),
            faults: self.config.faults.clone(),
            identity: Identity {
                machine: machine_name.clone(),
                target_page_bits: *target_page_bits,
                uuid: *uuid,
                level: *level,
            },
            capabilities: control.capabilities,
        }
    }

    /// While a guest is awaited, `stop` and `cont` only say whether it may run. Whether that was so.
    fn set_autostart(&self, on: bool) -> bool {
        let mut control = lock(&self.control);
        if self.arbiter.state() != RunState::Inmigrate {
            return false;
        }
        control.autostart = on;
        if let Some(incoming) = &control.incoming {
            incoming.autostart(on);
        }
        true
    }

    fn guest_asks(&self, request: GuestRequest) {
        self.arbiter.note(request);
        self.post(|engine| engine.serve_guest());
    }

    /// Does what the guest has asked for. One that has moved away meanwhile was served at the switchover.
    fn serve_guest(&self) {
        let Some((request, result)) = self.arbiter.serve() else { return };
        if let Err(error) = result {
            tracing::error!(?request, %error, "what the guest asked for failed");
        }
        self.tell_migration(Event::Guest(self.arbiter.guest_state()));
        if matches!(request, GuestRequest::Shutdown(_)) && !self.config.no_shutdown {
            self.end(Exit::Ended);
        }
    }

    fn tell_migration(&self, event: Event) {
        if let Some(outgoing) = &lock(&self.control).outgoing {
            outgoing.tell(event);
        }
    }

    fn end(&self, exit: Exit) {
        lock(&self.exit).get_or_insert(exit);
    }

    /// The process is about to end: what can be undone is.
    fn end_migrations(&self) {
        let (outgoing, incoming) = {
            let control = lock(&self.control);
            (control.outgoing.clone(), control.incoming.clone())
        };
        if outgoing.is_some_and(|outgoing| !outgoing.is_over() && !outgoing.cancel()) {
            tracing::warn!("quit after the commit of a migration: the guest is the destination's");
        }
        if let Some(incoming) = incoming {
            incoming.cancel();
        }
        if let Err(error) = self.machine.pause_vcpus() {
            tracing::warn!(%error, "a vCPU does not stop");
        }
    }
}

impl Control {
    fn is_migrating(&self) -> bool {
        let out = self.outgoing.as_ref().is_some_and(|outgoing| !outgoing.is_over());
        let in_status = self.incoming.as_ref().map(|incoming| incoming.info().status);
        out || matches!(in_status, Some(MigrationStatus::Active))
    }
}
