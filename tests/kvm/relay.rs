//! `whimbrel relay` and `whimbrel replay`, as an operator uses them: a move is recorded on its way, and the recording makes the
//! same guest arrive once more.

use std::time::Duration;

use serde_json::{Value, json};
use whimbrel_e2e::operator::{Operator, whimbrel};
use whimbrel_e2e::scratch::Scratch;
use whimbrel_e2e::{Vm, moves, needs, wait_for};

use super::{LIMIT, NEEDS, guest, machine};

/// Starts a relay towards `uri`; it, and where it listens.
fn relay(uri: &str, options: &[&str]) -> (Operator, String) {
    let relay = Operator::start(&[&["relay", "tcp:127.0.0.1:0", uri], options].concat());
    let address = wait_for("the relay's address", LIMIT, || {
        let said = relay.said();
        let (_, rest) = said.split_once("listening at ")?;
        rest.split_once(" for ").map(|(address, _)| address.to_owned())
    });
    (relay, address)
}

/// A move through a relay; what the source's migration came to.
fn migrate(source: &mut Vm, destination: &mut Vm, options: &[&str]) -> (Operator, String) {
    moves::with_return_path(source, destination);
    source.set(json!({"max-bandwidth": 0}));
    let (relay, address) = relay(&moves::listen(destination), options);
    source.qmp.ok("migrate", json!({ "uri": address }));
    let status = moves::wait_end(source, LIMIT)["status"].as_str().unwrap_or_default().to_owned();
    (relay, status)
}

#[test]
fn a_recorded_move_is_replayed_and_a_damaged_recording_is_refused_where_it_is_damaged() {
    if !needs(NEEDS) {
        return;
    }
    let folder = Scratch::new("relay");
    let file = |name: &str| folder.join(name).display().to_string();
    let launch = machine(guest());
    let mut source = launch.start();
    source.wait_ready();

    let (mut cut, status) = migrate(
        &mut source,
        &mut launch.incoming().start(),
        &["--record", &file("cut"), "--cut", "after:section=cpu:0"],
    );
    assert_eq!((cut.exit_code(LIMIT), status.as_str()), (0, "failed"), "{}", cut.said());
    assert!(
        cut.said().contains("cut at after:section=cpu:0") && cut.said().contains("full=cpu:0"),
        "{}",
        cut.said()
    );
    source.let_run(Duration::from_millis(200));

    let mut destination = launch.incoming().start();
    let (mut whole, status) = migrate(&mut source, &mut destination, &["--record", &file("whole")]);
    assert_eq!((whole.exit_code(LIMIT), status.as_str()), (0, "completed"), "{}", whole.said());
    source.kill();
    destination.let_run(Duration::from_millis(200));
    let arrived = destination.assert_clean();
    destination.kill();

    let mut copy = launch.incoming().start();
    let (code, said) = whimbrel(&["replay", &file("whole"), &moves::listen(&mut copy)]);
    assert_eq!(code, 0, "{said}");
    copy.let_run(Duration::from_millis(200));
    assert_eq!(copy.assert_clean().control.vcpus.len(), arrived.control.vcpus.len());
    copy.kill();

    let mut never = launch.incoming().start();
    let (code, said) = whimbrel(&["replay", &file("cut"), &moves::listen(&mut never)]);
    assert_eq!(code, 1, "{said}");
    assert!(said.contains("not taken") && said.contains("without its EOF byte"), "{said}");
    assert_eq!(never.process.wait(LIMIT).code(), Some(1));

    let mut bytes = std::fs::read(file("whole")).expect("a recording");
    bytes[24] = 9;
    std::fs::write(file("damaged"), bytes).expect("the scratch directory is writable");
    let (code, said) = whimbrel(&["replay", &file("damaged"), "tcp:127.0.0.1:1"]);
    assert_eq!(code, 1, "{said}");
    assert!(said.contains("file offset 0x18"), "{said}");
}

/// `whimbrel inspect --json` of a recording that must be without fault.
#[track_caller]
fn inspected(words: &[&str]) -> Value {
    let (code, said) = whimbrel(&[&["inspect", "--json"], words].concat());
    assert_eq!(code, 0, "{words:?}: {said}");
    serde_json::from_str(&said).expect("JSON")
}

#[test]
fn a_recorded_move_is_inspected_with_its_times_both_ways() {
    if !needs(NEEDS) {
        return;
    }
    let folder = Scratch::new("relay");
    let file = |name: &str| folder.join(name).display().to_string();
    let launch = machine(guest());
    let (mut source, mut destination) = (launch.start(), launch.incoming().start());
    source.wait_ready();
    // So slow that the times must differ, and faster than the guest writes.
    let (mut relay, status) =
        migrate(&mut source, &mut destination, &["--rate", "500M", "--record", &file("move")]);
    assert_eq!((relay.exit_code(LIMIT), status.as_str()), (0, "completed"), "{}", relay.said());
    source.kill();
    destination.kill();

    let recording = file("move");
    let (code, said) = whimbrel(&["inspect", "--verify", &recording]);
    assert!(code == 0 && said.starts_with("verified"), "{said}");
    let (code, said) = whimbrel(&["inspect", &recording]);
    assert!(code == 0 && said.starts_with("      offset        bytes    seconds  element\n"), "{said}");
    let sent = inspected(&[&recording]);
    let time = |element: &Value| element["time"].as_f64().unwrap_or_else(|| panic!("no time: {element}"));
    let elements = sent["elements"].as_array().expect("elements");
    let times: Vec<f64> = elements.iter().map(time).collect();
    assert!(times.is_sorted() && times.last() > Some(&(times[0] + 0.01)), "{times:?}");
    let answers = inspected(&["--back", "--connection", "0", &recording]);
    let answers = answers["elements"].as_array().expect("messages");
    let shut = answers.last().expect("a message");
    assert_eq!((&shut["message"], &shut["value"]), (&json!("SHUT"), &json!(0)));
    // An answer passes after the question.
    let ping = elements.iter().find(|element| element["command"] == "PING").expect("a PING");
    let pong = answers.iter().find(|answer| answer["message"] == "PONG").expect("a PONG");
    assert_eq!(ping["value"], pong["value"]);
    assert!(time(pong) >= time(ping) && time(shut) >= times[times.len() - 2], "{answers:?}");

    // The RAM in it, too; and what there is not is refused.
    let (code, said) = whimbrel(&["inspect", "--extract", "microvm.ram", "-o", &file("ram"), &recording]);
    assert_eq!(code, 0, "{said}");
    assert_eq!(std::fs::metadata(file("ram")).expect("RAM").len(), launch.memory_mib << 20);
    let (code, said) = whimbrel(&["inspect", "--connection", "1", &recording]);
    assert!(code == 1 && said.contains("no connection 1, only 1 of them"), "{code}: {said}");
    let (code, said) = whimbrel(&["inspect", "--back", &file("ram")]);
    assert!(code == 1 && said.contains("is no recording"), "{code}: {said}");
    let (code, said) = whimbrel(&["inspect", "--diff", &recording, &recording]);
    assert!(code == 2 && said.contains("is a recording"), "{code}: {said}");
}

#[test]
fn a_place_that_is_never_reached_is_an_error() {
    if !needs(NEEDS) {
        return;
    }
    let launch = machine(guest());
    let (mut source, mut destination) = (launch.start(), launch.incoming().start());
    source.wait_ready();
    let (mut relay, status) = migrate(&mut source, &mut destination, &["--hold", "before:section=nothing"]);
    assert_eq!((relay.exit_code(LIMIT), status.as_str()), (1, "completed"), "{}", relay.said());
    assert!(relay.said().contains("never reached: before:section=nothing"), "{}", relay.said());
    let (code, said) = whimbrel(&["relay", "tcp:127.0.0.1:0", "tcp:127.0.0.1:1", "--cut", "eof"]);
    assert!(code == 1 && said.contains("before:…, after:… or at:…"), "{code}: {said}");
    let (code, said) = whimbrel(&["relay", "tcp:127.0.0.1:0", "exec:cat"]);
    assert!(code == 2 && said.contains("only sockets"), "{code}: {said}");
}
