//! Moves over what was given or started for them: file descriptors, sets of them, commands, sockets without a file.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use whimbrel::channel::Address;
use whimbrel::engine::{Exit, MigrationInfo};
use whimbrel::proto::run_state::RunState;
use whimbrel::proto::status::MigrationStatus;

use crate::guest::{Build, Guest, Runners, Scratch, Stopwatch, TCP, wait_until};

/// A command says its number here, so that one can see whether it is gone.
fn saying_its_number(scratch: &Scratch, command: &str) -> (Address, PathBuf) {
    let path = scratch.path("pid");
    let uri = format!("exec:echo $$ > {0}.new; mv {0}.new {0}; {command}", path.display());
    (Address::parse(&uri).unwrap(), path)
}

fn number(path: &Path) -> PathBuf {
    wait_until("the command runs", || path.exists());
    let number = std::fs::read_to_string(path).unwrap();
    Path::new("/proc").join(number.trim())
}

fn give(guest: &Guest, name: &str, fd: impl Into<OwnedFd>) -> Address {
    guest.engine.descriptors().name(name.into(), fd.into()).unwrap();
    Address::Fd(name.into())
}

/// A machine that awaits a guest on a descriptor.
fn destination_on(runners: &Runners, fd: impl Into<OwnedFd>) -> Guest {
    let destination = Build::new(runners).deferred();
    let address = give(&destination, "in", fd);
    destination.command(|engine| engine.migrate_incoming(address, true)).unwrap();
    destination
}

#[test]
fn a_guest_moves_fenced_over_a_socket_that_was_handed_over() {
    let runners = Runners::default();
    let (ours, theirs) = UnixStream::pair().unwrap();
    // Its other owner may not want to wait: that must cost neither the move nor a processor.
    ours.set_nonblocking(true).unwrap();
    let source = Build::new(&runners).source();
    let destination = destination_on(&runners, theirs);
    let to = give(&source, "out", ours);
    source.migrate(&to);
    source.moved_to(&destination);
    assert!(source.info().fenced);
    let again = source.engine.descriptors().close("out").unwrap_err();
    assert_eq!(again.desc, "File descriptor named 'out' not found", "it was the migration's");
}

#[test]
fn a_guest_moves_one_way_over_a_pipe_that_was_handed_over() {
    let runners = Runners::default();
    let (read, write) = std::io::pipe().unwrap();
    let source = Build::new(&runners).source();
    let destination = destination_on(&runners, read);
    let to = give(&source, "out", write);
    source.migrate(&to);
    source.moved_to(&destination);
    assert!(!source.info().fenced, "nobody can confirm");
}

#[test]
fn a_guest_saved_through_a_command_is_loaded_through_one_and_both_are_reaped() {
    let (runners, scratch) = (Runners::default(), Scratch::new());
    let image = scratch.path("image");
    let source = Build::new(&runners).source();
    let (to, saver) = saying_its_number(&scratch, &format!("exec cat > {}", image.display()));
    source.migrate(&to);
    source.wait_for(MigrationStatus::Completed);
    let saver = number(&saver);
    wait_until("the saving command is reaped", || !saver.exists());
    let (destination, _) = Build::new(&runners).destination(&format!("exec:cat {}", image.display()));
    source.moved_to(&destination);
}

#[test]
fn a_regular_file_that_was_handed_over_is_a_file() {
    let (runners, scratch) = (Runners::default(), Scratch::new());
    let image = scratch.path("image");
    let source = Build::new(&runners).source();
    let to = give(&source, "out", File::create(&image).unwrap());
    source.migrate(&to);
    source.wait_for(MigrationStatus::Completed);
    let destination = destination_on(&runners, File::open(&image).unwrap());
    source.moved_to(&destination);
}

#[test]
fn a_guest_is_saved_to_and_loaded_from_sets_of_descriptors() {
    let (runners, scratch) = (Runners::default(), Scratch::new());
    let image = scratch.path("image");
    let source = Build::new(&runners).source();
    let set = |guest: &Guest, file: File| {
        let (set, _) = guest.engine.descriptors().add(None, file.into(), None).unwrap();
        Address::File { path: format!("/dev/fdset/{set}").into(), offset: 0 }
    };
    let to = set(&source, File::create(&image).unwrap());
    source.migrate(&to);
    source.wait_for(MigrationStatus::Completed);
    let destination = Build::new(&runners).deferred();
    let from = set(&destination, File::open(&image).unwrap());
    destination.command(|engine| engine.migrate_incoming(from, true)).unwrap();
    source.moved_to(&destination);
    assert_eq!(source.engine.descriptors().sets().len(), 1, "the set keeps its own");
}

#[test]
fn a_guest_moves_over_a_socket_without_a_file() {
    for tight in [true, false] {
        let runners = Runners::default();
        let name = format!("whimbrel-engine-{}-{tight}", std::process::id());
        let address = Address::Abstract { name, tight };
        let source = Build::new(&runners).source();
        let destination = Build::new(&runners).deferred();
        let here = address.clone();
        destination.command(|engine| engine.migrate_incoming(here, true)).unwrap();
        source.migrate(&address);
        source.moved_to(&destination);
        assert!(source.info().fenced);
    }
}

#[test]
fn a_descriptor_that_is_not_there_is_refused_in_qemus_words() {
    let runners = Runners::default();
    let source = Build::new(&runners).ram(1, 16).source();
    for (uri, text) in [
        ("fd:nope", "File descriptor named 'nope' has not been found"),
        ("fd:9999", "File descriptor named '9999' has not been found"),
        ("file:/dev/fdset/9", "Failed to find fdset /dev/fdset/9"),
    ] {
        let to = Address::parse(uri).unwrap();
        assert_eq!(source.command(move |engine| engine.migrate(to, false)).unwrap_err(), text);
    }
    source.moves_next_time(Build::new(&runners).ram(1, 16));
}

#[test]
fn a_command_that_goes_away_fails_the_move_in_qemus_words() {
    let runners = Runners::default();
    let source = Build::new(&runners).ram(2, 512).full_source();
    for command in ["true", "/nonexistent 2> /dev/null", "head -c 300000 > /dev/null"] {
        source.migrate(&Address::parse(&format!("exec:{command}")).unwrap());
        assert_eq!(source.failed(), "Unable to write to command: Broken pipe", "{command}");
    }
    source.migrate(&Address::Exec(vec!["/nonexistent".into()]));
    let text = "Failed to execute child process “/nonexistent” (No such file or directory)";
    assert_eq!(source.failed(), text);
    source.migrate(&Address::Exec(vec![]));
    assert_eq!(source.failed(), "'exec' needs a program to execute");
    source.moves_next_time(Build::new(&runners).ram(2, 512));
}

#[test]
fn a_stuck_command_holds_neither_a_cancel_nor_its_own_end() {
    let (runners, scratch) = (Runners::default(), Scratch::new());
    let source = Build::new(&runners).ram(2, 512).full_source();
    // It ignores what asks it to end, and so does what it waits for.
    let (to, pid) = saying_its_number(&scratch, "trap '' TERM; sleep 1000; sleep 1000");
    source.migrate(&to);
    source.wait_for(MigrationStatus::Active);
    let command = number(&pid);
    let watch = Stopwatch::start();
    source.cancel().unwrap();
    source.cancelled();
    assert!(watch.time() < Duration::from_secs(2), "cancelling took {:?}", watch.time());
    wait_until("the command is reaped", || !command.exists());
    source.moves_next_time(Build::new(&runners).ram(2, 512));
}

#[test]
fn a_machine_that_awaits_a_guest_from_a_stuck_command_can_be_quit() {
    let (runners, scratch) = (Runners::default(), Scratch::new());
    let (from, pid) = saying_its_number(&scratch, "sleep 1000");
    let destination = Build::new(&runners).deferred();
    destination.command(|engine| engine.migrate_incoming(from, true)).unwrap();
    let command = number(&pid);
    destination.engine.post(|engine| engine.quit());
    assert_eq!(destination.exit(), Exit::Ended);
    wait_until("the command is reaped", || !command.exists());
}

#[test]
fn a_guest_that_does_not_arrive_leaves_a_machine_that_was_told_to_stay() {
    let runners = Runners::default();
    let destination = Build::new(&runners).deferred();
    let from = Address::parse("exec:echo this is no stream").unwrap();
    destination.command(|engine| engine.migrate_incoming(from, false)).unwrap();
    let failed = || match destination.engine.migration_info() {
        MigrationInfo::Incoming(info) if info.status == MigrationStatus::Failed => info.error,
        _ => None,
    };
    wait_until("it has failed", || failed().is_some());
    let why = failed().unwrap();
    assert!(why.contains("Not a migration stream"), "{why}");
    assert!(why.ends_with(", from 'exec:echo this is no stream'"), "{why}");
    assert_eq!(destination.engine.run_state(), RunState::Inmigrate);
    let again = Address::parse(TCP).unwrap();
    assert_eq!(
        destination.command(move |engine| engine.migrate_incoming(again, true)).unwrap_err(),
        "The incoming migration has already been started"
    );
    assert!(!destination.has_ended());
}
