//! The tiers: what belongs together because it needs the same of the host, in the order they run.

/// One thing a tier runs.
pub(crate) enum Step {
    /// `cargo` with these words.
    Cargo(&'static str),
    /// `cargo` with these words, for aarch64, whose programs run under emulation.
    Aarch64(&'static str),
    /// A check of our own.
    Check(&'static str, fn() -> Result<(), String>),
}

/// A tier.
pub(crate) struct Tier {
    pub(crate) name: &'static str,
    pub(crate) about: &'static str,
    pub(crate) steps: &'static [Step],
}

use Step::{Aarch64, Cargo, Check};

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
            // inspect's tests are held to the x86 machine.
            Aarch64("check --workspace --exclude whimbrel-inspect --all-targets"),
            Aarch64("check --package whimbrel-inspect --lib"),
            Aarch64(
                "test --package beacon --package msi --package worker --package whimbrel-its --package whimbrel-wire --package whimbrel-vmstate \
                 --package whimbrel-proto --lib --bins --tests --no-fail-fast",
            ),
            // The emulator has no userfaultfd: what tracks writes by it runs in L1.
            Aarch64(
                "test --package whimbrel --package whimbrel-vmm --lib --no-fail-fast -- --skip dirty::write_protect",
            ),
            // It leaves descriptors open that do not fit into a message's room: that test runs in L1, too.
            Aarch64(
                "test --package whimbrel-qmp --lib --tests --no-fail-fast -- --skip a_client_that_sends_descriptors_without_end",
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
        about: "what tracks writes, the engine, an ITS that moves with its MSIs, its tables, and a Linux guest, in an emulated arm host",
        steps: &[Cargo(
            "test --package whimbrel-e2e --test nested --no-fail-fast -- arm:: its:: inspect:: --test-threads=1 --nocapture",
        )],
    },
];

/// Their names and subjects, a line each.
pub(crate) fn list() -> String {
    TIERS.iter().map(|tier| format!("  {:<8} {}\n", tier.name, tier.about)).collect()
}
