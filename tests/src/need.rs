//! What a test needs of the host. A test that cannot run says so, by name and with the remedy, and never passes silently:
//! `SKIPPED name: reason` goes to the real standard output (past the test runner's capture), where `cargo xtask test`
//! counts it; with `WHIMBREL_NO_SKIP=1` a skip is a failure, unless it is for what no fresh machine must have.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::PathBuf;

use crate::Peer;
use crate::l1::{self, Arch};

/// The linker of programs for aarch64.
const CROSS_GCC: &str = "/usr/bin/aarch64-linux-gnu-gcc";

/// Something a test cannot do without.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// A usable /dev/kvm.
    Kvm,
    /// The test guest, which the build makes with the system's C compiler.
    Beacon,
    /// QEMU 7.2, Debian 12's own.
    Qemu72,
    /// QEMU 10.0, of Debian's backports.
    Qemu10,
    /// QEMU's own client for QMP, `qemu.qmp` of PyPI.
    QemuQmp,
    /// What boots an x86 L1: see [`crate::l1`].
    L1X86,
    /// What boots an arm L1, and builds programs for it.
    L1Arm,
    /// What builds programs for aarch64.
    CrossArm,
    /// A kernel over whose vsock the host reaches itself. No fresh machine must have it.
    VsockLoopback,
}

impl Need {
    /// What is missing and how to get it; `None` if it is there.
    pub fn missing(self) -> Option<String> {
        match self {
            Self::Kvm => OpenOptions::new().read(true).write(true).open("/dev/kvm").err().map(|error| {
                format!(
                    "no usable /dev/kvm ({error}); get it: modprobe kvm_intel or kvm_amd, and be in group kvm"
                )
            }),
            Self::Beacon => {
                beacon::NATIVE.err().map(|reason| format!("the test guest was not built: {reason}"))
            }
            Self::Qemu72 => Peer::Qemu72.program().err(),
            Self::Qemu10 => Peer::Qemu10.program().err(),
            Self::QemuQmp => (!python().exists())
                .then(|| format!("no {}; get it: cargo xtask fetch qemu-qmp", python().display())),
            Self::L1X86 => l1::missing(Arch::X86),
            Self::L1Arm => l1::missing(Arch::Arm).or_else(|| Self::CrossArm.missing()),
            Self::CrossArm => [
                (Arch::Arm.fetched("rustc"), "cargo xtask fetch nested arm"),
                (CROSS_GCC.into(), "apt-get install gcc-aarch64-linux-gnu libc6-dev-arm64-cross"),
            ]
            .into_iter()
            .find(|(path, _)| !path.exists())
            .map(|(path, remedy)| format!("no {}; get it: {remedy}", path.display())),
            Self::VsockLoopback => (!std::path::Path::new("/sys/module/vsock_loopback").exists())
                .then(|| "no vsock loopback; get it: modprobe vsock_loopback".to_owned()),
        }
    }
}

impl Need {
    /// Whether a test may go without it even where no skip is allowed: it depends on how the host's kernel was built.
    fn is_optional(self) -> bool {
        self == Self::VsockLoopback
    }
}

/// The Python that has `qemu.qmp`.
pub fn python() -> PathBuf {
    crate::peer::cache().join("qemu-qmp/bin/python")
}

/// Whether everything is there; if not, announces the skip of the calling test.
///
/// # Panics
/// If something is missing and `WHIMBREL_NO_SKIP=1`.
#[must_use]
pub fn needs(needs: &[Need]) -> bool {
    let Some((need, reason)) = needs.iter().find_map(|need| Some((need, need.missing()?))) else {
        return true;
    };
    if need.is_optional() {
        announce("SKIPPED-OPTIONAL", &reason)
    } else {
        skip(&reason)
    }
    false
}

/// Announces that the calling test is skipped. Return after it.
///
/// # Panics
/// If `WHIMBREL_NO_SKIP=1`.
pub fn skip(reason: &str) {
    assert!(
        std::env::var_os("WHIMBREL_NO_SKIP").is_none_or(|value| value != "1"),
        "{} may not be skipped: {reason}",
        test()
    );
    announce("SKIPPED", reason);
}

fn announce(what: &str, reason: &str) {
    // On a line of its own, and in one write: the lines of parallel tests do not mix. A closed standard output is nobody's concern here.
    let _ = std::io::stdout().write_all(format!("\n{what} {}: {reason}\n", test()).as_bytes());
}

/// The test runner names each test's thread after the test.
fn test() -> String {
    std::thread::current().name().unwrap_or("unnamed").to_owned()
}
