//! What depends on the moment: in the midst of a move, after it, while a guest is awaited; and features that exclude each other
//! only when a migration is asked for.

use serde_json::json;

use super::commands::UNKNOWN_PROTOCOL_7;
use super::{
    Asked, Raw, Row, differs, generic, migrate, not_found, ok, same, set_capabilities, set_parameter,
};

/// What is refused in the midst of a move and after it, on a fresh machine's connection that has negotiated. QEMU 7.2.22 and
/// 10.0.2 say the same.
pub(crate) fn converse_while_moving(raw: &mut Raw) {
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

/// What a machine refuses that awaits a guest and has not been told where from, on a connection that has negotiated. QEMU 7.2 knows
/// no channels, and takes capabilities after it has begun to listen.
pub(crate) fn converse_while_awaiting(raw: &mut Raw, asked: Asked) {
    let since_10 = asked != Asked::Qemu7;
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

/// Features that a `migrate` or another command is refused for, each conversation on a fresh machine that has negotiated. What
/// whimbrel has not built it refuses by name, and then goes on without it.
pub(crate) fn together() -> Vec<Vec<Row>> {
    let unknown = |name: &str| generic(&format!("Parameter 'capability' does not accept value '{name}'"));
    let not_built = |name: &str| generic(&format!("Capability '{name}' is not built into this whimbrel yet"));
    let not_with_multifd = generic("Zero copy only available for non-compressed non-TLS multifd migration");
    let set = |name: &str| same(set_capabilities(&[name], true), ok()).here(not_built(name));
    let (zlib, tls) = (json!("zlib"), json!("x"));
    let zero_copy = || set_capabilities(&["zero-copy-send", "multifd"], true);
    let postcopy = r#"{"execute":"migrate-start-postcopy"}"#;
    let no_postcopy = not_found("The command migrate-start-postcopy has not been found");
    let refused_by_10 = |uri: &str, text: &str| differs(migrate(uri), generic(text), ok()).here(ok());
    let mapped = || {
        differs(set_capabilities(&["mapped-ram"], true), ok(), unknown("mapped-ram"))
            .here(not_built("mapped-ram"))
    };
    let to_a_file = |text: &str| {
        differs(migrate("file:/dev/null"), generic(text), generic(UNKNOWN_PROTOCOL_7)).here(ok())
    };
    vec![
        vec![
            set("postcopy-ram"),
            same(postcopy, generic("Postcopy must be started after migration has been started"))
                .here(no_postcopy),
        ],
        vec![
            set("multifd"),
            refused_by_10("exec:cat > /dev/null", "Migration requires multi-channel URIs (e.g. tcp)"),
        ],
        vec![mapped(), refused_by_10("tcp:127.0.0.1:1", "Migration requires seekable transport (e.g. file)")],
        vec![
            mapped(),
            refused_by_10("exec:cat > /dev/null", "Migration requires seekable transport (e.g. file)"),
        ],
        vec![
            same(set_parameter("tls-creds", &tls), ok()),
            mapped(),
            to_a_file("Cannot use TLS with mapped-ram"),
        ],
        vec![
            same(set_parameter("multifd-compression", &zlib), ok()),
            mapped(),
            to_a_file("Cannot use compression with mapped-ram"),
        ],
        vec![
            same(set_parameter("multifd-compression", &zlib), ok()),
            same(zero_copy(), not_with_multifd.clone()),
        ],
        vec![same(set_parameter("tls-creds", &tls), ok()), same(zero_copy(), not_with_multifd.clone())],
    ]
}
