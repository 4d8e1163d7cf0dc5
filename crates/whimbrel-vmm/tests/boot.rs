//! Guests of a few instructions on real KVM: boot, console, pause, reset.

mod common;

use std::time::Duration;

use common::{Console, Event, config, events, eventually, kernel, kvm};
use whimbrel::machine::Machine;
use whimbrel_vmm::Vm;

/// `mov edx, 0xe9; mov al, c; out dx, al` for each, then `then`.
fn say(text: &str, then: &[u8]) -> Vec<u8> {
    let mut code = vec![0xba, 0xe9, 0, 0, 0];
    for byte in text.bytes() {
        code.extend([0xb0, byte, 0xee]);
    }
    code.extend(then);
    code
}

/// `cli; hlt; jmp -3`
const STOP: [u8; 4] = [0xfa, 0xf4, 0xeb, 0xfd];
/// `lidt [zero]; ud2`: a triple fault. The 6 bytes at 0x1000 are zero.
const TRIPLE_FAULT: [u8; 9] = [0x0f, 0x01, 0x1d, 0x00, 0x10, 0x00, 0x00, 0x0f, 0x0b];
/// `inc byte [0x200000]; mov al, [0x200000]; out dx, al; jmp -16`: counts on the console.
const COUNT: [u8; 14] = [0xfe, 0x05, 0, 0, 0x20, 0, 0xa0, 0, 0, 0x20, 0, 0xee, 0xeb, 0xf2];

#[test]
fn a_pvh_kernel_boots_and_speaks() {
    if !kvm("a_pvh_kernel_boots_and_speaks") {
        return;
    }
    let console = Console::new("boot");
    let (vm, _) = Vm::new(config(kernel(&say("hello", &STOP)), &console)).unwrap();
    vm.resume_vcpus().unwrap();
    console.wait("the guest says hello", |bytes| bytes == b"hello");
    vm.pause_vcpus().unwrap();
}

#[test]
fn the_kernel_gets_its_command_line_and_start_info() {
    if !kvm("the_kernel_gets_its_command_line_and_start_info") {
        return;
    }
    let console = Console::new("cmdline");
    // `mov esi, [ebx+24]; mov edx, 0xe9`, then until NUL: `lodsb; test al, al; jz +3; out dx, al; jmp -8`
    let code = [0x8b, 0x73, 24, 0xba, 0xe9, 0, 0, 0, 0xac, 0x84, 0xc0, 0x74, 3, 0xee, 0xeb, 0xf8, 0xfa, 0xf4];
    let mut config = config(kernel(&code), &console);
    config.command_line = "one two".into();
    let (vm, _) = Vm::new(config).unwrap();
    vm.resume_vcpus().unwrap();
    console.wait("the guest says its command line", |bytes| bytes == b"one two");
}

#[test]
fn a_paused_guest_stands_still_and_goes_on_where_it_was() {
    if !kvm("a_paused_guest_stands_still_and_goes_on_where_it_was") {
        return;
    }
    let console = Console::new("pause");
    let (vm, _) = Vm::new(config(kernel(&say("", &COUNT)), &console)).unwrap();
    let mut seen = 0;
    for _ in 0..20 {
        vm.resume_vcpus().unwrap();
        eventually("the count goes on", || console.bytes().len() > seen + 100).unwrap();
        vm.pause_vcpus().unwrap();
        vm.pause_vcpus().unwrap();
        seen = console.bytes().len();
        std::thread::sleep(Duration::from_millis(5));
        assert_eq!(console.bytes().len(), seen, "a paused guest wrote");
    }
    let counted = console.bytes();
    let lost = counted.windows(2).position(|pair| pair[1] != pair[0].wrapping_add(1));
    assert_eq!(lost, None, "a byte was lost or written twice");
}

#[test]
fn a_triple_fault_asks_for_a_reset_and_the_reset_boots_again() {
    if !kvm("a_triple_fault_asks_for_a_reset_and_the_reset_boots_again") {
        return;
    }
    let console = Console::new("triple");
    let (vm, _) = Vm::new(config(kernel(&say("x", &TRIPLE_FAULT)), &console)).unwrap();
    let (listener, heard) = events();
    vm.attach(listener);
    for boots in 1..=3 {
        vm.resume_vcpus().unwrap();
        assert_eq!(heard.recv_timeout(Duration::from_secs(10)), Ok(Event::Reset));
        vm.pause_vcpus().unwrap();
        assert_eq!(console.bytes().len(), boots);
        vm.reset().unwrap();
    }
}

#[test]
fn a_reset_writes_the_kernel_anew() {
    if !kvm("a_reset_writes_the_kernel_anew") {
        return;
    }
    let console = Console::new("anew");
    let (vm, _) = Vm::new(config(kernel(&say("ok", &STOP)), &console)).unwrap();
    vm.write_physical(0x10_0000, &[0xf4; 64]).unwrap();
    vm.reset().unwrap();
    vm.resume_vcpus().unwrap();
    console.wait("the guest speaks", |bytes| bytes == b"ok");
}
