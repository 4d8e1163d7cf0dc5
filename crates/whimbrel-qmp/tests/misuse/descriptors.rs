//! Requests with file descriptors beside them.

use std::os::fd::AsFd;

use serde_json::{Value, json};

use super::commands::UNKNOWN_PROTOCOL_7;
use super::{Asked, Raw, generic, ok};

/// What is said with a descriptor beside it (or without: false), and the answer; on one connection. Numbers of
/// descriptors are replaced by 0.
fn with_descriptors(asked: Asked) -> Vec<(bool, &'static str, Value)> {
    let added = |set: i64| json!({"return": {"fd": 0, "fdset-id": set}});
    let (one, zero) = (
        json!({"fds": [{"fd": 0, "opaque": "x"}], "fdset-id": 1}),
        json!({"fds": [{"fd": 0}], "fdset-id": 0}),
    );
    let seven = json!({"fds": [{"fd": 0}, {"fd": 0, "opaque": "y"}], "fdset-id": 7});
    let with_set_7 = json!({"return": [seven, one, zero]});
    let without_set_7 = json!({"return": [one, zero]});
    // To 7.2 `file:` is no scheme.
    let no_such_access = match asked {
        Asked::Qemu7 => UNKNOWN_PROTOCOL_7,
        Asked::Qemu10 | Asked::Whimbrel => "Failed to find file descriptor with matching flags=0x41",
    };
    vec![
        (
            true,
            r#"{"execute":"getfd","arguments":{"fdname":"5"}}"#,
            generic("Parameter 'fdname' expects a name not starting with a digit"),
        ),
        (
            false,
            r#"{"execute":"getfd","arguments":{"fdname":"a"}}"#,
            generic("No file descriptor supplied via SCM_RIGHTS"),
        ),
        (true, r#"{"execute":"getfd","arguments":{"fdname":"a"}}"#, ok()),
        (true, r#"{"execute":"getfd","arguments":{"fdname":"a"}}"#, ok()),
        (false, r#"{"execute":"closefd","arguments":{"fdname":"a"}}"#, ok()),
        (
            false,
            r#"{"execute":"closefd","arguments":{"fdname":"a"}}"#,
            generic("File descriptor named 'a' not found"),
        ),
        // It waits for the command that wants it.
        (true, r#"{"execute":"query-migrate"}"#, ok()),
        (false, r#"{"execute":"getfd"}"#, generic("Parameter 'fdname' is missing")),
        (false, r#"{"execute":"getfd","arguments":{"fdname":"b"}}"#, ok()),
        (true, r#"{"execute":"add-fd"}"#, added(0)),
        (true, r#"{"execute":"add-fd","arguments":{"opaque":"x"}}"#, added(1)),
        (true, r#"{"execute":"add-fd","arguments":{"fdset-id":7}}"#, added(7)),
        (true, r#"{"execute":"add-fd","arguments":{"fdset-id":7,"opaque":"y"}}"#, added(7)),
        (
            true,
            r#"{"execute":"add-fd","arguments":{"fdset-id":-1}}"#,
            generic("Parameter 'fdset-id' expects a non-negative value"),
        ),
        (false, r#"{"execute":"query-fdsets"}"#, with_set_7.clone()),
        (false, r#"{"execute":"migrate","arguments":{"uri":"file:/dev/fdset/7"}}"#, generic(no_such_access)),
        (
            false,
            r#"{"execute":"remove-fd","arguments":{"fdset-id":7,"fd":9999}}"#,
            generic("File descriptor named 'fdset-id:7, fd:9999' not found"),
        ),
        (false, r#"{"execute":"remove-fd","arguments":{"fdset-id":7}}"#, ok()),
        (
            false,
            r#"{"execute":"query-fdsets"}"#,
            // 7.2 closes them only while the guest runs.
            if asked == Asked::Qemu7 { with_set_7 } else { without_set_7 },
        ),
    ]
}

/// Holds the conversation of [`with_descriptors`], on a connection that has negotiated.
pub(crate) fn converse_with_descriptors(raw: &mut Raw, asked: Asked) {
    let file = std::fs::File::open("/dev/null").unwrap();
    for (with, request, expected) in with_descriptors(asked) {
        let mut answer = if with { raw.ask_with(request, &[file.as_fd()]) } else { raw.ask(request) };
        without_numbers(&mut answer);
        assert_eq!(answer, expected, "{asked:?}: {request}");
    }
}

fn without_numbers(value: &mut Value) {
    match value {
        Value::Array(items) => items.iter_mut().for_each(without_numbers),
        Value::Object(members) => {
            for (name, member) in members {
                if name == "fd" {
                    *member = 0.into();
                }
                without_numbers(member);
            }
        }
        _ => {}
    }
}
