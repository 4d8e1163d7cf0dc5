//! Moves to and from real QEMU, 7.2 and 10.0. One file a subject; each test's name states the promise.

mod cuts;
mod harness;
mod hops;
mod inspect;
mod matrix;
mod operators;
mod options;
mod qmp;
mod saved;
mod vmdesc;

use beacon::CommandLine;
use beacon::command_line::Avx;
use whimbrel_e2e::moves::LIMIT;
use whimbrel_e2e::{Launch, Need, Peer};

/// What a test against `qemu` cannot do without.
fn needs(qemu: Peer) -> bool {
    let needed = match qemu {
        Peer::Qemu72 => Need::Qemu72,
        _ => Need::Qemu10,
    };
    whimbrel_e2e::needs(&[Need::Kvm, Need::Beacon, needed])
}

/// The same machine for whimbrel and `qemu`, at `qemu`'s level and with one firmware.
fn machine(peer: Peer, qemu: Peer, cpus: u32) -> Launch {
    // KVM may offer AVX whatever the CPU model says, and QEMU's `qemu64` then leaves these registers behind.
    let beacon =
        CommandLine { cpus, set_mib: 24, rate_mib_per_s: 50, avx: Avx::None, ..CommandLine::default() };
    Launch { beacon, memory_mib: 96, level: qemu.level(), ..Launch::new(peer) }
}
