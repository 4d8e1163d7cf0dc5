//! `migrate-set-capabilities` and `query-migrate-capabilities`.

use serde_json::{Value, json};
use whimbrel::error::CommandError;
use whimbrel::proto::capabilities::Capability;

use crate::arguments::{FromValue, NoArguments, arguments, enumeration};
use crate::command::{Command, Runs};
use crate::server::Vm;

pub(super) fn commands() -> Vec<Command> {
    vec![
        Command::new("migrate-set-capabilities", Runs::MainLoop, set),
        Command::new("query-migrate-capabilities", Runs::ReadOnly, query),
    ]
}

arguments! {
    /// Of `migrate-set-capabilities`.
    struct Set {
        capabilities: Vec<CapabilityStatus> = "capabilities",
    }

    /// One capability, on or off.
    struct CapabilityStatus {
        capability: Capability = "capability",
        state: bool = "state",
    }
}

impl FromValue for Capability {
    fn from_value(value: Value, path: &str) -> Result<Self, CommandError> {
        enumeration(value, path, Self::from_name)
    }
}

fn set(vm: &Vm, arguments: Set) -> Result<Value, CommandError> {
    let changes: Vec<_> =
        arguments.capabilities.iter().map(|status| (status.capability, status.state)).collect();
    vm.engine.set_capabilities(&changes)?;
    Ok(json!({}))
}

fn query(vm: &Vm, _: NoArguments) -> Result<Value, CommandError> {
    let on = vm.engine.capabilities();
    let status =
        |&capability: &Capability| json!({"state": on.has(capability), "capability": capability.name()});
    Ok(Capability::ALL.iter().map(status).collect())
}
