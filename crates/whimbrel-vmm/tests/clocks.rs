//! The guest's clocks across a stop, here and in another machine: never backwards, forward by no more than the time that has
//! passed, and the guest is told that it stood still.
//!
//! On a KVM that shows guests the host's TSC, which cannot be set, the assertion about the TSC says little; what a Linux guest makes
//! of its clocks is seen where KVM sets them.
#![cfg(target_arch = "x86_64")]

mod common;

use std::time::{Duration, Instant};

use beacon::CommandLine;
use common::kvm;
use common::moving::{Guest, image};
use whimbrel_vmm::state::{CpuX86, KvmClock};
use whimbrel_vmstate::VmState;

/// Where a clock page has its flags, and the one that `KVM_KVMCLOCK_CTRL` sets.
const FLAGS: u64 = 29;
const GUEST_STOPPED: u8 = 1 << 1;
const PAUSE: Duration = Duration::from_millis(300);

/// A stopped guest's clocks.
#[derive(Debug)]
struct Clocks {
    /// KVM's clock, in ns.
    kvmclock: u64,
    tsc: u64,
    /// Flags of the first vCPU's clock page.
    flags: u8,
}

fn state<T: VmState>(guest: &Guest, idstr: &str) -> Box<T> {
    let handler = guest.registry.devices().iter().find(|handler| handler.idstr == idstr).unwrap();
    whimbrel::downcast(handler.device.save().unwrap()).unwrap()
}

/// Reads them, and takes the flag back, as a guest does that has seen it.
fn clocks(guest: &Guest) -> Clocks {
    let cpu = state::<CpuX86>(guest, "cpu");
    assert_eq!(cpu.system_time_msr & 1, 1, "the guest keeps a clock page");
    let at = (cpu.system_time_msr & !1) + FLAGS;
    let mut flags = [0];
    guest.vm.read_physical(at, &mut flags).unwrap();
    guest.vm.write_physical(at, &[flags[0] & !GUEST_STOPPED]).unwrap();
    Clocks { kvmclock: state::<KvmClock>(guest, "kvmclock").clock, tsc: cpu.tsc, flags: flags[0] }
}

#[test]
fn clocks_stand_still_in_a_stop_and_the_guest_is_told() {
    let test = "clocks_stand_still_in_a_stop_and_the_guest_is_told";
    let (true, Some(kernel)) = (kvm(test), image(test)) else { return };
    let line = CommandLine { set_mib: 4, mem_mib: 16, ..CommandLine::default() };
    let mut guest = Guest::new(&format!("{test}-0"), &line, &kernel, false, &[]);
    guest.resume();
    let works = |guest: &Guest, than: u64| {
        guest.wait("the guest works", |control| control.vcpus[0].progress > than);
    };
    works(&guest, 100);
    for elsewhere in [false, true] {
        guest.stop();
        let before = clocks(&guest);
        // Of the stopped guest: what it has done until then must not be taken for work after it.
        let done = guest.control().expect("it has worked").vcpus[0].progress;
        std::thread::sleep(PAUSE);
        let still = clocks(&guest);
        assert_eq!(still.kvmclock, before.kvmclock, "KVM's clock stands");
        if elsewhere {
            let next = Guest::new(&format!("{test}-1"), &line, &kernel, true, &[]);
            next.copy_ram_from(&guest);
            next.load(&guest.save().unwrap()).unwrap();
            guest = next;
        }
        let run = Instant::now();
        guest.resume();
        works(&guest, done + 10);
        guest.stop();
        let ran = run.elapsed();
        let after = clocks(&guest);
        let forward =
            Duration::from_nanos(after.kvmclock.checked_sub(before.kvmclock).expect("not backwards"));
        assert!(forward <= ran + Duration::from_millis(1), "{forward:?} in {ran:?}: {before:?} {after:?}");
        assert!(after.tsc >= before.tsc, "{before:?} {after:?}");
        assert!(after.flags & GUEST_STOPPED != 0, "the guest was not told that it stood: {after:?}");
        guest.resume();
    }
    guest.stop();
    guest.verify();
}
