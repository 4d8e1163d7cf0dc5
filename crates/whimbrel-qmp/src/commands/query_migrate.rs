//! `query-migrate`: QEMU's MigrationInfo, member by member, and which are present when.
//!
//! | member | unit | present when |
//! |---|---|---|
//! | `status` | | a migration was ever started; an incoming one listens |
//! | `ram`, `total-time`, `setup-time` | bytes and pages, ms | outgoing: active, cancelling, pre-switchover, device, completed |
//! | `expected-downtime` | ms | with `ram`, until completed |
//! | `downtime` | ms | completed |
//! | `error-desc` | | an error is recorded |
//! | `blocked-reasons` | | something blocks a migration |
//! | `socket-address` | | incoming: listens on a socket |
//! | `whimbrel` | named in each | outgoing: our own figures, in one member so that none is taken for QEMU's |
//!
//! Which of them a status has is decided where they are counted; here what is there is written down.

use std::time::Duration;

use serde_json::{Map, Value, json};
use whimbrel::channel::Address;
use whimbrel::engine::{IncomingInfo, MigrationInfo};
use whimbrel::proto::source::{Info, Pause, RamInfo};
use whimbrel::proto::status::MigrationStatus;

/// The answer.
pub(super) fn to_json(info: &MigrationInfo, blockers: &[String]) -> Value {
    let mut members = match info {
        MigrationInfo::Outgoing(info) => outgoing(info),
        MigrationInfo::Incoming(info) => incoming(info),
        _ => Map::new(),
    };
    if !blockers.is_empty() {
        members.insert("blocked-reasons".into(), json!(blockers));
    }
    Value::Object(members)
}

fn outgoing(info: &Info) -> Map<String, Value> {
    let own = json!({
        "fenced": info.fenced,
        "overruns": info.overruns,
        "extra-rounds": info.extra_rounds,
        "predicted-downtime-us": info.predicted_downtime.map(micros),
        "pause-us": info.pause.as_ref().map(pause),
    });
    members([
        ("status", status(info.status)),
        ("ram", info.ram.as_ref().map(ram)),
        ("total-time", info.total_time.map(millis)),
        ("setup-time", info.setup_time.map(millis)),
        ("expected-downtime", info.expected_downtime.map(millis)),
        ("downtime", info.downtime.map(millis)),
        ("error-desc", info.error.as_deref().map(Value::from)),
        ("whimbrel", Some(present(own))),
    ])
}

fn incoming(info: &IncomingInfo) -> Map<String, Value> {
    members([
        ("status", status(info.status)),
        ("error-desc", info.error.as_deref().map(Value::from)),
        ("socket-address", info.socket_address.as_ref().and_then(socket_address)),
    ])
}

fn status(status: MigrationStatus) -> Option<Value> {
    (status != MigrationStatus::None).then(|| status.name().into())
}

/// What post-copy, multifd and zero copy count is 0 as long as none of them is used, as in QEMU.
fn ram(ram: &RamInfo) -> Value {
    json!({
        "transferred": ram.transferred,
        "remaining": ram.remaining,
        "total": ram.total,
        "duplicate": ram.duplicate,
        "normal": ram.normal,
        "normal-bytes": ram.normal_bytes,
        "dirty-pages-rate": ram.dirty_pages_rate,
        "mbps": ram.mbps,
        "dirty-sync-count": ram.dirty_sync_count,
        "dirty-sync-missed-zero-copy": 0,
        "postcopy-requests": 0,
        "page-size": ram.page_size,
        "multifd-bytes": 0,
        "pages-per-second": ram.pages_per_second,
        "precopy-bytes": ram.precopy_bytes,
        "downtime-bytes": ram.downtime_bytes,
        "postcopy-bytes": 0,
    })
}

fn pause(pause: &Pause) -> Value {
    json!({
        "stop": micros(pause.stop),
        "user": micros(pause.user),
        "ram": micros(pause.ram),
        "devices": micros(pause.devices),
        "confirm": micros(pause.confirm),
        "commit": micros(pause.commit),
        "shut": micros(pause.shut),
    })
}

/// A list, since QEMU's listener may have several addresses.
fn socket_address(address: &Address) -> Option<Value> {
    match address {
        Address::Tcp { host, port, .. } => Some(json!([{"type": "inet", "host": host, "port": port}])),
        Address::Unix(path) => Some(json!([{"type": "unix", "path": path}])),
        Address::Abstract { name, tight } => {
            Some(json!([{"type": "unix", "path": name, "abstract": true, "tight": tight}]))
        }
        Address::Vsock { cid, port } => Some(json!([{"type": "vsock", "cid": cid, "port": port}])),
        _ => None,
    }
}

fn members<const N: usize>(members: [(&str, Option<Value>); N]) -> Map<String, Value> {
    members.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect()
}

/// The object without the members that are null.
fn present(mut object: Value) -> Value {
    if let Some(members) = object.as_object_mut() {
        members.retain(|_, value| !value.is_null());
    }
    object
}

fn millis(time: Duration) -> Value {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX).into()
}

fn micros(time: Duration) -> Value {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(value: &Value) -> Vec<&str> {
        let mut names: Vec<_> = value.as_object().unwrap().keys().map(String::as_str).collect();
        names.sort_unstable();
        names
    }

    fn shown(info: Info) -> Value {
        to_json(&MigrationInfo::Outgoing(Box::new(info)), &[])
    }

    fn active() -> Info {
        Info {
            status: MigrationStatus::Active,
            total_time: Some(Duration::from_micros(1_234_999)),
            setup_time: Some(Duration::from_millis(7)),
            expected_downtime: Some(Duration::from_millis(300)),
            ram: Some(RamInfo { transferred: 5, mbps: 1.5, page_size: 4096, ..Default::default() }),
            ..Default::default()
        }
    }

    #[test]
    fn nothing_is_shown_when_nothing_ever_happened() {
        assert_eq!(to_json(&MigrationInfo::None, &[]), json!({}));
        assert_eq!(
            to_json(&MigrationInfo::None, &["a blocker".into()]),
            json!({"blocked-reasons": ["a blocker"]})
        );
    }

    #[test]
    fn an_active_migration_shows_ram_and_times_but_no_downtime() {
        let value = shown(active());
        assert_eq!(
            names(&value),
            ["expected-downtime", "ram", "setup-time", "status", "total-time", "whimbrel"]
        );
        assert_eq!(value["status"], "active");
        assert_eq!((&value["total-time"], &value["setup-time"]), (&json!(1234), &json!(7)), "milliseconds");
        assert_eq!(value["whimbrel"], json!({"fenced": false, "overruns": 0, "extra-rounds": 0}));
    }

    #[test]
    fn ram_has_the_members_of_qemu_10() {
        let value = shown(active());
        assert_eq!(
            names(&value["ram"]),
            [
                "dirty-pages-rate",
                "dirty-sync-count",
                "dirty-sync-missed-zero-copy",
                "downtime-bytes",
                "duplicate",
                "mbps",
                "multifd-bytes",
                "normal",
                "normal-bytes",
                "page-size",
                "pages-per-second",
                "postcopy-bytes",
                "postcopy-requests",
                "precopy-bytes",
                "remaining",
                "total",
                "transferred"
            ]
        );
        assert_eq!((&value["ram"]["mbps"], &value["ram"]["transferred"]), (&json!(1.5), &json!(5)));
    }

    #[test]
    fn a_completed_one_shows_its_downtime_and_every_part_of_the_pause() {
        let value = shown(Info {
            status: MigrationStatus::Completed,
            expected_downtime: None,
            downtime: Some(Duration::from_millis(12)),
            fenced: true,
            predicted_downtime: Some(Duration::from_micros(9_500)),
            pause: Some(Pause { ram: Duration::from_micros(8_000), ..Default::default() }),
            ..active()
        });
        assert_eq!(names(&value), ["downtime", "ram", "setup-time", "status", "total-time", "whimbrel"]);
        assert_eq!(value["downtime"], 12);
        assert_eq!(value["whimbrel"]["predicted-downtime-us"], 9_500);
        assert_eq!(value["whimbrel"]["pause-us"]["ram"], 8_000);
        assert_eq!(value["whimbrel"]["fenced"], true);
    }

    #[test]
    fn a_failed_one_says_why() {
        let error = "Failed to connect to '127.0.0.1:1': Connection refused";
        let value =
            shown(Info { status: MigrationStatus::Failed, error: Some(error.into()), ..Default::default() });
        assert_eq!(names(&value), ["error-desc", "status", "whimbrel"]);
        assert_eq!(value["error-desc"], error);
    }

    #[test]
    fn a_destination_shows_where_it_listens() {
        let address = Address::parse("tcp:127.0.0.1:4444").unwrap();
        let info = IncomingInfo {
            status: MigrationStatus::Setup,
            socket_address: Some(address),
            ..Default::default()
        };
        assert_eq!(
            to_json(&MigrationInfo::Incoming(info), &[]),
            json!({"status": "setup", "socket-address": [{"type": "inet", "host": "127.0.0.1", "port": "4444"}]})
        );
    }
}
