//! `cargo xtask dependencies`: whether every dependency is what `deny.toml` allows: its licence, one version of each
//! crate whose types cross our borders, crates.io as the only source. It needs nothing installed beside cargo.

use std::collections::BTreeSet;
use std::process::{Command, Stdio};

use serde::Deserialize;

use crate::licence;

#[derive(Deserialize)]
struct Rules {
    licenses: Licenses,
    bans: Bans,
    sources: Sources,
}

#[derive(Deserialize)]
struct Licenses {
    allow: Vec<String>,
}

#[derive(Deserialize)]
struct Bans {
    deny: Vec<Ban>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Ban {
    #[serde(rename = "crate")]
    name: String,
    #[serde(default)]
    deny_multiple_versions: bool,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Sources {
    allow_registry: Vec<String>,
}

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

#[derive(Clone, Deserialize)]
struct Package {
    name: String,
    version: String,
    license: Option<String>,
    /// `registry+URL`, `git+URL`; none for a path.
    source: Option<String>,
}

/// Checks them all.
///
/// # Errors
/// Every dependency that is not allowed, with the reason.
pub(crate) fn check() -> Result<(), String> {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
    let rules = std::fs::read_to_string(format!("{root}/deny.toml"))
        .map_err(|error| format!("deny.toml: {error}"))?;
    let rules: Rules = basic_toml::from_str(&rules).map_err(|error| format!("deny.toml: {error}"))?;
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--locked"])
        .current_dir(root)
        .stderr(Stdio::inherit())
        .output()
        .map_err(|error| format!("cargo metadata: {error}"))?;
    if !output.status.success() {
        return Err(format!("cargo metadata: {}", output.status));
    }
    let metadata: Metadata =
        serde_json::from_slice(&output.stdout).map_err(|error| format!("cargo metadata: {error}"))?;
    let complaints = complaints(&rules, &metadata.packages);
    if complaints.is_empty() {
        println!(
            "{} packages: licences, single versions and sources as deny.toml allows",
            metadata.packages.len()
        );
        Ok(())
    } else {
        Err(complaints.join("\n"))
    }
}

fn complaints(rules: &Rules, packages: &[Package]) -> Vec<String> {
    let mut complaints = Vec::new();
    for Package { name, version, license, source } in packages {
        let declared = license.as_deref().unwrap_or_default();
        match licence::allows(declared, &rules.licenses.allow) {
            Ok(true) => {}
            Ok(false) => complaints.push(format!("{name} {version}: licence {declared} is not allowed")),
            Err(error) => complaints.push(format!("{name} {version}: {error}")),
        }
        let allowed = |source: &String| {
            rules.sources.allow_registry.iter().any(|url| *source == format!("registry+{url}"))
        };
        if let Some(source) = source.as_ref().filter(|source| !allowed(source)) {
            complaints.push(format!("{name} {version}: source {source} is not allowed"));
        }
    }
    for ban in rules.bans.deny.iter() {
        let of_name = packages.iter().filter(|package| package.name == ban.name);
        let versions: BTreeSet<&str> = of_name.map(|package| package.version.as_str()).collect();
        if !ban.deny_multiple_versions && !versions.is_empty() {
            complaints.push(format!("{} is not allowed", ban.name));
        } else if versions.len() > 1 {
            complaints.push(format!(
                "{}: several versions: {}",
                ban.name,
                versions.into_iter().collect::<Vec<_>>().join(", ")
            ));
        }
    }
    complaints
}

#[cfg(test)]
mod tests {
    use super::*;

    const CRATES_IO: &str = "https://github.com/rust-lang/crates.io-index";

    fn rules() -> Rules {
        let text = format!(
            "[licenses]\nallow = [\"MIT\"]\n[bans]\ndeny = [{{ crate = \"vm-memory\", deny-multiple-versions = true }}, {{ crate = \"bad\" }}]\n\
             [sources]\nallow-registry = [\"{CRATES_IO}\"]\n"
        );
        basic_toml::from_str(&text).expect("rules")
    }

    fn package(name: &str, version: &str, license: &str, source: Option<&str>) -> Package {
        Package {
            name: name.to_owned(),
            version: version.to_owned(),
            license: Some(license.to_owned()),
            source: source.map(str::to_owned),
        }
    }

    fn complaints_about(packages: &[Package]) -> Vec<String> {
        complaints(&rules(), packages)
    }

    #[test]
    fn an_allowed_crate_from_crates_io_or_a_path_is_fine() {
        let registry = format!("registry+{CRATES_IO}");
        let packages =
            [package("a", "1.0.0", "MIT OR GPL-2.0", Some(&registry)), package("b", "0.1.0", "MIT", None)];
        assert_eq!(complaints_about(&packages), [""; 0]);
    }

    #[test]
    fn licence_source_ban_and_second_version_are_each_reported() {
        assert_eq!(complaints_about(&[package("a", "1.0.0", "GPL-2.0", None)]).len(), 1);
        assert_eq!(
            complaints_about(&[package("a", "1.0.0", "MIT", Some("git+https://example.org/a"))]).len(),
            1
        );
        assert_eq!(complaints_about(&[package("bad", "1.0.0", "MIT", None)]), ["bad is not allowed"]);
        let two = ["0.17.0", "0.18.0"].map(|version| package("vm-memory", version, "MIT", None));
        assert_eq!(complaints_about(&two), ["vm-memory: several versions: 0.17.0, 0.18.0"]);
        assert_eq!(complaints_about(&two[..1]), [""; 0]);
    }

    #[test]
    fn a_crate_without_a_licence_is_reported() {
        let mut package = package("a", "1.0.0", "", None);
        package.license = None;
        assert_eq!(complaints_about(&[package]).len(), 1);
    }
}
