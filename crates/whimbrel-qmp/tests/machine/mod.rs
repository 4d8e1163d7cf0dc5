//! A machine for tests of the monitor: RAM that nobody writes, no vCPU, no device; and its engine, running.

#![allow(dead_code, reason = "each test uses its part")]

use std::io;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use vm_memory::GuestAddress;
use whimbrel::engine::{Config, Exit, Incoming};
use whimbrel::handlers::Registry;
use whimbrel::machine::{Machine, MachineError};
use whimbrel::memory::{RamBlock, Region};
use whimbrel::{DirtyBitmap, Engine, dirty::DirtySource};

/// Bytes of RAM.
pub(crate) const RAM: u64 = 16 << 20;

/// Its RAM: page n is filled with n.
pub(crate) struct Quiet {
    ram: [RamBlock; 1],
}

struct NeverDirty;

impl DirtySource for NeverDirty {
    fn start(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn sync(&mut self, _block: usize, _into: &mut DirtyBitmap) -> io::Result<u64> {
        Ok(0)
    }

    fn rearm(&mut self, _block: usize, _pages: Range<u64>) -> io::Result<()> {
        Ok(())
    }

    fn stop(&mut self) {}
}

impl Machine for Quiet {
    fn ram(&self) -> &[RamBlock] {
        &self.ram
    }

    fn dirty_source(&self) -> Result<Box<dyn DirtySource>, MachineError> {
        Ok(Box::new(NeverDirty))
    }

    fn pause_vcpus(&self) -> Result<(), MachineError> {
        Ok(())
    }

    fn resume_vcpus(&self) -> Result<(), MachineError> {
        Ok(())
    }

    fn freeze_clocks(&self) -> Result<(), MachineError> {
        Ok(())
    }

    fn thaw_clocks(&self) -> Result<(), MachineError> {
        Ok(())
    }

    fn apply(&self) -> Result<(), MachineError> {
        Ok(())
    }

    fn reset(&self) -> Result<(), MachineError> {
        Ok(())
    }
}

impl Quiet {
    pub(crate) fn read_physical(&self, address: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.ram[0].read(address, buffer)
    }
}

/// A running engine; it ends with its owner.
pub(crate) struct Running {
    pub(crate) machine: Arc<Quiet>,
    pub(crate) engine: Arc<Engine>,
    main_loop: Option<JoinHandle<Exit>>,
}

impl Running {
    pub(crate) fn start(incoming: Option<Incoming>) -> Self {
        let region = Region::from_range(GuestAddress(0), RAM as usize, None).unwrap();
        let ram = RamBlock::new("quiet.ram", vec![Arc::new(region)], true);
        if incoming.is_none() {
            for page in 0..RAM / 4096 {
                ram.write(page * 4096, &[page as u8; 4096]).unwrap();
            }
        }
        let machine = Arc::new(Quiet { ram: [ram] });
        let autostart = true;
        let config = Config { machine_name: "quiet".into(), autostart, incoming, ..Config::default() };
        let engine = Engine::new(machine.clone(), Registry::new(), config);
        let running = engine.clone();
        let main_loop = Some(std::thread::spawn(move || running.run()));
        // What is posted is done after the start: the guest runs (or is awaited) from here on.
        engine.on_main(|_| ()).unwrap();
        Self { machine, engine, main_loop }
    }

    /// Waits for the main loop's end.
    pub(crate) fn wait(&mut self) -> Exit {
        self.main_loop.take().unwrap().join().unwrap()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(main_loop) = self.main_loop.take() {
            self.engine.post(|engine| engine.quit());
            let _panicked = main_loop.join();
        }
    }
}

/// A path nobody else uses, in the directory for temporary files.
pub(crate) fn fresh_path(what: &str) -> PathBuf {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    std::env::temp_dir().join(format!("whimbrel-qmp-{}-{number}-{what}", std::process::id()))
}

/// Long enough for anything here on a busy host.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);
