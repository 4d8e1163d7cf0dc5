//! The tiers: what belongs together because it needs the same of the host, in the order they run.

/// One thing a tier runs.
pub(crate) enum Step {
    /// `cargo` with these words.
    Cargo(&'static str),
    /// `cargo` with these words, for aarch64.
    Aarch64(&'static str),
    /// `cargo test` with these words, for aarch64, its programs run by the emulator; and what that cannot run.
    Emulated(&'static str, &'static [LeftOut]),
    /// A check of our own.
    Check(&'static str, fn() -> Result<(), String>),
}

/// Tests whose names contain `name`, and why they are left out where they would run otherwise.
pub(crate) struct LeftOut {
    pub(crate) name: &'static str,
    pub(crate) why: &'static str,
}

/// A tier.
pub(crate) struct Tier {
    pub(crate) name: &'static str,
    pub(crate) about: &'static str,
    pub(crate) steps: &'static [Step],
}

use Step::{Aarch64, Cargo, Check, Emulated};

/// All of them. Guests move one at a time: two under load on two cores would test the scheduler.
pub(crate) const TIERS: &[Tier] = &[
    Tier {
        name: "lint",
        about: "formatting, clippy, documentation, dependencies",
        steps: &[
            Cargo("fmt --all --check"),
            Cargo("clippy --workspace --all-targets -- -D warnings"),
            Cargo("doc --workspace --lib --no-deps"),
            Check("dependencies", crate::dependencies::check),
        ],
    },
    Tier {
        name: "unit",
        about: "every crate's own tests, simulations with a virtual clock, and a machine without KVM that moves",
        steps: &[
            Cargo("test --workspace --exclude whimbrel-vmm --exclude whimbrel-e2e --no-fail-fast"),
            Cargo("run --quiet --package whimbrel --example minimal"),
        ],
    },
    Tier {
        name: "kvm",
        about: "the machine on real KVM, and moves of real guests between whimbrel processes",
        steps: &[
            Cargo("test --package whimbrel-vmm --no-fail-fast -- --test-threads=1"),
            Cargo("test --package whimbrel-e2e --lib --test kvm --no-fail-fast -- --test-threads=1"),
            Cargo("run --quiet --bin whimbrel -- demo"),
        ],
    },
    Tier {
        name: "interop",
        about: "moves to and from real QEMU 7.2 and 10.0",
        steps: &[Cargo("test --package whimbrel-e2e --test interop --no-fail-fast -- --test-threads=1")],
    },
    Tier {
        name: "arm",
        about: "built for aarch64, every crate's own tests under emulation",
        steps: &[
            Aarch64("check --workspace --all-targets"),
            // Tests that need a KVM compile for its architecture only, by `cfg`. Those of whimbrel-e2e move guests: they are checked above.
            Emulated(
                "test --workspace --exclude whimbrel --exclude whimbrel-e2e --lib --bins --tests --no-fail-fast",
                &[LeftOut {
                    name: "descriptors::a_client_that_sends_descriptors_without_end_fills_nothing",
                    why: "the emulator leaves descriptors open that do not fit into a message's room; it runs in l1-arm",
                }],
            ),
            // The engine's integration tests track writes, in l1-arm.
            Emulated(
                "test --package whimbrel --package whimbrel-e2e --lib --no-fail-fast",
                &[LeftOut {
                    name: "dirty::write_protect",
                    why: "the emulator has no userfaultfd; they run in l1-arm",
                }],
            ),
        ],
    },
    Tier {
        name: "l1-x86",
        about: "Linux guests, moved between whimbrel processes in an emulated x86 host",
        steps: &[Cargo(
            "test --package whimbrel-e2e --test nested --no-fail-fast -- x86:: guest:: sight:: --test-threads=1 --nocapture",
        )],
    },
    Tier {
        name: "l1-arm",
        about: "what tracks writes, the engine, an ITS that moves with its MSIs, its tables, the beacon and a Linux guest, in an emulated arm host",
        steps: &[Cargo(
            "test --package whimbrel-e2e --test nested --no-fail-fast -- arm:: beacon:: counter:: its:: inspect:: operator:: --test-threads=1 --nocapture",
        )],
    },
];

/// Their names and subjects, a line each.
pub(crate) fn list() -> String {
    TIERS.iter().map(|tier| format!("  {:<8} {}\n", tier.name, tier.about)).collect()
}
