//! What a client may say wrongly, and the answer of QEMU 10.0.2, which is ours too. `tests/real_qemu.rs` holds the real one to it.

#![allow(dead_code, reason = "each test uses its part")]

mod raw;

use std::os::fd::AsFd;

use serde_json::{Value, json};

pub(crate) use raw::Raw;

/// A request and its answer, without what differs by version.
pub(crate) struct Row {
    pub(crate) request: String,
    pub(crate) answer: Value,
}

fn generic(desc: &str) -> Value {
    json!({"error": {"class": "GenericError", "desc": desc}})
}

fn not_found(desc: &str) -> Value {
    json!({"error": {"class": "CommandNotFound", "desc": desc}})
}

/// In this order, on one connection to a fresh machine that awaits nobody and has never migrated; the whole conversation.
pub(crate) fn table() -> Vec<Row> {
    let expecting = not_found("Expecting capabilities negotiation with 'qmp_capabilities'");
    let no_json = |text: &str| generic(&format!("JSON parse error, {text}"));
    let ok = || json!({"return": {}});
    let rows = [
        // Before negotiation.
        (r#"{"execute":"query-status"}"#, expecting.clone()),
        (r#"{"execute":"bogus","id":[3]}"#, json!({"id": [3], "error": expecting["error"]})),
        (
            r#"{"id":3}"#,
            json!({"id": 3, "error": {"class": "GenericError", "desc": "QMP input lacks member 'execute'"}}),
        ),
        (r#"{"exec-oob":"qmp_capabilities"}"#, generic("QMP input member 'exec-oob' is unexpected")),
        (
            r#"{"execute":"qmp_capabilities","arguments":{"enable":["foo"]}}"#,
            generic("Parameter 'null' does not accept value 'foo'"),
        ),
        (
            r#"{"execute":"qmp_capabilities","arguments":{"enable":5}}"#,
            generic("Invalid parameter type for 'enable', expected: array"),
        ),
        (r#"{"execute":"qmp_capabilities","arguments":{"foo":5}}"#, generic("Parameter 'foo' is unexpected")),
        (r#"{"execute":"qmp_capabilities","arguments":{"enable":["oob"]}}"#, ok()),
        (
            r#"{"execute":"qmp_capabilities"}"#,
            not_found("Capabilities negotiation is already complete, command ignored"),
        ),
        // Envelopes.
        ("[1]", generic("QMP input must be a JSON object")),
        ("null", generic("QMP input must be a JSON object")),
        ("{}", generic("QMP input lacks member 'execute'")),
        (r#"{"foo":1}"#, generic("QMP input member 'foo' is unexpected")),
        (r#"{"execute":5}"#, generic("QMP input member 'execute' must be a string")),
        (r#"{"execute":"stop","arguments":5}"#, generic("QMP input member 'arguments' must be an object")),
        (r#"{"execute":"stop","x":5}"#, generic("QMP input member 'x' is unexpected")),
        (r#"{"execute":"bogus"}"#, not_found("The command bogus has not been found")),
        (r#"{"exec-oob":5}"#, generic("QMP input member 'exec-oob' must be a string")),
        (r#"{"exec-oob":"bogus"}"#, not_found("The command bogus has not been found")),
        (r#"{"exec-oob":"query-status"}"#, generic("The command query-status does not support OOB")),
        (
            r#"{"exec-oob":"stop","execute":"stop"}"#,
            generic("QMP input member 'execute' clashes with 'exec-oob'"),
        ),
        // No JSON.
        ("garbage", no_json("invalid keyword 'garbage'")),
        (r#"{"execute":"stop" "id":1}"#, no_json("expected separator in dict")),
        (r#"{"id":1,"id":2}"#, no_json("duplicate key")),
        ("}", no_json("expecting value")),
        // Arguments.
        (r#"{"execute":"stop","arguments":{"x":1}}"#, generic("Parameter 'x' is unexpected")),
        (r#"{"execute":"migrate"}"#, generic("need either 'uri' or 'channels' argument")),
        (
            r#"{"execute":"migrate","arguments":{"uri":5}}"#,
            generic("Invalid parameter type for 'uri', expected: string"),
        ),
        (
            r#"{"execute":"migrate","arguments":{"uri":"tcp:h:1","detach":5}}"#,
            generic("Invalid parameter type for 'detach', expected: boolean"),
        ),
        (
            r#"{"execute":"migrate","arguments":{"uri":"tcp:1","bogus":1}}"#,
            generic("Parameter 'bogus' is unexpected"),
        ),
        (
            r#"{"execute":"migrate","arguments":{"uri":"foo:bar"}}"#,
            generic("unknown migration protocol: foo:bar"),
        ),
        (
            r#"{"execute":"migrate","arguments":{"uri":"tcp:127.0.0.1"}}"#,
            generic("error parsing address '127.0.0.1'"),
        ),
        (
            r#"{"execute":"migrate","arguments":{"resume":true,"uri":"tcp:127.0.0.1:1"}}"#,
            generic("Cannot resume if there is no paused migration"),
        ),
        (
            r#"{"execute":"migrate","arguments":{"channels":[{"channel-type":"main","addr":{"transport":"foo"}}]}}"#,
            generic("Parameter 'transport' does not accept value 'foo'"),
        ),
        (r#"{"execute":"migrate-incoming"}"#, generic("'-incoming' was not specified on the command line")),
        (
            r#"{"execute":"migrate-incoming","arguments":{"uri":"tcp:127.0.0.1:0"}}"#,
            generic("'-incoming' was not specified on the command line"),
        ),
        (r#"{"execute":"migrate_cancel"}"#, ok()),
        (r#"{"execute":"migrate-continue"}"#, generic("Parameter 'state' is missing")),
        (
            r#"{"execute":"migrate-continue","arguments":{"state":"foo"}}"#,
            generic("Parameter 'state' does not accept value 'foo'"),
        ),
        (
            r#"{"execute":"migrate-continue","arguments":{"state":"pre-switchover"}}"#,
            generic("Migration not in expected state: none"),
        ),
        (r#"{"execute":"query-migrate"}"#, ok()),
        (r#"{"execute":"migrate-set-capabilities"}"#, generic("Parameter 'capabilities' is missing")),
        (
            r#"{"execute":"migrate-set-capabilities","arguments":{"capabilities":[{"capability":"X","state":true}]}}"#,
            generic("Parameter 'capability' does not accept value 'X'"),
        ),
        (
            r#"{"execute":"migrate-set-capabilities","arguments":{"capabilities":[{"capability":"events","state":1}]}}"#,
            generic("Invalid parameter type for 'capabilities[0].state', expected: boolean"),
        ),
        (
            r#"{"execute":"migrate-set-capabilities","arguments":{"capabilities":[{"capability":"switchover-ack","state":true}]}}"#,
            generic("Capability 'switchover-ack' requires capability 'return-path'"),
        ),
        (
            r#"{"execute":"migrate-set-capabilities","arguments":{"capabilities":[{"capability":"multifd","state":true},{"capability":"xbzrle","state":true}]}}"#,
            generic("Multifd is not compatible with xbzrle"),
        ),
        (
            r#"{"execute":"migrate-set-parameters","arguments":{"downtime-limit":2000001}}"#,
            generic("Parameter 'downtime_limit' expects an integer in the range of 0 to (2000 * 1000) ms"),
        ),
        (
            r#"{"execute":"migrate-set-parameters","arguments":{"multifd-channels":256}}"#,
            generic("Parameter 'multifd-channels' expects uint8_t"),
        ),
        (
            r#"{"execute":"migrate-set-parameters","arguments":{"downtime-limit":1,"announce-step":0}}"#,
            generic("Parameter 'announce_step' expects a value between 0 and 10000"),
        ),
        (r#"{"execute":"migrate-set-parameters","arguments":{"max-bandwidth":-1,"tls-creds":null}}"#, ok()),
        (r#"{"execute":"migrate-set-parameters"}"#, ok()),
        (r#"{"execute":"pmemsave"}"#, generic("Parameter 'val' is missing")),
        (
            r#"{"execute":"pmemsave","arguments":{"val":0,"size":1.5,"filename":"/tmp/x"}}"#,
            generic("Parameter 'size' expects uint64"),
        ),
        (
            r#"{"execute":"pmemsave","arguments":{"val":0,"size":16,"filename":"/nonexist/x"}}"#,
            generic("Could not open '/nonexist/x': No such file or directory"),
        ),
        // Descriptors that don't come, and that aren't held.
        (r#"{"execute":"getfd"}"#, generic("Parameter 'fdname' is missing")),
        (
            r#"{"execute":"getfd","arguments":{"fdname":"a"}}"#,
            generic("No file descriptor supplied via SCM_RIGHTS"),
        ),
        (
            r#"{"execute":"closefd","arguments":{"fdname":"a"}}"#,
            generic("File descriptor named 'a' not found"),
        ),
        (r#"{"execute":"add-fd"}"#, generic("No file descriptor supplied via SCM_RIGHTS")),
        (r#"{"execute":"query-fdsets"}"#, json!({"return": []})),
        (
            r#"{"execute":"remove-fd","arguments":{"fdset-id":9}}"#,
            generic("File descriptor named 'fdset-id:9' not found"),
        ),
        (
            r#"{"execute":"remove-fd","arguments":{"fdset-id":9,"fd":5}}"#,
            generic("File descriptor named 'fdset-id:9, fd:5' not found"),
        ),
        (
            r#"{"execute":"remove-fd","arguments":{"fdset-id":"x"}}"#,
            generic("Invalid parameter type for 'fdset-id', expected: integer"),
        ),
        (
            r#"{"execute":"migrate","arguments":{"uri":"fd:nope"}}"#,
            generic("File descriptor named 'nope' has not been found"),
        ),
        (
            r#"{"execute":"migrate","arguments":{"uri":"fd:99999"}}"#,
            generic("File descriptor named '99999' has not been found"),
        ),
        (r#"{"execute":"migrate","arguments":{"uri":"fd:"}}"#, generic("invalid file descriptor address")),
        (r#"{"execute":"migrate","arguments":{"uri":"unix:"}}"#, generic("invalid Unix socket address")),
        (r#"{"execute":"migrate","arguments":{"uri":"vsock:1"}}"#, generic("error parsing address '1'")),
        (
            r#"{"execute":"migrate","arguments":{"uri":"file:/dev/fdset/99"}}"#,
            generic("Failed to find fdset /dev/fdset/99"),
        ),
        (
            r#"{"execute":"migrate","arguments":{"uri":"file:/x,offset=q"}}"#,
            generic("file URI has bad offset q: Invalid argument"),
        ),
        (r#"{"execute":"query-migrationthreads"}"#, json!({"return": []})),
        (r#"{"execute":"query-name"}"#, ok()),
        (r#"{"execute":"query-uuid"}"#, json!({"return": {"UUID": "00000000-0000-0000-0000-000000000000"}})),
        ("{'execute':'stop','id':'single'}", json!({"return": {}, "id": "single"})),
    ];
    rows.into_iter()
        .map(|(request, answer)| Row { request: request.into(), answer })
        .chain(conflicts())
        .chain(ranges())
        .collect()
}

/// Capabilities that exclude or need each other: refused as a whole, so that nothing of it lasts.
fn conflicts() -> Vec<Row> {
    let snapshot = |name: &str| format!("Background-snapshot is not compatible with {name}");
    let pairs: [(&[&str], &str); 12] = [
        (&["postcopy-ram", "x-ignore-shared"], "Postcopy is not compatible with ignore-shared"),
        (&["postcopy-ram", "multifd"], "Postcopy is not yet compatible with multifd"),
        (&["postcopy-preempt"], "Postcopy preempt requires postcopy-ram"),
        (&["multifd", "xbzrle"], "Multifd is not compatible with xbzrle"),
        (&["zero-copy-send"], "Zero copy only available for non-compressed non-TLS multifd migration"),
        (
            &["zero-copy-send", "multifd", "xbzrle"],
            "Zero copy only available for non-compressed non-TLS multifd migration",
        ),
        (&["switchover-ack"], "Capability 'switchover-ack' requires capability 'return-path'"),
        (
            &["dirty-limit", "auto-converge"],
            "dirty-limit conflicts with auto-converge either of then available currently",
        ),
        (&["dirty-limit"], "dirty-limit requires KVM with accelerator property 'dirty-ring-size' set"),
        (&["mapped-ram", "xbzrle"], "Mapped-ram migration is incompatible with xbzrle"),
        (&["mapped-ram", "postcopy-ram"], "Mapped-ram migration is incompatible with postcopy"),
        (&["bogus"], "Parameter 'capability' does not accept value 'bogus'"),
    ];
    let excluded = [
        "postcopy-ram",
        "dirty-bitmaps",
        "postcopy-blocktime",
        "late-block-activate",
        "return-path",
        "multifd",
        "pause-before-switchover",
        "auto-converge",
        "release-ram",
        "rdma-pin-all",
        "xbzrle",
        "x-colo",
        "validate-uuid",
    ];
    let row = |names: &[&str], text: &str| {
        let on: Vec<_> = names.iter().map(|name| json!({"capability": name, "state": true})).collect();
        let request = json!({"execute": "migrate-set-capabilities", "arguments": {"capabilities": on}});
        Row { request: request.to_string(), answer: generic(text) }
    };
    let pairs = pairs.iter().map(|(names, text)| row(names, text));
    let excluded = excluded.iter().map(|name| row(&["background-snapshot", name], &snapshot(name)));
    pairs.chain(excluded).collect()
}

/// Parameters out of their ranges. Each value at and beyond each limit is compared in `real_qemu.rs`.
fn ranges() -> Vec<Row> {
    let rows = [
        (
            "downtime-limit",
            json!(2_000_001),
            "Parameter 'downtime_limit' expects an integer in the range of 0 to (2000 * 1000) ms",
        ),
        ("multifd-channels", json!(0), "Parameter 'multifd_channels' expects a value between 1 and 255"),
        ("multifd-channels", json!(256), "Parameter 'multifd-channels' expects uint8_t"),
        (
            "xbzrle-cache-size",
            json!(4097),
            "Parameter 'xbzrle_cache_size' expects a power of two no less than the target page size",
        ),
        (
            "cpu-throttle-initial",
            json!(0),
            "Parameter 'cpu_throttle_initial' expects an integer in the range of 1 to 99",
        ),
        (
            "max-cpu-throttle",
            json!(100),
            "Parameter 'max_cpu_throttle' expects an integer in the range of cpu_throttle_initial to 99",
        ),
        ("vcpu-dirty-limit", json!(0), "Parameter 'vcpu_dirty_limit' must be greater than 1 MB/s"),
        ("bogus", json!(0), "Parameter 'bogus' is unexpected"),
        ("multifd-compression", json!("lz4"), "Parameter 'multifd-compression' does not accept value 'lz4'"),
    ];
    let row = |(name, value, text): (&str, Value, &str)| {
        let request = json!({"execute": "migrate-set-parameters", "arguments": {name: value}});
        Row { request: request.to_string(), answer: generic(text) }
    };
    rows.into_iter().map(row).collect()
}

/// What is said with a descriptor beside it (or without: false), and the answer of QEMU 10.0.2; on one connection. Numbers of
/// descriptors are replaced by 0.
pub(crate) fn with_descriptors() -> Vec<(bool, &'static str, Value)> {
    let ok = || json!({"return": {}});
    let added = |set: i64| json!({"return": {"fd": 0, "fdset-id": set}});
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
        (
            false,
            r#"{"execute":"query-fdsets"}"#,
            json!({"return": [
                {"fds": [{"fd": 0}, {"fd": 0, "opaque": "y"}], "fdset-id": 7},
                {"fds": [{"fd": 0, "opaque": "x"}], "fdset-id": 1},
                {"fds": [{"fd": 0}], "fdset-id": 0},
            ]}),
        ),
        (
            false,
            r#"{"execute":"migrate","arguments":{"uri":"file:/dev/fdset/7"}}"#,
            generic("Failed to find file descriptor with matching flags=0x41"),
        ),
        (
            false,
            r#"{"execute":"remove-fd","arguments":{"fdset-id":7,"fd":9999}}"#,
            generic("File descriptor named 'fdset-id:7, fd:9999' not found"),
        ),
        (false, r#"{"execute":"remove-fd","arguments":{"fdset-id":7}}"#, ok()),
        (
            false,
            r#"{"execute":"query-fdsets"}"#,
            json!({"return": [
                {"fds": [{"fd": 0, "opaque": "x"}], "fdset-id": 1},
                {"fds": [{"fd": 0}], "fdset-id": 0},
            ]}),
        ),
    ]
}

/// Holds the conversation of [`with_descriptors`], on a connection that has negotiated.
pub(crate) fn converse_with_descriptors(raw: &mut Raw) {
    let file = std::fs::File::open("/dev/null").unwrap();
    for (with, request, expected) in with_descriptors() {
        let mut answer = if with { raw.ask_with(request, &[file.as_fd()]) } else { raw.ask(request) };
        without_numbers(&mut answer);
        assert_eq!(answer, expected, "{request}");
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

/// What is refused in the midst of a move and after it, on a fresh machine's connection that has negotiated. QEMU 7.2.22 and
/// 10.0.2 say the same.
pub(crate) fn converse_while_moving(raw: &mut Raw) {
    let ok = || json!({"return": {}});
    let migrate = r#"{"execute":"migrate","arguments":{"uri":"tcp:127.0.0.1:1"}}"#;
    let refused_when_moving: [(&str, &str); 5] = [
        (migrate, "There's a migration process in progress"),
        (
            r#"{"execute":"migrate-set-capabilities","arguments":{"capabilities":[{"capability":"events","state":false}]}}"#,
            "There's a migration process in progress",
        ),
        (
            r#"{"execute":"migrate-continue","arguments":{"state":"device"}}"#,
            "Migration not in expected state: pre-switchover",
        ),
        (r#"{"execute":"cont"}"#, "Migration is not finalized yet"),
        (r#"{"execute":"migrate-incoming","arguments":{"uri":"tcp:127.0.0.1:0"}}"#, NOT_INCOMING),
    ];
    raw.ask(r#"{"execute":"migrate-set-capabilities","arguments":{"capabilities":[{"capability":"pause-before-switchover","state":true}]}}"#);
    assert_eq!(raw.ask(r#"{"execute":"cont"}"#), ok());
    assert_eq!(raw.ask(r#"{"execute":"migrate","arguments":{"uri":"exec:cat > /dev/null"}}"#), ok());
    raw.await_status("pre-switchover");
    for (request, text) in refused_when_moving {
        assert_eq!(raw.ask(request), generic(text), "{request}");
    }
    assert_eq!(raw.ask(r#"{"execute":"migrate-continue","arguments":{"state":"pre-switchover"}}"#), ok());
    raw.await_status("completed");
    let gone = "Can't migrate the vm that was paused due to previous migration";
    assert_eq!(raw.ask(migrate), generic(gone));
    assert_eq!(raw.ask(r#"{"execute":"cont"}"#), ok());
    assert_eq!(raw.ask(migrate), ok(), "whether anybody is there is told by query-migrate");
    let info = raw.await_status("failed");
    assert_eq!(info["error-desc"], "Failed to connect to '127.0.0.1:1': Connection refused");
}

const NOT_INCOMING: &str = "'-incoming' was not specified on the command line";

/// What a machine refuses that awaits a guest and has not been told where from, on a connection that has negotiated. `since_10`:
/// also what QEMU 7.2 doesn't know.
pub(crate) fn converse_while_awaiting(raw: &mut Raw, since_10: bool) {
    let migrate = r#"{"execute":"migrate","arguments":{"uri":"tcp:127.0.0.1:1"}}"#;
    assert_eq!(raw.ask(migrate), generic("Guest is waiting for an incoming migration"));
    if since_10 {
        let channel =
            json!({"channel-type": "main", "addr": {"transport": "socket", "type": "unix", "path": "/x"}});
        for (arguments, text) in [
            (json!({}), "need either 'uri' or 'channels' argument"),
            (json!({"uri": "tcp:h:1", "channels": [channel]}), "need either 'uri' or 'channels' argument"),
            (
                json!({"channels": [channel, channel]}),
                "Channel list must have only one entry, for type 'main'",
            ),
        ] {
            let request = json!({"execute": "migrate-incoming", "arguments": arguments}).to_string();
            assert_eq!(raw.ask(&request), generic(text), "{request}");
        }
    }
    let incoming = r#"{"execute":"migrate-incoming","arguments":{"uri":"tcp:127.0.0.1:0"}}"#;
    assert_eq!(raw.ask(incoming), json!({"return": {}}));
    assert_eq!(raw.ask(incoming), generic("The incoming migration has already been started"));
    assert_eq!(raw.ask(migrate), generic("Guest is waiting for an incoming migration"));
    if since_10 {
        for (capability, text) in [
            (["events", "multifd"], "Multifd must be set before incoming starts"),
            (["postcopy-ram", "postcopy-preempt"], "Postcopy preempt must be set before incoming starts"),
        ] {
            let on = capability.map(|name| json!({"capability": name, "state": true}));
            let request = json!({"execute": "migrate-set-capabilities", "arguments": {"capabilities": on}});
            assert_eq!(raw.ask(&request.to_string()), generic(text), "{request}");
        }
    }
}
