//! What needs an aarch64 kernel, not only an aarch64 CPU: the engine's tests, and Linux on `virt`.

use whimbrel_e2e::l1::{Arch, L1, cross};
use whimbrel_e2e::{Need, needs};

use crate::linux::Trial;

#[test]
fn the_engine_tracks_writes_and_moves_guests_on_aarch64() {
    if !needs(&[Need::L1Arm]) {
        return;
    }
    let build = |package, which: &[&str], name| {
        let words = [&["test", "--no-run", "--package", package], which].concat();
        cross("aarch64", &words, name)
    };
    let mut l1 = L1::new(Arch::Arm);
    l1.root().copy(&build("whimbrel", &["--lib"], "whimbrel"), "/unit");
    l1.root().copy(&build("whimbrel", &["--test", "engine"], "engine"), "/engine");
    l1.root().copy(&build("whimbrel-qmp", &["--test", "monitor"], "monitor"), "/monitor");
    // The emulation of a program leaves descriptors open that do not fit into a message's room; a kernel closes them.
    let outcome = l1.run("/unit && /engine --test-threads=2 && /monitor descriptors::");
    outcome.show();
    assert_eq!(outcome.status, Some(0), "in L1, see above");
}

#[test]
fn linux_moves_live_and_goes_on() {
    Trial::arm(Arch::Arm, 2).moves_live(1);
}
