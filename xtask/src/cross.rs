//! `cargo xtask cross ARCH …`: cargo, for static programs of one architecture: they run in a bare L1, and aarch64's here under
//! emulation.
//!
//! | `ARCH` | needs |
//! |---|---|
//! | `aarch64` | `cargo xtask fetch nested arm`; `apt-get install gcc-aarch64-linux-gnu libc6-dev-arm64-cross` |
//! | `x86_64` | the Rust toolchain's own |
//!
//! Everything is built below `target/cross`: another compiler builds for aarch64, and the two would drive each other's work out.

use std::path::PathBuf;
use std::process::Command;

use crate::fetch;

const ARCHITECTURES: &[&str] = &["aarch64", "x86_64"];

/// Runs `cargo` with these words.
///
/// # Errors
/// What is missing; or nothing, if cargo failed: it has said why.
pub(crate) fn run(architecture: &str, words: &[&str]) -> Result<(), String> {
    let status = cargo(architecture)?.args(words).status().map_err(|error| format!("cargo: {error}"))?;
    if status.success() { Ok(()) } else { Err(String::new()) }
}

/// Cargo, told how to compile, link and run programs of an architecture.
///
/// # Errors
/// What is missing, and how to get it.
pub(crate) fn cargo(architecture: &str) -> Result<Command, String> {
    if !ARCHITECTURES.contains(&architecture) {
        return Err(format!("no architecture {architecture}; there are {}", ARCHITECTURES.join(" and ")));
    }
    let target = format!("{architecture}-unknown-linux-gnu");
    let variable = |what: &str| format!("CARGO_TARGET_{}_{what}", target.to_uppercase().replace('-', "_"));
    let mut cargo = Command::new(env!("CARGO"));
    cargo.env("CARGO_BUILD_TARGET", &target).env("CARGO_TARGET_DIR", target_directory());
    cargo.env(variable("RUSTFLAGS"), "-C target-feature=+crt-static");
    // They would take the place of the target's own.
    cargo.env_remove("RUSTFLAGS").env_remove("CARGO_ENCODED_RUSTFLAGS");
    if architecture == "aarch64" {
        let fetched = fetch::cache().join("nested/arm");
        let compiler = fetched.join("rustc");
        if !compiler.exists() {
            return Err(format!("no {}; get it: cargo xtask fetch nested arm", compiler.display()));
        }
        cargo.env("RUSTC", compiler);
        cargo.env(variable("LINKER"), "aarch64-linux-gnu-gcc");
        cargo.env(variable("RUNNER"), fetched.join("qemu-aarch64"));
    }
    Ok(cargo)
}

/// `target/cross`, or `cross` in the place that was chosen instead of `target`.
fn target_directory() -> PathBuf {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../target");
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.into(), PathBuf::from).join("cross")
}
