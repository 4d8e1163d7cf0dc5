//! What of a vCPU can be moved: told while the guest runs, and held against whatever a peer may send.

#![cfg(target_arch = "x86_64")]

mod common;

use std::time::{Duration, Instant};

use common::{Console, config, kernel, kvm};
use whimbrel::downcast;
use whimbrel::machine::Machine;
use whimbrel_vmm::state::KvmClock;
use whimbrel_vmm::{GuestEvents, Vm};

/// MISC_FEATURES_ENABLES: KVM lets a guest write it (CPUID faulting), and no section has a place for it.
const UNCARRIED: u32 = 0x140;

/// A guest that sets the MSR to 1, says `1`, waits for a byte, sets it to 0, says `0` and goes on writing dots.
fn guest() -> Vec<u8> {
    let mut code = Vec::new();
    for value in [1u8, 0] {
        code.extend([0xb9]); // mov ecx, UNCARRIED
        code.extend(UNCARRIED.to_le_bytes());
        code.extend([0xb8, value, 0, 0, 0, 0x31, 0xd2, 0x0f, 0x30]); // mov eax, value; xor edx, edx; wrmsr
        code.extend([0xb0, b'0' + value, 0xe6, 0xe9]); // mov al, digit; out 0xe9, al
        if value == 1 {
            // wait: in al, dx (0x3fd); test al, 1; jz wait
            code.extend([0xba, 0xfd, 0x03, 0, 0, 0xec, 0xa8, 1, 0x74, 0xfb]);
        }
    }
    code.extend([0xb0, b'.', 0xe6, 0xe9, 0xeb, 0xfc]); // mov al, '.'; again: out 0xe9, al; jmp again
    code
}

fn eventually(what: &str, mut f: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(60);
    while !f() {
        assert!(Instant::now() < end, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_register_that_no_section_carries_blocks_a_migration_while_the_guest_runs() {
    let test = "a_register_that_no_section_carries_blocks_a_migration_while_the_guest_runs";
    if !kvm(test) {
        return;
    }
    let console = Console::new(test);
    let socket = console.path.with_extension("sock");
    let mut config = config(kernel(&guest()), &console);
    config.serial = Some(whimbrel_vmm::CharBackend::Unix { path: socket.clone(), server: true });
    let (vm, _registry) = Vm::new(config).unwrap();
    assert!(vm.blockers().is_empty());
    vm.resume_vcpus().unwrap();
    console.wait("the MSR is written", |bytes| bytes.starts_with(b"1"));
    eventually("the blocker is told", || !vm.blockers().is_empty());
    let blockers = vm.blockers();
    assert!(blockers[0].starts_with("vCPU 0: MSR 0x140 holds 0x1"), "{blockers:?}");

    let mut line = std::os::unix::net::UnixStream::connect(&socket).unwrap();
    std::io::Write::write_all(&mut line, b"x").unwrap();
    console.wait("the MSR is written back", |bytes| bytes.starts_with(b"10"));
    eventually("the blocker is gone", || vm.blockers().is_empty());
    // Nobody's look has stopped the guest.
    let before = console.bytes().len();
    console.wait("the guest goes on", |bytes| bytes.len() > before + 100);
    vm.pause_vcpus().unwrap();
    let _ = std::fs::remove_file(socket);
}

/// A guest that is looked at all the time still runs, can be paused while it is looked at, and ends.
#[test]
fn looking_at_a_vcpu_neither_stops_it_nor_keeps_it_from_stopping() {
    let test = "looking_at_a_vcpu_neither_stops_it_nor_keeps_it_from_stopping";
    if !kvm(test) {
        return;
    }
    let console = Console::new(test);
    // again: out 0xe9, al; jmp again
    let (vm, _registry) = Vm::new(config(kernel(&[0xb0, b'.', 0xe6, 0xe9, 0xeb, 0xfc]), &console)).unwrap();
    let end = Instant::now() + Duration::from_secs(2);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while Instant::now() < end {
                // Past the age of the last answer each time: a look at the vCPU itself.
                assert!(vm.blockers().is_empty());
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        let mut rounds = 0;
        while Instant::now() < end {
            vm.resume_vcpus().unwrap();
            std::thread::sleep(Duration::from_millis(5));
            vm.pause_vcpus().unwrap();
            rounds += 1;
        }
        assert!(rounds > 10, "{rounds} pauses in two seconds");
    });
    let before = console.bytes().len();
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(console.bytes().len(), before, "paused is paused");
    vm.resume_vcpus().unwrap();
    console.wait("the guest goes on", |bytes| bytes.len() > before);
}

/// A guest stopped by an operator, or for a switchover.
struct Stopped {
    by_operator: bool,
}

impl GuestEvents for Stopped {
    fn guest_reset(&self) {}
    fn guest_shutdown(&self) {}
    fn guest_failed(&self, _: String) {}
    fn is_paused(&self) -> bool {
        self.by_operator
    }
}

/// By how much the saved clock goes on between two saves that are a tenth of a second apart.
fn clock_goes_on(test: &str, by_operator: bool) -> Duration {
    let console = Console::new(test);
    let (vm, registry) = Vm::new(config(kernel(&[0xb0, b'.', 0xe6, 0xe9, 0xeb, 0xfc]), &console)).unwrap();
    vm.attach(Stopped { by_operator });
    vm.resume_vcpus().unwrap();
    console.wait("the guest runs", |bytes| !bytes.is_empty());
    vm.pause_vcpus().unwrap();
    vm.state_changed(false).unwrap();
    let device = &registry.devices().iter().find(|handler| handler.idstr == "kvmclock").unwrap().device;
    let clock = || downcast::<KvmClock>(device.save().unwrap()).unwrap().clock;
    let first = clock();
    std::thread::sleep(Duration::from_millis(100));
    Duration::from_nanos(clock() - first)
}

#[test]
fn the_clock_of_a_guest_stopped_for_a_switchover_goes_on_until_it_is_saved() {
    let test = "the_clock_of_a_guest_stopped_for_a_switchover_goes_on_until_it_is_saved";
    if kvm(test) {
        assert!(clock_goes_on(test, false) >= Duration::from_millis(100));
    }
}

#[test]
fn the_clock_of_a_guest_stopped_by_an_operator_stands_still() {
    let test = "the_clock_of_a_guest_stopped_by_an_operator_stands_still";
    if kvm(test) {
        assert_eq!(clock_goes_on(test, true), Duration::ZERO);
    }
}
