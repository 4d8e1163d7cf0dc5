//! What machine to build. Plain data; nothing is opened or allocated here.

use std::path::PathBuf;
use std::sync::Arc;

use whimbrel::faults::Faults;
use whimbrel_vmstate::Level;

#[cfg(target_arch = "x86_64")]
use crate::cpuid::CpuModel;
use crate::error::Error;

/// Which of `microvm`'s devices to build; QEMU's machine properties of the same names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MachineOptions {
    /// ACPI's generic event device, and a second IOAPIC.
    pub acpi: bool,
    /// The two 8259s.
    pub pic: bool,
    /// The 8254.
    pub pit: bool,
    /// The battery-backed clock.
    pub rtc: bool,
}

impl MachineOptions {
    /// Nothing that a paravirtual guest can do without.
    pub const PLAIN: Self = Self { acpi: false, pic: false, pit: false, rtc: false };
    /// What QEMU builds under KVM if nothing is said.
    pub const QEMU: Self = Self { acpi: true, pic: true, pit: true, rtc: false };
}

impl Default for MachineOptions {
    fn default() -> Self {
        Self::PLAIN
    }
}

/// A machine to build.
#[derive(Debug, Clone)]
pub struct VmConfig {
    /// Which devices it has.
    pub machine: MachineOptions,
    /// Guest RAM in bytes, a multiple of 4 KiB.
    pub memory: u64,
    /// Where RAM comes from.
    pub backend: MemoryBackend,
    /// Ask for huge pages (transparent ones where the backend is not hugetlbfs).
    pub huge_pages: bool,
    /// How the guest's writes are tracked while it moves away.
    pub dirty: DirtyTracking,
    /// Number of vCPUs.
    pub cpus: u32,
    /// What CPU they are. aarch64 has the host's.
    #[cfg(target_arch = "x86_64")]
    pub cpu: CpuModel,
    /// x86-64: an ELF with a PVH entry point, or a bzImage. aarch64: a Linux `Image`.
    pub kernel: Option<Image>,
    /// Its command line.
    pub command_line: String,
    /// Its initrd.
    pub initrd: Option<Image>,
    /// x86-64: firmware, mapped below 4 GiB as the block `pc.bios`. Run from the reset vector if there is no kernel.
    pub bios: Option<PathBuf>,
    /// The other end of the serial port, if there is one. x86-64: COM1, QEMU's `isa-serial=on`; `None`: no serial device at all.
    /// aarch64: the PL011, which is always there.
    pub serial: Option<CharBackend>,
    /// A debug console: at its port on x86-64, at 0x0b00_0000 on aarch64.
    pub debugcon: Option<Debugcon>,
    /// aarch64: a device that sends the MSIs it is told to by lines `DEVICE EVENT`. A test's device: QEMU has none like it.
    pub msi: Option<CharBackend>,
    /// This machine waits for another one's state: no image is loaded and the blocks are untouched.
    pub incoming: bool,
    /// Whose sizes and sections to match where QEMU versions differ.
    pub level: Level,
    /// Fault switches: those of registers and interrupts strike here; the others in the engine.
    pub faults: Faults,
}

impl Default for VmConfig {
    fn default() -> Self {
        Self {
            machine: MachineOptions::default(),
            memory: 128 << 20,
            backend: MemoryBackend::default(),
            huge_pages: false,
            dirty: DirtyTracking::default(),
            cpus: 1,
            #[cfg(target_arch = "x86_64")]
            cpu: CpuModel::default(),
            kernel: None,
            command_line: String::new(),
            initrd: None,
            bios: None,
            serial: Some(CharBackend::Null),
            debugcon: None,
            msi: None,
            incoming: false,
            level: Level::default(),
            faults: Faults::default(),
        }
    }
}

/// Where guest RAM comes from.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum MemoryBackend {
    /// A memory file of this process alone (memfd).
    #[default]
    Private,
    /// Anonymous private memory.
    Anonymous,
    /// A shared mapping of a file, on tmpfs or hugetlbfs; created and grown as needed.
    SharedFile(PathBuf),
}

/// How the guest's writes are tracked while it moves away. It is settled when the machine is built, and costs nothing else.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum DirtyTracking {
    /// KVM's bitmap: a bit a page of the guest, read at each sync.
    #[default]
    Bitmap,
    /// KVM's dirty ring: what was written, vCPU by vCPU. QEMU's `dirty-ring-size`.
    Ring {
        /// Entries of each vCPU's ring: a power of two, at least
        /// [`MIN_ENTRIES`](whimbrel::dirty::kvm::ring::KvmDirtyRings::MIN_ENTRIES).
        entries: u32,
    },
}

/// A boot image.
#[derive(Debug, Clone)]
pub enum Image {
    /// Read when the machine is built and at every reset.
    File(PathBuf),
    /// Held in memory.
    Bytes(Arc<[u8]>),
}

impl Image {
    /// Its bytes.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub(crate) fn read(&self) -> Result<Arc<[u8]>, Error> {
        match self {
            Self::Bytes(bytes) => Ok(Arc::clone(bytes)),
            Self::File(path) => match std::fs::read(path) {
                Ok(bytes) => Ok(bytes.into()),
                Err(source) => Err(Error::Image { path: path.clone(), source }),
            },
        }
    }
}

/// QEMU's `isa-debugcon`: each byte written to the port goes out; reads give 0xe9.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Debugcon {
    /// The port, usually 0xe9.
    pub port: u16,
    /// Where bytes go.
    pub backend: CharBackend,
}

/// The host's end of a character device.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum CharBackend {
    /// This process's standard input and output.
    Stdio,
    /// Output is appended to a file; no input.
    File(PathBuf),
    /// A Unix socket.
    Unix {
        /// Its path.
        path: PathBuf,
        /// Listen there (one client at a time) instead of connecting.
        server: bool,
    },
    /// A TCP socket.
    Tcp {
        /// `host:port`.
        address: String,
        /// Listen there (one client at a time) instead of connecting.
        server: bool,
    },
    /// Output vanishes; no input.
    #[default]
    Null,
}
