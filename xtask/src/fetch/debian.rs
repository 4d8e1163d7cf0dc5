//! Debian's packages, fetched and unpacked beside the system's own: apt with lists, sources and a cache of its own, so
//! that neither the system's packages nor its apt configuration are touched.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::{create, output, twice, write};

const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
/// The releases that packages come from, each with the release whose mirror has it.
const SUITES: &[(&str, &str)] = &[
    ("bookworm", "bookworm"),
    ("bookworm-backports", "bookworm"),
    ("bookworm-security", "bookworm-security"),
];
const DEFAULT_MIRRORS: &[(&str, &str)] = &[
    ("bookworm", "http://deb.debian.org/debian"),
    ("bookworm-security", "http://deb.debian.org/debian-security"),
];

/// A package, and those of its dependencies that are wanted with it.
pub(super) struct Package {
    /// Its name, with `:arm64` if it is not for this machine.
    pub(super) name: &'static str,
    /// The release it comes from.
    pub(super) suite: &'static str,
    /// Dependencies, theirs too, whose names begin with one of these.
    pub(super) with: &'static [&'static str],
    /// The folder it is unpacked into.
    pub(super) into: &'static str,
}

/// apt over a folder of its own.
pub(super) struct Debian {
    work: PathBuf,
}

impl Debian {
    /// Reads the releases' lists.
    ///
    /// # Errors
    /// What failed, and what to do about it.
    pub(super) fn new(work: &Path) -> Result<Self, String> {
        for folder in ["lists/partial", "cache/archives/partial", "debs"] {
            create(&work.join(folder))?;
        }
        let sources = SUITES.iter().map(|(suite, at)| {
            Ok(format!("deb [arch=amd64,arm64 signed-by={KEYRING}] {} {suite} main\n", mirror(at)?))
        });
        write(&work.join("sources.list"), &sources.collect::<Result<String, String>>()?)?;
        let this = Self { work: work.to_owned() };
        twice(|| output(this.apt("apt-get").arg("update")))?;
        Ok(this)
    }

    /// Downloads packages and unpacks each into its folder under `root`.
    ///
    /// # Errors
    /// What failed.
    pub(super) fn unpack(&self, packages: &[Package], root: &Path) -> Result<(), String> {
        for (number, package) in packages.iter().enumerate() {
            let debs = self.work.join(format!("debs/{number}"));
            create(&debs)?;
            let wanted = self.with_dependencies(package)?;
            twice(|| output(self.apt("apt-get").arg("download").args(&wanted).current_dir(&debs)))?;
            let into = root.join(package.into);
            create(&into)?;
            for deb in std::fs::read_dir(&debs).map_err(|error| error.to_string())?.flatten() {
                output(Command::new("dpkg").arg("-x").arg(deb.path()).arg(&into))?;
            }
        }
        Ok(())
    }

    /// As apt spells them: with the release.
    fn with_dependencies(&self, package: &Package) -> Result<Vec<String>, String> {
        let of_suite = |name: &str| format!("{name}/{}", package.suite);
        let mut wanted = vec![of_suite(package.name)];
        let mut seen = 0;
        while let Some(name) = wanted.get(seen).filter(|_| !package.with.is_empty()) {
            let listed = output(self.apt("apt-cache").arg("depends").arg(name))?;
            for found in dependencies(&listed, package.with).map(of_suite) {
                if !wanted.contains(&found) {
                    wanted.push(found);
                }
            }
            seen += 1;
        }
        Ok(wanted)
    }

    fn apt(&self, program: &str) -> Command {
        let mut apt = Command::new(program);
        apt.arg("--quiet=2");
        let folder = |key: &str, name: &str| format!("{key}={}", self.work.join(name).display());
        for option in [
            folder("Dir::Etc::sourcelist", "sources.list"),
            "Dir::Etc::sourceparts=/dev/null".to_owned(),
            folder("Dir::State::lists", "lists"),
            folder("Dir::Cache", "cache"),
            "Acquire::Languages=none".to_owned(),
            "APT::Architectures::=amd64".to_owned(),
            "APT::Architectures::=arm64".to_owned(),
            // The download user may not reach a folder under a home directory.
            "APT::Sandbox::User=".to_owned(),
        ] {
            apt.args(["-o", &option]);
        }
        apt
    }
}

/// The names that `apt-cache depends` lists as `Depends:` and that begin with one of `prefixes`.
fn dependencies<'a>(listed: &'a str, prefixes: &'a [&str]) -> impl Iterator<Item = &'a str> {
    let names =
        listed.lines().filter_map(|line| line.trim_start_matches([' ', '|']).strip_prefix("Depends: "));
    names.filter(|name| prefixes.iter().any(|prefix| name.starts_with(prefix)))
}

/// The mirror this machine uses for a release, else Debian's own.
fn mirror(suite: &str) -> Result<String, String> {
    let codename = format!("Codename: {suite}");
    let query = ["indextargets", "--format", "$(REPO_URI)", "Created-By: Packages", &codename];
    let listed = output(Command::new("apt-get").args(query)).map_err(|error| {
        format!(
            "{error}\nfetched with Debian's tools; elsewhere set WHIMBREL_CACHE to a folder that has it all"
        )
    })?;
    let default = DEFAULT_MIRRORS.iter().find(|(name, _)| *name == suite).map(|(_, mirror)| *mirror);
    Ok(listed.lines().next().or(default).unwrap_or_default().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_the_dependencies_only_those_asked_for_are_taken() {
        let listed = "rustc-web\n  Depends: libc6\n |Depends: libllvm22\n  Depends: libstd-rust-web-dev\n    \
                      libc6-dev\n  Conflicts: libstd-rust-x\n";
        let found: Vec<_> = dependencies(listed, &["libstd-rust-web", "libllvm"]).collect();
        assert_eq!(found, ["libllvm22", "libstd-rust-web-dev"]);
    }
}
