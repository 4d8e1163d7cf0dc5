//! The beacon on real KVM: its whole state taken from one machine and put into another, and each fault seen by it.

#![cfg(target_arch = "x86_64")]

mod common;

use std::time::Duration;

use beacon::CommandLine;
use beacon::command_line::Heartbeat;
use beacon::control::{Class, ControlBlock, Role};
use common::kvm;
use common::moving::{Guest, image};
use std::sync::{Mutex, MutexGuard, PoisonError};

use whimbrel::machine::Machine;

/// Guests are run one after the other: timers and interrupts are judged by time, and a host has few CPUs.
fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A guest that does no port I/O. (Its ring 3 may, by the I/O bitmap of its task state; but KVM under a QEMU that emulates SVM loses
/// that when a task register is set: there the guests that talk cannot go on.)
fn silent() -> CommandLine {
    CommandLine {
        heartbeat: Heartbeat { port: 0xe9, period_us: 0 },
        serial: false,
        pend: true,
        set_mib: 4,
        mem_mib: 16,
        ..CommandLine::default()
    }
}

/// Two workers that keep interrupts pending, a sleeper, and one that waits for its startup IPI.
fn many() -> CommandLine {
    CommandLine { cpus: 2, sleeper: true, waiter: true, ..silent() }
}

/// One that beats every 100 µs and takes serial interrupts.
fn talking() -> CommandLine {
    CommandLine { heartbeat: Heartbeat { port: 0xe9, period_us: 100 }, serial: true, ..silent() }
}

/// Work that every running vCPU has done, for "the guest goes on".
fn work(control: &ControlBlock) -> u64 {
    let done = |vcpu: &beacon::control::Vcpu| match vcpu.role {
        Role::Worker => vcpu.progress.min(vcpu.ticks * 10).min(vcpu.ipis_taken * 100),
        Role::Sleeper => vcpu.wakeups * 10,
        Role::Waiting | Role::Unused => u64::MAX,
    };
    control.vcpus.iter().map(done).min().unwrap_or(0)
}

#[test]
fn the_beacon_boots_and_finds_nothing_wrong() {
    let test = "the_beacon_boots_and_finds_nothing_wrong";
    let (true, Some(kernel)) = (kvm(test), image(test)) else { return };
    let _turn = turn();
    let guest = Guest::new(test, &CommandLine { serial: true, ..many() }, &kernel, false, &[]);
    guest.resume();
    let control = guest.wait("the guest works", |control| work(control) > 200);
    guest.stop();
    for class in [Class::X87, Class::Sse, Class::SegmentBase, Class::Debug, Class::Msr, Class::Clock] {
        assert!(control.holds(class), "{class:?}");
    }
    let report = guest.verify();
    assert_eq!(report.control.faults(), 0, "{report:#?}");
    assert!(report.pages_verified > 0);
}

/// Boots, then moves from machine to machine `moves` times.
fn chain(test: &str, line: &CommandLine, moves: u32) {
    let (true, Some(kernel)) = (kvm(test), image(test)) else { return };
    let _turn = turn();
    let mut guest = Guest::new(&format!("{test}-0"), line, &kernel, false, &[]);
    guest.resume();
    let mut reached = work(&guest.wait("the guest works", |control| work(control) > 100));
    for number in 1..=moves {
        guest.stop();
        let sections = guest.save().unwrap();
        let next = Guest::new(&format!("{test}-{number}"), line, &kernel, true, &[]);
        next.copy_ram_from(&guest);
        next.load(&sections).unwrap();
        drop(guest);
        next.resume();
        let goal = reached + 20;
        reached = work(&next.wait("the guest goes on", |control| work(control) > goal));
        guest = next;
    }
    guest.stop();
    let report = guest.verify();
    assert_eq!(report.control.faults(), 0, "{report:#?}");
}

#[test]
fn one_vcpu_goes_on_in_another_machine() {
    chain("one_vcpu_goes_on_in_another_machine", &silent(), 10);
}

#[test]
fn a_guest_that_talks_goes_on_in_another_machine() {
    chain("a_guest_that_talks_goes_on_in_another_machine", &talking(), 10);
}

#[test]
fn vcpus_that_work_sleep_and_wait_go_on_in_another_machine() {
    chain("vcpus_that_work_sleep_and_wait_go_on_in_another_machine", &many(), 10);
}

#[test]
fn a_state_applied_and_captured_again_is_the_same() {
    let test = "a_state_applied_and_captured_again_is_the_same";
    let (true, Some(kernel)) = (kvm(test), image(test)) else { return };
    let _turn = turn();
    let source = Guest::new(&format!("{test}-a"), &many(), &kernel, false, &[]);
    source.resume();
    source.wait("the guest works", |control| work(control) > 100);
    source.stop();
    let sections = source.save().unwrap();
    let destination = Guest::new(&format!("{test}-b"), &many(), &kernel, true, &[]);
    destination.load(&sections).unwrap();
    let again = destination.save().unwrap();
    for (first, second) in sections.iter().zip(&again) {
        // Clocks go on and timers count down while nothing else does: they are compared by those who know them.
        if ["kvmclock", "timer", "cpu", "apic"].contains(&first.name.idstr.as_str()) {
            common::compare::assert_same_but_time(first, second);
        } else {
            assert_eq!(first.body, second.body, "{:?}", first.name);
        }
    }
}

#[test]
fn the_vcpu_that_waits_for_its_startup_ipi_gets_it_in_the_other_machine() {
    let test = "the_vcpu_that_waits_for_its_startup_ipi_gets_it_in_the_other_machine";
    let (true, Some(kernel)) = (kvm(test), image(test)) else { return };
    let _turn = turn();
    let line = CommandLine { serial: true, ..many() };
    let source = Guest::new(&format!("{test}-a"), &line, &kernel, false, &[]);
    source.resume();
    source.wait("the guest works", |control| work(control) > 100);
    source.stop();
    let destination = Guest::new(&format!("{test}-b"), &line, &kernel, true, &[]);
    destination.copy_ram_from(&source);
    destination.load(&source.save().unwrap()).unwrap();
    drop(source);
    destination.resume();
    let waiting = |control: &ControlBlock| control.vcpus.iter().filter(|vcpu| !vcpu.started).count();
    assert_eq!(waiting(&destination.control().unwrap()), 1);
    destination.send(b"S");
    let control = destination.wait("the vCPU is started", |control| waiting(control) == 0);
    assert_eq!(control.faults(), 0, "{control:#?}");
}

#[test]
fn serial_input_is_taken_on_both_sides_and_counted_once() {
    let test = "serial_input_is_taken_on_both_sides_and_counted_once";
    let (true, Some(kernel)) = (kvm(test), image(test)) else { return };
    let _turn = turn();
    let source = Guest::new(&format!("{test}-a"), &talking(), &kernel, false, &[]);
    source.resume();
    source.wait("the guest works", |control| work(control) > 100);
    let received = |control: &ControlBlock| control.vcpus[0].serial_bytes;
    source.send(b"abcdefghijklmnopqrstuvwxyz");
    source.wait("the bytes arrive", |control| received(control) == 26);
    source.stop();
    let destination = Guest::new(&format!("{test}-b"), &talking(), &kernel, true, &[]);
    destination.copy_ram_from(&source);
    destination.load(&source.save().unwrap()).unwrap();
    drop(source);
    destination.resume();
    destination.send(b"0123456789");
    destination.wait("more bytes arrive", |control| received(control) == 36);
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(received(&destination.control().unwrap()), 36);
}

/// A fault must be seen by the beacon, in one of a few moves: what it strikes is not in use at every moment.
fn teeth(test: &str, fault: &str, seen: impl Fn(&ControlBlock) -> bool) {
    let (true, Some(kernel)) = (kvm(test), image(test)) else { return };
    let _turn = turn();
    let mut last = None;
    for attempt in 0..5 {
        let source = Guest::new(&format!("{test}-{attempt}a"), &silent(), &kernel, false, &[]);
        source.resume();
        // Stopped while a self-IPI is pending.
        source.wait("the guest works", |control| work(control) > 100 && control.vcpus[0].ipi_held);
        source.stop();
        let destination = Guest::new(&format!("{test}-{attempt}b"), &silent(), &kernel, true, &[fault]);
        destination.copy_ram_from(&source);
        destination.load(&source.save().unwrap()).unwrap();
        drop(source);
        destination.resume();
        for _ in 0..300 {
            std::thread::sleep(Duration::from_millis(10));
            last = destination.control();
            if last.as_ref().is_some_and(&seen) {
                return;
            }
        }
    }
    panic!("nobody noticed; the guest's account: {last:#?}");
}

#[test]
fn a_register_left_out_is_noticed() {
    teeth("a_register_left_out_is_noticed", "register", |control| {
        control.vcpus[0].failures[Class::General as usize] > 0
    });
}

#[test]
fn the_xsave_area_left_out_is_noticed() {
    teeth("the_xsave_area_left_out_is_noticed", "xsave", |control| {
        control.vcpus[0].failures[Class::X87 as usize] > 0
            && control.vcpus[0].failures[Class::Sse as usize] > 0
    });
}

#[test]
fn the_lapic_left_out_is_noticed() {
    teeth("the_lapic_left_out_is_noticed", "lapic", |control| {
        control.vcpus[0].timer_lost > 0 || control.vcpus[0].ipi_faults.iter().any(|count| *count > 0)
    });
}

#[test]
fn a_pending_interrupt_left_out_is_noticed() {
    teeth("a_pending_interrupt_left_out_is_noticed", "pending-interrupt", |control| {
        control.vcpus[0].ipi_faults.iter().any(|count| *count > 0)
    });
}

#[test]
fn a_reset_boots_the_beacon_again() {
    let test = "a_reset_boots_the_beacon_again";
    let (true, Some(kernel)) = (kvm(test), image(test)) else { return };
    let _turn = turn();
    let guest = Guest::new(test, &many(), &kernel, false, &[]);
    for _ in 0..3 {
        guest.resume();
        let control = guest.wait("the guest works", |control| (100..10_000).contains(&work(control)));
        assert_eq!(control.faults(), 0, "{control:#?}");
        guest.stop();
        guest.vm.write_physical(beacon::control::ADDRESSES[0], &[0; 4096]).unwrap();
        guest.vm.reset().unwrap();
    }
}
