//! What tests drive, fetched into folders of its own. It installs nothing: neither the system's packages nor its apt
//! configuration are touched, and it needs no privileges.
//!
//! | `cargo xtask fetch` | gets |
//! |---|---|
//! | `qemu10` | QEMU 10.0 of Debian 12's backports, unpacked |
//! | `qemu-qmp` | QEMU's own client for QMP, in a Python environment |

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What holds the programs, their firmware and their modules. The shared libraries are those of the system's own QEMU.
const PACKAGES: &[&str] = &[
    "qemu-system-x86",
    "qemu-system-arm",
    "qemu-system-common",
    "qemu-system-data",
    "qemu-utils",
    "seabios",
    "ipxe-qemu",
];
const PROGRAMS: &[&str] = &["qemu-system-x86_64", "qemu-system-aarch64"];
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

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
    if !program.exists() {
        let work = cache().join(format!("fetching-{}", std::process::id()));
        let fetched = unpack(&work, &target);
        // Left behind it would only take room.
        let _ = fs::remove_dir_all(&work);
        fetched?;
    }
    let version = output(Command::new(&program).arg("--version")).map_err(|error| {
        format!("{error}\nits shared libraries come with: apt-get install qemu-system-x86")
    })?;
    println!("{}\n{}", program.display(), version.lines().next().unwrap_or_default());
    Ok(())
}

/// Downloads into `work` and moves the unpacked whole to `target`, so that a half-fetched one never counts.
fn unpack(work: &Path, target: &Path) -> Result<(), String> {
    let (root, debs) = (work.join("qemu10/root"), work.join("debs"));
    for folder in ["lists/partial", "cache/archives/partial", "debs", "qemu10/root", "qemu10/bin"] {
        fs::create_dir_all(work.join(folder)).map_err(|error| format!("{}: {error}", work.display()))?;
    }
    let mirror = mirror()?;
    let sources = ["bookworm", "bookworm-backports"]
        .map(|suite| format!("deb [signed-by={KEYRING}] {mirror} {suite} main\n"))
        .concat();
    write(&work.join("sources.list"), &sources)?;
    let mut packages = vec!["download", "--target-release", "bookworm-backports"];
    packages.extend(PACKAGES);
    twice(|| output(apt(work).arg("update")))?;
    twice(|| output(apt(work).args(&packages).current_dir(&debs)))?;
    for deb in fs::read_dir(&debs).map_err(|error| error.to_string())?.flatten() {
        output(Command::new("dpkg").arg("-x").arg(deb.path()).arg(&root))?;
    }
    for program in PROGRAMS {
        let path = work.join("qemu10/bin").join(program);
        write(&path, &wrapper(&target.join("root/usr"), program))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).map_err(|error| error.to_string())?;
    }
    // What stands in the way has no working program in it.
    let _ = fs::remove_dir_all(target);
    fs::rename(work.join("qemu10"), target).map_err(|error| format!("{}: {error}", target.display()))
}

/// apt with lists, cache and sources of its own.
fn apt(work: &Path) -> Command {
    let mut apt = Command::new("apt-get");
    apt.arg("--quiet=2");
    let folder = |key: &str, path: PathBuf| format!("{key}={}", path.display());
    for option in [
        folder("Dir::Etc::sourcelist", work.join("sources.list")),
        "Dir::Etc::sourceparts=/dev/null".to_owned(),
        folder("Dir::State::lists", work.join("lists")),
        folder("Dir::Cache", work.join("cache")),
        // The download user may not reach a folder under a home directory.
        "APT::Sandbox::User=".to_owned(),
    ] {
        apt.args(["-o", &option]);
    }
    apt
}

/// The mirror this machine uses for Debian 12, else Debian's own.
fn mirror() -> Result<String, String> {
    let query = ["indextargets", "--format", "$(REPO_URI)", "Created-By: Packages", "Codename: bookworm"];
    let listed = output(Command::new("apt-get").args(query))
        .map_err(|error| format!("{error}\nQEMU 10.0 is fetched with Debian's tools; elsewhere set WHIMBREL_CACHE to a folder with qemu10/bin/{}", PROGRAMS[0]))?;
    Ok(listed.lines().next().unwrap_or("http://deb.debian.org/debian").to_owned())
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

fn write(path: &Path, text: &str) -> Result<(), String> {
    fs::write(path, text).map_err(|error| format!("{}: {error}", path.display()))
}

/// Where fetched programs are kept.
fn cache() -> PathBuf {
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
