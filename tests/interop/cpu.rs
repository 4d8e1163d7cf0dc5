//! The CPU a guest sees: the same in whimbrel and in the QEMU of the same level, for each model; and the same before, between
//! and after hops.

use beacon::{CommandLine, CpuDump};
use whimbrel_e2e::{Launch, Need, Peer, Vm, moves, wait_for};

use super::{LIMIT, needs};

/// The machine with the guest that tells what CPU it sees. QEMU's `host` sets an MSR that not every KVM takes, and then does not start.
fn machine(peer: Peer, qemu: Peer, model: &str, cpus: u32) -> Launch {
    Launch {
        memory_mib: 64,
        kernel: beacon::CPU_DUMP,
        beacon: CommandLine { cpus, ..CommandLine::default() },
        cpu: model.to_owned(),
        level: qemu.level(),
        ..Launch::new(peer)
    }
}

/// The guest's latest dump, once it has made `count`.
fn dump(vm: &mut Vm, count: usize) -> CpuDump {
    wait_for("the guest's account of its CPU", LIMIT, || {
        assert!(vm.process.ended().is_none(), "the machine ended: {}", vm.process.log());
        CpuDump::parse(&vm.heartbeat.bytes()).into_iter().nth(count - 1)
    })
}

/// QEMU's guest has booted by its firmware, which takes seconds: where `hops` are asked for, the same guest makes them.
fn assert_same_cpu(qemu: Peer, model: &str, cpus: u32, hops: &[Peer]) {
    if !needs(qemu) {
        return;
    }
    let mut source = machine(qemu, qemu, model, cpus).start();
    let theirs = dump(&mut source, 1);
    let ours = dump(&mut machine(Peer::Whimbrel, qemu, model, cpus).start(), 1);
    assert!(theirs.leaves[&(0, 0)][0] >= 0xd && theirs.msrs[&0x1a0] == Some(1), "no dump of a CPU: {theirs}");
    let differences = ours.differences(&theirs);
    assert!(differences.is_empty(), "{model}, {qemu:?}: ours, theirs:\n{}", differences.join("\n"));
    for peer in hops {
        let mut destination = machine(*peer, qemu, model, cpus).incoming().start();
        moves::migrate(&mut source, &mut destination, LIMIT);
        source.kill();
        destination.console.send(b"?");
        let differences = theirs.differences(&dump(&mut destination, 1));
        assert!(differences.is_empty(), "{model}, in {peer:?}:\n{}", differences.join("\n"));
        source = destination;
    }
}

#[test]
fn qemu64_is_the_cpu_that_qemu_7_2_gives_and_hops_change_nothing() {
    assert_same_cpu(Peer::Qemu72, "qemu64", 1, &[Peer::Whimbrel, Peer::Qemu72]);
}

#[test]
fn qemu64_is_the_cpu_that_qemu_10_0_gives() {
    assert_same_cpu(Peer::Qemu10, "qemu64", 2, &[]);
}

#[test]
fn host_is_the_cpu_that_qemu_7_2_gives() {
    assert_same_cpu(Peer::Qemu72, "host,-arch-capabilities", 2, &[]);
}

#[test]
fn host_is_the_cpu_that_qemu_10_0_gives_and_hops_change_nothing() {
    assert_same_cpu(Peer::Qemu10, "host,-arch-capabilities", 1, &[Peer::Whimbrel, Peer::Qemu10]);
}

#[test]
fn features_added_and_taken_away_are_as_in_qemu() {
    assert_same_cpu(Peer::Qemu10, "qemu64,+rdrand,+xsaveerptr,-syscall,-kvm-pv-eoi", 1, &[]);
}

/// The teeth of the tests above.
#[test]
fn one_feature_more_is_seen() {
    if !whimbrel_e2e::needs(&[Need::Kvm, Need::Beacon]) {
        return;
    }
    let cpu = |model| dump(&mut machine(Peer::Whimbrel, Peer::Qemu10, model, 1).start(), 1);
    let differences = cpu("qemu64").differences(&cpu("qemu64,-syscall"));
    assert_eq!(differences.len(), 1, "{differences:?}");
    assert!(differences[0].starts_with("CPUID 0x80000001.0"), "{differences:?}");
}

/// `enforce`, as in QEMU: refused before a machine is there.
#[test]
fn a_model_that_the_host_cannot_run_is_refused_with_what_is_missing() {
    if !whimbrel_e2e::needs(&[Need::Kvm]) {
        return;
    }
    let program = Peer::Whimbrel.program().expect("it was built");
    // No host has AMD's 3DNow! and Intel's AVX-512 of the first kind.
    let output = std::process::Command::new(program)
        .args(["run", "--cpu", "qemu64,+3dnow,+avx512er,enforce", "--incoming", "defer"])
        .output()
        .expect("whimbrel starts");
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && told.contains("avx512er") && told.contains("3dnow"), "{told}");
}
