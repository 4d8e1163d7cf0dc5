//! Compiles the guests in `guest/`: the beacon for each architecture, and the one that tells what CPU it sees.

use freestanding::{Architecture, Guest};

/// Ring 0 takes interrupts on the running stack.
const BEACON_X86: &[&str] = &["-fcf-protection=none", "-mno-red-zone"];

fn main() {
    freestanding::build(&[
        Guest {
            name: "X86_64",
            what: "The guest for x86-64, a static ELF64 with a PVH note",
            architecture: Architecture::X86_64,
            folders: &[".", "x86"],
            flags: BEACON_X86,
        },
        Guest {
            name: "AARCH64",
            what: "The guest for aarch64, a flat arm64 Image",
            architecture: Architecture::Aarch64,
            folders: &[".", "aarch64"],
            flags: &[],
        },
        Guest {
            name: "CPU_DUMP",
            what: "The guest that tells what x86-64 CPU it sees (see [`cpu_dump`])",
            architecture: Architecture::X86_64,
            folders: &["cpu_dump"],
            flags: &[],
        },
    ]);
}
