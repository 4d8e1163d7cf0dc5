//! Compiles the freestanding guest in `guest/`, for each architecture, with C compilers of the system, and hands the
//! results to the crate as bytes. A missing or failing compiler never fails the build: the crate then says what is missing
//! and how to get it.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs, io};

/// Code the CPU can run before, during and after the move without touching a register the guest keeps values in:
/// general registers only (see below), no position independence; and no library, so no calls to what one would have.
const FLAGS: &[&str] = &[
    "-O2",
    "-std=gnu11",
    "-Wall",
    "-Wextra",
    "-ffreestanding",
    "-fno-stack-protector",
    "-fno-asynchronous-unwind-tables",
    "-fno-tree-loop-distribute-patterns",
    "-fno-pic",
    "-mgeneral-regs-only",
    "-nostdlib",
    "-static",
    "-no-pie",
    "-Wl,--build-id=none",
    "-Wl,-z,noexecstack",
    "-Wl,-z,max-page-size=4096",
];

/// A machine the guest is built for.
struct Guest {
    /// The crate's constant.
    name: &'static str,
    what: &'static str,
    /// Its own folder below `guest/`.
    folder: &'static str,
    /// As Rust calls it.
    architecture: &'static str,
    /// Its compiler (`…-gcc`) on a host of another architecture, and the package that has it.
    cross: &'static str,
    package: &'static str,
    flags: &'static [&'static str],
    /// Loaders want the bytes as they lie in memory, not an ELF.
    flat: bool,
}

const GUESTS: &[Guest] = &[
    Guest {
        name: "X86_64",
        what: "The guest for x86-64, a static ELF64 with a PVH note",
        folder: "x86",
        architecture: "x86_64",
        cross: "x86_64-linux-gnu-gcc",
        package: "gcc-x86-64-linux-gnu",
        // Ring 0 takes interrupts on the running stack.
        flags: &["-m64", "-fcf-protection=none", "-mno-red-zone"],
        flat: false,
    },
    Guest {
        name: "AARCH64",
        what: "The guest for aarch64, a flat arm64 Image",
        folder: "aarch64",
        architecture: "aarch64",
        cross: "aarch64-linux-gnu-gcc",
        package: "gcc-aarch64-linux-gnu",
        flags: &["-march=armv8-a", "-mno-outline-atomics", "-mstrict-align"],
        flat: true,
    },
];

fn main() {
    let sources = Path::new(&env::var("CARGO_MANIFEST_DIR").expect("set by cargo")).join("guest");
    let out = PathBuf::from(env::var("OUT_DIR").expect("set by cargo"));
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed={}", sources.display());
    println!("cargo::rerun-if-env-changed=CC");

    let target = env::var("CARGO_CFG_TARGET_ARCH").expect("set by cargo");
    let mut generated = String::new();
    for guest in GUESTS {
        let built = match guest.compile(&sources, &out.join(guest.name)) {
            Ok(()) => format!("Ok(include_bytes!(concat!(env!(\"OUT_DIR\"), \"/{}\")))", guest.name),
            Err(reason) => {
                // A guest for another machine than this build's is for those who want it.
                if guest.architecture == target {
                    println!("cargo::warning=the test guest was not built: {reason}");
                }
                format!("Err({reason:?})")
            }
        };
        generated.push_str(&format!("/// {}.\npub const {}: Built = {built};\n", guest.what, guest.name));
    }
    fs::write(out.join("built.rs"), generated).expect("OUT_DIR is writable");
}

impl Guest {
    /// Compiles and links every source of `guest` and of its own folder into `image`.
    fn compile(&self, guest: &Path, image: &Path) -> Result<(), String> {
        let own = guest.join(self.folder);
        let mut sources = Vec::new();
        for folder in [guest, &own] {
            let entries = fs::read_dir(folder).map_err(|error| format!("{}: {error}", folder.display()))?;
            sources.extend(entries.filter_map(|entry| Some(entry.ok()?.path())).filter(|path| {
                path.extension().is_some_and(|extension| extension == "c" || extension == "S")
            }));
        }
        sources.sort();

        let mut words: Vec<&OsStr> = FLAGS.iter().chain(self.flags).map(OsStr::new).collect();
        let script = own.join("link.ld");
        words.extend([OsStr::new("-I"), guest.as_os_str(), OsStr::new("-I"), own.as_os_str()]);
        words.extend([OsStr::new("-T"), script.as_os_str(), OsStr::new("-o"), image.as_os_str()]);
        words.extend(sources.iter().map(|source| source.as_os_str()));
        self.run(&self.compilers(), &words)?;
        if self.flat {
            let [option, format] = ["-O", "binary"].map(OsStr::new);
            self.run(&[self.objcopy()], &[option, format, image.as_os_str()])?;
        }
        Ok(())
    }

    /// Runs the first of the programs that is there.
    fn run(&self, programs: &[String], words: &[&OsStr]) -> Result<(), String> {
        for program in programs {
            match Command::new(program).args(words).output() {
                Ok(output) if output.status.success() => return Ok(()),
                Ok(output) => {
                    let stderr = String::from_utf8_lossy(&output.stderr);
                    let cause = stderr.lines().find(|line| line.contains("error")).unwrap_or("no message");
                    return Err(format!(
                        "`{program}` could not build the {} guest ({cause}): apt-get install {}, or point CC at a C compiler",
                        self.architecture,
                        self.package()
                    ));
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(format!("`{program}` could not be started: {error}")),
            }
        }
        let (architecture, names) = (self.architecture, programs.join(", "));
        Err(format!("no C compiler for {architecture} ({names}): apt-get install {}", self.package()))
    }

    /// It comes with the compiler.
    fn objcopy(&self) -> String {
        if self.is_hosts() { "objcopy".to_owned() } else { self.cross.replace("gcc", "objcopy") }
    }

    fn package(&self) -> &str {
        if self.is_hosts() { "gcc" } else { self.package }
    }

    /// The compilers to try, in order.
    fn compilers(&self) -> Vec<String> {
        match env::var("CC") {
            _ if !self.is_hosts() => vec![self.cross.to_owned()],
            Ok(compiler) if !compiler.is_empty() => vec![compiler],
            _ => ["cc", "gcc", "clang"].map(str::to_owned).to_vec(),
        }
    }

    /// Whether this machine is of the guest's architecture. This script runs where the build does.
    fn is_hosts(&self) -> bool {
        self.architecture == env::consts::ARCH
    }
}
