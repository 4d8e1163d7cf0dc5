//! What a monitor answers, and in which order.

use serde_json::json;
use whimbrel::engine::{Exit, Incoming};

use crate::machine::{PATIENCE, RAM, fresh_path};
use crate::misuse::Asked;
use crate::{Monitored, misuse, none};

#[test]
fn the_greeting_and_the_answers_have_qemus_form() {
    let vm = Monitored::start(None);
    let mut raw = vm.raw();
    let greeting = raw.message();
    assert_eq!(greeting["QMP"]["version"]["qemu"], json!({"micro": 0, "minor": 0, "major": 10}));
    assert!(greeting["QMP"]["version"]["package"].as_str().unwrap().starts_with("whimbrel "));
    assert_eq!(greeting["QMP"]["capabilities"], json!(["oob"]));
    raw.send(r#"{"execute":"qmp_capabilities"}{"execute":"query-status","id":{"a":[1]}}"#);
    assert_eq!(raw.line(), r#"{"return": {}}"#);
    assert_eq!(raw.line(), r#"{"return": {"status": "running", "running": true}, "id": {"a": [1]}}"#);
}

#[test]
fn every_misuse_gets_qemus_class_and_text() {
    let vm = Monitored::start(None);
    let mut raw = vm.raw();
    raw.message();
    for row in misuse::conversation().into_iter().chain(misuse::not_built()) {
        row.hold(&mut raw, Asked::Whimbrel);
    }
}

#[test]
fn every_conflict_of_capabilities_gets_qemus_text() {
    misuse::converse_about_capabilities(&mut Monitored::start(None).ready(), Asked::Whimbrel);
    for rows in misuse::together() {
        let vm = Monitored::start(None);
        let mut raw = vm.ready();
        rows.iter().for_each(|row| row.hold(&mut raw, Asked::Whimbrel));
    }
}

#[test]
fn every_parameter_is_held_to_its_range_and_type() {
    misuse::converse_about_parameters(&mut Monitored::start(None).ready(), Asked::Whimbrel);
}

#[test]
fn what_comes_at_a_wrong_time_gets_qemus_text() {
    misuse::converse_while_moving(&mut Monitored::start(None).ready());
    misuse::converse_while_awaiting(&mut Monitored::start(Some(Incoming::Defer)).ready(), Asked::Whimbrel);
}

#[test]
fn an_event_comes_before_the_answer_of_the_command_that_caused_it() {
    let vm = Monitored::start(None);
    let mut raw = vm.ready();
    // Often, since it is a race that must not be one.
    for _ in 0..200 {
        raw.send("{\"execute\":\"stop\"}\n");
        assert_eq!(raw.message()["event"], "STOP");
        assert_eq!(raw.message(), json!({"return": {}}));
        raw.send("{\"execute\":\"cont\"}\n");
        assert_eq!(raw.message()["event"], "RESUME");
        assert_eq!(raw.message(), json!({"return": {}}));
    }
    raw.send("{\"execute\":\"system_reset\"}\n");
    let reset = raw.message();
    assert_eq!(reset["event"], "RESET");
    assert_eq!(reset["data"], json!({"guest": false, "reason": "host-qmp-system-reset"}));
    assert_eq!(raw.message(), json!({"return": {}}));
}

#[test]
fn events_reach_every_client_that_has_negotiated_and_no_other() {
    let vm = Monitored::start(None);
    let (mut one, mut two, mut fresh) = (vm.ready(), vm.client(), vm.raw());
    fresh.message();
    assert_eq!(one.ask(r#"{"execute":"stop"}"#), json!({"return": {}}));
    assert_eq!(two.next_event(PATIENCE).unwrap().unwrap().name, "STOP");
    fresh.send(r#"{"execute":"qmp_capabilities"}"#);
    assert_eq!(fresh.message(), json!({"return": {}}), "and not the event of before");
}

#[test]
fn quit_tells_answers_and_closes() {
    let mut vm = Monitored::start(None);
    let mut raw = vm.ready();
    raw.send("{\"execute\":\"quit\",\"id\":7}\n");
    assert_eq!(vm.running.wait(), Exit::Ended);
    vm.server.take();
    let shutdown = raw.message();
    assert_eq!(shutdown["event"], "SHUTDOWN");
    assert_eq!(shutdown["data"], json!({"guest": false, "reason": "host-qmp-quit"}));
    assert_eq!(raw.message(), json!({"return": {}, "id": 7}));
    assert_eq!(raw.line(), "", "closed");
    assert!(!vm.path.exists());
}

#[test]
fn parameters_and_capabilities_are_shown_as_they_were_set() {
    let vm = Monitored::start(None);
    let mut client = vm.client();
    let before = client.execute("query-migrate-parameters", none()).unwrap();
    client.execute("migrate-set-parameters", json!({"downtime-limit": 17, "max-bandwidth": -1})).unwrap();
    let mut expected = before;
    expected["downtime-limit"] = 17.into();
    expected["max-bandwidth"] = u64::MAX.into();
    assert_eq!(client.execute("query-migrate-parameters", none()).unwrap(), expected);

    let on = json!({"capabilities": [{"capability": "events", "state": true}, {"capability": "return-path", "state": true}]});
    client.execute("migrate-set-capabilities", on).unwrap();
    let shown = client.execute("query-migrate-capabilities", none()).unwrap();
    let on: Vec<_> = shown.as_array().unwrap().iter().filter(|item| item["state"] == true).collect();
    assert_eq!(on.len(), 2);
    assert_eq!(shown[0]["capability"], "xbzrle", "in the order of QEMU's enum");

    let wrong = json!({"capabilities": [{"capability": "events", "state": false}, {"capability": "multifd", "state": true}]});
    let error = client.execute("migrate-set-capabilities", wrong).unwrap_err();
    assert_eq!(error.refusal(), Some("Capability 'multifd' is not built into this whimbrel yet"));
    assert_eq!(client.execute("query-migrate-capabilities", none()).unwrap(), shown, "all or none");
}

#[test]
fn query_commands_lists_what_can_be_executed() {
    let vm = Monitored::start(None);
    let mut client = vm.client();
    let commands = client.execute("query-commands", none()).unwrap();
    let names: Vec<_> =
        commands.as_array().unwrap().iter().map(|command| command["name"].as_str().unwrap()).collect();
    for name in ["migrate", "migrate_cancel", "qmp_capabilities", "query-migrate", "query-version", "quit"] {
        assert!(names.contains(&name), "{name}");
    }
    for name in names.iter().filter(|name| name.starts_with("query-")) {
        client.execute(name, none()).unwrap_or_else(|error| panic!("{name}: {error}"));
    }
    assert!(!names.contains(&"migrate-start-postcopy"), "what is not built is not there");
}

#[test]
fn pmemsave_writes_the_memory_of_the_guest() {
    let vm = Monitored::start(None);
    let path = fresh_path("memory");
    let arguments = json!({"val": 4096, "size": 8192, "filename": path.to_str()});
    vm.client().execute("pmemsave", arguments).unwrap();
    let saved = std::fs::read(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    assert_eq!(saved, [vec![1; 4096], vec![2; 4096]].concat());

    let beyond = json!({"val": RAM, "size": 1, "filename": path.to_str()});
    let error = vm.client().execute("pmemsave", beyond).unwrap_err();
    assert!(error.refusal().unwrap().contains("0x0000000001000000"), "{error}");
    std::fs::remove_file(&path).unwrap();
}
