//! The battery-backed clock, an MC146818: ports 0x70 and 0x71, interrupt 8, section `mc146818rtc`.
//!
//! Time is the host's, plus what the guest has set it ahead by. A thread sleeps until the next interrupt that the guest asked for.

mod calendar;
mod registers;

use std::sync::{Arc, Condvar, Mutex, PoisonError, Weak};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use whimbrel::downcast;
use whimbrel::handlers::Device;
use whimbrel::machine::MachineError;
use whimbrel_vmstate::VmState;

use crate::bus::PortDevice;
use crate::error::Error;
use crate::lock;
use crate::state::Mc146818Rtc;
use registers::Registers;

/// First port: it selects a register; the next is the register.
pub const FIRST_PORT: u16 = 0x70;
/// Number of ports.
pub const PORTS: u16 = 2;

const SELECT: u16 = 0;
const DATA: u16 = 1;
/// The thread looks at least this often whether the clock is still there, and whether the host's time was set.
const LONGEST_SLEEP: Duration = Duration::from_secs(1);

/// The interrupt line.
type Line = Box<dyn Fn(bool) + Send + Sync>;

/// The device.
pub struct Rtc(Arc<Shared>);

struct Shared {
    clock: Mutex<Clock>,
    changed: Condvar,
    line: Line,
}

struct Clock {
    registers: Registers,
    /// Interrupts are for a running machine.
    running: bool,
    line: bool,
}

impl Rtc {
    /// A clock of a machine with this memory below the hole and above 4 GiB.
    ///
    /// # Errors
    /// If there is no thread to be had.
    pub fn new(memory: (u64, u64), line: Line) -> Result<Self, Error> {
        let registers = Registers::power_on(now(), memory);
        let clock = Mutex::new(Clock { registers, running: false, line: false });
        let shared = Arc::new(Shared { clock, changed: Condvar::new(), line });
        let weak = Arc::downgrade(&shared);
        std::thread::Builder::new()
            .name("rtc".into())
            .spawn(move || interrupt(&weak))
            .map_err(|error| Error::Config(format!("a thread for the real-time clock: {error}")))?;
        Ok(Self(shared))
    }

    /// A reset of the machine.
    pub fn reset(&self) {
        self.with(|registers| registers.reset(now()));
    }

    /// The machine runs, or stops.
    pub fn set_running(&self, running: bool) {
        lock(&self.0.clock).running = running;
        self.with(|_| ());
    }

    /// What `f` does to the registers, and what it does to the line and to the thread's sleep.
    fn with<T>(&self, f: impl FnOnce(&mut Registers) -> T) -> T {
        let mut clock = lock(&self.0.clock);
        let result = f(&mut clock.registers);
        self.0.drive_line(&mut clock);
        self.0.changed.notify_all();
        result
    }
}

impl Shared {
    fn drive_line(&self, clock: &mut Clock) {
        let high = clock.registers.line();
        if clock.running && high != clock.line {
            clock.line = high;
            (self.line)(high);
        }
    }
}

/// The thread: ends with the device.
fn interrupt(shared: &Weak<Shared>) {
    while let Some(shared) = shared.upgrade() {
        let mut clock = lock(&shared.clock);
        let now = now();
        if clock.running && clock.registers.due().is_some_and(|due| due <= now) {
            clock.registers.look(now);
            shared.drive_line(&mut clock);
        }
        let due = clock.registers.due().filter(|_| clock.running);
        let sleep = due.map_or(LONGEST_SLEEP, |due| {
            Duration::from_nanos(u64::try_from(due - now).unwrap_or(0)).min(LONGEST_SLEEP)
        });
        drop(shared.changed.wait_timeout(clock, sleep).unwrap_or_else(PoisonError::into_inner));
    }
}

impl PortDevice for Rtc {
    fn read(&self, offset: u16, data: &mut [u8]) {
        data.fill(0xff);
        if let (DATA, [byte]) = (offset, data) {
            *byte = self.with(|registers| registers.read(now()));
        }
    }

    fn write(&self, offset: u16, data: &[u8]) {
        match (offset, data) {
            (SELECT, [index]) => self.with(|registers| registers.select(*index)),
            (DATA, [value]) => self.with(|registers| registers.write(now(), *value)),
            _ => {}
        }
    }
}

impl Device for Rtc {
    fn save(&self) -> Result<Box<dyn VmState>, MachineError> {
        Ok(Box::new(lock(&self.0.clock).registers.save(now())))
    }

    fn blank(&self) -> Box<dyn VmState> {
        Box::new(Mc146818Rtc::default())
    }

    /// Taken at once: the machine is stopped. If the line is high it is driven anew when the guest runs: controllers that knew it
    /// see no edge then, and those that did not (it rose after the stop) do.
    fn load(&self, state: Box<dyn VmState>) -> Result<(), MachineError> {
        let registers = Registers::load(&*downcast::<Mc146818Rtc>(state)?, now())?;
        let mut clock = lock(&self.0.clock);
        clock.line = false;
        clock.registers = registers;
        Ok(())
    }
}

/// The host's time, in ns since 1970.
fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}
