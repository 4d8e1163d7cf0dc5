//! Compiles the freestanding guests in `guest/` and `cpu_dump/` with the system's C compiler, each into one static ELF64, and
//! hands them to the crate as bytes. A missing or failing compiler never fails the build: the crate then says what is missing and how to
//! get it.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs, io};

/// Code the CPU can run before, during and after the move without touching a register the guest keeps values in:
/// general registers only, no red zone (ring 0 takes interrupts on the running stack), no position independence.
const FLAGS: &[&str] = &[
    "-m64",
    "-O2",
    "-std=gnu11",
    "-Wall",
    "-Wextra",
    "-ffreestanding",
    "-fno-stack-protector",
    "-fno-asynchronous-unwind-tables",
    "-fno-pic",
    "-fcf-protection=none",
    "-mno-red-zone",
    "-mgeneral-regs-only",
    "-nostdlib",
    "-static",
    "-no-pie",
    "-Wl,--build-id=none",
    "-Wl,-z,noexecstack",
    "-Wl,-z,max-page-size=4096",
];

fn main() {
    let package = PathBuf::from(env::var("CARGO_MANIFEST_DIR").expect("set by cargo"));
    let (guest, dump) = (package.join("guest"), package.join("cpu_dump"));
    let out = PathBuf::from(env::var("OUT_DIR").expect("set by cargo"));
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed={}", guest.display());
    println!("cargo::rerun-if-changed={}", dump.display());
    println!("cargo::rerun-if-env-changed=CC");

    let beacon =
        "The guest, a static ELF64 with a PVH note; `None` when it could not be built (see [`BUILD_ERROR`]).";
    let cpu_dump = "The guest that tells what CPU it sees (see [`cpu_dump`]); `None` as for [`ELF`].";
    let (mut generated, mut error) = (String::new(), String::new());
    for (name, doc, sources, elf) in
        [("ELF", beacon, &guest, "beacon.elf"), ("CPU_DUMP_ELF", cpu_dump, &dump, "cpu_dump.elf")]
    {
        let value = match compile(sources, &out.join(elf)) {
            Ok(()) => format!("Some(include_bytes!(concat!(env!(\"OUT_DIR\"), \"/{elf}\")))"),
            Err(reason) => {
                println!("cargo::warning=the test guest was not built: {reason}");
                error = reason;
                "None".to_owned()
            }
        };
        generated += &format!("/// {doc}\npub const {name}: Option<&[u8]> = {value};\n");
    }
    generated += &format!(
        "/// Why there is no [`ELF`] and what to do about it; empty when there is one.\npub const BUILD_ERROR: &str = {error:?};\n"
    );
    fs::write(out.join("built.rs"), generated).expect("OUT_DIR is writable");
}

/// Compiles and links every source of `guest` into `elf`.
fn compile(guest: &Path, elf: &Path) -> Result<(), String> {
    let mut sources: Vec<PathBuf> = fs::read_dir(guest)
        .map_err(|error| format!("{}: {error}", guest.display()))?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|extension| extension == "c" || extension == "S"))
        .collect();
    sources.sort();

    let mut missing = Vec::new();
    for compiler in compilers() {
        let mut command = Command::new(&compiler);
        command.args(FLAGS).arg("-T").arg(guest.join("link.ld")).args(&sources).arg("-o").arg(elf);
        match command.output() {
            Ok(output) if output.status.success() => return Ok(()),
            Ok(output) => {
                let stderr = String::from_utf8_lossy(&output.stderr);
                let cause = stderr.lines().find(|line| line.contains("error")).unwrap_or("no message");
                return Err(format!(
                    "`{compiler}` could not build the x86-64 guest ({cause}): apt-get install gcc, or point CC at an x86-64 C compiler"
                ));
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => missing.push(compiler),
            Err(error) => return Err(format!("`{compiler}` could not be started: {error}")),
        }
    }
    Err(format!("no C compiler ({}): apt-get install gcc", missing.join(", ")))
}

/// The compilers to try, in order.
fn compilers() -> Vec<String> {
    match env::var("CC") {
        Ok(compiler) if !compiler.is_empty() => vec![compiler],
        _ => ["cc", "gcc", "clang"].map(str::to_owned).to_vec(),
    }
}
