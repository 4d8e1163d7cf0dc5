//! One running `virt` with the MSI guest: its process, its monitor, the device that sends MSIs, the guest's counts.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use msi::Control;
use serde_json::{Value, json};
use whimbrel_e2e::process::Process;
use whimbrel_e2e::qmp::Qmp;
use whimbrel_e2e::scratch::Scratch;
use whimbrel_e2e::{Peer, now, wait_for};

/// How long one step may take, in an emulated machine on a loaded one.
pub(crate) const LIMIT: Duration = Duration::from_secs(60);
/// How long an MSI may take to be answered for; no answer then: the machine has stopped.
const ANSWER: Duration = Duration::from_millis(400);
const MEMORY_MIB: u32 = 32;
const DIGEST: &str = "x-whimbrel-table-digest";

/// How to start a machine.
#[derive(Clone, Debug)]
pub(crate) struct Launch {
    /// The guest's device table has two levels.
    pub(crate) two_level: bool,
    pub(crate) cpus: u32,
    pub(crate) faults: Vec<&'static str>,
    /// Compare digests of the tables, where both ends want it.
    pub(crate) digest: bool,
    /// Writes are tracked by KVM's dirty ring, the smallest there is.
    pub(crate) ring: bool,
    /// More words of the guest's command line.
    pub(crate) options: &'static str,
}

impl Default for Launch {
    fn default() -> Self {
        Self { two_level: false, cpus: 2, faults: Vec::new(), digest: true, ring: false, options: "" }
    }
}

impl Launch {
    pub(crate) fn faults(&self, faults: &[&'static str]) -> Self {
        Self { faults: faults.to_vec(), ..self.clone() }
    }

    /// Starts the guest, and waits until it is at work.
    #[track_caller]
    pub(crate) fn boot(&self) -> Machine {
        let mut machine = self.machine(false);
        wait_for("the guest", LIMIT, || machine.try_control());
        machine
    }

    /// Starts a machine that waits for a guest, and does not let it run by itself.
    #[track_caller]
    pub(crate) fn await_guest(&self) -> Machine {
        self.machine(true)
    }

    /// A machine that cannot be: why.
    #[track_caller]
    pub(crate) fn refused(&self) -> String {
        let (mut process, _scratch) = self.start(false);
        assert!(!process.wait(LIMIT).success(), "it was to be refused: {}", process.log());
        process.log()
    }

    #[track_caller]
    fn machine(&self, incoming: bool) -> Machine {
        let (mut process, scratch) = self.start(incoming);
        let mut qmp = wait_for("the monitor", LIMIT, || {
            if let Some(status) = process.ended() {
                panic!("whimbrel ended with {status}: {}", process.log());
            }
            Qmp::connect(&scratch.join("qmp"))
        });
        let capability = |name: &str, state| json!({ "capability": name, "state": state });
        let capabilities = [capability("return-path", true), capability(DIGEST, self.digest)];
        qmp.ok("migrate-set-capabilities", json!({ "capabilities": capabilities }));
        let msi = UnixStream::connect(scratch.join("msi")).expect("the MSI device listens");
        Machine { process, qmp, msi, partial: Vec::new(), scratch }
    }

    fn start(&self, incoming: bool) -> (Process, Scratch) {
        let scratch = Scratch::new("its");
        let mut command = Command::new(Peer::Whimbrel.program().expect("it builds"));
        command.args(["run", "--memory", &format!("{MEMORY_MIB}M"), "--cpus", &self.cpus.to_string()]);
        command.arg("--qmp").arg(format!("unix:{}", scratch.join("qmp").display()));
        command.arg("--serial").arg(format!("file:{}", scratch.join("serial").display()));
        command.arg("--msi").arg(format!("unix:{},server", scratch.join("msi").display()));
        // A destination, too, needs what is booted: the guest may be reset there.
        let image = scratch.join("image");
        std::fs::write(&image, msi::IMAGE.expect("the guest was built")).expect("scratch is writable");
        command.arg("--kernel").arg(image);
        // More pages than a ring has entries: it fills up.
        let (dirty, pages) = if self.ring { ("ring,1024", 1100) } else { ("bitmap", 16) };
        command.args(["--dirty", dirty]).env("RUST_LOG", "warn,whimbrel::dirty=debug");
        let two_level = u8::from(self.two_level);
        command.arg("--append").arg(format!("pages={pages} two_level={two_level} {}", self.options));
        command.args(["-machine", "virt,gic-version=3,its=on"]);
        if incoming {
            command.args(["--incoming", "defer", "--stopped"]);
        }
        for fault in &self.faults {
            command.args(["--fault", fault]);
        }
        (Process::start("whimbrel", &mut command, &scratch.join("log")), scratch)
    }
}

/// A running machine. Dropping it kills it.
pub(crate) struct Machine {
    pub(crate) process: Process,
    pub(crate) qmp: Qmp,
    msi: UnixStream,
    partial: Vec<u8>,
    scratch: Scratch,
}

impl Machine {
    /// Its monitor, as the command line names it.
    pub(crate) fn endpoint(&self) -> String {
        format!("unix:{}", self.scratch.join("qmp").display())
    }

    /// The guest's control block.
    #[track_caller]
    pub(crate) fn control(&mut self) -> Control {
        self.try_control().expect("the guest is ready")
    }

    fn try_control(&mut self) -> Option<Control> {
        let file = self.scratch.join("control");
        let place = json!({ "val": msi::CONTROL, "size": msi::CONTROL_LEN, "filename": file });
        self.qmp.ok("pmemsave", place);
        Control::parse(&std::fs::read(file).expect("pmemsave wrote it")).ok()
    }

    /// Waits until the guest's control block is as wanted.
    #[track_caller]
    pub(crate) fn wait_control(&mut self, what: &str, wanted: impl Fn(&Control) -> bool) -> Control {
        let mut last = None;
        let begin = now();
        loop {
            let control = self.control();
            if wanted(&control) {
                return control;
            }
            assert!(now() - begin < LIMIT, "waited in vain for {what}; last seen: {last:?}");
            last = Some(control);
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Sends an MSI. `sent`, `blocked` (the guest has not mapped it), an error; `None`: the machine has stopped, and the MSI
    /// waits with its sender.
    pub(crate) fn signal(&mut self, device: u32, event: u32) -> Option<String> {
        self.msi.write_all(format!("{device} {event}\n").as_bytes()).expect("the MSI device reads");
        let line = self.line(ANSWER)?;
        let answer = line.strip_prefix(&format!("{device} {event} "));
        Some(answer.unwrap_or_else(|| panic!("an answer to {device} {event}: {line}")).to_owned())
    }

    /// Sends an MSI that must be taken.
    #[track_caller]
    pub(crate) fn send(&mut self, device: u32, event: u32) {
        assert_eq!(self.signal(device, event).as_deref(), Some("sent"), "device {device:#x}, event {event}");
    }

    fn line(&mut self, patience: Duration) -> Option<String> {
        let deadline = now() + patience;
        loop {
            if let Some(end) = self.partial.iter().position(|byte| *byte == b'\n') {
                let line = self.partial.drain(..=end).collect::<Vec<_>>();
                return Some(String::from_utf8_lossy(&line).trim_end().to_owned());
            }
            let left = deadline.saturating_sub(now()).max(Duration::from_millis(1));
            self.msi.set_read_timeout(Some(left)).expect("a socket's timeout");
            let mut bytes = [0; 256];
            match self.msi.read(&mut bytes) {
                Ok(0) => return None,
                Ok(count) => self.partial.extend_from_slice(&bytes[..count]),
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                    if now() >= deadline {
                        return None;
                    }
                }
                Err(error) => panic!("the MSI device: {error}"),
            }
        }
    }

    /// `query-migrate`.
    pub(crate) fn migration(&mut self) -> Value {
        self.qmp.ok("query-migrate", json!({}))
    }

    /// Begins to move the guest to `destination`.
    #[track_caller]
    pub(crate) fn begin_move(&mut self, destination: &mut Self) {
        let uri = destination.listen();
        self.qmp.ok("migrate", json!({ "uri": uri }));
    }

    /// Has it wait for a guest; where.
    #[track_caller]
    pub(crate) fn listen(&mut self) -> String {
        self.qmp.ok("migrate-incoming", json!({ "uri": "tcp:127.0.0.1:0" }));
        let address = wait_for("the listening address", LIMIT, || {
            let address = self.migration()["socket-address"][0].clone();
            address.is_object().then_some(address)
        });
        format!("tcp:127.0.0.1:{}", address["port"].as_str().expect("a port"))
    }

    /// Whether the move has ended, and as what.
    pub(crate) fn ended(&mut self) -> Option<Value> {
        let info = self.migration();
        matches!(info["status"].as_str(), Some("completed" | "failed" | "cancelled")).then_some(info)
    }

    /// Waits for the move's end, which must be good at both ends.
    #[track_caller]
    pub(crate) fn finish_move(&mut self, destination: &mut Self) {
        let info = wait_for("the move's end", LIMIT, || self.ended());
        assert_eq!(info["status"], "completed", "{info}\ndestination: {}", destination.process.log());
        wait_for("the guest at the destination", LIMIT, || {
            (destination.run_state() != "inmigrate").then_some(())
        });
    }

    /// Waits until the guest, just reset, is at work again: what it counts it has begun anew.
    #[track_caller]
    pub(crate) fn wait_booted_again(&mut self) {
        wait_for("the guest, once more", LIMIT, || {
            self.try_control().filter(|control| control.counts.iter().all(|count| *count == 0))
        });
    }

    /// Moves from here are slow enough for the guest to fill its dirty ring, and let it go with what it writes all the time.
    pub(crate) fn slow_down(&mut self) {
        let slow = json!({ "max-bandwidth": 4 << 20, "downtime-limit": 2000 });
        self.qmp.ok("migrate-set-parameters", slow);
    }

    /// Whether a dirty ring of this machine has ever been full.
    pub(crate) fn filled_its_ring(&self) -> bool {
        self.process.log().contains("a dirty ring is full")
    }

    /// How often the guest said on the serial port that it is ready, where this machine has heard it.
    pub(crate) fn greetings(&self) -> usize {
        let said = std::fs::read_to_string(self.scratch.join("serial")).unwrap_or_default();
        said.matches("msi: ready").count()
    }

    /// Saves the guest into a file.
    #[track_caller]
    pub(crate) fn save(&mut self, file: &Path) {
        self.qmp.ok("migrate", json!({ "uri": format!("file:{}", file.display()) }));
        let info = wait_for("the guest to be saved", LIMIT, || self.ended());
        assert_eq!(info["status"], "completed", "{info}");
    }

    pub(crate) fn run_state(&mut self) -> String {
        self.qmp.ok("query-status", json!({}))["status"].as_str().expect("a status").to_owned()
    }

    /// Lets the guest run.
    #[track_caller]
    pub(crate) fn cont(&mut self) {
        self.qmp.ok("cont", json!({}));
    }
}

/// MSIs that were sent and answered for, by the LPI they must arrive as.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sent(BTreeMap<u32, u32>);

impl Sent {
    /// Notes one more.
    pub(crate) fn add(&mut self, lpi: u32) {
        *self.0.entry(lpi).or_default() += 1;
    }

    /// How many of an LPI.
    pub(crate) fn count(&self, lpi: u32) -> u32 {
        self.0.get(&lpi).copied().unwrap_or(0)
    }

    /// Each LPI whose count is another: what was sent, what arrived.
    pub(crate) fn differences(&self, control: &Control) -> Vec<String> {
        (msi::FIRST_LPI..)
            .zip(&control.counts)
            .filter(|(lpi, taken)| self.count(*lpi) != **taken)
            .map(|(lpi, taken)| format!("LPI {lpi}: sent {}, taken {taken}", self.count(lpi)))
            .collect()
    }
}
