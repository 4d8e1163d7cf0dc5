//! Compiles guests that run without an operating system with C compilers of the system, and hands the results to their crate
//! as bytes. For build scripts. A missing or failing compiler never fails the build: the crate then says what is missing and
//! how to get it.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs, io};

/// General registers only: a guest may keep values in the others, and compares them. No position independence; and no library,
/// so no calls to what one would have.
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

/// What a guest runs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Architecture {
    /// x86-64. Its loaders take a static ELF.
    X86_64,
    /// aarch64. Its loaders take the bytes as they lie in memory: an arm64 `Image`.
    Aarch64,
}

/// A guest, built of sources below `guest/` of the crate.
#[derive(Clone, Copy, Debug)]
pub struct Guest {
    /// The crate's constant.
    pub name: &'static str,
    /// Its documentation, without a full stop.
    pub what: &'static str,
    /// What it runs on.
    pub architecture: Architecture,
    /// The folders of its sources, below `guest/` (`.` is that one). The last has its `link.ld`.
    pub folders: &'static [&'static str],
    /// Compiler flags of its own.
    pub flags: &'static [&'static str],
}

/// Builds them, and writes `built.rs` into `OUT_DIR`: for each guest a constant `NAME: Result<&[u8], &str>`, which is the guest, or
/// why it could not be built and what to do about it.
///
/// # Panics
/// Outside a build script, and if `OUT_DIR` is not writable.
pub fn build(guests: &[Guest]) {
    let sources = Path::new(&env::var("CARGO_MANIFEST_DIR").expect("set by cargo")).join("guest");
    let out = PathBuf::from(env::var("OUT_DIR").expect("set by cargo"));
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed={}", sources.display());
    for variable in ["CC", Architecture::X86_64.variable(), Architecture::Aarch64.variable()] {
        println!("cargo::rerun-if-env-changed={variable}");
    }

    let target = env::var("CARGO_CFG_TARGET_ARCH").expect("set by cargo");
    let mut generated = String::new();
    for guest in guests {
        let name = guest.name;
        let built = match guest.compile(&sources, &out.join(name)) {
            Ok(()) => format!("Ok(include_bytes!(concat!(env!(\"OUT_DIR\"), \"/{name}\")))"),
            Err(reason) => {
                // A guest for another machine than this build's is for those who want it.
                if guest.architecture.name() == target {
                    println!("cargo::warning=a test guest was not built: {reason}");
                }
                format!("Err({reason:?})")
            }
        };
        generated
            .push_str(&format!("/// {}.\npub const {name}: Result<&[u8], &str> = {built};\n", guest.what));
    }
    fs::write(out.join("built.rs"), generated).expect("OUT_DIR is writable");
}

impl Guest {
    /// Compiles and links every source of its folders into `image`.
    fn compile(&self, guest: &Path, image: &Path) -> Result<(), String> {
        let folders: Vec<PathBuf> = self.folders.iter().map(|folder| guest.join(folder)).collect();
        let script = folders.last().ok_or("a guest without a folder")?.join("link.ld");
        let mut sources = Vec::new();
        for folder in &folders {
            let entries = fs::read_dir(folder).map_err(|error| format!("{}: {error}", folder.display()))?;
            sources.extend(entries.filter_map(|entry| Some(entry.ok()?.path())).filter(|path| {
                path.extension().is_some_and(|extension| extension == "c" || extension == "S")
            }));
        }
        sources.sort();

        let flags = FLAGS.iter().chain(self.architecture.flags()).chain(self.flags);
        let mut words: Vec<&OsStr> = flags.map(OsStr::new).collect();
        for folder in &folders {
            words.extend([OsStr::new("-I"), folder.as_os_str()]);
        }
        words.extend([OsStr::new("-T"), script.as_os_str(), OsStr::new("-o"), image.as_os_str()]);
        words.extend(sources.iter().map(|source| source.as_os_str()));
        self.architecture.run(&self.architecture.compilers(), &words)?;
        if self.architecture == Architecture::Aarch64 {
            let [option, format] = ["-O", "binary"].map(OsStr::new);
            self.architecture
                .run(&[self.architecture.tool("objcopy")], &[option, format, image.as_os_str()])?;
        }
        Ok(())
    }
}

impl Architecture {
    /// As Rust calls it.
    fn name(self) -> &'static str {
        match self {
            Self::X86_64 => "x86_64",
            Self::Aarch64 => "aarch64",
        }
    }

    /// The environment variable that names another toolchain's prefix.
    fn variable(self) -> &'static str {
        match self {
            Self::X86_64 => "CROSS_X86_64",
            Self::Aarch64 => "CROSS_AARCH64",
        }
    }

    fn flags(self) -> &'static [&'static str] {
        match self {
            Self::X86_64 => &["-m64"],
            Self::Aarch64 => &["-march=armv8-a", "-mno-outline-atomics", "-mstrict-align"],
        }
    }

    /// What to install.
    fn package(self) -> String {
        let name = self.name().replace('_', "-");
        if self.is_hosts() { "gcc".to_owned() } else { format!("gcc-{name}-linux-gnu") }
    }

    /// The compilers to try, in order.
    fn compilers(self) -> Vec<String> {
        match env::var("CC") {
            _ if !self.is_hosts() => vec![self.tool("gcc")],
            Ok(compiler) if !compiler.is_empty() => vec![compiler],
            _ => ["cc", "gcc", "clang"].map(str::to_owned).to_vec(),
        }
    }

    /// A program of its GNU toolchain.
    fn tool(self, name: &str) -> String {
        let prefix = env::var(self.variable()).unwrap_or_else(|_| match self.is_hosts() {
            true => String::new(),
            false => format!("{}-linux-gnu-", self.name()),
        });
        prefix + name
    }

    /// Whether it is this machine's. A build script runs where the build does.
    fn is_hosts(self) -> bool {
        self.name() == env::consts::ARCH
    }

    /// Runs the first of the programs that is there.
    fn run(self, programs: &[String], words: &[&OsStr]) -> Result<(), String> {
        let (name, package, variable) = (self.name(), self.package(), self.variable());
        let remedy = match self.is_hosts() {
            true => format!("apt-get install {package}, or point CC at a C compiler"),
            false => format!("apt-get install {package}, or set {variable} to a toolchain's prefix"),
        };
        for program in programs {
            match Command::new(program).args(words).output() {
                Ok(output) if output.status.success() => return Ok(()),
                Ok(output) => {
                    let stderr = String::from_utf8_lossy(&output.stderr);
                    let cause = stderr.lines().find(|line| line.contains("error")).unwrap_or("no message");
                    return Err(format!("`{program}` could not build the {name} guest ({cause}): {remedy}"));
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(format!("`{program}` could not be started: {error}")),
            }
        }
        Err(format!("no C compiler for {name} ({}): {remedy}", programs.join(", ")))
    }
}
