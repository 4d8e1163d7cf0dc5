//! The engine of one machine: the main loop, and every command that changes something.
//!
//! ```text
//! QMP threads ──┐                                        ┌─▶ run-state arbiter ─▶ Machine
//! vCPU threads ─┼─▶ jobs ─▶ main loop (Engine::run) ─────┼─▶ migration thread (out), incoming thread
//! signals ──────┘                                        └─▶ events ─▶ watchers
//! ```
//!
//! Here: the main loop, what anyone may read, and the commands about the guest; those about migrations are in `migrations`.

mod migrations;

use std::sync::mpsc::{Receiver, Sender};
use std::sync::{Arc, Mutex};

use whimbrel_proto::capabilities::Capabilities;
use whimbrel_proto::event::Event;
use whimbrel_proto::parameters::Parameters;
use whimbrel_proto::run_state::RunState;
use whimbrel_proto::source::Info;
use whimbrel_vmstate::Level;

use crate::channel::Address;
use crate::descriptors::Descriptors;
use crate::error::CommandError;
use crate::events::{EngineEvent, Events, TimedEvent, Watch};
use crate::faults::Faults;
use crate::handlers::Registry;
use crate::lock;
use crate::machine::Machine;
use crate::migration::{incoming, outgoing};
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

    /// Reasons why the machine cannot be migrated now. In a switchover's pause nobody asks the machine: every look would lengthen it.
    pub fn blockers(&self) -> Vec<String> {
        if self.arbiter.state() == RunState::FinishMigrate { Vec::new() } else { self.machine.blockers() }
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

    /// The same for one who waits for other things as well: `wake` is called after each event, on the thread where it happened,
    /// and must not wait.
    pub fn watch(&self, wake: impl Fn() + Send + Sync + 'static) -> Watch {
        self.events.watch(wake)
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

    // ---- inside ----------------------------------------------------------------------------------------------------------

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
