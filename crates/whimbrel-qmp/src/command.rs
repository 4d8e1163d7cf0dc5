//! The dispatch table: what a command is called, what it takes, where it runs, what it does.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;

use serde_json::{Map, Value};
use whimbrel::error::{CommandError, ErrorClass};
use whimbrel::wire::qemu_texts;

use crate::arguments::{Arguments, FromArguments};
use crate::server::Vm;

/// Where a command runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Runs {
    /// On the main loop: it changes something.
    MainLoop,
    /// On the connection's own thread: it changes nothing and waits for nobody but a file.
    ReadOnly,
    /// On the connection's own thread, and ahead of commands that still run if the client says `exec-oob`: it gets a stuck
    /// migration going again.
    OutOfBand,
}

/// The file descriptor that came with a client's last message that had one, until a command takes it (as in QEMU, not
/// necessarily that message's).
pub(crate) type Held = Option<OwnedFd>;

/// A command whose arguments are read, ready to run.
pub(crate) type Job = Box<dyn FnOnce(&Vm) -> Result<Value, CommandError> + Send>;

/// Reads the arguments, and takes the descriptor if the command wants one.
type Prepare = dyn Fn(Arguments, &mut Held) -> Result<Job, CommandError> + Send + Sync;

/// A command.
pub(crate) struct Command {
    pub(crate) name: &'static str,
    pub(crate) runs: Runs,
    prepare: Box<Prepare>,
}

impl Command {
    /// A command that reads `A` and then does `run`.
    pub(crate) fn new<A: FromArguments + Send + 'static>(
        name: &'static str,
        runs: Runs,
        run: fn(&Vm, A) -> Result<Value, CommandError>,
    ) -> Self {
        let prepare = move |arguments, _: &mut Held| {
            let arguments = A::read_all(arguments)?;
            Ok(Box::new(move |vm: &Vm| run(vm, arguments)) as Job)
        };
        Self { name, runs, prepare: Box::new(prepare) }
    }

    /// The same for one that also takes the descriptor that the client has sent.
    pub(crate) fn with_descriptor<A: FromArguments + Send + 'static>(
        name: &'static str,
        runs: Runs,
        run: fn(&Vm, A, Option<OwnedFd>) -> Result<Value, CommandError>,
    ) -> Self {
        let prepare = move |arguments, held: &mut Held| {
            let arguments = A::read_all(arguments)?;
            let fd = held.take();
            Ok(Box::new(move |vm: &Vm| run(vm, arguments, fd)) as Job)
        };
        Self { name, runs, prepare: Box::new(prepare) }
    }

    /// Reads the arguments; what it gives is to run where the command runs.
    pub(crate) fn prepare(
        &self,
        arguments: Map<String, Value>,
        held: &mut Held,
    ) -> Result<Job, CommandError> {
        (self.prepare)(Arguments::new(arguments), held)
    }
}

/// All commands, by name.
pub(crate) struct Table {
    commands: BTreeMap<&'static str, Command>,
}

impl Table {
    pub(crate) fn new(commands: impl IntoIterator<Item = Command>) -> Self {
        Self { commands: commands.into_iter().map(|command| (command.name, command)).collect() }
    }

    pub(crate) fn find(&self, name: &str) -> Result<&Command, CommandError> {
        self.commands.get(name).ok_or_else(|| CommandError {
            class: ErrorClass::CommandNotFound,
            desc: qemu_texts::command_not_found(name),
        })
    }

    pub(crate) fn names(&self) -> impl Iterator<Item = &'static str> {
        self.commands.keys().copied()
    }
}
