//! Moving, seen through monitors.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use whimbrel::engine::Incoming;
use whimbrel_qmp::Client;

use crate::machine::{PATIENCE, RAM, fresh_path};
use crate::{Monitored, none};

#[test]
fn a_machine_told_to_stay_keeps_its_failure_for_the_asking() {
    let vm = Monitored::start(Some(Incoming::Defer));
    let mut raw = vm.ready();
    let request =
        r#"{"execute":"migrate-incoming","arguments":{"uri":"exec:echo no stream","exit-on-error":false}}"#;
    assert_eq!(raw.ask(request), json!({"return": {}}));
    let begin = Instant::now();
    while raw.ask(r#"{"execute":"query-migrate"}"#)["return"]["status"] != "failed" {
        assert!(begin.elapsed() < PATIENCE);
        std::thread::sleep(Duration::from_millis(10));
    }
    let info = raw.ask(r#"{"execute":"query-migrate"}"#);
    assert!(info["return"]["error-desc"].as_str().unwrap().contains("Not a migration stream"), "{info}");
    assert_eq!(raw.ask(r#"{"execute":"query-status"}"#)["return"]["status"], "inmigrate");
    let again = raw.ask(r#"{"execute":"migrate-incoming","arguments":{"uri":"tcp:127.0.0.1:0"}}"#);
    assert_eq!(again["error"]["desc"], "The incoming migration has already been started");
    let out = raw.ask(r#"{"execute":"migrate","arguments":{"uri":"tcp:127.0.0.1:1"}}"#);
    assert_eq!(out["error"]["desc"], "Guest is waiting for an incoming migration");
}

#[test]
fn the_threads_that_migrate_and_that_run_the_guest_are_shown() {
    let vm = Monitored::start(None);
    let mut raw = vm.ready();
    assert_eq!(
        raw.ask(r#"{"execute":"query-cpus-fast"}"#)["return"],
        json!([{
            "thread-id": 4711,
            "props": {"core-id": 0, "thread-id": 0, "socket-id": 0},
            "qom-path": "/machine/cpu[0]",
            "cpu-index": 0,
            "target": std::env::consts::ARCH,
        }])
    );
    raw.ask(r#"{"execute":"migrate-set-parameters","arguments":{"max-bandwidth":1000}}"#);
    raw.ask(r#"{"execute":"migrate","arguments":{"uri":"exec:sleep 1000"}}"#);
    let begin = Instant::now();
    let threads = loop {
        let threads = raw.ask(r#"{"execute":"query-migrationthreads"}"#)["return"].take();
        if threads != json!([]) {
            break threads;
        }
        assert!(begin.elapsed() < PATIENCE);
    };
    assert_eq!(threads[0]["name"], "mig/src/main");
    let thread = format!("/proc/self/task/{}", threads[0]["thread-id"]);
    assert!(std::path::Path::new(&thread).exists());
    raw.ask(r#"{"execute":"migrate_cancel"}"#);
}

fn events_on(client: &mut Client) {
    let on = json!({"capabilities": [{"capability": "events", "state": true}, {"capability": "return-path", "state": true}]});
    client.execute("migrate-set-capabilities", on).unwrap();
}

fn ended(client: &mut Client) -> Vec<String> {
    let mut seen = Vec::new();
    loop {
        let event = client.next_event(PATIENCE).unwrap().expect("the migration ends");
        let status = event.data["status"].as_str().unwrap_or_default();
        seen.push(format!("{} {status}", event.name).trim_end().to_owned());
        if ["completed", "failed", "cancelled"].contains(&status) {
            return seen;
        }
    }
}

fn names(value: &Value) -> Vec<&str> {
    let mut names: Vec<_> = value.as_object().unwrap().keys().map(String::as_str).collect();
    names.sort_unstable();
    names
}

#[test]
fn a_guest_moves_by_two_monitors_and_every_step_is_seen() {
    let source = Monitored::start(None);
    let destination = Monitored::start(Some(Incoming::Defer));
    let (mut out, mut into) = (source.client(), destination.client());
    events_on(&mut out);
    events_on(&mut into);
    assert_eq!(into.execute("query-status", none()).unwrap()["status"], "inmigrate");
    into.execute("migrate-incoming", json!({"uri": "tcp:127.0.0.1:0"})).unwrap();
    let listening = into.execute("query-migrate", none()).unwrap();
    let address = &listening["socket-address"][0];
    assert_eq!((&address["type"], &address["host"]), (&json!("inet"), &json!("127.0.0.1")));
    let error = into.execute("migrate-incoming", json!({"uri": "tcp:127.0.0.1:0"})).unwrap_err();
    assert_eq!(error.refusal(), Some("The incoming migration has already been started"));
    let error = into.execute("migrate", json!({"uri": "tcp:127.0.0.1:1"})).unwrap_err();
    assert_eq!(error.refusal(), Some("Guest is waiting for an incoming migration"));

    let mut address = address.clone();
    address["transport"] = "socket".into();
    out.execute("migrate", json!({"channels": [{"channel-type": "main", "addr": address}]})).unwrap();
    let mut seen = ended(&mut out);
    seen.retain(|event| event != "MIGRATION_PASS");
    assert_eq!(
        seen,
        ["MIGRATION setup", "MIGRATION active", "STOP", "MIGRATION device", "MIGRATION completed"]
    );
    let arrived = ended(&mut into);
    assert_eq!(arrived.last().unwrap(), "MIGRATION completed");
    assert!(arrived.contains(&"RESUME".to_owned()), "{arrived:?}");

    let info = out.execute("query-migrate", none()).unwrap();
    assert_eq!(names(&info), ["downtime", "ram", "setup-time", "status", "total-time", "whimbrel"]);
    assert_eq!((&info["ram"]["total"], &info["ram"]["remaining"]), (&json!(RAM), &json!(0)));
    assert_eq!(info["whimbrel"]["fenced"], true);
    assert_eq!(
        out.execute("query-status", none()).unwrap(),
        json!({"status": "postmigrate", "running": false})
    );
    assert_eq!(into.execute("query-status", none()).unwrap(), json!({"status": "running", "running": true}));
    let error = out.execute("migrate", json!({"uri": "tcp:127.0.0.1:1"})).unwrap_err();
    assert_eq!(error.refusal(), Some("Can't migrate the vm that was paused due to previous migration"));

    let path = fresh_path("memory");
    into.execute("pmemsave", json!({"val": 0, "size": RAM, "filename": path.to_str()})).unwrap();
    let arrived = std::fs::read(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    assert!(
        arrived.chunks(4096).enumerate().all(|(page, bytes)| bytes.iter().all(|&byte| byte == page as u8))
    );
}

#[test]
fn a_refused_connection_is_told_afterwards_and_the_guest_runs_on() {
    let vm = Monitored::start(None);
    let mut client = vm.client();
    events_on(&mut client);
    client.execute("migrate", json!({"uri": "tcp:127.0.0.1:1"})).unwrap();
    assert_eq!(ended(&mut client), ["MIGRATION setup", "MIGRATION failed"]);
    let info = client.execute("query-migrate", none()).unwrap();
    assert_eq!(names(&info), ["error-desc", "status", "whimbrel"]);
    assert!(info["error-desc"].as_str().unwrap().contains("Connection refused"), "{info}");
    assert_eq!(client.execute("query-status", none()).unwrap()["status"], "running");
}

#[test]
fn a_running_migration_is_shown_held_to_its_limit_and_cancelled() {
    let source = Monitored::start(None);
    let destination = Monitored::start(Some(Incoming::Defer));
    let (mut out, mut into) = (source.client(), destination.client());
    events_on(&mut out);
    let uri = format!("unix:{}", fresh_path("stream").display());
    into.execute("migrate-incoming", json!({"uri": uri})).unwrap();
    out.execute("migrate-set-parameters", json!({"max-bandwidth": 1 << 20, "downtime-limit": 10})).unwrap();
    out.execute("migrate", json!({"uri": uri})).unwrap();
    out.wait_for(PATIENCE, |event| event.data["status"] == "active").unwrap();
    let info = out.execute("query-migrate", none()).unwrap();
    assert_eq!(names(&info), ["expected-downtime", "ram", "setup-time", "status", "total-time", "whimbrel"]);
    for (command, arguments, text) in [
        ("migrate", json!({"uri": uri}), "There's a migration process in progress"),
        (
            "migrate-set-capabilities",
            json!({"capabilities": [{"capability": "events", "state": false}]}),
            "There's a migration process in progress",
        ),
        ("migrate-continue", json!({"state": "pre-switchover"}), "Migration not in expected state: active"),
    ] {
        assert_eq!(out.execute(command, arguments).unwrap_err().refusal(), Some(text));
    }
    out.execute("migrate_cancel", none()).unwrap();
    assert_eq!(ended(&mut out).last().unwrap(), "MIGRATION cancelled");
    assert_eq!(names(&out.execute("query-migrate", none()).unwrap()), ["status", "whimbrel"]);
    assert_eq!(out.execute("query-status", none()).unwrap()["status"], "running");
}

#[test]
fn a_pause_before_the_switchover_waits_for_its_word() {
    let source = Monitored::start(None);
    let destination = Monitored::start(Some(Incoming::Defer));
    let (mut out, mut into) = (source.client(), destination.client());
    events_on(&mut out);
    let on = json!({"capabilities": [{"capability": "pause-before-switchover", "state": true}]});
    out.execute("migrate-set-capabilities", on).unwrap();
    let uri = format!("unix:{}", fresh_path("stream").display());
    into.execute("migrate-incoming", json!({"uri": uri})).unwrap();
    out.execute("migrate", json!({"uri": uri, "detach": true})).unwrap();
    out.wait_for(PATIENCE, |event| event.data["status"] == "pre-switchover").unwrap();
    assert_eq!(out.execute("query-status", none()).unwrap()["status"], "finish-migrate");
    assert_eq!(out.execute("cont", none()).unwrap_err().refusal(), Some("Migration is not finalized yet"));
    out.execute("migrate-continue", json!({"state": "pre-switchover"})).unwrap();
    assert_eq!(ended(&mut out).last().unwrap(), "MIGRATION completed");
    let info = out.execute("query-migrate", none()).unwrap();
    assert!(info["whimbrel"]["pause-us"]["user"].as_u64().unwrap() > 0);
}
