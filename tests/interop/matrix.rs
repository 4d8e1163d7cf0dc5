//! Every combination of machine, RAM, vCPUs and QEMU version: one guest goes from QEMU to whimbrel and back, at work.
//! `cargo xtask matrix` runs all and prints the table that stands in docs/protocol.md; CI runs some lines.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use beacon::CommandLine;
use beacon::command_line::Placement;
use whimbrel_e2e::journey::Journey;
use whimbrel_e2e::{Launch, Machine, Need, Peer};

use super::machine;

/// Guest RAM in MiB: below the hole under 4 GiB, and beyond it.
const MEMORY: [u64; 2] = [512, 4096];

/// One line of the table.
#[derive(Clone, Copy)]
struct Row {
    machine: Machine,
    memory_mib: u64,
    cpus: u32,
    qemu: Peer,
}

impl Row {
    fn all() -> Vec<Self> {
        let mut rows = Vec::new();
        for machine in [Machine::Plain, Machine::Default, Machine::WithClock] {
            for memory_mib in MEMORY {
                for cpus in [1, 2] {
                    rows.extend(Peer::QEMUS.map(|qemu| Self { machine, memory_mib, cpus, qemu }));
                }
            }
        }
        rows
    }

    /// Whether CI has time for it: the rest is a matter of what these and the other tests show one by one.
    fn is_in_ci(&self) -> bool {
        matches!(
            (self.machine, self.memory_mib, self.cpus, self.qemu),
            (Machine::Default, 512, 2, _) | (Machine::Default, 4096, 1, _)
        )
    }

    fn launch(&self, peer: Peer) -> Launch {
        let usual = machine(peer, self.qemu, self.cpus);
        // The working set at the end of RAM: above 4 GiB where there is RAM.
        let beacon = CommandLine { set_mib: 64, placement: Placement::High, ..usual.beacon.clone() };
        Launch { machine: self.machine, memory_mib: self.memory_mib, beacon, ..usual }
    }

    /// The silence on the way from QEMU to whimbrel, and back. Firmware leaves notes below the hole, in memory that the
    /// guest takes for untouched: with more RAM than lies there the guest begins in whimbrel, without firmware.
    fn run(&self) -> [Duration; 2] {
        let begins_in_qemu = self.memory_mib <= 3072;
        let [first, second] =
            if begins_in_qemu { [self.qemu, Peer::Whimbrel] } else { [Peer::Whimbrel, self.qemu] };
        let mut journey = Journey::start(self.launch(first).boot());
        let mut gaps = [second, first].map(|to| journey.hop(&self.launch(to)));
        journey.finish();
        if !begins_in_qemu {
            gaps.reverse();
        }
        gaps
    }

    fn print(&self, outcome: &Result<[Duration; 2], String>) {
        let machine = match self.machine {
            Machine::Plain => "plain",
            Machine::Default => "default",
            Machine::WithClock => "default, rtc=on",
            Machine::Virt => "virt",
        };
        let cells = match outcome {
            Ok(gaps) => gaps.map(|gap| format!("{:.1} ms", gap.as_secs_f64() * 1e3)).join(" | "),
            Err(reason) => format!("failed | {reason}"),
        };
        println!("| {machine} | {} MiB | {} | {} | {cells} |", self.memory_mib, self.cpus, self.qemu);
    }
}

#[test]
fn matrix() {
    if !whimbrel_e2e::needs(&[Need::Kvm, Need::Beacon, Need::Qemu72, Need::Qemu10]) {
        return;
    }
    let all = std::env::var_os("WHIMBREL_MATRIX").is_some_and(|value| value == "all");
    println!("\n| machine | RAM | vCPUs | QEMU | silence, QEMU → whimbrel | silence, whimbrel → QEMU |");
    println!("|---|---|---|---|---|---|");
    let mut failed = 0;
    for row in Row::all().into_iter().filter(|row| all || row.is_in_ci()) {
        // One that fails must not hide the others.
        let outcome = catch_unwind(AssertUnwindSafe(|| row.run())).map_err(|panic| {
            let text = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref().copied());
            text.and_then(|text| text.lines().next()).unwrap_or("see above").to_owned()
        });
        row.print(&outcome);
        failed += u32::from(outcome.is_err());
    }
    assert_eq!(failed, 0, "lines of the table failed");
}
