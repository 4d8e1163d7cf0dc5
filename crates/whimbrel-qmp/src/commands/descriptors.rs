//! File descriptors for migrations to come: `getfd`, `closefd`, `add-fd`, `remove-fd`, `query-fdsets`.
//!
//! A descriptor comes beside the bytes of its message (SCM_RIGHTS), on unix sockets only.

use std::os::fd::OwnedFd;

use serde_json::{Map, Value, json};
use whimbrel::error::CommandError;
use whimbrel::wire::qemu_texts;

use crate::arguments::{NoArguments, arguments};
use crate::command::{Command, Runs};
use crate::server::Vm;

pub(super) fn commands() -> Vec<Command> {
    vec![
        Command::with_descriptor("getfd", Runs::MainLoop, getfd),
        Command::new("closefd", Runs::MainLoop, |vm: &Vm, Closefd { fdname }: Closefd| {
            vm.engine.descriptors().close(&fdname).map(|()| json!({}))
        }),
        Command::with_descriptor("add-fd", Runs::MainLoop, add_fd),
        Command::new("remove-fd", Runs::MainLoop, |vm: &Vm, RemoveFd { set, fd }: RemoveFd| {
            vm.engine.descriptors().remove(set, fd).map(|()| json!({}))
        }),
        Command::new("query-fdsets", Runs::ReadOnly, query_fdsets),
    ]
}

arguments! {
    /// Of `getfd`.
    struct Getfd {
        fdname: String = "fdname",
    }

    /// Of `closefd`.
    struct Closefd {
        fdname: String = "fdname",
    }

    /// Of `add-fd`.
    struct AddFd {
        /// Absent: a new one.
        set: Option<i64> = "fdset-id",
        /// Shown by `query-fdsets`.
        opaque: Option<String> = "opaque",
    }

    /// Of `remove-fd`.
    struct RemoveFd {
        set: i64 = "fdset-id",
        /// Absent: all of them.
        fd: Option<i64> = "fd",
    }
}

fn getfd(vm: &Vm, Getfd { fdname }: Getfd, fd: Option<OwnedFd>) -> Result<Value, CommandError> {
    vm.engine.descriptors().name(fdname, supplied(fd)?)?;
    Ok(json!({}))
}

fn add_fd(vm: &Vm, AddFd { set, opaque }: AddFd, fd: Option<OwnedFd>) -> Result<Value, CommandError> {
    let (set, fd) = vm.engine.descriptors().add(set, supplied(fd)?, opaque)?;
    Ok(json!({"fd": fd, "fdset-id": set}))
}

fn supplied(fd: Option<OwnedFd>) -> Result<OwnedFd, CommandError> {
    fd.ok_or_else(|| CommandError::generic(qemu_texts::NO_DESCRIPTOR_SUPPLIED))
}

fn query_fdsets(vm: &Vm, _: NoArguments) -> Result<Value, CommandError> {
    let descriptor = |(fd, opaque): &(i32, Option<String>)| {
        let mut members = Map::from_iter([("fd".to_owned(), json!(fd))]);
        members.extend(opaque.as_ref().map(|opaque| ("opaque".to_owned(), json!(opaque))));
        Value::Object(members)
    };
    let sets = vm.engine.descriptors().sets();
    let shown = sets.iter().map(|set| {
        let descriptors: Vec<_> = set.descriptors.iter().map(descriptor).collect();
        json!({"fds": descriptors, "fdset-id": set.id})
    });
    Ok(shown.collect())
}
