//! One guest, never restarted, hops from machine to machine between QEMU and whimbrel while it works.

use std::time::Duration;

use whimbrel_e2e::journey::Journey;
use whimbrel_e2e::{Launch, Machine, Need, Peer, rounds};

use super::machine;

/// The machines of a round, and the level each sends at: what the next one understands.
const ROUND: &[(Peer, &str)] = &[
    (Peer::Qemu72, "7.2"),
    (Peer::Whimbrel, "10.0"),
    (Peer::Qemu10, "10.0"),
    (Peer::Whimbrel, "10.0"),
    (Peer::Whimbrel, "7.2"),
    (Peer::Qemu72, "7.2"),
];

fn on(machine_kind: Machine, peer: Peer, level: &'static str, cpus: u32) -> Launch {
    Launch { level, machine: machine_kind, ..machine(peer, Peer::Qemu72, cpus) }
}

/// Takes one guest round and round.
fn assert_hops_whole(kind: Machine, cpus: u32, rounds: u32) {
    if !whimbrel_e2e::needs(&[Need::Kvm, Need::Beacon, Need::Qemu72, Need::Qemu10]) {
        return;
    }
    let (first, level) = ROUND[0];
    let mut journey = Journey::start(on(kind, first, level, cpus).start_at_work());
    let mut longest = Duration::ZERO;
    for round in 1..=rounds {
        for pair in ROUND.windows(2) {
            let (to, level) = pair[1];
            let gap = journey.hop(&on(kind, to, level, cpus));
            println!("round {round}: {} → {}: silent for {:.1} ms", pair[0].0, to, gap.as_secs_f64() * 1e3);
            longest = longest.max(gap);
        }
    }
    let (report, beats) = journey.finish();
    println!(
        "{kind:?}: {rounds} rounds, {} hops, {cpus} vCPUs: {} beats, none lost; {} pages verified, 0 mismatches; longest silence {:.1} ms",
        beats.hand_overs.len(),
        beats.beats,
        report.pages_verified,
        longest.as_secs_f64() * 1e3
    );
}

#[test]
fn soak_hops_one_vcpu() {
    assert_hops_whole(Machine::Plain, 1, rounds(1));
}

#[test]
fn soak_hops_two_vcpus() {
    assert_hops_whole(Machine::Plain, 2, rounds(1));
}

#[test]
fn soak_hops_default_machine_one_vcpu() {
    assert_hops_whole(Machine::Default, 1, rounds(1));
}

#[test]
fn soak_hops_default_machine_two_vcpus() {
    assert_hops_whole(Machine::Default, 2, rounds(1));
}
