//! Tables that cannot be saved, tables that do not arrive, and a state that cannot be loaded: each is an error that says what it
//! is, at both ends where there are two; no process is lost, and no guest.

use std::path::Path;

use msi::{HOLD_EVENT, STEADY_DEVICE, STEADY_EVENTS};
use serde_json::json;
use whimbrel_e2e::l1::{Arch, inside};
use whimbrel_e2e::scratch::Scratch;
use whimbrel_e2e::wait_for;

use super::machine::{LIMIT, Launch, Machine, Sent};
use super::stays::{let_remap, pending_bits};
use super::teeth::{DIGEST, refusal, refused_there, seen_by_the_count};

/// KVM's number of the virtual counter, in the section `cpu`; and one that is no register's.
const COUNTER: u64 = 0x6030_0000_0013_df1a;
const NO_REGISTER: u64 = 0x6030_0000_0013_df1b;

/// Waits for the end of a move that fails, at the source; its error. The guest runs on there.
#[track_caller]
fn failed(source: &mut Machine) -> String {
    let info = wait_for("the move's end", LIMIT, || source.ended());
    assert_eq!(info["status"], "failed", "{info}");
    wait_for("the guest to run on", LIMIT, || (source.run_state() == "running").then_some(()));
    info["error-desc"].as_str().unwrap_or_default().to_owned()
}

/// Each kind of table. Only of lost collections KVM itself says something: events have none, then.
fn tables_of_zeroes_are_caught_before_the_guest_runs() {
    let restore = ["KVM_DEV_ARM_ITS_RESTORE_TABLES", "Invalid argument (os error 22)"];
    let flat = Launch::default();
    let two_level = Launch { two_level: true, ..Launch::default() };
    refused_there(&flat, &[], &["event-tables-zeroed"], &[DIGEST]);
    refused_there(&flat, &[], &["collection-table-zeroed"], &restore);
    for launch in [&flat, &two_level] {
        refused_there(launch, &[], &["device-table-zeroed"], &[DIGEST]);
    }
}

/// A vCPU to which LPIs go that has no pending table: KVM fails half way.
fn a_save_that_kvm_refuses_is_named_by_ioctl_and_errno() {
    let launch = Launch { options: "second_cpu_without_lpis=1", ..Launch::default() };
    let (mut source, mut sent) = (launch.boot(), Sent::default());
    let mut destination = launch.await_guest();
    let_remap(&mut source, &mut sent, false);
    source.send(STEADY_DEVICE, HOLD_EVENT);
    source.wait_control("the hold", |control| control.holding.iter().all(|held| *held));
    // Those that go to the second CPU are not taken.
    let answers = (0..STEADY_EVENTS as u32).map(|event| source.signal(STEADY_DEVICE, event));
    assert!(answers.filter(|answer| answer.as_deref() == Some("sent")).count() > 0, "none is pending");
    source.begin_move(&mut destination);
    let error = failed(&mut source);
    let words = "KVM_SET_DEVICE_ATTR KVM_DEV_ARM_VGIC_SAVE_PENDING_TABLES: Bad address (os error 14)";
    assert!(error.contains(words), "{error}");
    let beats = source.control().beats;
    source.wait_control("the guest to work on", |control| control.beats > beats);
    assert_eq!(pending_bits(&mut source), 0, "what was saved before it failed");
}

/// Waits at a machine that is given a saved guest for what it says of it.
fn refused_from_file(launch: &Launch, stream: &Path) -> String {
    let mut destination = launch.await_guest();
    destination.qmp.ok("migrate-incoming", json!({ "uri": format!("file:{}", stream.display()) }));
    refusal(destination)
}

fn a_register_that_kvm_does_not_have_is_named() {
    let launch = Launch::default();
    let mut source = launch.boot();
    let scratch = Scratch::new("refusals");
    let stream = scratch.join("stream");
    source.save(&stream);
    let mut bytes = std::fs::read(&stream).expect("it was saved");
    let known = COUNTER.to_be_bytes();
    let at: Vec<usize> = (0..bytes.len() - 8).filter(|at| bytes[*at..*at + 8] == known).collect();
    assert_eq!(at.len(), launch.cpus as usize, "a list of registers for each vCPU");
    bytes[at[1]..at[1] + 8].copy_from_slice(&NO_REGISTER.to_be_bytes());
    std::fs::write(&stream, bytes).expect("scratch is writable");
    let log = refused_from_file(&launch, &stream);
    let words = format!("register {NO_REGISTER:#x} is not known to this host's KVM");
    assert!(log.contains(&words), "{words} in: {log}");
}

#[test]
fn what_cannot_be_saved_or_loaded_is_an_error_at_both_ends() {
    inside(
        Arch::Arm,
        |_| {},
        || {
            a_save_that_kvm_refuses_is_named_by_ioctl_and_errno();
            a_register_that_kvm_does_not_have_is_named();
            tables_of_zeroes_are_caught_before_the_guest_runs();
        },
    );
}

#[test]
fn each_kind_of_table_that_is_lost_is_seen_by_the_count() {
    inside(
        Arch::Arm,
        |_| {},
        || {
            let two_level = Launch { two_level: true, ..Launch::default() };
            seen_by_the_count(&Launch::default(), &[], &["event-tables-zeroed", "no-digest-check"]);
            for launch in [&Launch::default(), &two_level] {
                seen_by_the_count(launch, &[], &["device-table-zeroed", "no-digest-check"]);
            }
        },
    );
}
