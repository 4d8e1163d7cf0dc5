//! `whimbrel inspect` over streams of `virt`, in a file and recorded on the way: clean to the last byte, described as QEMU describes
//! them, and the ITS's tables are what the guest says it has mapped.

use std::collections::BTreeMap;
use std::path::Path;

use msi::{
    CHURN_EVENT, Control, FIRST_LPI, HOLD_EVENT, MOVING_DEVICE, PASSING_DEVICE, RESET_EVENT, STEADY_DEVICE,
    STEADY_EVENTS,
};
use serde_json::{Value, json};
use whimbrel_e2e::l1::{Arch, inside};
use whimbrel_e2e::operator::{self, Operator};
use whimbrel_e2e::scratch::Scratch;
use whimbrel_e2e::{description, now, wait_for};

use crate::its::machine::{LIMIT, Launch, Machine};

/// What QEMU 10.0 says of the same sections of its own `virt`: what our saved-state types are held to.
const QEMU: &str = include_str!("../../crates/whimbrel-vmm/tests/fixtures/vmdesc/virt-10.0.json");
/// Subsections that depend on what a CPU holds at the time.
const OPTIONAL: &[&str] = &["arm_gicv3_cpu/sre_el1", "cpu/irq-line-state"];
const STEADY: u32 = STEADY_EVENTS as u32;

#[test]
fn streams_verify_and_their_tables_are_what_the_guest_mapped() {
    inside(
        Arch::Arm,
        |_| {},
        || {
            let begin = now();
            let scratch = Scratch::new("inspect");
            let [file, recording] = ["file", "recording"].map(|name| scratch.join(name));
            // The digests of tables are sections that QEMU hasn't.
            let flat = Launch { digest: false, ..Launch::default() };
            inspected(&flat, &file, |machine| machine.save(&file));
            assert_described_as_by_qemu(&file);
            let two_level = Launch { two_level: true, cpus: 1, ..Launch::default() };
            inspected(&two_level, &recording, |machine| record(machine, &two_level, &recording));
            println!("inspected, flat in a file and two-level in a recording, in {:?}", now() - begin);
        },
    );
}

/// Moves the guest through a relay that records.
fn record(machine: &mut Machine, launch: &Launch, recording: &Path) {
    let mut destination = launch.await_guest();
    let recording = recording.to_str().expect("UTF-8");
    let relay = ["relay", "tcp:127.0.0.1:0", &destination.listen(), "--record", recording];
    let mut relay = Operator::start(&relay);
    let address = wait_for("the relay's address", LIMIT, || {
        let said = relay.said();
        let (_, rest) = said.split_once("listening at ")?;
        rest.split_once(" for ").map(|(address, _)| address.to_owned())
    });
    machine.qmp.ok("migrate", json!({ "uri": address }));
    machine.finish_move(&mut destination);
    assert_eq!(relay.exit_code(LIMIT), 0, "{}", relay.said());
}

/// Has a guest saved while LPIs are pending, and holds what is read from `stream` against the guest's own words.
fn inspected(launch: &Launch, stream: &Path, save: impl FnOnce(&mut Machine)) {
    let mut machine = launch.boot();
    machine.wait_control("some remapping", |control| control.churns > 100);
    stop_with_pending(&mut machine, launch.cpus);
    save(&mut machine);
    let control = machine.control();
    assert_eq!((control.two_level, control.faults()), (launch.two_level, vec![]));

    let path = stream.to_str().expect("UTF-8");
    let (code, said) = operator::whimbrel(&["inspect", "--verify", path]);
    assert!(code == 0 && said.starts_with("verified up to"), "exit {code}: {said}");
    let its = its(path);
    assert_eq!((&its["errors"], &its["left-out"]), (&Value::Array(vec![]), &Value::from(0)), "{its}");
    let mapped = mapped(&its);
    assert_mapped(&mapped, &control);
    assert_pending(&its, &mapped);
}

/// Stops the guest while it takes no interrupts, nor remaps, and all steady events are pending.
#[track_caller]
fn stop_with_pending(machine: &mut Machine, cpus: u32) {
    let all_hold = |control: &Control| control.holding[..cpus as usize].iter().all(|held| *held);
    for _ in 0..5 {
        machine.send(STEADY_DEVICE, HOLD_EVENT);
        machine.wait_control("the hold", all_hold);
        for event in 0..STEADY {
            machine.send(STEADY_DEVICE, event);
        }
        machine.qmp.ok("stop", json!({}));
        if all_hold(&machine.control()) {
            return;
        }
        // On a loaded host the hold can be over by now.
        machine.cont();
    }
    panic!("it never stopped in the hold");
}

/// What `whimbrel inspect` says of the ITS.
#[track_caller]
fn its(stream: &str) -> Value {
    let (code, said) = operator::whimbrel(&["inspect", "--json", stream]);
    assert_eq!(code, 0, "{said}");
    let report: Value = serde_json::from_str(&said).expect("JSON");
    let [its] = &report["its"].as_array().expect("a list")[..] else { panic!("{}", report["its"]) };
    its.clone()
}

fn number(value: &Value, name: &str) -> u32 {
    value[name].as_u64().and_then(|n| n.try_into().ok()).unwrap_or_else(|| panic!("{name} of {value}"))
}

/// By device and event: LPI, collection, redistributor.
fn mapped(its: &Value) -> BTreeMap<(u32, u32), [u32; 3]> {
    let mappings = its["mappings"].as_array().expect("a list").iter();
    let mappings = mappings.map(|mapping| {
        let key = (number(mapping, "device"), number(mapping, "event"));
        (key, ["lpi", "collection", "redistributor"].map(|name| number(mapping, name)))
    });
    mappings.collect()
}

/// Every event is there, and no other. Of those that go round the CPUs it is not known where they were.
#[track_caller]
fn assert_mapped(mapped: &BTreeMap<(u32, u32), [u32; 3]>, control: &Control) {
    let cpus = u32::try_from(control.cpus).expect("a few");
    let steady = (0..STEADY).map(|event| (STEADY_DEVICE, event, FIRST_LPI + event, None));
    let special = [HOLD_EVENT, CHURN_EVENT, RESET_EVENT]
        .map(|event| (STEADY_DEVICE, event, FIRST_LPI + event, Some(0)));
    let moving = (0..).zip(control.moving).map(|(event, lpi)| (MOVING_DEVICE, event, lpi, None));
    let passing = (0..).zip(control.passing);
    let passing = passing.map(|(event, lpi)| (PASSING_DEVICE, event, lpi, Some(event % cpus)));
    let mut left = mapped.clone();
    for (device, event, lpi, place) in steady.chain(special).chain(moving).chain(passing) {
        let found = left.remove(&(device, event));
        let [known, collection, redistributor] =
            found.unwrap_or_else(|| panic!("no event {event} of {device:#x}"));
        assert_eq!(known, lpi, "event {event} of device {device:#x}");
        assert_eq!(place.unwrap_or(collection), collection, "event {event} of device {device:#x}");
        // Collections are the CPUs'.
        assert!(collection < cpus && redistributor == collection, "{collection}: {redistributor}");
    }
    assert!(left.is_empty(), "{left:?}");
}

/// KVM notes an LPI with the redistributor that it goes to: for each the one that its collection stands for.
#[track_caller]
fn assert_pending(its: &Value, mapped: &BTreeMap<(u32, u32), [u32; 3]>) {
    let mut found = Vec::new();
    for pending in its["pending"].as_array().expect("a list") {
        let lpis = pending["lpis"].as_array().expect("a list").iter();
        found.extend(lpis.map(|lpi| (lpi.as_u64().expect("an LPI"), number(pending, "redistributor"))));
    }
    found.sort_unstable();
    let steady = mapped.range((STEADY_DEVICE, 0)..(STEADY_DEVICE, STEADY));
    let expected: Vec<_> =
        steady.map(|(_, [lpi, _, redistributor])| (u64::from(*lpi), *redistributor)).collect();
    assert_eq!(found, expected);
}

/// The same sections in the same order, with the same fields of the same types.
#[track_caller]
fn assert_described_as_by_qemu(stream: &Path) {
    let qemu = serde_json::from_str(QEMU).expect("JSON");
    let [ours, theirs] = [description::read(stream), qemu].map(|description: Value| {
        let devices = description["devices"].as_array().expect("devices").iter();
        devices.flat_map(|device| fields(device, &device["name"].to_string())).collect::<Vec<String>>()
    });
    assert!(theirs.len() > 100, "{}", theirs.len());
    assert_eq!(ours.iter().zip(&theirs).find(|(ours, theirs)| ours != theirs), None);
    assert_eq!(ours.len(), theirs.len());
}

/// Every field below, a line each, in order. A CPU has as many registers as it has.
fn fields(state: &Value, path: &str) -> Vec<String> {
    let mut lines = vec![format!("{path} version {}", state["version"])];
    for field in state["fields"].as_array().into_iter().flatten() {
        let name = field["name"].as_str().expect("a name");
        let place = format!("{path}.{name}[{}]", field["index"]);
        if field["struct"].is_object() {
            lines.extend(fields(&field["struct"], &place));
        } else {
            let count = if name.starts_with("cpreg_") { &Value::Null } else { &field["array_len"] };
            lines.push(format!("{place}: {} × {count}, {} bytes", field["type"], field["size"]));
        }
    }
    for subsection in state["subsections"].as_array().into_iter().flatten() {
        let name = subsection["vmsd_name"].as_str().expect("a name");
        if !OPTIONAL.contains(&name) {
            lines.extend(fields(subsection, &format!("{path}/{name}")));
        }
    }
    lines
}
