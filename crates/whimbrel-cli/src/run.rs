//! `whimbrel run`: one machine in this process, controlled by QMP.

use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, bail};
use whimbrel::Engine;
use whimbrel::channel::Address;
use whimbrel::dirty::kvm::ring::KvmDirtyRings;
use whimbrel::engine::{Config, Exit, Incoming};
use whimbrel::faults::Faults;
use whimbrel::vmstate::Level;
use whimbrel_qmp::{Endpoint, Host, Server};
#[cfg(target_arch = "x86_64")]
use whimbrel_vmm::CpuModel;
use whimbrel_vmm::{CharBackend, Debugcon, DirtyTracking, Image, MemoryBackend, Vm, VmConfig};

use crate::backend::{self, Kernel};
use crate::machine::{self, Machine};

/// Runs a machine, or awaits one that moves here.
///
/// The machine is QEMU's `microvm`, plain (acpi, pic, pit and rtc off) or as --machine says; on aarch64
/// `virt` with GICv3 and ITS. Its QMP socket speaks QEMU's protocol: `migrate`, `query-migrate`, `stop`, `cont` and the rest of the migration set.
/// QEMU's spellings of these options are taken too (-smp 2 -kernel vmlinux -incoming defer …);
/// what this machine cannot do is refused by name.
///
/// Examples:
///   whimbrel run -m 1G --kernel vmlinux --append console=ttyS0 --serial stdio --qmp /tmp/a.sock
///   whimbrel run -m 1G --incoming tcp:0.0.0.0:4444 --qmp unix:/tmp/b.sock
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct Args {
    /// QEMU's microvm with its properties acpi, pic, pit, rtc and isa-serial; `microvm` alone is QEMU's default.
    /// Without this option: microvm,acpi=off,pic=off,pit=off,rtc=off,isa-serial=on. On aarch64: virt,gic-version=3,its=on, which is
    /// the one there is.
    #[arg(long, value_parser = machine::parse, overrides_with = "machine")]
    machine: Option<Machine>,

    /// Guest RAM: 512M, 4G, or a number of MiB.
    #[arg(short, long, default_value = "128M", value_parser = backend::memory)]
    memory: u64,

    /// Virtual CPUs.
    #[arg(long, alias = "smp", default_value_t = 1)]
    cpus: u32,

    /// CPU model: host or qemu64, as QEMU has them, then ,+feature ,-feature ,enforce ,pmu=on|off.
    #[cfg(target_arch = "x86_64")]
    #[arg(long, default_value_t, value_parser = str::parse::<CpuModel>)]
    cpu: CpuModel,

    /// Where RAM comes from: private, anonymous, or file:PATH (shared; on tmpfs or hugetlbfs).
    #[arg(long, default_value = "private", value_parser = ram)]
    ram: MemoryBackend,

    /// Ask for huge pages.
    #[arg(long)]
    huge_pages: bool,

    /// How writes are tracked while the guest moves away: bitmap, or ring[,ENTRIES] (KVM's dirty ring; a power of two, 4096
    /// entries a vCPU if not said).
    #[arg(long, default_value = "bitmap", value_parser = dirty, overrides_with = "dirty")]
    dirty: DirtyTracking,

    /// Kernel: an ELF with a PVH entry or a bzImage (aarch64: an Image), or @beacon for the test guest in this binary.
    #[arg(short, long, value_parser = backend::kernel)]
    kernel: Option<Kernel>,

    /// The kernel's command line.
    #[arg(long, default_value = "")]
    append: String,

    /// The kernel's initial ramdisk.
    #[arg(long)]
    initrd: Option<std::path::PathBuf>,

    /// Firmware image, mapped below 4 GiB. Both ends of a move need one of the same size.
    #[arg(long)]
    bios: Option<std::path::PathBuf>,

    /// Serial port: stdio, null, file:PATH, unix:PATH[,server], tcp:HOST:PORT[,server]; none for no port.
    /// Without this option: null, if the machine has a port.
    #[arg(long, value_parser = serial)]
    serial: Option<Serial>,

    /// Debug console [PORT,]BACKEND: each byte written to the port (0xe9) goes out.
    #[arg(long, value_parser = backend::debugcon)]
    debugcon: Option<Debugcon>,

    /// aarch64, for tests: send the MSIs told by lines DEVICE EVENT on this character device.
    #[arg(long, hide = true, value_parser = backend::char_backend)]
    msi: Option<CharBackend>,

    /// Control socket: unix:PATH or tcp:HOST:PORT. May be given more than once.
    #[arg(long)]
    qmp: Vec<Endpoint>,

    /// Await a guest: tcp:HOST:PORT (port 0: any; see query-migrate), unix:PATH, vsock:CID:PORT, file:PATH[,offset=N],
    /// fd:NUMBER (inherited), exec:COMMAND, or defer.
    #[arg(long, value_parser = incoming)]
    incoming: Option<Incoming>,

    /// Do not run the guest until `cont`.
    #[arg(short = 'S', long)]
    stopped: bool,

    /// A guest that resets ends instead.
    #[arg(long)]
    no_reboot: bool,

    /// A guest that powers off stays, stopped.
    #[arg(long)]
    no_shutdown: bool,

    /// The machine's name.
    #[arg(long)]
    name: Option<String>,

    /// The machine's uuid.
    #[arg(long, value_parser = backend::uuid)]
    uuid: Option<[u8; 16]>,

    /// Version of the QEMU that this machine's peers are compatible with: 7.2, 9.0 or 10.0.
    #[arg(long, default_value = "10.0")]
    compat: Level,

    /// Break something on purpose, for tests. May be given more than once; --fault help lists them.
    #[arg(long, hide = true)]
    fault: Vec<String>,
}

/// The serial port's other end, or that there is no port.
#[derive(Debug, Clone)]
struct Serial(Option<CharBackend>);

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    if !std::path::Path::new("/dev/kvm").exists() {
        bail!(
            "no /dev/kvm on this machine: whimbrel runs guests on KVM (load kvm-intel or kvm-amd; in a VM, enable nesting)"
        );
    }
    let faults = Faults::parse(args.fault.iter().map(String::as_str)).map_err(anyhow::Error::msg)?;
    let machine = args.machine.unwrap_or_default();
    let config = VmConfig {
        machine: machine.options,
        memory: args.memory,
        backend: args.ram.clone(),
        huge_pages: args.huge_pages,
        dirty: args.dirty,
        cpus: args.cpus,
        #[cfg(target_arch = "x86_64")]
        cpu: args.cpu.clone(),
        kernel: args.kernel.as_ref().map(image).transpose()?,
        command_line: args.append.clone(),
        initrd: args.initrd.clone().map(Image::File),
        bios: args.bios.clone(),
        serial: serial_port(machine, args.serial.as_ref())?,
        debugcon: args.debugcon.clone(),
        msi: args.msi.clone(),
        incoming: args.incoming.is_some(),
        level: args.compat,
        faults: faults.clone(),
    };
    let (vm, registry) = Vm::new(config).context("cannot build the machine")?;
    let engine = Engine::new(
        vm.clone(),
        registry,
        Config {
            machine_name: whimbrel_vmm::machine_name(args.compat),
            target_page_bits: whimbrel_vmm::TARGET_PAGE_BITS,
            level: args.compat,
            uuid: args.uuid,
            name: args.name.clone(),
            autostart: !args.stopped,
            no_reboot: args.no_reboot,
            no_shutdown: args.no_shutdown,
            incoming: args.incoming.clone(),
            faults,
        },
    );
    vm.attach(Arc::downgrade(&engine));
    let memory: Arc<dyn Host> = Arc::new(Memory(vm));
    let _servers = args
        .qmp
        .iter()
        .map(|endpoint| Server::start(endpoint, engine.clone(), memory.clone()))
        .collect::<Result<Vec<_>, _>>()?;
    match engine.run() {
        Exit::IncomingFailed(why) => {
            eprintln!("whimbrel: load of migration failed: {why}");
            Ok(ExitCode::FAILURE)
        }
        _ => Ok(ExitCode::SUCCESS),
    }
}

/// The port's other end; `None`: there is no port.
fn serial_port(machine: Machine, wanted: Option<&Serial>) -> anyhow::Result<Option<CharBackend>> {
    match (machine.serial, wanted) {
        (true, None) => Ok(Some(CharBackend::Null)),
        (true, Some(Serial(backend))) => Ok(backend.clone()),
        (false, None | Some(Serial(None))) => Ok(None),
        (false, Some(Serial(Some(_)))) => {
            bail!("--serial: isa-serial=off is a machine without a serial port")
        }
    }
}

fn image(kernel: &Kernel) -> anyhow::Result<Image> {
    Ok(match kernel {
        Kernel::File(path) => Image::File(path.clone()),
        Kernel::Beacon => Image::Bytes(crate::beacon_guest::image()?.into()),
    })
}

/// Gives QMP the guest's memory.
struct Memory(Arc<Vm>);

impl Host for Memory {
    fn read_physical(&self, gpa: u64, buf: &mut [u8]) -> std::io::Result<()> {
        self.0.read_physical(gpa, buf)
    }

    fn vcpu_threads(&self) -> Vec<i32> {
        self.0.vcpu_threads()
    }
}

fn ram(text: &str) -> Result<MemoryBackend, String> {
    match text.split_once(':') {
        None if text == "private" => Ok(MemoryBackend::Private),
        None if text == "anonymous" => Ok(MemoryBackend::Anonymous),
        Some(("file", path)) => Ok(MemoryBackend::SharedFile(path.into())),
        _ => Err(format!("'{text}' is no place for RAM: private, anonymous or file:PATH")),
    }
}

fn dirty(text: &str) -> Result<DirtyTracking, String> {
    let entries = match text.split_once(',') {
        None if text == "bitmap" => return Ok(DirtyTracking::Bitmap),
        None if text == "ring" => Some(KvmDirtyRings::DEFAULT_ENTRIES),
        Some(("ring", entries)) => entries.parse().ok(),
        _ => None,
    };
    entries
        .map(|entries| DirtyTracking::Ring { entries })
        .ok_or_else(|| format!("'{text}' is no dirty log: bitmap, ring or ring,ENTRIES"))
}

fn serial(text: &str) -> Result<Serial, String> {
    if text == "none" {
        Ok(Serial(None))
    } else {
        backend::char_backend(text).map(|backend| Serial(Some(backend)))
    }
}

fn incoming(text: &str) -> Result<Incoming, String> {
    if text == "defer" {
        return Ok(Incoming::Defer);
    }
    Address::parse(text).map(Incoming::At).map_err(|error| error.desc)
}
