//! File descriptors that come beside a message.

use std::fs::File;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::machine::{PATIENCE, fresh_path};
use crate::{Monitored, misuse};

#[test]
fn descriptors_are_taken_shown_and_refused_as_by_qemu() {
    let vm = Monitored::start(None);
    misuse::converse_with_descriptors(&mut vm.ready(), misuse::Asked::Whimbrel);
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
