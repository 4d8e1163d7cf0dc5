//! What this machine is and understands: `query-version`, `query-commands`, `query-name`, `query-uuid`, `query-cpus-fast`.

use serde_json::{Value, json};
use whimbrel::error::CommandError;
use whimbrel::vmstate::Level;

use crate::arguments::NoArguments;
use crate::command::{Command, Runs};
use crate::server::Vm;

pub(super) fn commands() -> Vec<Command> {
    vec![
        Command::new("query-version", Runs::ReadOnly, |vm: &Vm, _: NoArguments| Ok(version(vm))),
        Command::new("query-commands", Runs::ReadOnly, query_commands),
        Command::new("query-name", Runs::ReadOnly, query_name),
        Command::new("query-uuid", Runs::ReadOnly, query_uuid),
        Command::new("query-cpus-fast", Runs::ReadOnly, query_cpus),
    ]
}

/// The QEMU whose stream this machine sends (its compatibility level), since that is what a client wants to know of `qemu`;
/// whimbrel's own version is the package's.
pub(crate) fn version(vm: &Vm) -> Value {
    let (major, minor) = match vm.engine.config().level {
        Level::V7_2 => (7, 2),
        Level::V9_0 => (9, 0),
        _ => (10, 0),
    };
    json!({
        "qemu": {"micro": 0, "minor": minor, "major": major},
        "package": concat!("whimbrel ", env!("CARGO_PKG_VERSION")),
    })
}

/// `qmp_capabilities` is among them, as in QEMU.
fn query_commands(vm: &Vm, _: NoArguments) -> Result<Value, CommandError> {
    let names = vm.commands.iter().copied().chain(["qmp_capabilities"]);
    Ok(names.map(|name| json!({ "name": name })).collect())
}

fn query_name(vm: &Vm, _: NoArguments) -> Result<Value, CommandError> {
    Ok(match &vm.engine.config().name {
        Some(name) => json!({ "name": name }),
        None => json!({}),
    })
}

fn query_uuid(vm: &Vm, _: NoArguments) -> Result<Value, CommandError> {
    Ok(json!({"UUID": uuid(vm.engine.config().uuid.unwrap_or_default())}))
}

/// Every vCPU is a core of one socket, as in QEMU with a plain `-smp N`.
fn query_cpus(vm: &Vm, _: NoArguments) -> Result<Value, CommandError> {
    let cpu = |(index, thread): (usize, i32)| {
        json!({
            "thread-id": thread,
            "props": {"core-id": index, "thread-id": 0, "socket-id": 0},
            "qom-path": format!("/machine/cpu[{index}]"),
            "cpu-index": index,
            "target": std::env::consts::ARCH,
        })
    };
    Ok(vm.host.vcpu_threads().into_iter().enumerate().map(cpu).collect())
}

fn uuid(bytes: [u8; 16]) -> String {
    let hex = format!("{:032x}", u128::from_be_bytes(bytes));
    let groups = [0..8, 8..12, 12..16, 16..20, 20..32];
    groups.map(|group| hex.get(group).unwrap_or_default().to_owned()).join("-")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uuid_is_written_in_its_groups() {
        let bytes = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 0xff];
        assert_eq!(uuid(bytes), "00010203-0405-0607-0809-0a0b0c0d0eff");
    }
}
