//! A guest saved by one loads in the other: status completed, RAM equal, and it works on.

use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::json;
use whimbrel_e2e::scratch::Scratch;
use whimbrel_e2e::{Launch, Machine, Peer, Vm, moves};

use super::{LIMIT, machine, needs};

/// Bytes of kvmclock's structure in guest RAM; the beacon's lies at a multiple of it.
const PVCLOCK: usize = 32;

/// Saves a working, then stopped guest on `from`, loads it on `to`, compares all RAM, and lets it work on.
fn assert_saved_guest_works_on(kind: Machine, from: Peer, to: Peer, cpus: u32) {
    let qemu = if from == Peer::Whimbrel { to } else { from };
    let launch = Launch { machine: kind, ..machine(from, qemu, cpus) };
    assert_saved_works_on(launch.start_at_work(), to);
}

fn assert_saved_works_on(mut source: Vm, to: Peer) {
    let launch = source.launch.clone();
    let folder = Scratch::new("saved");
    let stream = folder.join("stream");
    source.let_run(Duration::from_millis(300));
    source.qmp.ok("stop", json!({}));
    moves::save(&mut source, &writing(launch.peer, &stream), LIMIT);
    let before = ram(&mut source, &folder.join("before"));
    source.kill();

    let mut destination = launch.on(to).incoming().start();
    moves::load(&mut destination, &reading(to, &stream), LIMIT);
    assert_eq!(destination.migration_status(), "completed");
    assert_eq!(destination.run_state(), "paused");
    let after = ram(&mut destination, &folder.join("after"));
    assert_same_pages(&before, &after);

    destination.qmp.ok("cont", json!({}));
    destination.let_run(Duration::from_millis(700));
    destination.assert_clean();
}

/// QEMU 7.2 knows no `file:`; its way to a file is a command.
fn writing(peer: Peer, stream: &Path) -> String {
    match peer {
        Peer::Qemu72 => format!("exec:cat > {}", stream.display()),
        _ => format!("file:{}", stream.display()),
    }
}

fn reading(peer: Peer, stream: &Path) -> String {
    match peer {
        Peer::Qemu72 => format!("exec:cat {}", stream.display()),
        _ => format!("file:{}", stream.display()),
    }
}

/// All RAM of a stopped machine, in a file.
fn ram(vm: &mut Vm, path: &Path) -> PathBuf {
    let size = vm.launch.memory_mib << 20;
    vm.qmp.ok("pmemsave", json!({"val": 0, "size": size, "filename": path}));
    path.to_owned()
}

/// All RAM is equal, but for the one structure that KVM itself writes anew when its clock is restored.
fn assert_same_pages(before: &Path, after: &Path) {
    let open = |path| BufReader::with_capacity(1 << 20, std::fs::File::open(path).expect("a dump"));
    let (mut before, mut after) = (open(before), open(after));
    let (mut one, mut other) = ([0; PVCLOCK], [0; PVCLOCK]);
    let (mut at, mut different) = (0_u64, Vec::new());
    while before.read_exact(&mut one).is_ok() {
        after.read_exact(&mut other).expect("dumps of one length");
        // What firmware or a bus reads there is no RAM.
        let is_ram = !(0xa_0000..0x10_0000).contains(&at);
        if is_ram && one != other {
            different.push(at);
        }
        at += PVCLOCK as u64;
    }
    assert!(at > 4 << 20, "the dump is empty");
    assert!(different.len() <= 1, "RAM differs at {:#x?}", &different[..different.len().min(16)]);
}

macro_rules! saved {
    ($($name:ident: $machine:ident, $from:ident, $to:ident, $cpus:literal;)*) => {$(
        #[test]
        fn $name() {
            let qemu = if Peer::$from == Peer::Whimbrel { Peer::$to } else { Peer::$from };
            if needs(qemu) {
                assert_saved_guest_works_on(Machine::$machine, Peer::$from, Peer::$to, $cpus);
            }
        }
    )*};
}

saved! {
    a_guest_saved_by_whimbrel_loads_in_qemu_7_2: Plain, Whimbrel, Qemu72, 1;
    a_guest_saved_by_whimbrel_loads_in_qemu_10_0: Plain, Whimbrel, Qemu10, 1;
    a_guest_saved_by_qemu_7_2_loads_in_whimbrel: Plain, Qemu72, Whimbrel, 1;
    a_guest_saved_by_qemu_10_0_loads_in_whimbrel: Plain, Qemu10, Whimbrel, 1;
    a_guest_with_two_vcpus_saved_by_whimbrel_loads_in_qemu_7_2: Plain, Whimbrel, Qemu72, 2;
    a_guest_with_two_vcpus_saved_by_qemu_10_0_loads_in_whimbrel: Plain, Qemu10, Whimbrel, 2;
    the_default_machine_saved_by_whimbrel_loads_in_qemu_7_2: Default, Whimbrel, Qemu72, 2;
    the_default_machine_saved_by_whimbrel_loads_in_qemu_10_0: Default, Whimbrel, Qemu10, 1;
    the_default_machine_saved_by_qemu_7_2_loads_in_whimbrel: Default, Qemu72, Whimbrel, 1;
    the_default_machine_saved_by_qemu_10_0_loads_in_whimbrel: Default, Qemu10, Whimbrel, 2;
    a_machine_with_a_clock_saved_by_whimbrel_loads_in_qemu_7_2: WithClock, Whimbrel, Qemu72, 1;
    a_machine_with_a_clock_saved_by_qemu_10_0_loads_in_whimbrel: WithClock, Qemu10, Whimbrel, 1;
}

/// QEMU's emulator has no kvmclock, tells no TSC frequency, and has the battery-backed clock on if nothing is said.
#[test]
fn a_guest_of_qemus_emulator_loads_in_whimbrel() {
    for (qemu, kind) in [(Peer::Qemu72, Machine::Plain), (Peer::Qemu10, Machine::WithClock)] {
        if needs(qemu) {
            let launch = Launch { machine: kind, emulated: true, ..machine(qemu, qemu, 1) };
            assert_saved_works_on(launch.boot(), Peer::Whimbrel);
        }
    }
}
