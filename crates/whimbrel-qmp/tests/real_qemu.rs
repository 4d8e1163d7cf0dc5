//! The client against real QEMUs, and the answers that we hold ourselves to against theirs.
//!
//! A test without its QEMU is skipped and says so by name; `WHIMBREL_NO_SKIP=1` turns that into a failure.
//!
//! The QEMUs are those of x86-64, and asked on that architecture only: under emulation a process that has threads may hang as it
//! starts another.
#![cfg(target_arch = "x86_64")]

mod machine;
mod misuse;

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use machine::{PATIENCE, Running, fresh_path};
use misuse::{Asked, Raw};
use serde_json::{Map, Value, json};
use whimbrel_qmp::{Client, Endpoint, Host, Server};

/// A real QEMU without a machine, its CPUs stopped.
struct Qemu {
    child: Child,
    path: PathBuf,
}

/// The program of a version, or what is missing and how to get it.
fn program(major: u64) -> Result<PathBuf, String> {
    let home =
        || PathBuf::from(std::env::var_os("HOME").unwrap_or_else(|| "/root".into())).join(".cache/whimbrel");
    let cache = std::env::var_os("WHIMBREL_CACHE").map_or_else(home, PathBuf::from);
    let (program, remedy) = match major {
        7 => (PathBuf::from("qemu-system-x86_64"), "apt-get install qemu-system-x86"),
        _ => (cache.join("qemu10/bin/qemu-system-x86_64"), "cargo xtask fetch qemu10"),
    };
    let version =
        Command::new(&program).arg("--version").output().map(|output| output.stdout).unwrap_or_default();
    match String::from_utf8_lossy(&version).contains(&format!("version {major}.")) {
        true => Ok(program),
        false => Err(format!("no {} of version {major}; get it: {remedy}", program.display())),
    }
}

/// Past the test runner's capture, on a line of its own.
fn skip(reason: &str) {
    let name = std::thread::current().name().unwrap_or("unnamed").to_owned();
    let allowed = std::env::var_os("WHIMBREL_NO_SKIP").is_none_or(|value| value != "1");
    assert!(allowed, "{name} may not be skipped: {reason}");
    let _closed = io::stdout().write_all(format!("\nSKIPPED {name}: {reason}\n").as_bytes());
}

impl Qemu {
    /// Starts it, or announces that the test is skipped.
    fn start(major: u64) -> Option<Self> {
        Self::start_with(major, &[])
    }

    fn start_with(major: u64, arguments: &[&str]) -> Option<Self> {
        let program = program(major).map_err(|reason| skip(&reason)).ok()?;
        let path = fresh_path("qemu");
        let child = Command::new(program)
            .args(["-M", "none", "-nodefaults", "-display", "none", "-S", "-qmp"])
            .arg(format!("unix:{},server=on,wait=off", path.display()))
            .args(arguments)
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Some(Self { child, path })
    }

    /// A raw client that has negotiated.
    fn ready(&self) -> Raw {
        let mut raw = Raw::connect(&self.path);
        raw.message();
        raw.ask(r#"{"execute":"qmp_capabilities"}"#);
        raw
    }

    fn client(&self) -> Client {
        Client::connect(&Endpoint::Unix(self.path.clone()), PATIENCE).unwrap()
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        let _already_gone = self.child.kill();
        let _status = self.child.wait();
        let _with_it = std::fs::remove_file(&self.path);
    }
}

struct NoMemory;

impl Host for NoMemory {
    fn read_physical(&self, _address: u64, _buffer: &mut [u8]) -> io::Result<()> {
        Err(io::Error::other("no memory there"))
    }
}

/// A whimbrel's client, and what keeps it up.
fn whimbrel() -> (Client, Server, Running) {
    let running = Running::start(None);
    let endpoint = Endpoint::Unix(fresh_path("monitor"));
    let server = Server::start(&endpoint, running.engine.clone(), Arc::new(NoMemory)).unwrap();
    (Client::connect(&endpoint, PATIENCE).unwrap(), server, running)
}

fn drive(major: u64) {
    let Some(qemu) = Qemu::start(major) else { return };
    let mut client = qemu.client();
    assert_eq!(client.greeting()["version"]["qemu"]["major"], major);
    assert_eq!(client.execute("query-status", Value::Null).unwrap()["status"], "prelaunch");
    let error = client.execute("migrate-continue", json!({"state": "device"})).unwrap_err();
    assert_eq!(error.refusal(), Some("Migration not in expected state: none"));
    client.execute("cont", Value::Null).unwrap();
    assert_eq!(client.next_event(PATIENCE).unwrap().unwrap().name, "RESUME");
    let on = json!({"capabilities": [{"capability": "events", "state": true}]});
    client.execute("migrate-set-capabilities", on).unwrap();
    client.execute("migrate", json!({"uri": "tcp:127.0.0.1:1"})).unwrap();
    let failed = client.wait_for(PATIENCE, |event| event.data["status"] == "failed").unwrap();
    assert!(failed.at > Duration::from_secs(1_600_000_000), "{failed:?}");
    let info = client.execute("query-migrate", Value::Null).unwrap();
    assert_eq!(info["error-desc"], "Failed to connect to '127.0.0.1:1': Connection refused");
    client.execute("query-qmp-schema", Value::Null).unwrap();
    client.execute("quit", Value::Null).unwrap();
    assert_eq!(client.wait_for(PATIENCE, |event| event.name == "SHUTDOWN").unwrap().data["guest"], false);
}

#[test]
fn the_client_drives_qemu_7() {
    drive(7);
}

#[test]
fn the_client_drives_qemu_10() {
    drive(10);
}

/// The column of the tables.
fn asked(major: u64) -> Asked {
    if major == 7 { Asked::Qemu7 } else { Asked::Qemu10 }
}

#[test]
fn our_table_of_misuse_is_what_qemu_7_and_10_say() {
    for major in [7, 10] {
        let Some(qemu) = Qemu::start(major) else { continue };
        let mut raw = Raw::connect(&qemu.path);
        raw.message();
        for row in misuse::conversation().into_iter().chain(misuse::not_built()) {
            row.hold(&mut raw, asked(major));
        }
    }
}

#[test]
fn our_table_of_conflicts_is_what_qemu_7_and_10_say() {
    for major in [7, 10] {
        let Some(qemu) = Qemu::start(major) else { continue };
        misuse::converse_about_capabilities(&mut qemu.ready(), asked(major));
        for rows in misuse::together() {
            let Some(qemu) = Qemu::start(major) else { continue };
            let mut raw = qemu.ready();
            rows.iter().for_each(|row| row.hold(&mut raw, asked(major)));
        }
    }
}

#[test]
fn our_table_of_parameters_is_what_qemu_7_and_10_say() {
    for major in [7, 10] {
        let Some(qemu) = Qemu::start(major) else { continue };
        misuse::converse_about_parameters(&mut qemu.ready(), asked(major));
    }
}

#[test]
fn our_table_of_descriptors_is_what_qemu_7_and_10_say() {
    for major in [7, 10] {
        let Some(qemu) = Qemu::start(major) else { continue };
        misuse::converse_with_descriptors(&mut qemu.ready(), asked(major));
    }
}

#[test]
fn our_texts_for_what_comes_at_a_wrong_time_are_those_of_qemu_7_and_10() {
    for major in [7, 10] {
        let Some(qemu) = Qemu::start(major) else { continue };
        misuse::converse_while_moving(&mut qemu.ready());
        let Some(qemu) = Qemu::start_with(major, &["-incoming", "defer"]) else { continue };
        misuse::converse_while_awaiting(&mut qemu.ready(), asked(major));
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        // A whole float is written without a point by QEMU.
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

/// Names and types of members, in no order.
fn shape(value: &Value) -> Map<String, Value> {
    let members = value.as_object().unwrap();
    let mut names: Vec<_> = members.iter().map(|(name, value)| (name.clone(), kind(value).into())).collect();
    names.sort_by(|a: &(String, Value), b| a.0.cmp(&b.0));
    names.into_iter().collect()
}

#[test]
fn parameters_and_capabilities_are_those_of_qemu_10_member_by_member() {
    let Some(qemu) = Qemu::start(10) else { return };
    let (mut theirs, (mut ours, _server, _running)) = (qemu.client(), whimbrel());
    for query in ["query-migrate-parameters", "query-migrate-capabilities", "query-uuid", "query-name"] {
        let (theirs, mut ours) =
            (theirs.execute(query, Value::Null).unwrap(), ours.execute(query, Value::Null).unwrap());
        if let Value::Array(ours) = &mut ours {
            ours.retain(|item| {
                !item["capability"].as_str().is_some_and(|name| name.starts_with("x-whimbrel-"))
            });
        }
        assert_eq!(ours, theirs, "{query}");
    }
    for query in ["query-status", "query-version"] {
        let (theirs, ours) =
            (theirs.execute(query, Value::Null).unwrap(), ours.execute(query, Value::Null).unwrap());
        assert_eq!(shape(&ours), shape(&theirs), "{query}");
    }
}

/// Each parameter, given each of these, is taken or refused in the same words.
#[test]
fn every_parameter_takes_and_refuses_what_qemu_10_does() {
    let Some(qemu) = Qemu::start(10) else { return };
    let (mut theirs, (mut ours, _server, _running)) = (qemu.client(), whimbrel());
    let values = [
        json!(0),
        json!(1),
        json!(9),
        json!(10),
        json!(20),
        json!(21),
        json!(50),
        json!(99),
        json!(100),
        json!(101),
        json!(1000),
        json!(1001),
        json!(4096),
        json!(10_000),
        json!(10_001),
        json!(65_536),
        json!(100_000),
        json!(100_001),
        json!(2_000_000),
        json!(2_000_001),
        json!(-1),
        json!(1.5),
        json!("x"),
        json!("none"),
        json!("zlib"),
        json!("legacy"),
        json!("normal"),
        json!("cpr-reboot"),
        json!(null),
        json!(true),
        json!([]),
        json!({}),
    ];
    let names: Vec<String> = shape(&theirs.execute("query-migrate-parameters", Value::Null).unwrap())
        .into_iter()
        .map(|(name, _)| name)
        .chain(["block-bitmap-mapping".to_owned()])
        .collect();
    let mut differences = Vec::new();
    for name in &names {
        for value in &values {
            let arguments = json!({ name: value });
            let [theirs, ours] = [&mut theirs, &mut ours].map(|client| {
                let answer = client.execute("migrate-set-parameters", arguments.clone());
                answer.map_err(|error| error.refusal().map_or_else(|| panic!("{error}"), str::to_owned))
            });
            if theirs != ours {
                differences.push(format!("{arguments}: QEMU {theirs:?}, whimbrel {ours:?}"));
            }
        }
    }
    assert!(differences.is_empty(), "{}", differences.join("\n"));
    let query = "query-migrate-parameters";
    assert_eq!(ours.execute(query, Value::Null).unwrap(), theirs.execute(query, Value::Null).unwrap());
}

/// Moves to a file, with events on; the last `query-migrate`.
fn save(client: &mut Client) -> Value {
    let on = json!({"capabilities": [{"capability": "events", "state": true}]});
    client.execute("migrate-set-capabilities", on).unwrap();
    let path = fresh_path("saved");
    client.execute("migrate", json!({"uri": format!("file:{}", path.display())})).unwrap();
    client.wait_for(PATIENCE, |event| event.data["status"] == "completed").unwrap();
    std::fs::remove_file(&path).unwrap();
    client.execute("query-migrate", Value::Null).unwrap()
}

#[test]
fn a_completed_migration_is_shown_as_qemu_10_shows_it_but_for_one_member() {
    let Some(qemu) = Qemu::start(10) else { return };
    let (mut theirs, (mut ours, _server, _running)) = (qemu.client(), whimbrel());
    let (theirs, mut ours) = (save(&mut theirs), save(&mut ours));
    assert!(ours.as_object_mut().unwrap().shift_remove("whimbrel").is_some());
    assert_eq!(shape(&ours), shape(&theirs));
    assert_eq!(shape(&ours["ram"]), shape(&theirs["ram"]));
}

/// What a command or event takes: each member's name, whether it may be absent, and its JSON type as far as it is a plain one.
fn taken(schema: &Value, kind: &str) -> BTreeMap<String, BTreeMap<String, (bool, String)>> {
    let entities = schema.as_array().unwrap();
    let find =
        |name: &Value| entities.iter().find(|entity| entity["name"] == *name && is_type(entity)).unwrap();
    let plain = |entity: &Value| match entity["meta-type"].as_str().unwrap() {
        "builtin" => entity["json-type"].as_str().unwrap().to_owned(),
        other => other.to_owned(),
    };
    let members = |entity: &Value| {
        let members = find(&entity["arg-type"])["members"].as_array().unwrap().iter();
        let member = |member: &Value| {
            let optional = member.get("default").is_some();
            (member["name"].as_str().unwrap().to_owned(), (optional, plain(find(&member["type"]))))
        };
        members.map(member).collect()
    };
    let of_kind = entities.iter().filter(|entity| entity["meta-type"] == kind);
    of_kind.map(|entity| (entity["name"].as_str().unwrap().to_owned(), members(entity))).collect()
}

fn is_type(entity: &Value) -> bool {
    entity["meta-type"] != "command" && entity["meta-type"] != "event"
}

#[test]
fn our_schema_says_of_every_command_and_event_what_qemu_10s_does() {
    let Some(qemu) = Qemu::start(10) else { return };
    let (mut ours, _server, _running) = whimbrel();
    let ours = ours.execute("query-qmp-schema", Value::Null).unwrap();
    let theirs = qemu.client().execute("query-qmp-schema", Value::Null).unwrap();
    for kind in ["command", "event"] {
        let theirs = taken(&theirs, kind);
        let ours = taken(&ours, kind);
        assert!(!ours.is_empty());
        for (name, members) in ours {
            assert_eq!(Some(&members), theirs.get(&name), "{kind} {name}");
        }
    }
}
