//! A guest under test: the example's machine on an engine with its main loop on a thread, and a watch over all machines of a
//! test that no two of them ever run at once.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::sync::mpsc::Receiver;
use std::sync::{Arc, OnceLock, Weak};
use std::thread::JoinHandle;
use std::time::Duration;

use vm_memory::GuestAddress;
use whimbrel::channel::Address;
use whimbrel::dirty::DirtySource;
use whimbrel::dirty::write_protect::{WriteProtect, Writers};
use whimbrel::engine::{Config, Engine, Exit, Incoming, MigrationInfo};
use whimbrel::error::CommandError;
use whimbrel::events::{EngineEvent, TimedEvent};
use whimbrel::faults::Faults;
use whimbrel::handlers::Registry;
use whimbrel::machine::{Machine as _, MachineError};
use whimbrel::memory::{RamBlock, Region};
use whimbrel::proto::capabilities::Capability;
use whimbrel::proto::parameters::ParametersPatch;
use whimbrel::proto::run_state::RunState;
use whimbrel::proto::source::Info;
use whimbrel::proto::status::MigrationStatus;

use crate::minimal::Machine;

/// How often it is looked, a millisecond apart, before something hangs; on a busy host that is more than half a minute.
const PATIENCE: u32 = 30_000;
/// The loopback address, any port.
pub(crate) const TCP: &str = "tcp:127.0.0.1:0";

/// How many machines of a test run. Clones watch the same machines.
#[derive(Clone, Default)]
pub(crate) struct Runners(Arc<Running>);

#[derive(Default)]
struct Running {
    now: AtomicUsize,
    two: AtomicBool,
    /// An operator has ordered it.
    allowed: AtomicBool,
}

impl Runners {
    /// From here on an operator's `cont` may make a second one run.
    pub(crate) fn allow_two(&self) {
        self.0.allowed.store(true, Ordering::SeqCst);
    }

    pub(crate) fn now(&self) -> usize {
        self.0.now.load(Ordering::SeqCst)
    }
}

/// What a vCPU does on its thread just before it lets itself be paused.
type Act = fn(&Engine);

type AddHandlers = Arc<dyn Fn(&mut Registry)>;

/// What the engine asks of a machine in a stop, a start or an arrival.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Call {
    FreezeClocks,
    PauseVcpus,
    ThawClocks,
    ResumeVcpus,
    Apply,
}

/// Told before the machine does what it is called for, and may refuse it.
pub(crate) type Hook = Arc<dyn Fn(&Engine, Call) -> Result<(), MachineError> + Send + Sync>;

/// The example's machine, counted among the runners.
struct Watched {
    machine: Arc<Machine>,
    runs: AtomicBool,
    runners: Runners,
    busy_to_the_end: bool,
    /// The machine's, and what a test has added.
    ram: Vec<RamBlock>,
    last_act: Option<Act>,
    hook: Option<Hook>,
    blocker: Option<&'static str>,
    engine: OnceLock<Weak<Engine>>,
    /// Pages that differed just before an incoming guest ran for the first time.
    on_arrival: Arc<OnceLock<u64>>,
}

impl Watched {
    fn called(&self, call: Call) -> Result<(), MachineError> {
        let engine = self.engine.get().and_then(Weak::upgrade);
        match (&self.hook, engine) {
            (Some(hook), Some(engine)) => hook(&engine, call),
            _ => Ok(()),
        }
    }
}

impl whimbrel::machine::Machine for Watched {
    fn ram(&self) -> &[RamBlock] {
        &self.ram
    }
    fn dirty_source(&self) -> Result<Box<dyn DirtySource>, MachineError> {
        Ok(Box::new(WriteProtect::new(&self.ram, Writers::UserSpace)))
    }
    fn pause_vcpus(&self) -> Result<(), MachineError> {
        self.called(Call::PauseVcpus)?;
        let engine = self.engine.get().and_then(Weak::upgrade);
        if let (Some(act), Some(engine), true) = (self.last_act, engine, self.runs.load(Ordering::SeqCst)) {
            act(&engine);
        }
        self.machine.pause_vcpus()?;
        if self.runs.swap(false, Ordering::SeqCst) {
            self.runners.0.now.fetch_sub(1, Ordering::SeqCst);
        }
        Ok(())
    }
    fn resume_vcpus(&self) -> Result<(), MachineError> {
        self.called(Call::ResumeVcpus)?;
        // Later, the workers would write over what is wrong.
        self.on_arrival.get_or_init(|| self.machine.verify().1);
        if !self.runs.swap(true, Ordering::SeqCst) {
            let others = self.runners.0.now.fetch_add(1, Ordering::SeqCst);
            if others > 0 && !self.runners.0.allowed.load(Ordering::SeqCst) {
                self.runners.0.two.store(true, Ordering::SeqCst);
            }
        }
        self.machine.resume_vcpus()
    }
    fn freeze_clocks(&self) -> Result<(), MachineError> {
        self.called(Call::FreezeClocks)?;
        let enough = self.machine.stamps() + 64;
        // The first that is done in a stop: the workers still work.
        if self.busy_to_the_end && self.runs.load(Ordering::SeqCst) {
            wait_until("work before the stop", || self.machine.stamps() > enough);
        }
        self.machine.freeze_clocks()
    }
    fn thaw_clocks(&self) -> Result<(), MachineError> {
        self.called(Call::ThawClocks)?;
        self.machine.thaw_clocks()
    }
    fn apply(&self) -> Result<(), MachineError> {
        self.called(Call::Apply)?;
        self.machine.apply()
    }
    fn reset(&self) -> Result<(), MachineError> {
        self.machine.reset()
    }
    fn blockers(&self) -> Vec<String> {
        self.blocker.iter().map(ToString::to_string).collect()
    }
}

/// What a guest is to be.
#[derive(Clone)]
pub(crate) struct Build {
    pub(crate) workers: usize,
    /// Of each worker.
    pub(crate) pages: u64,
    /// Pages a second that each worker stamps.
    pub(crate) rate: u32,
    /// Each stop finds pages written just before it.
    pub(crate) busy_to_the_end: bool,
    pub(crate) last_act: Option<Act>,
    pub(crate) hook: Option<Hook>,
    /// More RAM than the workers'.
    pub(crate) ram: Vec<RamBlock>,
    pub(crate) blocker: Option<&'static str>,
    /// More handlers than the workers.
    pub(crate) handlers: Option<AddHandlers>,
    pub(crate) config: Config,
    pub(crate) runners: Runners,
}

impl Build {
    /// Two workers of 4 MiB each that stamp 16 MiB/s each.
    pub(crate) fn new(runners: &Runners) -> Self {
        let config = Config { machine_name: "minimal".into(), autostart: true, ..Config::default() };
        let runners = runners.clone();
        Self {
            workers: 2,
            pages: 1024,
            rate: 4096,
            busy_to_the_end: false,
            last_act: None,
            hook: None,
            ram: Vec::new(),
            blocker: None,
            handlers: None,
            config,
            runners,
        }
    }

    /// The same with RAM that nobody writes and that is not zero: 32 MiB, half a minute at the pace of [`Guest::crawl`]. Without it
    /// a move leaves its rounds when the guest happens not to work, as on a busy host, or when it has been reset.
    pub(crate) fn heavy(runners: &Runners) -> Self {
        const SIZE: usize = 32 << 20;
        let region = Region::from_range(GuestAddress(1 << 40), SIZE, None).unwrap();
        let ballast = RamBlock::new("ballast", vec![Arc::new(region)], true);
        ballast.write(0, &vec![0xb5; SIZE]).unwrap();
        let mut build = Self::new(runners);
        build.ram.push(ballast);
        build
    }

    pub(crate) fn fault(mut self, fault: &str) -> Self {
        self.config.faults = Faults::parse([fault]).unwrap();
        self
    }

    pub(crate) fn ram(mut self, workers: usize, pages: u64) -> Self {
        (self.workers, self.pages) = (workers, pages);
        self
    }

    pub(crate) fn rate(mut self, rate: u32) -> Self {
        self.rate = rate;
        self
    }

    pub(crate) fn busy_to_the_end(mut self) -> Self {
        self.busy_to_the_end = true;
        self
    }

    pub(crate) fn handlers(mut self, add: impl Fn(&mut Registry) + 'static) -> Self {
        self.handlers = Some(Arc::new(add));
        self
    }

    pub(crate) fn config(mut self, change: impl FnOnce(&mut Config)) -> Self {
        change(&mut self.config);
        self
    }

    /// A guest at work, which has not reached all of its pages yet; return path on, bandwidth unlimited.
    pub(crate) fn source(self) -> Guest {
        let guest = self.start(None);
        guest.set(Capability::ReturnPath);
        guest.parameters(ParametersPatch { max_bandwidth: Some(0), ..ParametersPatch::default() });
        wait_until("the guest works", || guest.machine.stamps() > 100);
        guest
    }

    /// The same with every page written.
    pub(crate) fn full_source(self) -> Guest {
        let pages = self.workers as u64 * self.pages;
        let guest = self.source();
        // The slower worker may lag behind.
        wait_until("every page is written", || guest.machine.stamps() > 2 * pages);
        guest
    }

    /// A machine that awaits a guest and will be told where.
    pub(crate) fn deferred(self) -> Guest {
        self.start(Some(Incoming::Defer))
    }

    /// A machine that awaits a guest at `uri`, and where it really listens.
    pub(crate) fn destination(self, uri: &str) -> (Guest, Address) {
        let guest = self.deferred();
        let address = Address::parse(uri).unwrap();
        guest.command(|engine| engine.migrate_incoming(address, true)).unwrap();
        let MigrationInfo::Incoming(info) = guest.engine.migration_info() else { panic!("not incoming") };
        (guest, info.socket_address.unwrap())
    }

    fn start(mut self, incoming: Option<Incoming>) -> Guest {
        self.config.incoming = incoming;
        let machine = Machine::new(self.workers, self.pages, self.rate).unwrap();
        let mut registry = machine.registry();
        if let Some(add) = self.handlers {
            add(&mut registry);
        }
        let (runners, on_arrival) = (self.runners, Arc::<OnceLock<_>>::default());
        let watched = Arc::new(Watched {
            machine: machine.clone(),
            runs: AtomicBool::new(false),
            runners: runners.clone(),
            busy_to_the_end: self.busy_to_the_end,
            ram: machine.ram().iter().cloned().chain(self.ram).collect(),
            last_act: self.last_act,
            hook: self.hook,
            blocker: self.blocker,
            engine: OnceLock::new(),
            on_arrival: on_arrival.clone(),
        });
        let engine = Engine::new(watched.clone(), registry, self.config);
        watched.engine.set(Arc::downgrade(&engine)).expect("set once");
        let events = engine.events();
        let main = {
            let engine = engine.clone();
            std::thread::spawn(move || engine.run())
        };
        Guest { engine, machine, runners, on_arrival, events, main: Some(main) }
    }
}

pub(crate) struct Guest {
    pub(crate) engine: Arc<Engine>,
    pub(crate) machine: Arc<Machine>,
    pub(crate) runners: Runners,
    on_arrival: Arc<OnceLock<u64>>,
    pub(crate) events: Receiver<TimedEvent>,
    main: Option<JoinHandle<Exit>>,
}

impl Guest {
    /// Runs a command on the main loop.
    pub(crate) fn command<R: Send + 'static>(
        &self,
        command: impl FnOnce(&Arc<Engine>) -> Result<R, CommandError> + Send + 'static,
    ) -> Result<R, String> {
        let ended = || Err(CommandError::generic("the main loop has ended"));
        self.engine.on_main(command).unwrap_or_else(ended).map_err(|error| error.desc)
    }

    pub(crate) fn set(&self, capability: Capability) {
        self.command(move |engine| engine.set_capabilities(&[(capability, true)])).unwrap();
    }

    pub(crate) fn parameters(&self, patch: ParametersPatch) {
        self.command(move |engine| engine.set_parameters(patch)).unwrap();
    }

    /// A move of a [`Build::heavy`] guest that starts now stays in its rounds until [`Guest::unlimited`].
    pub(crate) fn crawl(&self) {
        let max_bandwidth = Some(1 << 20);
        self.parameters(ParametersPatch {
            max_bandwidth,
            downtime_limit: Some(1),
            ..ParametersPatch::default()
        });
    }

    pub(crate) fn unlimited(&self) {
        let max_bandwidth = Some(0);
        let downtime_limit = Some(300);
        self.parameters(ParametersPatch { max_bandwidth, downtime_limit, ..ParametersPatch::default() });
    }

    pub(crate) fn migrate(&self, to: &Address) {
        let to = to.clone();
        self.command(move |engine| engine.migrate(to, false)).unwrap();
    }

    pub(crate) fn cancel(&self) -> Result<(), String> {
        self.command(|engine| engine.migrate_cancel())
    }

    pub(crate) fn info(&self) -> Info {
        match self.engine.migration_info() {
            MigrationInfo::Outgoing(info) => *info,
            other => panic!("no outgoing migration: {other:?}"),
        }
    }

    /// Waits until the outgoing migration is in this status.
    pub(crate) fn wait_for(&self, status: MigrationStatus) -> Info {
        wait_until(&format!("status {}", status.name()), || {
            let info = self.info();
            let over = !info.status.is_running() && info.status != status;
            assert!(
                !over,
                "waiting for {}, but it is {}: {:?}",
                status.name(),
                info.status.name(),
                info.error
            );
            info.status == status
        });
        self.info()
    }

    pub(crate) fn wait_for_state(&self, state: RunState) {
        wait_until(&format!("run state {state}"), || self.engine.run_state() == state);
    }

    /// The guest works.
    pub(crate) fn runs(&self) {
        assert_eq!(self.engine.run_state(), RunState::Running);
        let before = self.machine.stamps();
        wait_until("the guest works", || self.machine.stamps() > before);
    }

    /// The guest stands still.
    pub(crate) fn stands(&self) {
        let before = self.machine.stamps();
        std::thread::sleep(Duration::from_millis(20));
        assert_eq!(self.machine.stamps(), before, "the guest works in run state {}", self.engine.run_state());
    }

    /// How many pages differed when this incoming guest was about to run for the first time.
    pub(crate) fn mismatches_on_arrival(&self) -> u64 {
        // The run state is told a moment before the vCPUs are let go.
        wait_until("the arrival", || self.on_arrival.get().is_some());
        *self.on_arrival.get().unwrap()
    }

    /// How many pages differ from what they must be now.
    pub(crate) fn mismatches(&self) -> u64 {
        let machine = self.machine.clone();
        self.command(move |engine| {
            let runs = engine.run_state() == RunState::Running;
            if runs {
                engine.stop()?;
            }
            let (_, mismatches) = machine.verify();
            if runs {
                engine.cont()?;
            }
            Ok(mismatches)
        })
        .unwrap()
    }

    /// The main loop has ended.
    pub(crate) fn has_ended(&self) -> bool {
        self.main.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// The incoming migration is over.
    pub(crate) fn has_arrived(&self) -> bool {
        match self.engine.migration_info() {
            MigrationInfo::Incoming(info) => info.status == MigrationStatus::Completed,
            other => panic!("no incoming migration: {other:?}"),
        }
    }

    /// How the main loop ended.
    pub(crate) fn exit(mut self) -> Exit {
        wait_until("the main loop's end", || self.has_ended());
        self.main.take().unwrap().join().unwrap()
    }

    /// Why the incoming migration failed, without the peer that it names.
    pub(crate) fn refusal(self) -> String {
        match self.exit() {
            Exit::IncomingFailed(text) => {
                text.rsplit_once(", from '").map_or(text.clone(), |(why, _peer)| why.to_owned())
            }
            other => panic!("it did not fail: {other:?}"),
        }
    }

    /// The statuses that were announced so far.
    pub(crate) fn statuses(&self) -> Vec<&'static str> {
        let status = |event: TimedEvent| match event.event {
            EngineEvent::Migration(status) => Some(status.name()),
            _ => None,
        };
        self.events.try_iter().filter_map(status).collect()
    }

    /// The migration failed before its commit: the guest is here and works. Returns why.
    pub(crate) fn failed(&self) -> String {
        let info = self.wait_for(MigrationStatus::Failed);
        self.runs();
        info.error.expect("a failure has a reason")
    }

    /// The migration was cancelled: the guest is here and works.
    pub(crate) fn cancelled(&self) {
        self.wait_for(MigrationStatus::Cancelled);
        self.runs();
    }

    /// The migration ended after its commit without an answer: the guest stands still, and only an operator can make it run.
    pub(crate) fn outcome_unknown(&self, peer: &Address) -> String {
        let error = self.wait_for(MigrationStatus::Failed).error.unwrap();
        assert!(error.starts_with("outcome unknown: ") && error.contains(&peer.to_string()), "{error}");
        assert_eq!(self.engine.run_state(), RunState::Postmigrate);
        self.stands();
        let peer = peer.clone();
        let refused = self.command(move |engine| engine.migrate(peer, false)).unwrap_err();
        assert_eq!(refused, "Can't migrate the vm that was paused due to previous migration");
        self.stands();
        error
    }

    /// The guest is at `destination`, whole and at work, and no longer here.
    pub(crate) fn moved_to(&self, destination: &Guest) {
        self.wait_for(MigrationStatus::Completed);
        assert_eq!(self.engine.run_state(), RunState::Postmigrate);
        assert_eq!(destination.mismatches_on_arrival(), 0);
        wait_until("one runs", || self.runners.now() == 1);
        let left = self.machine.stamps();
        assert!(destination.machine.stamps() >= left, "the destination began with an older state");
        assert_eq!(destination.mismatches(), 0);
        destination.runs();
        assert_eq!(self.machine.stamps(), left, "the source worked on");
    }

    /// The next attempt, to a fresh destination, succeeds.
    pub(crate) fn moves_next_time(&self, like: Build) {
        self.unlimited();
        let (destination, address) = like.destination(TCP);
        self.migrate(&address);
        self.moved_to(&destination);
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        if let Some(main) = self.main.take() {
            self.engine.post(|engine| engine.quit());
            let exit = main.join();
            assert!(exit.is_ok() || std::thread::panicking(), "the main loop panicked");
        }
        let two = self.runners.0.two.load(Ordering::SeqCst);
        assert!(!two || std::thread::panicking(), "two machines ran at once");
    }
}

/// Waits for a condition, at most as long as a hang.
pub(crate) fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    for _ in 0..PATIENCE {
        if condition() {
            return;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    panic!("waited in vain: {what}");
}

/// Time as this process gets it, from a thread that sleeps and counts: a host that is busy or stalls holds that up, too, while the
/// wall's clock goes on.
pub(crate) struct Stopwatch(Arc<AtomicU32>);

impl Stopwatch {
    const TICK: Duration = Duration::from_millis(10);

    pub(crate) fn start() -> Self {
        let ticks = Arc::new(AtomicU32::new(0));
        let counted = Arc::downgrade(&ticks);
        std::thread::spawn(move || {
            loop {
                std::thread::sleep(Self::TICK);
                let Some(ticks) = counted.upgrade() else { return };
                ticks.fetch_add(1, Ordering::Relaxed);
            }
        });
        Self(ticks)
    }

    /// Since it was started; never more than the wall's clock says.
    pub(crate) fn time(&self) -> Duration {
        Self::TICK * self.0.load(Ordering::Relaxed)
    }
}

/// A folder that is gone when the test is.
pub(crate) struct Scratch(PathBuf);

impl Scratch {
    pub(crate) fn new() -> Self {
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("whimbrel-engine-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// A `unix:` URI in it.
    pub(crate) fn unix(&self) -> String {
        format!("unix:{}", self.path("socket").display())
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _left_to_the_system = std::fs::remove_dir_all(&self.0);
    }
}
