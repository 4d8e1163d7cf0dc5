//! Linux on `microvm`.

use crate::linux::Trial;

#[test]
fn linux_by_pvh_moves_live_and_goes_on() {
    Trial::x86("vmlinux", 2).moves_live(1);
}

#[test]
fn linux_as_bzimage_moves_live_and_goes_on() {
    Trial::x86("vmlinuz", 1).moves_live(1);
}
