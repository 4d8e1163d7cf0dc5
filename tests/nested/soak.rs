//! Linux moved in every other way that is built, a few times in a row each; and its tests' own teeth. CI has no time for them:
//! `cargo xtask soak linux`.

use whimbrel_e2e::l1::Arch;
use whimbrel_e2e::{Machine, rounds};

use crate::linux::Trial;

/// Moves in a row.
fn times() -> u32 {
    rounds(2)
}

#[test]
fn linux_by_pvh_with_one_vcpu() {
    Trial::x86("vmlinux", 1).moves_live(times());
}

#[test]
fn linux_as_bzimage_with_two_vcpus() {
    Trial::x86("vmlinuz", 2).moves_live(times());
}

#[test]
fn linux_on_the_machine_that_qemu_makes_if_nothing_is_said() {
    Trial { machine: Machine::Default, ..Trial::x86("vmlinux", 2) }.moves_live(times());
}

#[test]
fn linux_on_arm_with_one_vcpu() {
    Trial::arm(Arch::Arm, 1).moves_live(times());
}

#[test]
fn linux_on_an_older_arm_host() {
    Trial::arm(Arch::ArmWithoutRing, 2).moves_live(times());
}

#[test]
fn a_tsc_that_is_left_behind_is_seen() {
    Trial::x86("vmlinux", 2).is_seen_without_its_counter();
}

#[test]
fn a_virtual_counter_that_is_left_behind_is_seen() {
    Trial::arm(Arch::Arm, 2).is_seen_without_its_counter();
}
