//! Run state: `query-status`, `stop`, `cont`, `system_reset`, `quit`.

use serde_json::{Value, json};
use whimbrel::error::CommandError;
use whimbrel::proto::run_state::RunState;

use crate::arguments::NoArguments;
use crate::command::{Command, Runs};
use crate::server::Vm;

pub(super) fn commands() -> Vec<Command> {
    vec![
        Command::new("query-status", Runs::ReadOnly, query_status),
        Command::new("stop", Runs::MainLoop, |vm: &Vm, _: NoArguments| vm.engine.stop().map(|()| json!({}))),
        Command::new("cont", Runs::MainLoop, |vm: &Vm, _: NoArguments| vm.engine.cont().map(|()| json!({}))),
        Command::new("system_reset", Runs::MainLoop, |vm: &Vm, _: NoArguments| {
            vm.engine.system_reset().map(|()| json!({}))
        }),
        Command::new("quit", Runs::MainLoop, quit),
    ]
}

fn query_status(vm: &Vm, _: NoArguments) -> Result<Value, CommandError> {
    let state = vm.engine.run_state();
    Ok(json!({"status": state.name(), "running": state == RunState::Running}))
}

fn quit(vm: &Vm, _: NoArguments) -> Result<Value, CommandError> {
    vm.engine.quit();
    Ok(json!({}))
}
