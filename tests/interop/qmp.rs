//! QEMU's own client drives whimbrel and real QEMU with one script; what they answer is compared member by member.
//!
//! A difference is either listed here, and told to users with its reason in `docs/qmp.md`, or a failure; so is one that is
//! listed and not there.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use serde_json::{Map, Value};
use whimbrel_e2e::{Need, Peer, need};

use super::{machine, needs};

/// Path in the replies, and what differs there; each is in `docs/qmp.md`.
type Differences = &'static [(&'static str, &'static str)];

const FROM_10_0: Differences = &[
    ("source query-migrate, active/whimbrel", "only ours"),
    ("source query-migrate, cancelled/whimbrel", "only ours"),
    ("source query-migrate, completed/whimbrel", "only ours"),
];

const FROM_7_2: Differences = &[
    ("destination query-status, completed/singlestep", "only theirs"),
    ("destination query-status/singlestep", "only theirs"),
    ("source events, completed/3", "'MIGRATION device' for 'MIGRATION completed'"),
    ("source events, completed/4", "only ours"),
    ("source query-migrate, active/ram/skipped", "only theirs"),
    ("source query-migrate, active/whimbrel", "only ours"),
    ("source query-migrate, cancelled/whimbrel", "only ours"),
    ("source query-migrate, completed/ram/skipped", "only theirs"),
    ("source query-migrate, completed/whimbrel", "only ours"),
    // 7.2 has no such command.
    ("source query-migrationthreads", "array for object"),
    ("source query-migrationthreads, active", "array for object"),
    ("source query-migrationthreads, active/0", "only ours"),
    ("source query-migrationthreads, active/error", "only theirs"),
    ("source query-migrationthreads/error", "only theirs"),
    ("source query-status, cancelled/singlestep", "only theirs"),
    ("source query-status, completed/singlestep", "only theirs"),
    ("source query-status/singlestep", "only theirs"),
];

/// Runs the script against two fresh machines of `peer`.
fn replies(peer: Peer) -> Map<String, Value> {
    let folder = whimbrel_e2e::scratch::Scratch::new("qmp");
    let with_second_monitor = |path: &Path| {
        let monitor = format!("unix:{}", path.display());
        let mut launch = machine(peer, if peer.is_qemu() { peer } else { Peer::Qemu10 }, 1);
        launch.extra = match peer {
            Peer::Whimbrel => vec!["--qmp".to_owned(), monitor],
            _ => vec!["-qmp".to_owned(), format!("{monitor},server=on,wait=off")],
        };
        launch
    };
    let sockets = ["source", "destination"].map(|name| folder.join(name));
    let mut source = with_second_monitor(&sockets[0]).start();
    let _destination = with_second_monitor(&sockets[1]).incoming().start();
    source.wait_ready();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("interop/qmp_client.py");
    let output = Command::new(need::python()).arg(script).args(&sockets).output().expect("python runs");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{peer:?}: {errors}");
    serde_json::from_slice(&output.stdout).expect("the script prints JSON")
}

/// Every member's path and type; texts of errors and enumerations as they are.
fn shapes(path: &str, value: &Value, into: &mut BTreeMap<String, String>) {
    let kind = match value {
        Value::Object(members) => {
            for (name, member) in members {
                shapes(&format!("{path}/{name}"), member, into);
            }
            "object".to_owned()
        }
        Value::Array(items) => {
            for (index, item) in items.iter().enumerate() {
                shapes(&format!("{path}/{index}"), item, into);
            }
            "array".to_owned()
        }
        // A whole float is written without a point by QEMU.
        Value::Number(_) => "number".to_owned(),
        Value::String(text) if says_the_same(path) => format!("'{text}'"),
        Value::String(_) => "string".to_owned(),
        other => other.to_string(),
    };
    into.insert(path.to_owned(), kind);
}

/// Texts that name the answerer, or its own objects.
fn says_the_same(path: &str) -> bool {
    !["package", "qom-path"].iter().any(|name| path.ends_with(name))
}

fn differences(ours: &Map<String, Value>, theirs: &Map<String, Value>) -> Vec<(String, String)> {
    let [ours, theirs] = [ours, theirs].map(|replies| {
        let mut into = BTreeMap::new();
        replies.iter().for_each(|(step, reply)| shapes(step, reply, &mut into));
        into
    });
    let mut found = Vec::new();
    for (path, our) in &ours {
        match theirs.get(path) {
            None => found.push((path.clone(), "only ours".to_owned())),
            Some(their) if their != our => found.push((path.clone(), format!("{our} for {their}"))),
            Some(_) => {}
        }
    }
    found.extend(
        theirs
            .keys()
            .filter(|path| !ours.contains_key(*path))
            .map(|path| (path.clone(), "only theirs".into())),
    );
    // Of a member that only one has, its own members say nothing more.
    let alone: Vec<_> =
        found.iter().filter(|(_, what)| what.starts_with("only")).map(|(path, _)| path.clone()).collect();
    found.retain(|(path, _)| !alone.iter().any(|parent| path.starts_with(&format!("{parent}/"))));
    found.sort();
    found
}

fn assert_answers_alike(qemu: Peer, listed: Differences) {
    if !needs(qemu) || !whimbrel_e2e::needs(&[Need::QemuQmp]) {
        return;
    }
    let found = differences(&replies(Peer::Whimbrel), &replies(qemu));
    let listed: Vec<_> = listed.iter().map(|(path, what)| ((*path).to_owned(), (*what).to_owned())).collect();
    assert_eq!(found, listed, "\n{found:#?}");
}

#[test]
fn qemus_client_hears_from_whimbrel_what_it_hears_from_qemu_10_0() {
    assert_answers_alike(Peer::Qemu10, FROM_10_0);
}

#[test]
fn qemus_client_hears_from_whimbrel_what_it_hears_from_qemu_7_2_but_for_what_is_newer() {
    assert_answers_alike(Peer::Qemu72, FROM_7_2);
}
