//! The guest's clocks across a stop, here and in another machine: never backwards, forward by no more than the time that has
//! passed, and the guest is told that it stood still.
//!
//! On a KVM that shows guests the host's TSC, which cannot be set, the assertion about the TSC says little; what a Linux guest makes
//! of its clocks is seen where KVM sets them.
#![cfg(target_arch = "x86_64")]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use beacon::CommandLine;
use beacon::control::ControlBlock;
use common::kvm;
use common::moving::{Guest, image};
use whimbrel::handlers::Device;
use whimbrel::machine::Machine;
use whimbrel_vmm::state::{CpuX86, KvmClock};
use whimbrel_vmm::{GuestEvents, Image};
use whimbrel_vmstate::VmState;

/// Where a clock page has its flags, and the one that `KVM_KVMCLOCK_CTRL` sets.
const FLAGS: u64 = 29;
const GUEST_STOPPED: u8 = 1 << 1;
const PAUSE: Duration = Duration::from_millis(300);
/// Between a reading of the host's clock and one of KVM's.
const SLACK: Duration = Duration::from_millis(1);

/// Where the second vCPU's clock page is put: the guest, which keeps the first one's only, leaves this memory alone.
const SECOND_PAGE: u64 = 40 << 20;

/// A stopped guest's clocks.
#[derive(Debug)]
struct Clocks {
    /// KVM's clock, in ns.
    kvmclock: u64,
    /// Each vCPU's.
    tsc: [u64; 2],
    /// Flags of each vCPU's clock page.
    flags: [u8; 2],
}

/// Who stopped the guest: an operator, or a switchover.
struct Stopped(Arc<AtomicBool>);

impl GuestEvents for Stopped {
    fn guest_reset(&self) {}
    fn guest_shutdown(&self) {}
    fn guest_failed(&self, _: String) {}
    fn is_paused(&self) -> bool {
        self.0.load(Relaxed)
    }
}

fn device<'a>(guest: &'a Guest, idstr: &str, instance: u32) -> &'a dyn Device {
    let mut all = guest.registry.devices().iter();
    &*all.find(|handler| handler.idstr == idstr && handler.instance_id == instance).unwrap().device
}

fn state<T: VmState>(guest: &Guest, idstr: &str, instance: u32) -> Box<T> {
    whimbrel::downcast(device(guest, idstr, instance).save().unwrap()).unwrap()
}

fn start(test: &str, line: &CommandLine, kernel: &Image, incoming: bool, paused: &Arc<AtomicBool>) -> Guest {
    let guest = Guest::new(test, line, kernel, incoming, &[]);
    guest.vm.attach(Stopped(paused.clone()));
    guest
}

/// Gives the second vCPU of a stopped guest a clock page.
fn give_second_page(guest: &Guest) {
    let mut cpus = [0, 1].map(|vcpu| state::<CpuX86>(guest, "cpu", vcpu));
    cpus[1].system_time_msr = SECOND_PAGE | 1;
    for (vcpu, cpu) in (0..).zip(cpus) {
        device(guest, "cpu", vcpu).load(cpu).unwrap();
    }
    guest.vm.apply().unwrap();
}

/// Reads them, and takes the flags back, as a guest does that has seen them.
fn clocks(guest: &Guest) -> Clocks {
    let cpus = [0, 1].map(|vcpu| state::<CpuX86>(guest, "cpu", vcpu));
    let flags = [&cpus[0], &cpus[1]].map(|cpu| {
        assert_eq!(cpu.system_time_msr & 1, 1, "the vCPU has a clock page");
        let at = (cpu.system_time_msr & !1) + FLAGS;
        let mut flags = [0];
        guest.vm.read_physical(at, &mut flags).unwrap();
        guest.vm.write_physical(at, &[flags[0] & !GUEST_STOPPED]).unwrap();
        flags[0]
    });
    Clocks { kvmclock: state::<KvmClock>(guest, "kvmclock", 0).clock, tsc: cpus.map(|cpu| cpu.tsc), flags }
}

/// Why the guest stands.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Stop {
    /// An operator stopped it, and lets it run on.
    Here,
    /// It was saved for a switchover, which was then called off.
    CalledOff,
    /// It goes on in another machine.
    Elsewhere,
}

#[test]
fn clocks_stand_still_in_a_stop_and_every_vcpu_is_told() {
    let test = "clocks_stand_still_in_a_stop_and_every_vcpu_is_told";
    let (true, Some(kernel)) = (kvm(test), image(test)) else { return };
    let line = CommandLine { set_mib: 4, mem_mib: 16, cpus: 2, ..CommandLine::default() };
    let paused = Arc::new(AtomicBool::new(true));
    let mut guest = start(&format!("{test}-0"), &line, &kernel, false, &paused);
    guest.resume();
    let done = |control: &ControlBlock| [0, 1].map(|vcpu: usize| control.vcpus[vcpu].progress);
    let works = |guest: &Guest, than: [u64; 2]| {
        guest.wait("both vCPUs work", |control| {
            control.vcpus.len() == 2 && done(control).iter().zip(than).all(|(now, than)| *now > than)
        });
    };
    works(&guest, [100; 2]);
    guest.stop();
    give_second_page(&guest);
    guest.resume();
    for stop in [Stop::Here, Stop::CalledOff, Stop::Elsewhere] {
        paused.store(stop != Stop::CalledOff, Relaxed);
        guest.stop();
        let before = clocks(&guest);
        std::thread::sleep(PAUSE);
        let still = clocks(&guest);
        // Of the stopped guest: what it has done until then must not be taken for work after it.
        let than = done(&guest.control().expect("it has worked"));
        let stood = Duration::from_nanos(still.kvmclock - before.kvmclock);
        match stop {
            // What is saved for a switchover fits the TSCs of that moment: the pause shows, and no more.
            Stop::CalledOff => assert!(stood + SLACK >= PAUSE, "{stood:?}"),
            Stop::Here | Stop::Elsewhere => assert_eq!(stood, Duration::ZERO, "KVM's clock stands"),
        }
        if stop == Stop::Elsewhere {
            let there = start(&format!("{test}-1"), &line, &kernel, true, &paused);
            there.copy_ram_from(&guest);
            there.load(&guest.save().unwrap()).unwrap();
            guest = there;
        }
        let run = Instant::now();
        guest.resume();
        works(&guest, than);
        paused.store(true, Relaxed);
        guest.stop();
        let ran = run.elapsed();
        let after = clocks(&guest);
        let forward = after.kvmclock.checked_sub(still.kvmclock).expect("not backwards");
        let forward = Duration::from_nanos(forward);
        assert!(forward <= ran + SLACK, "{stop:?}: {forward:?} in {ran:?}: {still:?} {after:?}");
        assert!(after.tsc.iter().zip(still.tsc).all(|(after, still)| *after >= still), "{still:?} {after:?}");
        for (vcpu, flags) in after.flags.iter().enumerate() {
            assert!(
                flags & GUEST_STOPPED != 0,
                "{stop:?}: vCPU {vcpu} was not told that it stood: {after:?}"
            );
        }
        guest.resume();
    }
    guest.stop();
    guest.verify();
}
