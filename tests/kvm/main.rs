//! Moves between whimbrel processes on this machine's KVM. One file a subject; each test's name states the promise.

mod blockers;
mod clocks;
mod dirty_ring;
mod failures;
mod moves;
mod operators;
mod relay;
mod run_states;
mod soak;
mod teeth;

use beacon::CommandLine;
use whimbrel_e2e::moves::LIMIT;
use whimbrel_e2e::{Launch, Need, Peer};

/// What every test here cannot do without.
const NEEDS: &[Need] = &[Need::Kvm, Need::Beacon];

/// The usual guest: everything the beacon can hold and check, and a working set that takes several passes.
fn guest() -> CommandLine {
    CommandLine { set_mib: 48, rate_mib_per_s: 100, pend: true, ..CommandLine::default() }
}

/// The usual machine. No firmware: the kernel is entered directly, and the block `pc.bios` has its usual size.
fn machine(beacon: CommandLine) -> Launch {
    Launch { beacon, memory_mib: 96, firmware: None, ..Launch::new(Peer::Whimbrel) }
}
