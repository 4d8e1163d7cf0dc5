//! The vmdesc that whimbrel writes equals real QEMU's for the same machine and version: names, order, types, sizes,
//! `array_len` and `index`.

use std::path::Path;

use serde_json::Value;
use whimbrel_e2e::description::read;
use whimbrel_e2e::scratch::Scratch;
use whimbrel_e2e::{Launch, Machine, Peer, Vm, moves};

use super::{LIMIT, machine, needs};

/// The description at the end of a stream that a machine saves before its guest ever runs.
fn description(peer: Peer, qemu: Peer, cpus: u32, stream: &Path) -> Value {
    let launch = Launch { stopped: true, ..machine(peer, qemu, cpus) };
    saved(&mut launch.start(), stream);
    read(stream)
}

/// Saves a stopped machine into a file.
fn saved(vm: &mut Vm, stream: &Path) {
    let uri = match vm.launch.peer {
        Peer::Qemu72 => format!("exec:cat > {}", stream.display()),
        _ => format!("file:{}", stream.display()),
    };
    moves::save(vm, &uri, LIMIT);
}

fn assert_same_description(qemu: Peer, cpus: u32) {
    let folder = Scratch::new("vmdesc");
    let theirs = description(qemu, qemu, cpus, &folder.join("theirs"));
    let ours = description(Peer::Whimbrel, qemu, cpus, &folder.join("ours"));
    assert_same(&ours, &theirs);
}

fn assert_same(ours: &Value, theirs: &Value) {
    let names = |description: &Value| -> Vec<String> {
        let devices = description["devices"].as_array().expect("devices");
        devices.iter().map(|device| format!("{} {}", device["name"], device["instance_id"])).collect()
    };
    assert_eq!(names(ours), names(theirs));
    let devices = |description: &Value| description["devices"].as_array().expect("devices").clone();
    for (ours, theirs) in devices(ours).iter().zip(&devices(theirs)) {
        assert_eq!(ours.to_string(), theirs.to_string(), "{}", theirs["name"]);
    }
    // Key order included.
    assert_eq!(ours.to_string(), theirs.to_string());
}

#[test]
fn the_description_equals_that_of_qemu_7_2() {
    if needs(Peer::Qemu72) {
        assert_same_description(Peer::Qemu72, 1);
        assert_same_description(Peer::Qemu72, 2);
    }
}

#[test]
fn the_description_equals_that_of_qemu_10_0() {
    if needs(Peer::Qemu10) {
        assert_same_description(Peer::Qemu10, 1);
        assert_same_description(Peer::Qemu10, 2);
    }
}

/// What came from a QEMU's default machine goes on as it came: the same sections in the same words, and the ROM blocks.
fn assert_sends_on_what_came(qemu: Peer, cpus: u32) {
    let folder = Scratch::new("vmdesc");
    let (theirs, ours) = (folder.join("theirs"), folder.join("ours"));
    let launch = |peer| Launch { stopped: true, machine: Machine::WithClock, ..machine(peer, qemu, cpus) };
    saved(&mut launch(qemu).start(), &theirs);
    let mut vm = launch(Peer::Whimbrel).incoming().start();
    moves::load(&mut vm, &format!("file:{}", theirs.display()), LIMIT);
    saved(&mut vm, &ours);
    assert_same(&read(&ours), &read(&theirs));
    // The identification that QEMU writes into each of its tables.
    let tables = |stream: &Path| {
        let bytes = std::fs::read(stream).expect("the stream");
        bytes.windows(12).filter(|window| window == b"BOCHS BXPC  ").count()
    };
    assert!(tables(&theirs) >= 4, "{}", tables(&theirs));
    assert_eq!(tables(&ours), tables(&theirs));
}

#[test]
fn what_came_from_the_default_machine_of_qemu_7_2_goes_on_as_it_came() {
    if needs(Peer::Qemu72) {
        assert_sends_on_what_came(Peer::Qemu72, 1);
    }
}

#[test]
fn what_came_from_the_default_machine_of_qemu_10_0_goes_on_as_it_came() {
    if needs(Peer::Qemu10) {
        assert_sends_on_what_came(Peer::Qemu10, 2);
    }
}
