//! L1: a Linux with a KVM of its own, in QEMU's software emulation. Where this machine's KVM cannot run what a test needs (a Linux
//! guest, an arm guest), the test runs in L1, and its guests (L2) on L1's KVM.
//!
//! ```text
//! this machine  the test ── starts ─▶ QEMU (TCG)
//! L1                                    └ Linux, /dev/kvm, initramfs: /test = this test binary, /bin/whimbrel, files
//!                                          └ the same test again ── starts ─▶ whimbrel ═══▶ whimbrel
//! L2                                                                           └ guest        └ guest
//! ```
//! One test function is both: [`inside`] boots L1 for it, and calls its body there. What L1 prints is printed with `L1: ` before it.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::initramfs::Initramfs;
use crate::process::Process;
use crate::scratch::Scratch;
use crate::{Need, Peer, needs, now, peer, rounds};

/// How long an L1 may take for everything, and how much longer for each round of a soak.
const DEADLINE: Duration = Duration::from_secs(280);
const ROUND: Duration = Duration::from_secs(30);
/// Set in L1, for the test that runs there.
const MARK: &str = "WHIMBREL_L1";
/// What L1 prints at its end, before a number: the exit status of what ran in it.
const STATUS: &str = "L1 ends with status ";

/// Of L1, and so of its guests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arch {
    /// SVM and nested paging.
    X86,
    /// EL2, with vGICv3 and its ITS; Linux 6.12, whose KVM has the dirty ring.
    Arm,
    /// The same with Linux 6.1, without the ring.
    ArmWithoutRing,
}

impl Arch {
    /// What a test needs of this machine to run there.
    pub fn need(self) -> Need {
        match self {
            Self::X86 => Need::L1X86,
            Self::Arm | Self::ArmWithoutRing => Need::L1Arm,
        }
    }

    fn folder(self) -> PathBuf {
        peer::cache().join("nested").join(if self == Self::X86 { "x86" } else { "arm" })
    }

    /// A file that `cargo xtask fetch nested` left for this architecture.
    pub fn fetched(self, name: &str) -> PathBuf {
        self.folder().join(name)
    }

    /// The kernel L1 runs.
    pub fn kernel(self) -> PathBuf {
        self.fetched(match self {
            Self::X86 => "vmlinuz",
            Self::Arm => "vmlinuz-6.12",
            Self::ArmWithoutRing => "vmlinuz-6.1",
        })
    }

    /// The emulator.
    pub fn emulator(self) -> PathBuf {
        let name = if self == Self::X86 { "qemu-system-x86_64" } else { "qemu-system-aarch64" };
        peer::cache().join("qemu10/bin").join(name)
    }

    fn arguments(self) -> &'static [&'static str] {
        match self {
            Self::X86 => &["-cpu", "max,+svm"],
            Self::Arm | Self::ArmWithoutRing => &[
                "-M",
                "virt,virtualization=on,gic-version=3,its=on",
                "-cpu",
                // The architected pointer authentication is slow to emulate; SVE has no place in a test.
                "max,pauth-impdef=on,sve=off",
            ],
        }
    }

    fn console(self) -> &'static str {
        if self == Self::X86 { "ttyS0 tsc=reliable clocksource=tsc" } else { "ttyAMA0" }
    }
}

/// A run of L1.
#[derive(Debug)]
pub struct L1 {
    arch: Arch,
    root: Initramfs,
}

/// How it ended.
#[derive(Debug)]
pub struct Outcome {
    /// The exit status of what ran in L1; `None` if L1 never came to its end.
    pub status: Option<i32>,
    /// What it printed.
    pub output: String,
}

impl Outcome {
    /// Prints what L1 printed, with `L1: ` before each line.
    pub fn show(&self) {
        for line in self.output.lines() {
            println!("L1: {line}");
        }
    }
}

impl L1 {
    /// 2 GiB, two CPUs, and nothing in it but busybox and KVM.
    ///
    /// # Panics
    /// If what is fetched cannot be read.
    pub fn new(arch: Arch) -> Self {
        let mut root = Initramfs::new(&arch.fetched("busybox"), &init());
        root.file("/etc/hosts", b"127.0.0.1 localhost\n", 0o644);
        if arch == Arch::X86 {
            for module in ["irqbypass.ko", "kvm.ko", "kvm-amd.ko"] {
                root.copy(&arch.fetched(&format!("modules/{module}")), &format!("/modules/{module}"));
            }
        }
        Self { arch, root }
    }

    /// The files L1 starts with: add to them.
    pub fn root(&mut self) -> &mut Initramfs {
        &mut self.root
    }

    /// Runs a line of shell in it.
    ///
    /// # Panics
    /// If the emulator cannot be started.
    pub fn run(mut self, line: &str) -> Outcome {
        self.root.file("/run", line.as_bytes(), 0o644);
        let scratch = Scratch::new("l1");
        let initrd = scratch.join("initrd");
        std::fs::write(&initrd, self.root.finish()).expect("the scratch directory is writable");
        let mut command = Command::new(self.arch.emulator());
        command.args(self.arch.arguments()).args(["-accel", "tcg,thread=multi", "-smp", "2"]);
        command.args(["-m", "2G", "-nic", "none", "-no-reboot"]);
        command.args(["-nodefaults", "-display", "none", "-serial", "stdio"]);
        command.arg("-kernel").arg(self.arch.kernel()).arg("-initrd").arg(&initrd);
        command.args(["-append", &format!("console={} panic=-1 quiet", self.arch.console())]);
        let mut process = Process::start("L1", &mut command, &scratch.join("log"));
        let start = now();
        let deadline = DEADLINE + ROUND * rounds(0);
        while process.ended().is_none() && now() - start < deadline {
            std::thread::sleep(Duration::from_millis(50));
        }
        process.kill();
        let output = process.log().replace('\r', "");
        let status = output.lines().filter_map(|line| line.strip_prefix(STATUS)?.parse().ok()).next_back();
        Outcome { status, output }
    }
}

/// Runs a test in L1: outside, boots it with what `prepare` adds, and waits; inside, calls `body`.
///
/// # Panics
/// If the body does, or L1 does not come to its end.
#[track_caller]
pub fn inside(arch: Arch, prepare: impl Fn(&mut Initramfs), body: impl FnOnce()) {
    try_inside(1, arch, prepare, body);
}

/// The same for a test whose guest is Linux: if it fails, once more. One boot of an L2 in forty has been seen to hang in emulation.
///
/// # Panics
/// If both times the body does, or L1 does not come to its end.
#[track_caller]
pub fn inside_with_linux(arch: Arch, prepare: impl Fn(&mut Initramfs), body: impl FnOnce()) {
    try_inside(2, arch, prepare, body);
}

#[track_caller]
fn try_inside(tries: u32, arch: Arch, prepare: impl Fn(&mut Initramfs), body: impl FnOnce()) {
    if std::env::var_os(MARK).is_some() {
        return body();
    }
    if !needs(&[arch.need()]) {
        return;
    }
    // The test runner names each test's thread after the test.
    let name = std::thread::current().name().expect("a test's thread has its name").to_owned();
    let asked = std::env::var("WHIMBREL_ROUNDS").unwrap_or_default();
    let line = format!(
        "export {MARK}=1 WHIMBREL_NO_SKIP=1 WHIMBREL_BIN=/bin/whimbrel WHIMBREL_CACHE=/fetched WHIMBREL_ROUNDS={asked}\n\
         /test {name} --exact --nocapture"
    );
    for left in (0..tries).rev() {
        let mut l1 = L1::new(arch);
        let (test, whimbrel) = programs(arch);
        l1.root().program(&test, "/test");
        l1.root().program(&whimbrel, "/bin/whimbrel");
        prepare(l1.root());
        let outcome = l1.run(&line);
        outcome.show();
        match outcome.status {
            Some(0) => return,
            status if left == 0 => panic!("{name} in L1: exit status {status:?}, see above"),
            status => println!("{name} in L1: exit status {status:?}; once more"),
        }
    }
}

/// This test binary and `whimbrel`, as L1 runs them.
fn programs(arch: Arch) -> (PathBuf, PathBuf) {
    let own = std::env::current_exe().expect("this program has a path");
    match arch {
        Arch::X86 => (own, Peer::Whimbrel.program().unwrap_or_else(|missing| panic!("{missing}"))),
        Arch::Arm | Arch::ArmWithoutRing => {
            let target =
                own.file_stem().and_then(|name| name.to_str()?.rsplit_once('-')).expect("cargo's name").0;
            let test = ["test", "--no-run", "--package", "whimbrel-e2e", "--test", target];
            (
                cross("aarch64", &test, target),
                cross("aarch64", &["build", "--package", "whimbrel-cli"], "whimbrel"),
            )
        }
    }
}

/// Builds a static program for another machine by `cargo xtask cross`, and says where it is.
///
/// # Panics
/// If it does not build.
#[track_caller]
pub fn cross(architecture: &str, words: &[&str], name: &str) -> PathBuf {
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["run", "--quiet", "--package", "xtask", "--", "cross", architecture]).args(words);
    cargo.args(["--message-format", "json-render-diagnostics"]).current_dir(env!("CARGO_MANIFEST_DIR"));
    let output = cargo.stderr(std::process::Stdio::inherit()).output().expect("cargo runs");
    assert!(output.status.success(), "{name} does not build for {architecture}");
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .filter(|message| message["target"]["name"] == name)
        .find_map(|message| message["executable"].as_str().map(PathBuf::from))
        .expect("cargo names the executable it built")
}

/// What L1 does: makes itself at home, runs `/run`, says how that ended.
fn init() -> String {
    format!(
        "#!/bin/busybox sh\n\
         /bin/busybox mkdir -p /usr/bin /usr/sbin /sbin && /bin/busybox --install -s\n\
         mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev; mount -t tmpfs tmp /tmp\n\
         mkdir /dev/shm; mount -t tmpfs shm /dev/shm; ip link set lo up\n\
         for module in irqbypass kvm kvm-amd; do [ ! -f /modules/$module.ko ] || insmod /modules/$module.ko; done\n\
         echo \"L1 is up after $(cut -d' ' -f1 /proc/uptime) s: $(uname -r) $(ls /dev/kvm)\"\n\
         sh /run; echo \"{STATUS}$?\"\n\
         poweroff -f\n"
    )
}

/// What a run of L1 needs of this machine: what is missing, and how to get it.
pub(crate) fn missing(arch: Arch) -> Option<String> {
    let lacks = |path: &Path, fetch: &str| {
        (!path.exists()).then(|| format!("no {}; get it: cargo xtask fetch {fetch}", path.display()))
    };
    let nested = if arch == Arch::X86 { "nested x86" } else { "nested arm" };
    lacks(&arch.emulator(), "qemu10").or_else(|| lacks(&arch.kernel(), nested))
}
