//! One running machine with the beacon guest: its process, its monitor, its ports, and the host's check of its memory.

use std::fs::File;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::time::Duration;

use beacon::check::Report;
use beacon::{CommandLine, DumpFile, GuestMemory};
use serde_json::{Value, json};

use crate::peer::{Peer, Sockets};
use crate::port::Port;
use crate::process::Process;
use crate::qmp::Qmp;
use crate::scratch::Scratch;
use crate::wait_for;

/// How long a guest may take from start to its line `ready`. QEMU runs its firmware first, which takes seconds where
/// ring 0 is emulated.
const BOOT: Duration = Duration::from_secs(180);
/// MiB at the top of RAM that the guest does not use: SeaBIOS leaves its tables just under 16 MiB from the top.
const FIRMWARES_SHARE: u64 = 20;
/// How long a program may take until its monitor answers.
const START: Duration = Duration::from_secs(180);
/// RAM up to here lies at 0; what is beyond lies at 4 GiB.
const LOW_RAM: u64 = 3 << 30;
const HIGH_RAM: u64 = 4 << 30;

/// Which of QEMU's machines. Both sides of a move have the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Machine {
    /// `microvm` without what a paravirtual guest can do without: no ACPI, 8259, 8254 and clock.
    #[default]
    Plain,
    /// `microvm` as QEMU makes it if nothing is said.
    Default,
    /// That, with the battery-backed clock.
    WithClock,
    /// aarch64's `virt`, by whimbrel in L1 only: the harness knows no QEMU for it.
    Virt,
}

impl Machine {
    /// The value of QEMU's and whimbrel's option `-M`.
    pub fn option(self) -> &'static str {
        match self {
            Self::Plain => "microvm,acpi=off,pic=off,pit=off,rtc=off,isa-serial=on",
            Self::Default => "microvm",
            Self::WithClock => "microvm,rtc=on",
            Self::Virt => "virt,gic-version=3,its=on",
        }
    }

    /// Whether a guest can switch it off: by ACPI's registers or PSCI.
    pub fn switches_off(self) -> bool {
        self != Self::Plain
    }
}

/// How to start a machine. Two machines of a move are started from one: see [`Launch::incoming`].
#[derive(Clone, Debug, PartialEq)]
pub struct Launch {
    /// The program.
    pub peer: Peer,
    /// The machine it runs.
    pub machine: Machine,
    /// A QEMU runs its guest in its emulator, not in KVM.
    pub emulated: bool,
    /// Guest RAM in MiB.
    pub memory_mib: u64,
    /// The guest; the beacon, unless a test says otherwise.
    pub kernel: beacon::Built,
    /// The guest's command line; it decides how many vCPUs the machine has.
    pub beacon: CommandLine,
    /// The CPU model, in the spelling that both programs share.
    pub cpu: String,
    /// Linux as the guest, in the beacon's place.
    pub linux: Option<Linux>,
    /// Where to wait for a guest to come in (`defer`, `tcp:…`, `unix:…`), if it does.
    pub incoming: Option<String>,
    /// The firmware file.
    pub firmware: Option<PathBuf>,
    /// The stream's level: `7.2` if any machine of the test is QEMU 7.2, else `10.0`.
    pub level: &'static str,
    /// Start with the vCPUs stopped.
    pub stopped: bool,
    /// whimbrel's fault switches.
    pub faults: Vec<String>,
    /// Further arguments, as the program spells them.
    pub extra: Vec<String>,
}

/// A guest that is Linux.
#[derive(Clone, Debug, PartialEq)]
pub struct Linux {
    /// A vmlinux (entered by PVH) or a bzImage; on `virt` an `Image`.
    pub kernel: PathBuf,
    /// Its initial RAM file system.
    pub initrd: PathBuf,
    /// Its command line.
    pub command_line: String,
    /// vCPUs.
    pub cpus: u32,
}

impl Launch {
    /// The plain machine, 256 MiB, one vCPU, the beacon's defaults.
    pub fn new(peer: Peer) -> Self {
        Self {
            peer,
            machine: Machine::default(),
            emulated: false,
            memory_mib: 256,
            kernel: beacon::NATIVE,
            beacon: CommandLine::default(),
            cpu: if peer.is_qemu() { "qemu64" } else { "host" }.to_owned(),
            linux: None,
            incoming: None,
            firmware: Peer::firmware(),
            level: peer.level(),
            stopped: false,
            faults: Vec::new(),
            extra: Vec::new(),
        }
    }

    /// The same machine, waiting for a guest to come in by `migrate-incoming`; without faults.
    pub fn incoming(&self) -> Self {
        Self { incoming: Some("defer".to_owned()), stopped: false, faults: Vec::new(), ..self.clone() }
    }

    /// The same machine as another program runs it, in KVM.
    pub fn on(&self, peer: Peer) -> Self {
        Self { peer, emulated: false, ..self.clone() }
    }

    /// The same machine with a fault switch on.
    pub fn fault(&self, name: &str) -> Self {
        let mut launch = self.clone();
        launch.faults.push(name.to_owned());
        launch
    }

    /// The guest's command line. Where the test does not say how much memory the guest uses, it leaves the top alone:
    /// QEMU's firmware keeps notes there, which would not read as zeros.
    pub fn command_line(&self) -> String {
        if let Some(linux) = &self.linux {
            return linux.command_line.clone();
        }
        let mut line = self.beacon.clone();
        if line.mem_mib == 0 {
            line.mem_mib = self.memory_mib - FIRMWARES_SHARE;
        }
        line.to_string()
    }

    /// vCPUs.
    pub fn cpus(&self) -> u32 {
        self.linux.as_ref().map_or_else(|| self.beacon.vcpus(), |linux| linux.cpus)
    }

    /// Starts it, and waits until its monitor answers.
    ///
    /// # Panics
    /// With the program's own words, if it does not come up.
    #[track_caller]
    pub fn start(&self) -> Vm {
        let scratch = Scratch::new("vm");
        let kernel =
            self.linux.as_ref().map_or_else(|| built_in(&scratch, self.kernel), |linux| linux.kernel.clone());
        let heartbeat = Port::listen(&scratch.join("beat"));
        let console = Port::listen(&scratch.join("console"));
        let monitor = scratch.join("qmp");
        let sockets = Sockets { monitor: &monitor, heartbeat: heartbeat.path(), console: console.path() };
        let mut command = self.peer.command(self, &kernel, &sockets);
        let name = format!("{:?}", self.peer);
        let mut process = Process::start(&name, &mut command, &scratch.join("log"));
        let qmp = wait_for("the monitor", START, || {
            if let Some(status) = process.ended() {
                panic!("{name} ended with {status}: {command:?}\n{}", process.log());
            }
            Qmp::connect(&monitor)
        });
        Vm { launch: self.clone(), process, qmp, heartbeat, console, scratch }
    }
}

/// A running machine. Dropping it kills it.
#[derive(Debug)]
pub struct Vm {
    /// How it was started.
    pub launch: Launch,
    /// Its process.
    pub process: Process,
    /// Its monitor.
    pub qmp: Qmp,
    /// Its debug console at port 0xe9: the heartbeat.
    pub heartbeat: Port,
    /// Its serial line: the guest's text, and bytes for the guest.
    pub console: Port,
    /// Its files.
    pub scratch: Scratch,
}

impl Vm {
    /// Waits until the guest has filled its memory and works: its line `beacon: ready`, then its first beat.
    ///
    /// # Panics
    /// If it does not come in time.
    #[track_caller]
    pub fn wait_ready(&mut self) {
        wait_for("the guest to be ready", BOOT, || {
            assert!(self.process.ended().is_none(), "the machine ended before its guest was ready");
            let beats = self.launch.beacon.heartbeat.period_us > 0;
            (self.console.text().contains("beacon: ready") && (!beats || self.heartbeat.count() > 0))
                .then_some(())
        });
    }

    /// `query-status`: the run state.
    #[track_caller]
    pub fn run_state(&mut self) -> String {
        self.qmp.ok("query-status", json!({}))["status"].as_str().unwrap_or_default().to_owned()
    }

    /// `query-migrate`.
    #[track_caller]
    pub fn migration(&mut self) -> Value {
        self.qmp.ok("query-migrate", json!({}))
    }

    /// `query-migrate`'s status; empty if nothing ever happened.
    #[track_caller]
    pub fn migration_status(&mut self) -> String {
        self.migration()["status"].as_str().unwrap_or_default().to_owned()
    }

    /// Turns migration capabilities on.
    #[track_caller]
    pub fn enable(&mut self, capabilities: &[&str]) {
        let list: Vec<_> =
            capabilities.iter().map(|name| json!({ "capability": name, "state": true })).collect();
        self.qmp.ok("migrate-set-capabilities", json!({ "capabilities": list }));
    }

    /// Sets migration parameters.
    #[track_caller]
    pub fn set(&mut self, parameters: Value) {
        self.qmp.ok("migrate-set-parameters", parameters);
    }

    /// How many beats come in `time`: 0 says that the guest does not run.
    pub fn beats_during(&self, time: Duration) -> usize {
        let before = self.heartbeat.count();
        std::thread::sleep(time);
        self.heartbeat.count() - before
    }

    /// Lets the guest run for `time`, and makes sure that it does.
    ///
    /// # Panics
    /// If it does not beat.
    #[track_caller]
    pub fn let_run(&mut self, time: Duration) {
        assert!(self.beats_during(time) > 0, "the guest does not beat; run state {}", self.run_state());
    }

    /// Stops the guest and recomputes its whole memory. The machine stays stopped.
    #[track_caller]
    pub fn check(&mut self) -> Report {
        if self.qmp.ok("query-status", json!({}))["running"] == true {
            self.qmp.ok("stop", json!({}));
        }
        let bytes = self.launch.memory_mib << 20;
        let low = self.dump("low", 0, bytes.min(LOW_RAM));
        let high = (bytes > LOW_RAM).then(|| self.dump("high", HIGH_RAM, bytes - LOW_RAM));
        let report = beacon::check::check(&Dump { low, high });
        for name in ["low", "high"] {
            // The larger of a test's files; the second is often not there.
            let _ = std::fs::remove_file(self.scratch.join(name));
        }
        report.unwrap_or_else(|error| panic!("the host's check: {error}"))
    }

    /// Stops the guest and checks that nothing was lost: by the host's recomputation, and by the guest's own account.
    ///
    /// # Panics
    /// With the first mismatches and the guest's complaints.
    #[track_caller]
    pub fn assert_clean(&mut self) -> Report {
        let report = self.check();
        let complaints = self.complaints();
        let listed: Vec<_> = report.mismatches.iter().take(8).map(ToString::to_string).collect();
        assert!(
            report.is_clean() && complaints.is_empty(),
            "{} pages of {} are wrong, the guest counts {} faults\n{}\n{}",
            report.mismatch_count,
            report.pages_verified,
            report.control.faults(),
            listed.join("\n"),
            complaints.join("\n")
        );
        report
    }

    /// The lines in which the guest reports something wrong.
    pub fn complaints(&self) -> Vec<String> {
        let text = self.console.text();
        let complaint = |line: &&str| {
            let Some(said) = line.trim().strip_prefix("beacon: ") else { return false };
            ["stale", "foreign", "corrupt", "register", "timer", "interrupt", "panic"]
                .iter()
                .any(|word| said.starts_with(word))
        };
        text.lines().filter(complaint).map(str::to_owned).collect()
    }

    /// Ends the process as by `kill -9`.
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// `quit`, and the exit status.
    #[track_caller]
    pub fn quit(&mut self) -> ExitStatus {
        // The reply may be lost with the connection; the exit is what counts.
        let _ = self.qmp.try_execute("quit", json!({}));
        self.process.wait(START)
    }

    fn dump(&mut self, name: &str, start: u64, size: u64) -> DumpFile {
        let path = self.scratch.join(name);
        self.qmp.ok("pmemsave", json!({ "val": start, "size": size, "filename": path }));
        DumpFile::new(File::open(&path).expect("the dump was written"), start)
    }
}

/// A test guest's image, as a file.
fn built_in(scratch: &Scratch, guest: beacon::Built) -> PathBuf {
    let path = scratch.join("kernel.elf");
    std::fs::write(&path, guest.expect("the test guest was built"))
        .expect("the scratch directory is writable");
    path
}

/// All RAM, below and above the hole.
struct Dump {
    low: DumpFile,
    high: Option<DumpFile>,
}

impl GuestMemory for Dump {
    fn read(&self, gpa: u64, buf: &mut [u8]) -> std::io::Result<()> {
        match &self.high {
            Some(high) if gpa >= HIGH_RAM => high.read(gpa, buf),
            _ => self.low.read(gpa, buf),
        }
    }
}
