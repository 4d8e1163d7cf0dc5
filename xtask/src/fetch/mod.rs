//! What tests drive, fetched into folders of its own. It installs nothing: neither the system's packages nor its apt
//! configuration are touched, and it needs no privileges.
//!
//! | `cargo xtask fetch` | gets |
//! |---|---|
//! | `qemu10` | QEMU 10.0 of Debian 12's backports, unpacked |
//! | `qemu-qmp` | QEMU's own client for QMP, in a Python environment |
//! | `nested [x86\|arm]` | kernels, busybox and a Rust compiler for tests in L1: [`nested`] |

mod debian;
mod nested;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use debian::{Debian, Package};
pub(crate) use nested::nested;

/// What holds the programs, their firmware and their modules. The shared libraries are those of the system's own QEMU.
const QEMU10: &[Package] = &[
    backport("qemu-system-x86"),
    backport("qemu-system-arm"),
    backport("qemu-system-common"),
    backport("qemu-system-data"),
    backport("qemu-utils"),
    backport("seabios"),
    Package { suite: "bookworm", ..backport("ipxe-qemu") },
];
const fn backport(name: &'static str) -> Package {
    Package { name, suite: "bookworm-backports", with: &[], into: "root" }
}
const PROGRAMS: &[&str] = &["qemu-system-x86_64", "qemu-system-aarch64"];

/// The client's version, pinned: what it says to a server is part of the tests.
const CLIENT: &str = "qemu.qmp==0.0.6";

/// Fetches the client, unless it is there.
///
/// # Errors
/// What failed, and what to do about it.
pub(crate) fn qemu_qmp() -> Result<(), String> {
    let target = cache().join("qemu-qmp");
    let python = target.join("bin/python");
    if !python.exists() {
        let made = Command::new("python3").args(["-m", "venv"]).arg(&target).output();
        let made = made.map_err(|error| error.to_string()).and_then(|output| match output.status.success() {
            true => Ok(()),
            false => Err(String::from_utf8_lossy(&output.stdout).into_owned()),
        });
        let pip = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", CLIENT];
        let fetched = made
            .map_err(|error| format!("{error}\nget what makes it: apt-get install python3-venv"))
            .and_then(|()| twice(|| output(Command::new(&python).args(pip))));
        // Half an environment must not count.
        fetched.inspect_err(|_| drop(fs::remove_dir_all(&target)))?;
    }
    output(Command::new(&python).args(["-c", "import qemu.qmp"]))?;
    println!("{}\n{CLIENT}", python.display());
    Ok(())
}

/// Fetches QEMU 10.0, unless it is there.
///
/// # Errors
/// What failed, and what to do about it.
pub(crate) fn qemu10() -> Result<(), String> {
    let target = cache().join("qemu10");
    let program = target.join("bin").join(PROGRAMS[0]);
    whole(&target, |work| unpack(work, &target))?;
    let version = output(Command::new(&program).arg("--version")).map_err(|error| {
        format!("{error}\nits shared libraries come with: apt-get install qemu-system-x86")
    })?;
    println!("{}\n{}", program.display(), version.lines().next().unwrap_or_default());
    Ok(())
}

/// Unpacks the programs and puts the scripts that start them before them; returns the folder that is the whole.
fn unpack(work: &Path, target: &Path) -> Result<PathBuf, String> {
    let whole = work.join("qemu10");
    create(&whole.join("bin"))?;
    Debian::new(work)?.unpack(QEMU10, &whole)?;
    for program in PROGRAMS {
        let path = whole.join("bin").join(program);
        write(&path, &wrapper(&target.join("root/usr"), program))?;
        executable(&path)?;
    }
    Ok(whole)
}

/// Makes `target` by `make`, which works in a folder of its own and returns the finished whole in it: a half-fetched one
/// never counts. Nothing happens if it is there.
fn whole(target: &Path, make: impl FnOnce(&Path) -> Result<PathBuf, String>) -> Result<(), String> {
    if target.exists() {
        return Ok(());
    }
    let work = cache().join(format!("fetching-{}", std::process::id()));
    let moved = make(&work).and_then(|finished| {
        create(target.parent().unwrap_or(&work))?;
        fs::rename(finished, target).map_err(|error| format!("{}: {error}", target.display()))
    });
    // Left behind it would only take room.
    let _ = fs::remove_dir_all(&work);
    moved
}

/// The script that starts a program with its own firmware and modules.
fn wrapper(usr: &Path, program: &str) -> String {
    let usr = usr.display();
    format!(
        "#!/bin/sh\n\
         QEMU_MODULE_DIR='{usr}/lib/x86_64-linux-gnu/qemu' exec '{usr}/bin/{program}' \\\n    \
         -L '{usr}/share/qemu' -L '{usr}/share/seabios' -L '{usr}/lib/ipxe/qemu' \"$@\"\n"
    )
}

/// A download that fails is tried once more: mirrors hiccup.
fn twice(mut download: impl FnMut() -> Result<String, String>) -> Result<String, String> {
    download().or_else(|first| {
        eprintln!("{first}\nonce more");
        download()
    })
}

fn output(command: &mut Command) -> Result<String, String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.output().map_err(|error| format!("{program}: {error}"))?;
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    } else {
        Err(format!("{program}: {}\n{}", output.status, String::from_utf8_lossy(&output.stderr).trim_end()))
    }
}

fn create(folder: &Path) -> Result<(), String> {
    fs::create_dir_all(folder).map_err(|error| format!("{}: {error}", folder.display()))
}

fn executable(path: &Path) -> Result<(), String> {
    let mode = fs::Permissions::from_mode(0o755);
    fs::set_permissions(path, mode).map_err(|error| format!("{}: {error}", path.display()))
}

fn write(path: &Path, text: &str) -> Result<(), String> {
    fs::write(path, text).map_err(|error| format!("{}: {error}", path.display()))
}

/// Where fetched programs are kept.
pub(crate) fn cache() -> PathBuf {
    std::env::var_os("WHIMBREL_CACHE").map(PathBuf::from).unwrap_or_else(|| {
        PathBuf::from(std::env::var_os("HOME").unwrap_or_else(|| "/root".into())).join(".cache/whimbrel")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_download_is_tried_once_more_and_no_further() {
        let mut tries = 0;
        let mut failing = |good: u32| {
            tries = 0;
            twice(|| {
                tries += 1;
                if tries >= good { Ok(String::new()) } else { Err("mirror".to_owned()) }
            })
            .map(|_| tries)
        };
        assert_eq!(failing(1), Ok(1));
        assert_eq!(failing(2), Ok(2));
        assert!(failing(3).is_err());
    }

    #[test]
    fn a_wrapper_points_everything_into_the_unpacked_tree() {
        let text = wrapper(Path::new("/c/root/usr"), "qemu-system-x86_64");
        assert!(text.starts_with("#!/bin/sh\n"));
        assert!(
            text.contains("exec '/c/root/usr/bin/qemu-system-x86_64'") && text.trim_end().ends_with("\"$@\"")
        );
    }
}
