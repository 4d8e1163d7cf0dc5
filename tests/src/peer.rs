//! The programs that a guest moves between, and their command lines. This file alone knows how each spells its options.

use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use crate::vm::{Launch, Machine};

/// A program that runs machines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Peer {
    /// This repository's `whimbrel run`.
    Whimbrel,
    /// Debian 12's own QEMU.
    Qemu72,
    /// The QEMU of Debian's backports, unpacked by `cargo xtask fetch qemu10`.
    Qemu10,
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Whimbrel => "whimbrel",
            Self::Qemu72 => "QEMU 7.2",
            Self::Qemu10 => "QEMU 10.0",
        })
    }
}

/// Where a machine's monitor and ports are.
pub(crate) struct Sockets<'a> {
    pub(crate) monitor: &'a Path,
    pub(crate) heartbeat: &'a Path,
    pub(crate) console: &'a Path,
}

impl Peer {
    /// Both QEMUs.
    pub const QEMUS: [Self; 2] = [Self::Qemu72, Self::Qemu10];

    /// Whether it is a real QEMU.
    pub fn is_qemu(self) -> bool {
        self != Self::Whimbrel
    }

    /// The `--compat` level of its streams.
    pub fn level(self) -> &'static str {
        match self {
            Self::Qemu72 => "7.2",
            Self::Qemu10 | Self::Whimbrel => "10.0",
        }
    }

    /// What a test needs of the host to run it.
    pub fn need(self) -> crate::Need {
        match self {
            Self::Whimbrel => crate::Need::Kvm,
            Self::Qemu72 => crate::Need::Qemu72,
            Self::Qemu10 => crate::Need::Qemu10,
        }
    }

    /// The executable.
    ///
    /// # Errors
    /// It is not there; how to get it.
    ///
    /// # Panics
    /// If `whimbrel` does not build.
    pub fn program(self) -> Result<PathBuf, String> {
        match self {
            Self::Whimbrel => Ok(whimbrel().clone()),
            Self::Qemu72 => {
                let path = std::env::var_os("PATH").unwrap_or_default();
                std::env::split_paths(&path)
                    .map(|folder| folder.join("qemu-system-x86_64"))
                    .find(|program| program.exists())
                    .ok_or_else(|| {
                        "no qemu-system-x86_64; get it: apt-get install qemu-system-x86".to_owned()
                    })
            }
            Self::Qemu10 => {
                let program = cache().join("qemu10/bin/qemu-system-x86_64");
                let missing = || format!("no {}; get it: cargo xtask fetch qemu10", program.display());
                program.exists().then(|| program.clone()).ok_or_else(missing)
            }
        }
    }

    /// The firmware that every machine of a test is given: the RAM block `pc.bios` must have one size on both sides.
    /// `None` where no QEMU is installed; whimbrel boots the kernel without it.
    pub fn firmware() -> Option<PathBuf> {
        let path = PathBuf::from("/usr/share/seabios/bios-microvm.bin");
        path.exists().then_some(path)
    }

    /// The command that starts `launch`.
    pub(crate) fn command(self, launch: &Launch, kernel: &Path, sockets: &Sockets<'_>) -> Command {
        let program = self.program().unwrap_or_else(|missing| panic!("{missing}"));
        let mut command = Command::new(program);
        match self {
            Self::Whimbrel => whimbrel_arguments(&mut command, launch, kernel, sockets),
            Self::Qemu72 | Self::Qemu10 => self.qemu_arguments(&mut command, launch, kernel, sockets),
        }
        if let Some(linux) = &launch.linux {
            command.arg(if self.is_qemu() { "-initrd" } else { "--initrd" }).arg(&linux.initrd);
        }
        command.args(&launch.extra);
        command
    }

    fn qemu_arguments(self, command: &mut Command, launch: &Launch, kernel: &Path, sockets: &Sockets<'_>) {
        let chardev = |id: &str, path: &Path| prefixed(&format!("socket,id={id},path="), path);
        command
            .args(["-M", launch.machine.option(), "-cpu", &launch.cpu])
            .args(["-accel", if launch.emulated { "tcg" } else { "kvm" }])
            .args(["-nodefaults", "-no-user-config", "-display", "none"])
            .args(["-m", &launch.memory_mib.to_string(), "-smp", &launch.cpus().to_string()])
            .arg("-kernel")
            .arg(kernel)
            .args(["-append", &launch.command_line()])
            .arg("-chardev")
            .arg(chardev("heartbeat", sockets.heartbeat))
            .args(["-device", "isa-debugcon,iobase=0xe9,chardev=heartbeat"])
            .arg("-chardev")
            .arg(chardev("console", sockets.console))
            .args(["-serial", "chardev:console"])
            .arg("-qmp")
            .arg({
                let mut monitor = prefixed("unix:", sockets.monitor);
                monitor.push(",server=on,wait=off");
                monitor
            });
        if let Some(firmware) = &launch.firmware {
            command.arg("-bios").arg(firmware);
        }
        if let Some(uri) = &launch.incoming {
            command.args(["-incoming", uri]);
        }
        if launch.stopped {
            command.arg("-S");
        }
        // The machine type `microvm` has no versions, so what 7.2 does not know is switched off one by one.
        if self == Self::Qemu10 && launch.level == "7.2" {
            for property in [
                "send-switchover-start=off",
                "multifd-flush-after-each-section=on",
                "zero-page-detection=legacy",
            ] {
                command.args(["-global", &format!("migration.{property}")]);
            }
        }
    }
}

fn whimbrel_arguments(command: &mut Command, launch: &Launch, kernel: &Path, sockets: &Sockets<'_>) {
    command
        .arg("run")
        .args(["--memory", &launch.memory_mib.to_string(), "--cpus", &launch.cpus().to_string()])
        .arg("--kernel")
        .arg(kernel)
        .args(["--append", &launch.command_line()])
        .arg("--debugcon")
        .arg(prefixed("unix:", sockets.heartbeat))
        .arg("--serial")
        .arg(prefixed("unix:", sockets.console))
        .arg("--qmp")
        .arg(prefixed("unix:", sockets.monitor))
        .args(["--compat", launch.level]);
    // For aarch64 it has one machine, without firmware, and one CPU: nothing to choose.
    if launch.machine != Machine::Virt {
        command.args(["-M", launch.machine.option()]).args(["--cpu", &launch.cpu]);
        if let Some(firmware) = &launch.firmware {
            command.arg("--bios").arg(firmware);
        }
    }
    if let Some(uri) = &launch.incoming {
        command.args(["--incoming", uri]);
    }
    if launch.stopped {
        command.arg("--stopped");
    }
    for fault in &launch.faults {
        command.args(["--fault", fault]);
    }
}

fn prefixed(prefix: &str, path: &Path) -> OsString {
    let mut text = OsString::from(prefix);
    text.push(path);
    text
}

/// Where fetched programs are kept.
pub(crate) fn cache() -> PathBuf {
    std::env::var_os("WHIMBREL_CACHE").map(PathBuf::from).unwrap_or_else(|| {
        PathBuf::from(std::env::var_os("HOME").unwrap_or_else(|| "/root".into())).join(".cache/whimbrel")
    })
}

/// The `whimbrel` binary: `$WHIMBREL_BIN`, else built once a test process, in the profile of the tests themselves.
fn whimbrel() -> &'static PathBuf {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        if let Some(program) = std::env::var_os("WHIMBREL_BIN") {
            return program.into();
        }
        let mut cargo = Command::new(env!("CARGO"));
        cargo.args(["build", "--quiet", "--package", "whimbrel-cli", "--bin", "whimbrel"]);
        cargo.args(["--message-format", "json-render-diagnostics"]).current_dir(env!("CARGO_MANIFEST_DIR"));
        if !cfg!(debug_assertions) {
            cargo.arg("--release");
        }
        let output = cargo.stderr(std::process::Stdio::inherit()).output().expect("cargo runs");
        assert!(output.status.success(), "the whimbrel binary does not build");
        String::from_utf8_lossy(&output.stdout)
            .lines()
            .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
            .find_map(|message| message["executable"].as_str().map(PathBuf::from))
            .expect("cargo names the executable it built")
    })
}
