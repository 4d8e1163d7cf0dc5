//! The monitor over a real engine and real sockets.

mod machine;
mod misuse;

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use machine::{PATIENCE, Quiet, RAM, Running, fresh_path};
use misuse::Raw;
use serde_json::{Value, json};
use whimbrel::engine::{Exit, Incoming};
use whimbrel_qmp::{Client, Endpoint, Host, QmpError, Server};

struct Memory(Arc<Quiet>);

impl Host for Memory {
    fn read_physical(&self, address: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.0.read_physical(address, buffer)
    }

    fn vcpu_threads(&self) -> Vec<i32> {
        vec![4711]
    }
}

/// A machine and its monitor; the monitor goes first.
struct Monitored {
    server: Option<Server>,
    path: PathBuf,
    running: Running,
}

impl Monitored {
    fn start(incoming: Option<Incoming>) -> Self {
        let running = Running::start(incoming);
        let path = fresh_path("monitor");
        let host = Arc::new(Memory(running.machine.clone()));
        let server = Server::start(&Endpoint::Unix(path.clone()), running.engine.clone(), host).unwrap();
        Self { server: Some(server), path, running }
    }

    fn raw(&self) -> Raw {
        Raw::connect(&self.path)
    }

    /// A raw client that has negotiated.
    fn ready(&self) -> Raw {
        let mut raw = self.raw();
        raw.message();
        assert_eq!(raw.ask(r#"{"execute":"qmp_capabilities"}"#), json!({"return": {}}));
        raw
    }

    fn client(&self) -> Client {
        Client::connect(&Endpoint::Unix(self.path.clone()), PATIENCE).unwrap()
    }
}

impl Drop for Monitored {
    fn drop(&mut self) {
        self.server.take();
    }
}

fn none() -> Value {
    Value::Null
}

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
    for row in misuse::table() {
        assert_eq!(raw.ask(&row.request), row.answer, "{}", row.request);
    }
}

#[test]
fn what_comes_at_a_wrong_time_gets_qemus_text() {
    misuse::converse_while_moving(&mut Monitored::start(None).ready());
    misuse::converse_while_awaiting(&mut Monitored::start(Some(Incoming::Defer)).ready(), true);
}

#[test]
fn descriptors_are_taken_shown_and_refused_as_by_qemu() {
    let vm = Monitored::start(None);
    misuse::converse_with_descriptors(&mut vm.ready());
}

/// Commands that wait, and a descriptor in the midst of them: it is its own message's.
#[test]
fn of_messages_that_come_together_each_has_its_own_descriptor() {
    let vm = Monitored::start(None);
    let mut raw = vm.ready();
    let (null, zero) = (File::open("/dev/null").unwrap(), File::open("/dev/zero").unwrap());
    let getfd = |name: &str| format!(r#"{{"execute":"getfd","arguments":{{"fdname":"{name}"}}}}"#);
    raw.send(r#"{"execute":"query-status"}{"execute":"getfd","arguments":"#);
    raw.send_with(r#"{"fdname":"a"}}"#, &[null.as_fd()]);
    raw.send_with(&getfd("b"), &[zero.as_fd(), null.as_fd()]);
    raw.send(getfd("c"));
    raw.send_with(&getfd("d"), &[null.as_fd()]);
    assert_eq!(raw.answer()["return"]["status"], "running");
    assert_eq!(raw.answer(), json!({"return": {}}));
    assert_eq!(raw.answer(), json!({"return": {}}));
    assert_eq!(raw.answer()["error"]["desc"], "No file descriptor supplied via SCM_RIGHTS");
    assert_eq!(raw.answer(), json!({"return": {}}));
}

#[test]
fn a_client_that_sends_descriptors_without_end_fills_nothing() {
    let vm = Monitored::start(None);
    let mut raw = vm.ready();
    let null = File::open("/dev/null").unwrap();
    let open = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let before = open();
    for _ in 0..500 {
        raw.send_with(" ", &[null.as_fd(); 30]);
    }
    let answers: Vec<_> =
        (0..200).map(|_| raw.ask_with(r#"{"execute":"add-fd"}"#, &[null.as_fd()])).collect();
    let refused = answers.iter().filter(|answer| answer.get("error").is_some()).count();
    assert_eq!(refused, 200 - 128);
    // Other tests of this process have theirs.
    assert!(open() < before + 300, "{} from {before}", open());
}

#[test]
fn a_guest_is_saved_to_a_descriptor_that_the_client_passes() {
    let vm = Monitored::start(None);
    let mut raw = vm.ready();
    let path = fresh_path("passed");
    let file = File::create(&path).unwrap();
    let request = r#"{"execute":"getfd","arguments":{"fdname":"out"}}"#;
    assert_eq!(raw.ask_with(request, &[file.as_fd()]), json!({"return": {}}));
    assert_eq!(raw.ask(r#"{"execute":"migrate","arguments":{"uri":"fd:out"}}"#), json!({"return": {}}));
    let begin = Instant::now();
    while raw.ask(r#"{"execute":"query-migrate"}"#)["return"]["status"] != "completed" {
        assert!(begin.elapsed() < PATIENCE);
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(std::fs::read(&path).unwrap()[..4], *b"QEVM");
    std::fs::remove_file(&path).unwrap();
}

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
fn what_was_asked_before_the_client_left_is_answered() {
    let vm = Monitored::start(None);
    let mut raw = vm.ready();
    raw.send(r#"{"execute":"query-status"}"#.repeat(50));
    raw.stream.shutdown(Shutdown::Write).unwrap();
    for _ in 0..50 {
        assert_eq!(raw.message()["return"]["status"], "running");
    }
    assert_eq!(raw.line(), "");
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

#[test]
fn a_message_without_end_is_refused_and_the_connection_stays() {
    let vm = Monitored::start(None);
    let mut raw = vm.ready();
    raw.send("{\"execute\":\"");
    raw.send(vec![b'x'; 5 << 20]);
    assert_eq!(raw.answer()["error"]["desc"], "JSON token size limit exceeded");
    raw.send("\n");
    assert_eq!(raw.ask(r#"{"execute":"query-status"}"#)["return"]["running"], true);
}

/// A byte now and then: every single write goes on, no answer is ever taken.
#[test]
fn a_client_that_reads_by_the_drop_is_disconnected_too() {
    let vm = Monitored::start(None);
    let mut slow = vm.ready();
    slow.send(format!(r#"{{"execute":"query-status","id":"{}"}}"#, "x".repeat(1_000_000)));
    let begin = Instant::now();
    let mut taken = 0;
    while begin.elapsed() < Duration::from_secs(12) {
        taken += slow.stream.read(&mut [0; 4096]).unwrap();
        std::thread::sleep(Duration::from_millis(200));
    }
    // What the kernel still holds comes, and then the end.
    let mut rest = Vec::new();
    slow.stream.read_to_end(&mut rest).unwrap();
    assert!(taken + rest.len() < 1_000_000, "the whole answer came");
    assert_eq!(vm.ready().ask(r#"{"execute":"query-name"}"#), json!({"return": {}}));
}

#[test]
fn a_pipe_that_nobody_reads_holds_no_command() {
    let vm = Monitored::start(None);
    let mut raw = vm.ready();
    let pipe = fresh_path("pipe");
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let path = pipe.display();
    let save = format!(r#"{{"execute":"pmemsave","arguments":{{"val":0,"size":16,"filename":"{path}"}}}}"#);
    assert_eq!(
        raw.ask(&save)["error"]["desc"],
        format!("Could not open '{path}': No such device or address")
    );
    raw.ask(&format!(r#"{{"execute":"migrate","arguments":{{"uri":"file:{path}"}}}}"#));
    let begin = Instant::now();
    while raw.ask(r#"{"execute":"query-migrate"}"#)["return"]["status"] != "failed" {
        assert!(begin.elapsed() < Duration::from_secs(5));
        std::thread::sleep(Duration::from_millis(10));
    }
    std::fs::remove_file(&pipe).unwrap();
}

#[test]
fn a_client_that_does_not_read_is_disconnected_and_hinders_nobody() {
    let vm = Monitored::start(None);
    let mut deaf = vm.ready();
    let request = br#"{"execute":"query-commands"}"#.repeat(1000);
    deaf.stream.set_write_timeout(Some(Duration::from_secs(30))).unwrap();
    let writer = std::thread::spawn(move || {
        let begin = Instant::now();
        while deaf.stream.write_all(&request).is_ok() {
            assert!(begin.elapsed() < Duration::from_secs(30), "it was never disconnected");
        }
        begin.elapsed()
    });
    let mut other = vm.client();
    let mut slowest = Duration::ZERO;
    while !writer.is_finished() {
        let begin = Instant::now();
        other.execute("stop", none()).unwrap();
        other.execute("cont", none()).unwrap();
        slowest = slowest.max(begin.elapsed());
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(writer.join().unwrap() >= Duration::from_secs(1));
    assert!(slowest < Duration::from_secs(2), "another client waited {slowest:?}");
}

#[test]
fn clients_beyond_the_limit_are_turned_away_until_others_leave() {
    let vm = Monitored::start(None);
    let mut clients: Vec<_> = (0..16).map(|_| vm.ready()).collect();
    let mut late = vm.raw();
    let mut byte = [0];
    assert_eq!(late.stream.read(&mut byte).unwrap_or(0), 0, "closed without a greeting");
    clients.pop();
    let deadline = Instant::now() + PATIENCE;
    loop {
        let mut again = vm.raw();
        if again.line().contains("QMP") {
            break;
        }
        assert!(Instant::now() < deadline, "the place of one who left is free");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn tcp_works_as_unix_does() {
    let running = Running::start(None);
    let host = Arc::new(Memory(running.machine.clone()));
    let any_port = "tcp:127.0.0.1:0".parse().unwrap();
    let server = Server::start(&any_port, running.engine.clone(), host).unwrap();
    let mut client = Client::connect(server.endpoint(), PATIENCE).unwrap();
    assert_eq!(client.execute("query-status", none()).unwrap()["status"], "running");
}

#[test]
fn a_clients_waits_end() {
    let listener = std::os::unix::net::UnixListener::bind(fresh_path("mute")).unwrap();
    let path = listener.local_addr().unwrap().as_pathname().unwrap().to_owned();
    let endpoint = Endpoint::Unix(path.clone());
    let error = Client::connect(&endpoint, Duration::from_millis(100)).unwrap_err();
    assert!(matches!(error, QmpError::Timeout { .. }), "{error}");
    drop(listener);
    std::fs::remove_file(path).unwrap();
    let error = Client::connect(&endpoint, Duration::from_millis(100)).unwrap_err();
    assert!(matches!(error, QmpError::Connect { .. }), "{error}");

    let vm = Monitored::start(None);
    let mut client = vm.client();
    assert_eq!(client.next_event(Duration::from_millis(50)).unwrap(), None);
    assert_eq!(client.drain_events().unwrap(), []);
    client.execute("stop", none()).unwrap();
    client.execute("cont", none()).unwrap();
    let names: Vec<_> = client.drain_events().unwrap().into_iter().map(|event| event.name).collect();
    assert_eq!(names, ["STOP", "RESUME"]);
    let error = client.wait_for(Duration::from_millis(50), |event| event.name == "STOP").unwrap_err();
    assert!(matches!(error, QmpError::Timeout { .. }), "{error}");
}

// ---- Moving, seen through two monitors ----

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
fn a_running_migration_is_shown_held_to_its_limit_and_cancelled_at_once() {
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
    let begin = Instant::now();
    out.execute("migrate_cancel", none()).unwrap();
    assert!(begin.elapsed() < Duration::from_secs(1));
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
