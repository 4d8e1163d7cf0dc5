//! A whole machine in some 200 lines, made movable: what a VMM author brings to whimbrel.
//!
//! The machine needs no KVM. Its RAM is memory of this process; its vCPUs are threads that stamp one page after the other, each
//! in a RAM block of its own; a vCPU's only registers are its count of stamps and two times. What must be in every byte of RAM
//! follows from those counts, so that whoever received the machine can check all of it (`Machine::verify`).
//!
//! ```text
//! trait Machine   RAM, pause and resume, the dirty log, apply, reset     impl for Machine below
//! trait Device    capture, a blank to load into, take what was loaded    impl for Worker below
//! trait VmState   the saved fields, listed once                          impl for WorkerState below
//! Registry        which devices there are                                Machine::registry
//! Engine          all the rest                                           two_processes.rs drives it
//! ```
//!
//! `cargo run -p whimbrel --example minimal` moves one between two processes while it works, and verifies it.

#[path = "minimal/gate.rs"]
mod gate;
#[path = "minimal/two_processes.rs"]
mod two_processes;

use std::process::ExitCode;
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

use vm_memory::{GuestAddress, VolatileSlice};
use whimbrel::dirty::DirtySource;
use whimbrel::dirty::write_protect::{WriteProtect, Writers};
use whimbrel::handlers::{Device, DeviceHandler, Priority, Registry};
use whimbrel::machine::MachineError;
use whimbrel::memory::{PAGE_SIZE, RamBlock, Region};
use whimbrel::vmstate::{self, Visitor, VmState, Vmsd};

use gate::Gate;

/// Runs the example: `args` are what the user gave, `prefix` the arguments by which this program gets here (none, if it is the
/// example itself). The second process is this program again.
pub fn main_with(prefix: &[&str], args: &[String]) -> ExitCode {
    two_processes::run(prefix, args)
}

#[allow(dead_code, reason = "a program that includes this file has a main of its own")]
fn main() -> ExitCode {
    main_with(&[], &std::env::args().skip(1).collect::<Vec<_>>())
}

/// The machine.
pub struct Machine {
    ram: Vec<RamBlock>,
    workers: Vec<Arc<Worker>>,
    gate: Arc<Gate>,
    threads: Vec<JoinHandle<()>>,
}

impl Machine {
    /// A machine of `workers` vCPUs, each with `pages` pages to stamp, `rate` of them a second. It is paused.
    pub fn new(workers: usize, pages: u64, rate: u32) -> std::io::Result<Arc<Self>> {
        let gate = Arc::new(Gate::default());
        let mut machine = Self { ram: vec![], workers: vec![], gate: gate.clone(), threads: vec![] };
        for number in 0..workers {
            let at = GuestAddress(number as u64 * pages * PAGE_SIZE);
            let region =
                Region::from_range(at, (pages * PAGE_SIZE) as usize, None).map_err(std::io::Error::other)?;
            let ram = RamBlock::new(format!("worker{number}.ram"), vec![Arc::new(region)], true);
            let worker = Worker { number: number as u64, ram: ram.clone(), registers: Mutex::default() };
            let worker = Arc::new(worker);
            let (gate, stamping) = (gate.clone(), worker.clone());
            machine.threads.push(std::thread::Builder::new().spawn(move || stamping.run(&gate, rate))?);
            machine.ram.push(ram);
            machine.workers.push(worker);
        }
        Ok(Arc::new(machine))
    }

    /// What of the machine is carried beside RAM: each worker's registers.
    pub fn registry(&self) -> Registry {
        let mut registry = Registry::new();
        for (number, worker) in self.workers.iter().enumerate() {
            registry.device(DeviceHandler {
                idstr: "worker".into(),
                instance_id: number as u32,
                priority: Priority::Default,
                early: false,
                device: worker.clone(),
            });
        }
        registry
    }

    /// Recomputes every page from the workers' registers: how many there are, and how many differ. Only while paused.
    pub fn verify(&self) -> (u64, u64) {
        self.workers.iter().map(|worker| worker.verify()).fold((0, 0), |a, b| (a.0 + b.0, a.1 + b.1))
    }

    /// Stamps written so far, over both machines that it ran on.
    pub fn stamps(&self) -> u64 {
        self.workers.iter().map(|worker| lock(&worker.registers).stamps).sum()
    }

    /// The longest time between two stamps of a worker: the pause as the guest saw it.
    pub fn longest_gap(&self) -> Duration {
        let gaps = self.workers.iter().map(|worker| lock(&worker.registers).longest_gap);
        gaps.max().unwrap_or_default()
    }
}

impl whimbrel::machine::Machine for Machine {
    fn ram(&self) -> &[RamBlock] {
        &self.ram
    }

    fn dirty_source(&self) -> Result<Box<dyn DirtySource>, MachineError> {
        // Only our own threads write: no privilege is needed.
        Ok(Box::new(WriteProtect::new(&self.ram, Writers::UserSpace)))
    }

    fn pause_vcpus(&self) -> Result<(), MachineError> {
        self.gate.close();
        Ok(())
    }

    fn resume_vcpus(&self) -> Result<(), MachineError> {
        self.gate.open();
        Ok(())
    }

    fn freeze_clocks(&self) -> Result<(), MachineError> {
        Ok(()) // The workers read the host's clock, which goes on: that is how they see the gap.
    }

    fn thaw_clocks(&self) -> Result<(), MachineError> {
        Ok(())
    }

    fn apply(&self) -> Result<(), MachineError> {
        Ok(()) // `Worker::load` has put everything in place. With KVM, its ioctls are done here.
    }

    fn reset(&self) -> Result<(), MachineError> {
        for worker in &self.workers {
            *lock(&worker.registers) = Registers::default();
            for page in 0..worker.ram.pages() {
                // Through the block, so that the dirty log sees it.
                worker.ram.write(page * PAGE_SIZE, &[0; PAGE_SIZE as usize]).map_err(|e| e.to_string())?;
            }
        }
        Ok(())
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.gate.end();
        for thread in self.threads.drain(..) {
            let _it_says_why = thread.join();
        }
    }
}

/// A vCPU: stamps the pages of its RAM, round after round.
struct Worker {
    number: u64,
    ram: RamBlock,
    registers: Mutex<Registers>,
}

#[derive(Clone, Default)]
struct Registers {
    stamps: u64,
    last: Option<SystemTime>,
    longest_gap: Duration,
}

impl Worker {
    fn run(&self, gate: &Gate, rate: u32) {
        const BURST: u32 = 32;
        while (0..BURST).all(|_| gate.pass(|| self.stamp())) {
            std::thread::sleep(Duration::from_secs(BURST.into()) / rate);
        }
    }

    /// Writes the next page.
    fn stamp(&self) {
        let mut registers = lock(&self.registers);
        let (page, round) = (registers.stamps % self.ram.pages(), registers.stamps / self.ram.pages());
        let slice = self.ram.slice(page * PAGE_SIZE, PAGE_SIZE as usize).expect("the page is in the block");
        let page_guard = slice.ptr_guard_mut();
        // SAFETY: the page is mapped as long as the block, and nobody holds a reference into guest RAM. Written past the block's
        // own bitmap, as a vCPU would: only the dirty source sees it.
        let unlogged = unsafe { VolatileSlice::new(page_guard.as_ptr(), page_guard.len()) };
        unlogged.copy_from(&content(self.number, page, round + 1));
        let now = SystemTime::now();
        let gap = registers.last.and_then(|last| now.duration_since(last).ok()).unwrap_or_default();
        registers.longest_gap = registers.longest_gap.max(gap);
        registers.last = Some(now);
        registers.stamps += 1;
    }

    fn verify(&self) -> (u64, u64) {
        let (pages, stamps) = (self.ram.pages(), lock(&self.registers).stamps);
        let differs = |page: &u64| {
            let round = stamps / pages + u64::from(*page < stamps % pages);
            let mut found = [0_u8; PAGE_SIZE as usize];
            self.ram.read(page * PAGE_SIZE, &mut found).is_err()
                || content(self.number, *page, round).map(u64::to_ne_bytes) != *found.as_chunks().0
        };
        (pages, (0..pages).filter(differs).count() as u64)
    }
}

/// What stands in a page that worker `number` has stamped `rounds` times.
fn content(number: u64, page: u64, rounds: u64) -> [u64; PAGE_SIZE as usize / 8] {
    let stamp = ((rounds << 32) | (number << 28) | page).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    std::array::from_fn(|word| if rounds == 0 { 0 } else { stamp ^ word as u64 })
}

impl Device for Worker {
    fn save(&self) -> Result<Box<dyn VmState>, MachineError> {
        let Registers { stamps, last, longest_gap } = lock(&self.registers).clone();
        let since_epoch = |time: SystemTime| time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let last = last.map_or(0, |last| since_epoch(last).as_nanos() as u64);
        Ok(Box::new(WorkerState { stamps, last, longest_gap: longest_gap.as_nanos() as u64 }))
    }

    fn blank(&self) -> Box<dyn VmState> {
        Box::new(WorkerState::default())
    }

    fn load(&self, state: Box<dyn VmState>) -> Result<(), MachineError> {
        let WorkerState { stamps, last, longest_gap } = *whimbrel::downcast(state)?;
        if stamps >= 1 << 48 {
            return Err(format!("stamps: {stamps} are more than a worker can have made").into());
        }
        let last = (last != 0).then(|| SystemTime::UNIX_EPOCH + Duration::from_nanos(last));
        *lock(&self.registers) = Registers { stamps, last, longest_gap: Duration::from_nanos(longest_gap) };
        Ok(())
    }
}

/// A worker's registers as they are carried: a contract with other versions, so never the type that the worker works on.
#[derive(Default)]
struct WorkerState {
    stamps: u64,
    /// Nanoseconds since 1970; 0: none yet.
    last: u64,
    /// Nanoseconds.
    longest_gap: u64,
}

impl VmState for WorkerState {
    fn vmsd(&self) -> Vmsd {
        Vmsd::new("worker", 1)
    }

    fn fields(&mut self, v: &mut dyn Visitor) -> vmstate::Result<()> {
        v.u64("stamps", &mut self.stamps)?;
        v.u64("last", &mut self.last)?;
        v.u64("longest_gap", &mut self.longest_gap)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("nobody panics with a lock held")
}
