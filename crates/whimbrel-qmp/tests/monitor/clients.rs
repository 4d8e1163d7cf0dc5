//! Clients that misbehave, and clients that must not suffer from them.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::json;
use whimbrel_qmp::{Client, Endpoint, QmpError, Server};

use crate::machine::{PATIENCE, Running, fresh_path};
use crate::{Memory, Monitored, none};

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
        assert!(begin.elapsed() < PATIENCE);
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
    let mut rounds = 0;
    while !writer.is_finished() {
        other.execute("stop", none()).unwrap();
        other.execute("cont", none()).unwrap();
        rounds += 1;
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(writer.join().unwrap() >= Duration::from_secs(1));
    assert!(rounds > 2, "another client waited for it: {rounds} rounds");
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

/// Commands, nonsense and commands out of band without end, all of them read and answered in their order.
#[test]
fn a_flood_is_answered_in_order_and_hinders_nobody() {
    const COMMANDS: u64 = 20_000;
    let vm = Monitored::start(None);
    let mut flood = vm.ready();
    let mut writing = flood.stream.try_clone().unwrap();
    let writer = std::thread::spawn(move || {
        for id in 0..COMMANDS {
            let command = if id % 7 == 0 { "stop" } else { "query-status" };
            writing.write_all(format!(r#"{{"execute":"{command}","id":{id}}}]"#).as_bytes()).unwrap();
        }
    });
    let mut other = vm.client();
    for id in 0..COMMANDS {
        assert_eq!(flood.answer()["id"], id);
        assert_eq!(flood.answer()["error"]["desc"], "JSON parse error, expecting value", "the bracket");
        if id % 1000 == 0 {
            // Nobody reads the flood's answers meanwhile: were it served first, it would be disconnected.
            other.execute("cont", none()).unwrap();
        }
    }
    writer.join().unwrap();
}

#[test]
fn half_a_line_holds_nobody_and_its_other_half_is_waited_for() {
    let vm = Monitored::start(None);
    let (mut half, mut gone, mut other) = (vm.ready(), vm.ready(), vm.client());
    gone.send(r#"{"execute":"quit"#);
    drop(gone);
    for byte in br#"{"execute":"query-status","id":"#.iter().chain(b"[1,2]") {
        half.send([*byte]);
        other.execute("query-name", none()).unwrap();
    }
    half.stream.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    assert!(half.stream.read(&mut [0]).is_err(), "nothing was said yet");
    half.stream.set_read_timeout(Some(PATIENCE)).unwrap();
    half.send("}");
    assert_eq!(half.line(), r#"{"return": {"status": "running", "running": true}, "id": [1, 2]}"#);
}

/// It asks for nothing; what it doesn't read are events.
#[test]
fn a_client_that_reads_no_event_is_disconnected() {
    let vm = Monitored::start(None);
    let (mut deaf, mut other) = (vm.ready(), vm.client());
    let begin = Instant::now();
    // A disconnected client can't be written to.
    while deaf.stream.write_all(b" ").is_ok() {
        assert!(begin.elapsed() < PATIENCE, "it was never disconnected");
        for command in ["stop", "cont"] {
            other.execute(command, none()).unwrap();
        }
        other.drain_events().unwrap();
    }
    assert!(begin.elapsed() > Duration::from_secs(1), "nobody has to read at once");
}
