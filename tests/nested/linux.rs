//! Linux as a guest, moved live between two whimbrel processes over TCP while it works.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};
use whimbrel_e2e::l1::{Arch, inside_with_linux};
use whimbrel_e2e::{Launch, Linux, Machine, Peer, Vm, moves, now};

use crate::guest::{self, INITRD, Tick};
use crate::sight::Sight;

/// For a move of an emulated guest.
const MOVE: Duration = Duration::from_secs(90);
/// How long a guest that has arrived may take to show that it works: longer than it has run, as whose counter was left behind stands
/// still until it is where it was.
const ARRIVED: Duration = Duration::from_secs(60);
const TICKS: usize = 8;

/// Which Linux, on which machine.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Trial {
    /// The host, and so the guest's architecture.
    pub(crate) host: Arch,
    /// The machine.
    pub(crate) machine: Machine,
    /// The kernel, by its name among what was fetched.
    pub(crate) kernel: &'static str,
    /// vCPUs.
    pub(crate) cpus: u32,
}

/// What is each architecture's own.
struct Platform {
    /// Where the console is, and what Linux need not doubt there.
    command_line: &'static str,
    /// What it keeps time by.
    clocksource: &'static str,
}

impl Trial {
    /// A fetched kernel on the plain machine of x86.
    pub(crate) fn x86(kernel: &'static str, cpus: u32) -> Self {
        Self { host: Arch::X86, machine: Machine::Plain, kernel, cpus }
    }

    /// Linux 6.12 on `virt`.
    pub(crate) fn arm(host: Arch, cpus: u32) -> Self {
        Self { host, machine: Machine::Virt, kernel: "vmlinuz-6.12", cpus }
    }

    fn platform(&self) -> Platform {
        match self.host {
            Arch::X86 => Platform {
                command_line: "console=ttyS0 quiet tsc=reliable no_timer_check panic=-1",
                clocksource: "kvm-clock",
            },
            Arch::Arm | Arch::ArmWithoutRing => {
                Platform { command_line: "console=ttyAMA0 quiet panic=-1", clocksource: "arch_sys_counter" }
            }
        }
    }

    /// Boots it in L1 and moves it so often, each time to a machine that has just been started; then it must be sane.
    #[track_caller]
    pub(crate) fn moves_live(self, times: u32) {
        self.inside(|launch| {
            let mut here = launch.start();
            guest::wait_ticks(&mut here, TICKS);
            for _ in 0..times {
                // Not earlier: its clocks begin now, so that one that is not carried over is seconds behind.
                let mut there = launch.incoming().start();
                let sight = watch(&mut here, &mut there);
                println!("{sight}");
                assert_eq!(sight.faults(), [""; 0]);
                here = there;
            }
            guest::assert_sane(&here, self.platform().clocksource);
            if self.machine.switches_off() {
                guest::power_off(&mut here);
            }
        });
    }

    /// Boots it in L1 and moves it to a machine that leaves the counter behind, which must be seen.
    #[track_caller]
    pub(crate) fn is_seen_without_its_counter(self) {
        self.inside(|launch| {
            let mut source = launch.start();
            guest::wait_ticks(&mut source, TICKS);
            let mut destination = launch.incoming().fault("counter").start();
            let sight = watch(&mut source, &mut destination);
            let faults = sight.faults();
            println!("{sight}\n{faults:#?}");
            // Linux may wait for its time to come again, or for ever.
            let seen = ["stood still", "the clock ", "the counter "];
            let named = |fault: &String| seen.iter().any(|word| fault.contains(word));
            assert!(faults.iter().any(named), "the check has no teeth");
        });
    }

    #[track_caller]
    fn inside(self, body: impl FnOnce(&Launch)) {
        let kernel = format!("/guest/{}", self.kernel);
        inside_with_linux(
            self.host,
            |root| {
                root.copy(&self.host.fetched(self.kernel), &kernel);
                root.file(INITRD, &guest::initramfs(self.host), 0o644);
            },
            || {
                let linux = Linux {
                    kernel: kernel.as_str().into(),
                    initrd: INITRD.into(),
                    command_line: self.platform().command_line.to_owned(),
                    cpus: self.cpus,
                };
                let (linux, machine) = (Some(linux), self.machine);
                body(&Launch { linux, machine, memory_mib: 256, ..Launch::new(Peer::Whimbrel) });
            },
        );
    }
}

/// Moves a guest that ticks.
#[track_caller]
fn watch(source: &mut Vm, destination: &mut Vm) -> Sight {
    // The emulated host is slow to stop and to load.
    source.set(json!({ "downtime-limit": 5000, "max-bandwidth": 0 }));
    let first = guest::wait_ticks(source, guest::ticks(source).len() + TICKS);
    let frequency = Tick::frequency(&guest::ticks(source));
    let start = wall();
    let info = moves::migrate(source, destination, MOVE);
    let stopped = at(&source.qmp.wait_event("STOP", MOVE));
    let resumed = at(&destination.qmp.wait_event("RESUME", MOVE));
    let begin = now();
    while guest::ticks(destination).len() < TICKS && now() - begin < ARRIVED {
        std::thread::sleep(Duration::from_millis(5));
    }
    let took = wall() - start;
    println!("downtime {} ms, {} bytes", info["downtime"], info["ram"]["transferred"]);
    Sight {
        first,
        sent: guest::ticks(source).last().copied().unwrap_or(first),
        arrived: guest::ticks(destination),
        frequency,
        pause: resumed.saturating_sub(stopped),
        took,
    }
}

/// When an event was.
fn at(event: &Value) -> Duration {
    let part = |name: &str| event["timestamp"][name].as_u64().expect("an event has its time");
    Duration::from_secs(part("seconds")) + Duration::from_micros(part("microseconds"))
}

/// The clock of events.
fn wall() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("it is after 1970")
}
