//! Compiles the freestanding guest in `guest/` with a GNU toolchain for aarch64 into an arm64 Linux `Image` and hands it to the
//! crate as bytes. A missing or failing compiler never fails the build: the crate then says what is missing and how to get it.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

/// The MMU is off: every access is to device memory and must be aligned, and vector registers stay the host's test's.
const FLAGS: &[&str] = &[
    "-O2",
    "-std=gnu11",
    "-Wall",
    "-Wextra",
    "-ffreestanding",
    "-fno-stack-protector",
    "-fno-asynchronous-unwind-tables",
    "-fno-pic",
    "-mgeneral-regs-only",
    "-mstrict-align",
    "-mno-outline-atomics",
    "-nostdlib",
    "-static",
    "-no-pie",
    "-Wl,--build-id=none",
    "-Wl,-z,noexecstack",
    "-Wl,--no-warn-rwx-segments",
];

fn main() {
    let guest = Path::new(&env::var("CARGO_MANIFEST_DIR").expect("set by cargo")).join("guest");
    let out = PathBuf::from(env::var("OUT_DIR").expect("set by cargo"));
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed={}", guest.display());
    println!("cargo::rerun-if-env-changed=CROSS_AARCH64");

    let (image, error) = match compile(&guest, &out.join("msi.image")) {
        Ok(()) => ("Some(include_bytes!(concat!(env!(\"OUT_DIR\"), \"/msi.image\")))", String::new()),
        // No warning: most who build this never run an arm64 guest.
        Err(reason) => ("None", reason),
    };
    let generated = format!(
        "/// The guest, an arm64 Linux `Image`; `None` when it could not be built (see [`BUILD_ERROR`]).\n\
         pub const IMAGE: Option<&[u8]> = {image};\n\
         /// Why there is no [`IMAGE`] and what to do about it; empty when there is one.\n\
         pub const BUILD_ERROR: &str = {error:?};\n"
    );
    fs::write(out.join("built.rs"), generated).expect("OUT_DIR is writable");
}

/// Compiles and links every source of `guest` into `image`.
fn compile(guest: &Path, image: &Path) -> Result<(), String> {
    let mut sources: Vec<PathBuf> = fs::read_dir(guest)
        .map_err(|error| format!("{}: {error}", guest.display()))?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|extension| extension == "c" || extension == "S"))
        .collect();
    sources.sort();
    let prefix = env::var("CROSS_AARCH64").unwrap_or_else(|_| "aarch64-linux-gnu-".to_owned());
    let elf = image.with_extension("elf");
    let mut link = Command::new(format!("{prefix}gcc"));
    link.args(FLAGS).arg("-T").arg(guest.join("link.ld")).args(&sources).arg("-o").arg(&elf);
    run(&mut link)?;
    run(Command::new(format!("{prefix}objcopy")).args(["-O", "binary"]).arg(&elf).arg(image))
}

fn run(command: &mut Command) -> Result<(), String> {
    let program = command.get_program().to_string_lossy().into_owned();
    match command.output() {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => {
            let stderr = String::from_utf8_lossy(&output.stderr);
            let cause = stderr.lines().find(|line| line.contains("error")).unwrap_or("no message");
            Err(format!("`{program}` could not build the aarch64 guest ({cause})"))
        }
        Err(error) => Err(format!(
            "`{program}` could not be started ({error}): apt-get install gcc-aarch64-linux-gnu, or set CROSS_AARCH64 to a toolchain's prefix"
        )),
    }
}
