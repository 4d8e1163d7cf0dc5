//! One `whimbrel run` process of the demo, its QMP socket, its heartbeat and what its guest says.

use std::io::{BufRead, BufReader, Read};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use beacon::check::Report;
use beacon::heartbeat::Stream;
use serde_json::{Value, json};
use whimbrel_qmp::Endpoint;
use whimbrel_vmm::RAM_START;

use super::of;
use crate::monitor::{Listening, Monitor};

/// How long the process may take to open its QMP socket.
const START: Duration = Duration::from_secs(20);

/// A directory for sockets and dumps, gone with the demo.
pub(super) struct Directory(PathBuf);

impl Directory {
    /// In shared memory where there is some: the dump of the guest's RAM goes here.
    pub(super) fn new() -> anyhow::Result<Self> {
        let parent =
            Some(PathBuf::from("/dev/shm")).filter(|shm| shm.is_dir()).unwrap_or_else(std::env::temp_dir);
        let path = parent.join(format!("whimbrel-demo-{}", std::process::id()));
        std::fs::create_dir(&path).with_context(|| format!("cannot create '{}'", path.display()))?;
        Ok(Self(path))
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _left_behind = std::fs::remove_dir_all(&self.0);
    }
}

/// A running machine. The process ends with it.
pub(super) struct Machine {
    name: &'static str,
    child: Child,
    qmp: Monitor,
    beats: Arc<Mutex<Stream>>,
    said: Arc<Mutex<Vec<String>>>,
}

impl Machine {
    pub(super) fn start(
        directory: &Directory,
        name: &'static str,
        clock: Instant,
        memory_mib: u64,
        cpus: u32,
        faults: &[String],
        more: impl FnOnce(&mut Command),
    ) -> anyhow::Result<Self> {
        let socket = |what: &str| directory.file(&format!("{name}.{what}"));
        let heart = of(UnixListener::bind(socket("heart")), name, "its heartbeat's socket")?;
        let voice = of(UnixListener::bind(socket("voice")), name, "its serial port's socket")?;
        let mut command = Command::new(std::env::current_exe()?);
        command.args([
            "run",
            "--memory",
            &memory_mib.to_string(),
            "--cpus",
            &cpus.to_string(),
            "--name",
            name,
        ]);
        command.arg("--qmp").arg(format!("unix:{}", socket("qmp").display()));
        command.arg("--debugcon").arg(format!("0xe9,unix:{}", socket("heart").display()));
        command.arg("--serial").arg(format!("unix:{}", socket("voice").display()));
        command.args(faults.iter().flat_map(|fault| ["--fault", fault]));
        more(&mut command);
        let child = command.stdin(Stdio::null()).spawn();
        let mut child = of(child, name, "starting the process")?;
        let qmp = match connect(socket("qmp"), &mut child) {
            Ok(qmp) => qmp,
            Err(error) => {
                let _gone = child.kill();
                return Err(error.context(name));
            }
        };
        let beats = Arc::<Mutex<Stream>>::default();
        let said = Arc::<Mutex<Vec<String>>>::default();
        listen(heart, {
            let beats = beats.clone();
            move |mut stream| {
                let mut buffer = [0; 4096];
                while let Ok(read @ 1..) = stream.read(&mut buffer) {
                    locked(&beats).push(clock.elapsed(), &buffer[..read]);
                }
            }
        });
        listen(voice, {
            let said = said.clone();
            move |stream| {
                for line in BufReader::new(stream).lines().map_while(Result::ok) {
                    locked(&said).push(line);
                }
            }
        });
        Ok(Self { name, child, qmp, beats, said })
    }

    pub(super) fn qmp(&mut self, command: &str, arguments: Value) -> anyhow::Result<Value> {
        of(self.qmp.execute(command, arguments), self.name, command)
    }

    /// Waits for the guest's word that it is at work.
    pub(super) fn wait_for_ready(&mut self, patience: Duration) -> anyhow::Result<()> {
        let start = Instant::now();
        while !locked(&self.said).iter().any(|line| line.contains("beacon: ready")) {
            if let Some(status) = self.child.try_wait()? {
                bail!("{}: the process ended ({status})", self.name);
            }
            if start.elapsed() > patience {
                bail!("{}: the guest was not ready after {} s", self.name, patience.as_secs());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// Where it awaits a guest, as a URI.
    pub(super) fn listening_at(&mut self) -> anyhow::Result<String> {
        let info = self.qmp("query-migrate", json!({}))?;
        match Listening::of(&info) {
            Some(listening) => Ok(listening.to_string()),
            None => bail!("{}: it does not say where it listens: {info}", self.name),
        }
    }

    /// Stops the guest and recomputes its memory.
    pub(super) fn check_memory(&mut self, directory: &Directory, memory_mib: u64) -> anyhow::Result<Report> {
        let dump = directory.file("ram");
        self.qmp("stop", json!({}))?;
        self.qmp("pmemsave", json!({"val": RAM_START, "size": memory_mib << 20, "filename": dump}))?;
        crate::beacon_guest::verify(&dump, RAM_START)
    }

    /// As by a power failure.
    pub(super) fn kill(&mut self) {
        let _gone = self.child.kill();
        let _reaped = self.child.wait();
    }

    /// The heartbeat so far.
    pub(super) fn beats(&self) -> Stream {
        locked(&self.beats).clone()
    }

    /// What the guest said, but for that it is ready.
    pub(super) fn complaints(&self) -> Vec<String> {
        let said = locked(&self.said);
        said.iter()
            .filter(|line| !line.contains("beacon: ready"))
            .map(|line| format!("{}: {line}", self.name))
            .collect()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.kill();
    }
}

fn connect(socket: PathBuf, child: &mut Child) -> anyhow::Result<Monitor> {
    let endpoint = Endpoint::Unix(socket);
    let start = Instant::now();
    loop {
        match Monitor::connect(&endpoint, Duration::from_millis(50)) {
            Ok(monitor) => return Ok(monitor),
            Err(error) if start.elapsed() > START => return Err(error),
            Err(_) => {}
        }
        if let Some(status) = child.try_wait()? {
            bail!("the process ended ({status})");
        }
    }
}

/// Takes the one connection that the machine makes, on a thread of its own.
fn listen(listener: UnixListener, read: impl FnOnce(UnixStream) + Send + 'static) {
    std::thread::spawn(move || {
        if let Ok((stream, _)) = listener.accept() {
            read(stream);
        }
    });
}

fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
