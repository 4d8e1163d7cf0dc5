//! The engine's events as QMP's.

use std::time::UNIX_EPOCH;

use serde_json::{Value, json};
use whimbrel::events::{EngineEvent, TimedEvent};
use whimbrel::wire::qemu_texts::event as name;

/// The message of an event; `None` for what QMP has no event for. The engine tells MIGRATION and MIGRATION_PASS only with the
/// capability `events`.
pub(crate) fn to_message(event: &TimedEvent) -> Option<Value> {
    let (name, data) = match &event.event {
        EngineEvent::Stop => (name::STOP, None),
        EngineEvent::Resume => (name::RESUME, None),
        EngineEvent::Reset { guest, reason } => {
            (name::RESET, Some(json!({"guest": guest, "reason": reason})))
        }
        EngineEvent::Shutdown { guest, reason } => {
            (name::SHUTDOWN, Some(json!({"guest": guest, "reason": reason})))
        }
        EngineEvent::Migration(status) => (name::MIGRATION, Some(json!({"status": status.name()}))),
        EngineEvent::MigrationPass(pass) => (name::MIGRATION_PASS, Some(json!({"pass": pass}))),
        _ => return None,
    };
    let at = event.at.duration_since(UNIX_EPOCH).unwrap_or_default();
    let timestamp = json!({"seconds": at.as_secs(), "microseconds": at.subsec_micros()});
    Some(match data {
        Some(data) => json!({"timestamp": timestamp, "event": name, "data": data}),
        None => json!({"timestamp": timestamp, "event": name}),
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use whimbrel::proto::status::MigrationStatus;

    use super::*;

    #[test]
    fn every_event_has_its_name_its_data_and_its_time() {
        for (event, name, data) in [
            (EngineEvent::Stop, "STOP", None),
            (EngineEvent::Resume, "RESUME", None),
            (
                EngineEvent::Reset { guest: false, reason: "host-qmp-system-reset" },
                "RESET",
                Some(json!({"guest": false, "reason": "host-qmp-system-reset"})),
            ),
            (
                EngineEvent::Shutdown { guest: true, reason: "guest-shutdown" },
                "SHUTDOWN",
                Some(json!({"guest": true, "reason": "guest-shutdown"})),
            ),
            (
                EngineEvent::Migration(MigrationStatus::PreSwitchover),
                "MIGRATION",
                Some(json!({"status": "pre-switchover"})),
            ),
            (EngineEvent::MigrationPass(3), "MIGRATION_PASS", Some(json!({"pass": 3}))),
        ] {
            let at = UNIX_EPOCH + Duration::new(1_795_306_001, 111_294_999);
            let message = to_message(&TimedEvent { at, event }).unwrap();
            assert_eq!(message["event"], name);
            assert_eq!(message.get("data"), data.as_ref(), "absent where there is none");
            assert_eq!(message["timestamp"], json!({"seconds": 1_795_306_001, "microseconds": 111_294}));
        }
    }
}
