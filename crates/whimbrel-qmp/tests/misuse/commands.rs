//! Envelopes, commands and their arguments.

use serde_json::{Value, json};

use super::{Row, differs, generic, not_found, ok, same};

/// What 7.2 says to an unknown scheme; `file:` is one there.
pub(super) const UNKNOWN_PROTOCOL_7: &str = "Parameter 'uri' expects a valid migration protocol";

/// In this order, on one connection to a fresh machine that awaits nobody and has never migrated; the whole conversation. After a
/// refused `migrate` 7.2's status is `failed`.
pub(crate) fn conversation() -> Vec<Row> {
    let expecting = not_found("Expecting capabilities negotiation with 'qmp_capabilities'");
    let no_json = |text: &str| generic(&format!("JSON parse error, {text}"));
    vec![
        // Before negotiation.
        same(r#"{"execute":"query-status"}"#, expecting.clone()),
        same(r#"{"execute":"bogus","id":[3]}"#, json!({"id": [3], "error": expecting["error"]})),
        same(
            r#"{"id":3}"#,
            json!({"id": 3, "error": {"class": "GenericError", "desc": "QMP input lacks member 'execute'"}}),
        ),
        same(r#"{"exec-oob":"qmp_capabilities"}"#, generic("QMP input member 'exec-oob' is unexpected")),
        same(
            r#"{"execute":"qmp_capabilities","arguments":{"enable":["foo"]}}"#,
            generic("Parameter 'null' does not accept value 'foo'"),
        ),
        same(
            r#"{"execute":"qmp_capabilities","arguments":{"enable":5}}"#,
            generic("Invalid parameter type for 'enable', expected: array"),
        ),
        same(
            r#"{"execute":"qmp_capabilities","arguments":{"foo":5}}"#,
            generic("Parameter 'foo' is unexpected"),
        ),
        same(r#"{"execute":"qmp_capabilities","arguments":{"enable":["oob"]}}"#, ok()),
        same(
            r#"{"execute":"qmp_capabilities"}"#,
            not_found("Capabilities negotiation is already complete, command ignored"),
        ),
        // Envelopes.
        same("[1]", generic("QMP input must be a JSON object")),
        same("null", generic("QMP input must be a JSON object")),
        same("{}", generic("QMP input lacks member 'execute'")),
        same(r#"{"foo":1}"#, generic("QMP input member 'foo' is unexpected")),
        same(r#"{"execute":5}"#, generic("QMP input member 'execute' must be a string")),
        same(
            r#"{"execute":"stop","arguments":5}"#,
            generic("QMP input member 'arguments' must be an object"),
        ),
        same(r#"{"execute":"stop","x":5}"#, generic("QMP input member 'x' is unexpected")),
        same(r#"{"execute":"bogus"}"#, not_found("The command bogus has not been found")),
        same(r#"{"exec-oob":5}"#, generic("QMP input member 'exec-oob' must be a string")),
        same(r#"{"exec-oob":"bogus"}"#, not_found("The command bogus has not been found")),
        same(r#"{"exec-oob":"query-status"}"#, generic("The command query-status does not support OOB")),
        same(
            r#"{"exec-oob":"stop","execute":"stop"}"#,
            generic("QMP input member 'execute' clashes with 'exec-oob'"),
        ),
        // No JSON.
        same("garbage", no_json("invalid keyword 'garbage'")),
        same(r#"{"execute":"stop" "id":1}"#, no_json("expected separator in dict")),
        same(r#"{"id":1,"id":2}"#, no_json("duplicate key")),
        same("}", no_json("expecting value")),
        // Arguments.
        same(r#"{"execute":"stop","arguments":{"x":1}}"#, generic("Parameter 'x' is unexpected")),
        differs(
            r#"{"execute":"migrate"}"#,
            generic("need either 'uri' or 'channels' argument"),
            generic("Parameter 'uri' is missing"),
        ),
        same(
            r#"{"execute":"migrate","arguments":{"uri":5}}"#,
            generic("Invalid parameter type for 'uri', expected: string"),
        ),
        same(
            r#"{"execute":"migrate","arguments":{"uri":"tcp:h:1","detach":5}}"#,
            generic("Invalid parameter type for 'detach', expected: boolean"),
        ),
        same(
            r#"{"execute":"migrate","arguments":{"uri":"tcp:1","bogus":1}}"#,
            generic("Parameter 'bogus' is unexpected"),
        ),
        differs(
            r#"{"execute":"migrate","arguments":{"uri":"foo:bar"}}"#,
            generic("unknown migration protocol: foo:bar"),
            generic(UNKNOWN_PROTOCOL_7),
        ),
        same(
            r#"{"execute":"migrate","arguments":{"uri":"tcp:127.0.0.1"}}"#,
            generic("error parsing address '127.0.0.1'"),
        ),
        same(
            r#"{"execute":"migrate","arguments":{"resume":true,"uri":"tcp:127.0.0.1:1"}}"#,
            generic("Cannot resume if there is no paused migration"),
        ),
        differs(
            r#"{"execute":"migrate","arguments":{"channels":[{"channel-type":"main","addr":{"transport":"foo"}}]}}"#,
            generic("Parameter 'transport' does not accept value 'foo'"),
            generic("Parameter 'uri' is missing"),
        ),
        differs(
            r#"{"execute":"migrate-incoming"}"#,
            generic("'-incoming' was not specified on the command line"),
            generic("Parameter 'uri' is missing"),
        ),
        same(
            r#"{"execute":"migrate-incoming","arguments":{"uri":"tcp:127.0.0.1:0"}}"#,
            generic("'-incoming' was not specified on the command line"),
        ),
        same(r#"{"execute":"migrate_cancel"}"#, ok()),
        same(r#"{"execute":"migrate-continue"}"#, generic("Parameter 'state' is missing")),
        same(
            r#"{"execute":"migrate-continue","arguments":{"state":"foo"}}"#,
            generic("Parameter 'state' does not accept value 'foo'"),
        ),
        differs(
            r#"{"execute":"migrate-continue","arguments":{"state":"pre-switchover"}}"#,
            generic("Migration not in expected state: none"),
            generic("Migration not in expected state: failed"),
        ),
        differs(
            r#"{"execute":"query-migrate"}"#,
            ok(),
            json!({"return": {"status": "failed", "error-desc": "error parsing address '127.0.0.1'"}}),
        ),
        same(r#"{"execute":"migrate-set-capabilities"}"#, generic("Parameter 'capabilities' is missing")),
        same(
            r#"{"execute":"migrate-set-capabilities","arguments":{"capabilities":[{"capability":"X","state":true}]}}"#,
            generic("Parameter 'capability' does not accept value 'X'"),
        ),
        same(
            r#"{"execute":"migrate-set-capabilities","arguments":{"capabilities":[{"capability":"events","state":1}]}}"#,
            generic("Invalid parameter type for 'capabilities[0].state', expected: boolean"),
        ),
        same(
            r#"{"execute":"migrate-set-parameters","arguments":{"downtime-limit":1,"announce-step":0}}"#,
            generic("Parameter 'announce_step' expects a value between 0 and 10000"),
        ),
        same(
            r#"{"execute":"migrate-set-parameters","arguments":{"max-bandwidth":-1,"tls-creds":null}}"#,
            ok(),
        ),
        same(r#"{"execute":"migrate-set-parameters"}"#, ok()),
        same(r#"{"execute":"pmemsave"}"#, generic("Parameter 'val' is missing")),
        differs(
            r#"{"execute":"pmemsave","arguments":{"val":0,"size":1.5,"filename":"/tmp/x"}}"#,
            generic("Parameter 'size' expects uint64"),
            generic("Invalid parameter type for 'size', expected: integer"),
        ),
        same(
            r#"{"execute":"pmemsave","arguments":{"val":0,"size":16,"filename":"/nonexist/x"}}"#,
            generic("Could not open '/nonexist/x': No such file or directory"),
        ),
        // Descriptors that don't come, and that aren't held.
        same(r#"{"execute":"getfd"}"#, generic("Parameter 'fdname' is missing")),
        same(
            r#"{"execute":"getfd","arguments":{"fdname":"a"}}"#,
            generic("No file descriptor supplied via SCM_RIGHTS"),
        ),
        same(
            r#"{"execute":"closefd","arguments":{"fdname":"a"}}"#,
            generic("File descriptor named 'a' not found"),
        ),
        same(r#"{"execute":"add-fd"}"#, generic("No file descriptor supplied via SCM_RIGHTS")),
        same(r#"{"execute":"query-fdsets"}"#, json!({"return": []})),
        same(
            r#"{"execute":"remove-fd","arguments":{"fdset-id":9}}"#,
            generic("File descriptor named 'fdset-id:9' not found"),
        ),
        same(
            r#"{"execute":"remove-fd","arguments":{"fdset-id":9,"fd":5}}"#,
            generic("File descriptor named 'fdset-id:9, fd:5' not found"),
        ),
        same(
            r#"{"execute":"remove-fd","arguments":{"fdset-id":"x"}}"#,
            generic("Invalid parameter type for 'fdset-id', expected: integer"),
        ),
        same(
            r#"{"execute":"migrate","arguments":{"uri":"fd:nope"}}"#,
            generic("File descriptor named 'nope' has not been found"),
        ),
        same(
            r#"{"execute":"migrate","arguments":{"uri":"fd:99999"}}"#,
            generic("File descriptor named '99999' has not been found"),
        ),
        differs(
            r#"{"execute":"migrate","arguments":{"uri":"fd:"}}"#,
            generic("invalid file descriptor address"),
            generic("File descriptor named '' has not been found"),
        ),
        same(r#"{"execute":"migrate","arguments":{"uri":"unix:"}}"#, generic("invalid Unix socket address")),
        same(r#"{"execute":"migrate","arguments":{"uri":"vsock:1"}}"#, generic("error parsing address '1'")),
        differs(
            r#"{"execute":"migrate","arguments":{"uri":"file:/dev/fdset/99"}}"#,
            generic("Failed to find fdset /dev/fdset/99"),
            generic(UNKNOWN_PROTOCOL_7),
        ),
        differs(
            r#"{"execute":"migrate","arguments":{"uri":"file:/x,offset=q"}}"#,
            generic("file URI has bad offset q: Invalid argument"),
            generic(UNKNOWN_PROTOCOL_7),
        ),
        differs(
            r#"{"execute":"query-migrationthreads"}"#,
            json!({"return": []}),
            not_found("The command query-migrationthreads has not been found"),
        ),
        same(r#"{"execute":"query-name"}"#, ok()),
        same(
            r#"{"execute":"query-uuid"}"#,
            json!({"return": {"UUID": "00000000-0000-0000-0000-000000000000"}}),
        ),
        same("{'execute':'stop','id':'single'}", json!({"return": {}, "id": "single"})),
    ]
}

/// Commands that whimbrel does not have yet, on a connection that has negotiated: what QEMU says to a wrong use of them.
pub(crate) fn not_built() -> Vec<Row> {
    let needs_ring = "dirty page limit feature requires KVM with accelerator property 'dirty-ring-size' set'";
    let rates = |unit: Value| {
        let mut members = json!({"status": "unstarted", "sample-pages": 0, "mode": "page-sampling", "start-time": 0, "calc-time": 0});
        if !unit.is_null() {
            members["calc-time-unit"] = unit;
        }
        json!({ "return": members })
    };
    let no_instance = json!({"error": {"class": "DeviceNotFound", "desc": "Instance not found"}});
    let missing = |name: &str| generic(&format!("Parameter '{name}' is missing"));
    let rows = [
        (
            "migrate-start-postcopy",
            json!({}),
            generic("Enable postcopy with migrate_set_capability before the start of migration"),
            None,
        ),
        ("migrate-recover", json!({}), missing("uri"), None),
        (
            "migrate-recover",
            json!({"uri": "tcp:127.0.0.1:1"}),
            generic("Migrate recover can only be run when postcopy is paused."),
            None,
        ),
        (
            "migrate-pause",
            json!({}),
            generic(
                "migrate-pause is currently only supported during postcopy-active or postcopy-recover state",
            ),
            Some(generic("migrate-pause is currently only supported during postcopy-active state")),
        ),
        ("calc-dirty-rate", json!({}), missing("calc-time"), None),
        (
            "calc-dirty-rate",
            json!({"calc-time": 61}),
            generic("Calculation time is out of range [50ms, 60000ms]."),
            Some(generic("calc-time is out of range[1, 60].")),
        ),
        ("query-dirty-rate", json!({}), rates("second".into()), Some(rates(Value::Null))),
        ("set-vcpu-dirty-limit", json!({"dirty-rate": 1}), generic(needs_ring), None),
        ("cancel-vcpu-dirty-limit", json!({}), ok(), None),
        ("query-vcpu-dirty-limit", json!({}), json!({"return": []}), None),
        ("announce-self", json!({}), missing("initial"), None),
        ("query-yank", json!({}), json!({"return": [{"type": "chardev", "id": "compat_monitor0"}]}), None),
        ("yank", json!({"instances": [{"type": "migration"}]}), no_instance, None),
        ("client_migrate_info", json!({}), missing("protocol"), None),
        ("snapshot-save", json!({}), missing("job-id"), None),
        ("snapshot-load", json!({}), missing("job-id"), None),
        (
            "x-colo-lost-heartbeat",
            json!({}),
            generic("VM is not in COLO mode"),
            Some(generic("The feature 'colo' is not enabled")),
        ),
        (
            "query-colo-status",
            json!({}),
            json!({"return": {"last-mode": "none", "mode": "none", "reason": "none"}}),
            None,
        ),
        ("xen-save-devices-state", json!({}), missing("filename"), None),
        ("query-xen-replication-status", json!({}), json!({"return": {"error": false}}), None),
    ];
    let row = |(command, arguments, in_10, in_7): (&str, Value, Value, Option<Value>)| {
        let request = json!({"execute": command, "arguments": arguments}).to_string();
        let in_7 = in_7.unwrap_or_else(|| in_10.clone());
        differs(request, in_10, in_7).here(not_found(&format!("The command {command} has not been found")))
    };
    rows.into_iter().map(row).collect()
}
