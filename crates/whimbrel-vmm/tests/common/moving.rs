//! A move without an engine: state through the registry's devices and the sections' bytes, RAM by copying, both machines in this process.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use beacon::control::ControlBlock;
use beacon::{CommandLine, GuestMemory, check};
use whimbrel::faults::Faults;
use whimbrel::handlers::Registry;
use whimbrel::machine::{Machine, MachineError};
use whimbrel_vmm::{CharBackend, Debugcon, Image, MachineOptions, MemoryBackend, Vm, VmConfig};
use whimbrel_vmstate::{Level, SectionName, load_body, save};
use whimbrel_wire::Output;

use super::{Console, skip};

/// Long enough for a busy machine: ring 0 is emulated on some hosts, and a guest's vCPUs may be more than the host's.
const PATIENCE: Duration = Duration::from_secs(60);

/// One section as it stands in the stream.
pub struct Section {
    pub name: SectionName,
    pub version: u32,
    pub body: Vec<u8>,
}

/// Guest memory for the beacon's checker.
pub struct Memory<'a>(pub &'a Vm);

impl GuestMemory for Memory<'_> {
    fn read(&self, gpa: u64, buf: &mut [u8]) -> std::io::Result<()> {
        self.0.read_physical(gpa, buf)
    }
}

/// A machine with the beacon, and its other ends.
pub struct Guest {
    pub vm: Arc<Vm>,
    pub registry: Registry,
    pub console: Console,
    pub socket: PathBuf,
    level: Level,
}

/// The beacon's image; `None` (and said so) where there is no C compiler.
pub fn image(test: &str) -> Option<Image> {
    match beacon::NATIVE {
        Ok(elf) => Some(Image::Bytes(elf.into())),
        Err(reason) => {
            skip(test, reason);
            None
        }
    }
}

impl Guest {
    /// On the plain machine.
    pub fn new(test: &str, line: &CommandLine, kernel: &Image, incoming: bool, faults: &[&str]) -> Self {
        Self::on(MachineOptions::PLAIN, test, line, kernel, incoming, faults)
    }

    pub fn on(
        machine: MachineOptions,
        test: &str,
        line: &CommandLine,
        kernel: &Image,
        incoming: bool,
        faults: &[&str],
    ) -> Self {
        let faults = Faults::parse(faults.iter().copied()).unwrap();
        let rest = VmConfig { machine, incoming, faults, ..VmConfig::default() };
        Self::with(test, line, kernel, rest)
    }

    /// On a machine of 48 MiB with the beacon, in everything else that of `rest`.
    pub fn with(test: &str, line: &CommandLine, kernel: &Image, rest: VmConfig) -> Self {
        let console = Console::new(test);
        let socket = console.path.with_extension("sock");
        let config = VmConfig {
            memory: 48 << 20,
            backend: MemoryBackend::Anonymous,
            cpus: line.vcpus(),
            kernel: Some(kernel.clone()),
            command_line: line.to_string(),
            serial: Some(CharBackend::Unix { path: socket.clone(), server: true }),
            debugcon: Some(Debugcon { port: 0xe9, backend: CharBackend::File(console.path.clone()) }),
            ..rest
        };
        let level = config.level;
        let (vm, registry) = Vm::new(config).unwrap();
        Self { vm, registry, console, socket, level }
    }

    pub fn resume(&self) {
        self.vm.state_changed(true).unwrap();
        self.vm.thaw_clocks().unwrap();
        self.vm.resume_vcpus().unwrap();
    }

    pub fn stop(&self) {
        self.vm.freeze_clocks().unwrap();
        self.vm.pause_vcpus().unwrap();
        self.vm.state_changed(false).unwrap();
    }

    pub fn control(&self) -> Option<ControlBlock> {
        ControlBlock::read(&Memory(&self.vm)).ok()
    }

    /// Waits until the running guest's account satisfies `f`.
    #[track_caller]
    pub fn wait(&self, what: &str, f: impl Fn(&ControlBlock) -> bool) -> ControlBlock {
        let end = Instant::now() + PATIENCE;
        loop {
            let control = self.control();
            if let Some(control) = control.as_ref().filter(|control| f(control)) {
                return control.clone();
            }
            assert!(Instant::now() < end, "{what}: not in time; the guest's account: {control:#?}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Every section's bytes, of a stopped machine.
    pub fn save(&self) -> Result<Vec<Section>, MachineError> {
        let devices = self.registry.devices().iter();
        devices
            .map(|handler| {
                let mut state = handler.device.save()?;
                let name = SectionName::new(&handler.idstr, handler.instance_id);
                let mut out = Output::new();
                save(&name, &mut *state, self.level, &mut out).unwrap();
                Ok(Section { name, version: state.vmsd().version, body: out.into_vec() })
            })
            .collect()
    }

    /// Loads sections and applies them.
    pub fn load(&self, sections: &[Section]) -> Result<(), MachineError> {
        for Section { name, version, body } in sections {
            let mut handlers = self.registry.devices().iter();
            let handler = handlers
                .find(|handler| handler.idstr == name.idstr && handler.instance_id == name.instance)
                .unwrap_or_else(|| panic!("no device {name:?}"));
            let mut state = handler.device.blank();
            load_body(name, &mut *state, *version, body, 0, self.level).unwrap();
            handler.device.load(state)?;
        }
        self.vm.apply()
    }

    pub fn copy_ram_from(&self, other: &Guest) {
        let mut buffer = vec![0; 1 << 20];
        for (to, from) in self.vm.ram().iter().zip(other.vm.ram()) {
            assert_eq!((to.name(), to.len()), (from.name(), from.len()));
            for at in (0..from.len()).step_by(buffer.len()) {
                let len = buffer.len().min((from.len() - at) as usize);
                from.read(at, &mut buffer[..len]).unwrap();
                to.write(at, &buffer[..len]).unwrap();
            }
        }
    }

    /// The whole memory recomputed; panics with what is wrong.
    #[track_caller]
    pub fn verify(&self) -> check::Report {
        let report = check::check(&Memory(&self.vm)).unwrap();
        assert!(report.is_clean(), "{report:#?}");
        report
    }

    /// Sends bytes to the serial port.
    pub fn send(&self, bytes: &[u8]) {
        UnixStream::connect(&self.socket).unwrap().write_all(bytes).unwrap();
    }

    /// The serial port's other end.
    pub fn connect(&self) -> UnixStream {
        UnixStream::connect(&self.socket).unwrap()
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.socket);
    }
}

/// Reads what is there, for at most `patience`.
pub fn read_some(stream: &mut UnixStream, patience: Duration) -> Vec<u8> {
    stream.set_read_timeout(Some(patience)).unwrap();
    let mut buffer = vec![0; 4096];
    let count = stream.read(&mut buffer).unwrap_or(0);
    buffer.truncate(count);
    buffer
}
