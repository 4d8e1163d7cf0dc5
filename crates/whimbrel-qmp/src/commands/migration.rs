//! Moving: `migrate`, `migrate_cancel`, `migrate-continue`, `migrate-incoming`, `query-migrate`, `query-migrationthreads`.

use serde_json::{Value, json};
use whimbrel::error::CommandError;
use whimbrel::proto::status::MigrationStatus;
use whimbrel::wire::qemu_texts;

use super::channels::{self, Channel};
use super::query_migrate;
use crate::arguments::{FromValue, NoArguments, arguments, enumeration};
use crate::command::{Command, Runs};
use crate::server::Vm;

pub(super) fn commands() -> Vec<Command> {
    vec![
        Command::new("migrate", Runs::MainLoop, migrate),
        Command::new("migrate_cancel", Runs::MainLoop, |vm: &Vm, _: NoArguments| {
            vm.engine.migrate_cancel().map(|()| json!({}))
        }),
        Command::new("migrate-continue", Runs::MainLoop, migrate_continue),
        Command::new("migrate-incoming", Runs::MainLoop, migrate_incoming),
        Command::new("query-migrationthreads", Runs::ReadOnly, query_threads),
        Command::new("query-migrate", Runs::ReadOnly, |vm: &Vm, _: NoArguments| {
            Ok(query_migrate::to_json(&vm.engine.migration_info(), &vm.engine.blockers()))
        }),
    ]
}

arguments! {
    /// Of `migrate`.
    struct Migrate {
        uri: Option<String> = "uri",
        channels: Option<Vec<Channel>> = "channels",
        #[expect(dead_code, reason = "ignored, as in QEMU")]
        detach: Option<bool> = "detach",
        resume: Option<bool> = "resume",
    }

    /// Of `migrate-continue`.
    struct Continue {
        state: MigrationStatus = "state",
    }

    /// Of `migrate-incoming`.
    struct Incoming {
        uri: Option<String> = "uri",
        channels: Option<Vec<Channel>> = "channels",
        exit_on_error: Option<bool> = "exit-on-error",
    }
}

impl FromValue for MigrationStatus {
    fn from_value(value: Value, path: &str) -> Result<Self, CommandError> {
        enumeration(value, path, Self::from_name)
    }
}

fn migrate(vm: &Vm, arguments: Migrate) -> Result<Value, CommandError> {
    let Migrate { uri, channels, resume, .. } = arguments;
    let address = channels::outgoing(uri, channels)?;
    vm.engine.migrate(address, resume.unwrap_or(false))?;
    Ok(json!({}))
}

/// The one that sends, as in QEMU; those that read and listen are not shown.
fn query_threads(vm: &Vm, _: NoArguments) -> Result<Value, CommandError> {
    let threads = vm.engine.migration_threads();
    Ok(threads.iter().map(|(name, thread)| json!({"name": name, "thread-id": thread})).collect())
}

fn migrate_continue(vm: &Vm, arguments: Continue) -> Result<Value, CommandError> {
    vm.engine.migrate_continue(arguments.state)?;
    Ok(json!({}))
}

fn migrate_incoming(vm: &Vm, arguments: Incoming) -> Result<Value, CommandError> {
    let Incoming { uri, channels, exit_on_error } = arguments;
    // A machine that awaits nobody hears of that first.
    if vm.engine.config().incoming.is_none() {
        return Err(CommandError::generic(qemu_texts::NOT_AN_INCOMING_VM));
    }
    vm.engine.migrate_incoming(channels::incoming(uri, channels)?, exit_on_error.unwrap_or(true))?;
    Ok(json!({}))
}
