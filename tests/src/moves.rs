//! One migration between two machines, and waiting for what it becomes.

use std::time::Duration;

use serde_json::{Value, json};

use crate::{Vm, wait_for};

/// How long one step may take on a loaded machine.
pub const LIMIT: Duration = Duration::from_secs(240);
/// Whether the destination's answer is asked for.
const RETURN_PATH: &[&str] = &["return-path", "events"];

/// Turns the return path and events on at both ends.
#[track_caller]
pub fn with_return_path(source: &mut Vm, destination: &mut Vm) {
    source.enable(RETURN_PATH);
    destination.enable(RETURN_PATH);
}

/// Lets a machine started with `incoming: defer` listen on loopback, and gives the URI that reaches it.
#[track_caller]
pub fn listen(destination: &mut Vm) -> String {
    destination.qmp.ok("migrate-incoming", json!({ "uri": "tcp:127.0.0.1:0" }));
    let address = wait_for("the listening address", Duration::from_secs(180), || {
        let address = destination.migration()["socket-address"][0].clone();
        address.is_object().then_some(address)
    });
    let text = |member: &str| {
        address[member].as_str().unwrap_or_else(|| panic!("{address}: no {member}")).to_owned()
    };
    format!("tcp:{}:{}", text("host"), text("port"))
}

/// Moves the guest over TCP on loopback with the return path on, and waits until both ends say `completed`. Returns the
/// source's `query-migrate`.
///
/// # Panics
/// If it fails, with both ends' words, or takes longer than `limit`.
#[track_caller]
pub fn migrate(source: &mut Vm, destination: &mut Vm, limit: Duration) -> Value {
    with_return_path(source, destination);
    let uri = listen(destination);
    source.qmp.ok("migrate", json!({ "uri": uri }));
    let info = wait_end(source, limit);
    assert_eq!(
        info["status"],
        "completed",
        "source: {info}\ndestination printed: {}",
        destination.process.log()
    );
    wait_for("the destination's guest", Duration::from_secs(180), || {
        (destination.run_state() != "inmigrate").then_some(())
    });
    info
}

/// Waits until the source's migration has ended, one way or another, and returns its `query-migrate`.
#[track_caller]
pub fn wait_end(source: &mut Vm, limit: Duration) -> Value {
    wait_for("the migration's end", limit, || {
        let info = source.migration();
        matches!(info["status"].as_str(), Some("completed" | "failed" | "cancelled")).then_some(info)
    })
}

/// Waits until the machine's migration has one of these statuses, and returns which.
#[track_caller]
pub fn wait_status(vm: &mut Vm, statuses: &[&str], limit: Duration) -> String {
    wait_for(&format!("migration status {}", statuses.join(" or ")), limit, || {
        let status = vm.migration_status();
        statuses.contains(&status.as_str()).then_some(status)
    })
}

/// Saves the guest to a file or socket by URI, and waits for `completed`.
#[track_caller]
pub fn save(source: &mut Vm, uri: &str, limit: Duration) -> Value {
    source.qmp.ok("migrate", json!({ "uri": uri }));
    let info = wait_end(source, limit);
    assert_eq!(info["status"], "completed", "{info}");
    info
}

/// Lets a machine started with `incoming: defer` load from a URI, and waits until it has.
#[track_caller]
pub fn load(destination: &mut Vm, uri: &str, limit: Duration) {
    destination.qmp.ok("migrate-incoming", json!({ "uri": uri }));
    wait_for("the stream to be loaded", limit, || {
        if let Some(status) = destination.process.ended() {
            panic!("the destination ended with {status}: {}", destination.process.log());
        }
        (destination.run_state() != "inmigrate").then_some(())
    });
}
