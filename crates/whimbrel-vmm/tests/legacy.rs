//! The default machine's timers and controllers at work, on real KVM: a guest that counts interrupts of the 8254 and of the
//! battery-backed clock by polling the 8259s, is moved, counts on, and switches itself off by ACPI's registers.

mod common;

use std::time::Duration;

use common::moving::{Guest, Section};
use common::{Event, events, kernel, kvm};
use whimbrel::machine::Machine;
use whimbrel_vmm::{Image, MachineOptions, map};

const MACHINE: MachineOptions = MachineOptions { rtc: true, ..MachineOptions::QEMU };
/// What the guest writes for a tick of the 8254, and for one of the clock.
const TIMER: u8 = b't';
const CLOCK: u8 = b'r';
/// 8254 ticks after which the guest switches itself off.
const TICKS: u8 = 250;

/// `mov al, value; out port, al`.
const fn out(port: u8, value: u8) -> [u8; 4] {
    [0xb0, value, 0xe6, port]
}

/// Channel 0 gives a pulse every 11932 ticks, which is 100 Hz; if not told so, 18 Hz as from power-on.
const HUNDRED_HZ: [[u8; 4]; 3] = [out(0x43, 0x34), out(0x40, 0x9c), out(0x40, 0x2e)];

fn program(timer: &[[u8; 4]]) -> Vec<u8> {
    let mut code = [
        // Both 8259s: edge-triggered, cascaded; all masked but the timer, the cascade and the clock.
        out(0x20, 0x11),
        out(0xa0, 0x11),
        out(0x21, 0x20),
        out(0xa1, 0x28),
        out(0x21, 0x04),
        out(0xa1, 0x02),
        out(0x21, 0x01),
        out(0xa1, 0x01),
        out(0x21, 0xfa),
        out(0xa1, 0xfe),
        // The clock: periodic interrupts at 16 Hz.
        out(0x70, 0x0a),
        out(0x71, 0x2c),
        out(0x70, 0x0b),
        out(0x71, 0x42),
    ]
    .concat();
    code.extend(timer.concat());
    code.extend([0xb9, TICKS, 0, 0, 0]); // mov ecx, TICKS
    let again = code.len();
    code.extend(out(0x20, 0x0c)); // poll the master
    code.extend([0xe4, 0x20]); // in al, 0x20
    code.extend([0x3c, 0x80]); // cmp al, 0x80: input 0
    let timer = [&[0xb0, TIMER, 0xe6, 0xe9][..], &[0xfe, 0xc9]].concat(); // put 't'; dec cl
    let clock = [
        &out(0xa0, 0x0c)[..], // poll the slave
        &[0xe4, 0xa0],        // in al, 0xa0
        &[0xb0, CLOCK, 0xe6, 0xe9],
        &out(0x70, 0x0c),
        &[0xe4, 0x71], // read register C, so that the clock interrupts again
    ]
    .concat();
    // jne over the timer's part; jnz again; fall through to the end.
    code.extend([0x75, timer.len() as u8 + 2 + 7 + 2]);
    code.extend(timer);
    code.extend([0x75, (again as i32 - code.len() as i32 - 2) as u8]); // jnz again
    code.extend([0xc6, 0x05]); // mov byte [sleep control], 5 << 2 | enable
    code.extend((map::GED_REGISTERS as u32).to_le_bytes());
    code.push(0x34);
    code.extend([0xeb, 0xfe]); // never reached
    code.extend([0x3c, 0x82]); // cmp al, 0x82: input 2, the slave
    code.extend([0x75, (again as i32 - code.len() as i32 - 2) as u8]); // jne again
    code.extend(clock);
    code.extend([0xeb, (again as i32 - code.len() as i32 - 2) as u8]); // jmp again
    code
}

fn count(guest: &Guest, what: u8) -> usize {
    guest.console.bytes().iter().filter(|byte| **byte == what).count()
}

fn start(test: &str, kernel: &Image, incoming: bool) -> Guest {
    Guest::on(MACHINE, test, &beacon::CommandLine::default(), kernel, incoming, &[])
}

/// What does not follow the host's time is the same.
#[track_caller]
fn assert_same(first: &[Section], second: &[Section], when: &str) {
    for (first, second) in first.iter().zip(second) {
        assert_eq!(first.name, second.name);
        if ["i8254", "i8259", "ioapic", "acpi-ged"].contains(&first.name.idstr.as_str()) {
            assert_eq!(first.body, second.body, "{:?} changed {when}", first.name);
        }
    }
}

#[test]
fn timers_go_on_where_the_guest_goes_and_its_power_off_is_heard() {
    const TEST: &str = "timers_go_on_where_the_guest_goes_and_its_power_off_is_heard";
    if !kvm(TEST) {
        return;
    }
    let kernel = kernel(&program(&HUNDRED_HZ));
    let source = start("legacy-source", &kernel, false);
    source.resume();
    source.console.wait("both timers tick", |_| count(&source, TIMER) > 40 && count(&source, CLOCK) > 4);
    source.stop();
    let ticks = count(&source, TIMER);
    let sections = source.save().unwrap();
    std::thread::sleep(Duration::from_millis(50));
    assert_same(&sections, &source.save().unwrap(), "while the machine stood still");

    let destination = start("legacy-destination", &kernel, true);
    let (listener, heard) = events();
    destination.vm.attach(listener);
    destination.copy_ram_from(&source);
    destination.load(&sections).unwrap();
    assert_same(&sections, &destination.save().unwrap(), "on the way");
    destination.resume();
    destination.console.wait("the clock ticks on", |_| count(&destination, CLOCK) > 4);
    assert_eq!(heard.recv_timeout(Duration::from_secs(60)), Ok(Event::Shutdown));
    assert_eq!(ticks + count(&destination, TIMER), usize::from(TICKS), "each tick once");
}

#[test]
fn a_reset_while_the_machine_runs_leaves_its_timers_running() {
    const TEST: &str = "a_reset_while_the_machine_runs_leaves_its_timers_running";
    if !kvm(TEST) {
        return;
    }
    let guest = start("legacy-again", &kernel(&program(&[])), false);
    guest.resume();
    let ticks = |more: usize| {
        let before = (count(&guest, TIMER), count(&guest, CLOCK));
        guest.console.wait("both timers tick", |_| {
            count(&guest, TIMER) > before.0 + more && count(&guest, CLOCK) > before.1 + more / 2
        });
    };
    ticks(20);
    guest.vm.pause_vcpus().unwrap();
    guest.vm.reset().unwrap();
    guest.vm.resume_vcpus().unwrap();
    ticks(20);
}

#[test]
fn a_reset_by_the_event_device_is_heard() {
    if !kvm("a_reset_by_the_event_device_is_heard") {
        return;
    }
    let mut code = vec![0xc6, 0x05]; // mov byte [reset], 0x42
    code.extend((map::GED_REGISTERS as u32 + 2).to_le_bytes());
    code.extend([0x42, 0xeb, 0xfe]);
    let guest = start("legacy-reset", &kernel(&code), false);
    let (listener, heard) = events();
    guest.vm.attach(listener);
    guest.resume();
    assert_eq!(heard.recv_timeout(Duration::from_secs(60)), Ok(Event::Reset));
}
