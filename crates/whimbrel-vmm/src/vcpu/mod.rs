//! vCPUs: a thread each, the gate that stops it, and all of its state.

mod all;
mod gate;
#[cfg(target_arch = "x86_64")]
mod hflags;
#[cfg(target_arch = "x86_64")]
mod kvm_state;
#[cfg(target_arch = "x86_64")]
mod msrs;
mod run;
#[cfg(target_arch = "x86_64")]
mod section;
#[cfg(target_arch = "x86_64")]
mod tsc;
#[cfg(target_arch = "x86_64")]
mod unit;
#[cfg(target_arch = "x86_64")]
mod xsave;

use std::os::raw::c_int;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicI32, AtomicU8, Ordering};
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Mutex, MutexGuard, TryLockError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use kvm_ioctls::VcpuFd;
use vmm_sys_util::signal::{Killable, register_signal_handler};

use crate::error::Error;
use crate::lock;
pub use all::Running;
use gate::Gate;
pub use run::Exits;
#[cfg(target_arch = "x86_64")]
pub use unit::{CpuSection, CpuUnit, Part, Rehearsal, Shared as UnitContext, apply_all, reset_all};

/// How long a vCPU may take to leave the guest and finish the exit it is in.
const PAUSE_DEADLINE: Duration = Duration::from_secs(5);
/// A kick is repeated this often: one that comes between two entries is seen, but a lost one must not cost the deadline.
const KICK_AGAIN: Duration = Duration::from_millis(20);
/// How long a visitor waits for a vCPU.
const VISIT_DEADLINE: Duration = Duration::from_millis(100);
/// How often a visitor looks whether it may come in.
const VISIT_AGAIN: Duration = Duration::from_micros(50);

/// One vCPU.
pub struct Vcpu {
    index: u32,
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
    thread_id: AtomicI32,
}

/// What the vCPU's thread and the others share.
struct Shared {
    gate: Gate,
    /// Held by the thread while it is in the guest; free while it is parked.
    fd: Mutex<VcpuFd>,
    immediate_exit: ImmediateExit,
}

/// `immediate_exit` in the vCPU's shared `kvm_run` page: KVM_RUN returns at once while it is 1.
struct ImmediateExit(NonNull<u8>);

// SAFETY: the byte is only accessed atomically, by `set`.
unsafe impl Send for ImmediateExit {}
// SAFETY: as above.
unsafe impl Sync for ImmediateExit {}

impl ImmediateExit {
    fn of(fd: &mut VcpuFd) -> Self {
        Self(NonNull::from(&mut fd.get_kvm_run().immediate_exit))
    }

    fn set(&self, value: u8) {
        // SAFETY: the page is mapped as long as the `VcpuFd`, which lives in the same `Shared` as `self`.
        unsafe { AtomicU8::from_ptr(self.0.as_ptr()) }.store(value, Ordering::SeqCst);
    }
}

impl Vcpu {
    /// Wraps a vCPU whose power-on state is set. It has no thread yet.
    pub fn new(index: u32, mut fd: VcpuFd) -> Self {
        let immediate_exit = ImmediateExit::of(&mut fd);
        let shared = Shared { gate: Gate::default(), fd: Mutex::new(fd), immediate_exit };
        Self { index, shared: Arc::new(shared), thread: Mutex::new(None), thread_id: AtomicI32::new(0) }
    }

    /// Its index, which is its APIC id.
    pub fn index(&self) -> u32 {
        self.index
    }

    /// The system's number of its thread; 0 before [`start`](Self::start).
    pub fn thread_id(&self) -> i32 {
        self.thread_id.load(Ordering::Relaxed)
    }

    /// Starts its thread, parked.
    ///
    /// # Errors
    /// If threads run out.
    pub fn start(&self, exits: Arc<Exits>) -> Result<(), Error> {
        let failed = |text: String| Error::Vcpu { vcpu: self.index, text };
        register_signal_handler(kick_signal(), on_kick)
            .map_err(|error| failed(format!("kick signal: {error}")))?;
        let (shared, index) = (Arc::clone(&self.shared), self.index);
        let (tell, told) = sync_channel(1);
        let thread = thread::Builder::new()
            .name(format!("vcpu{index}"))
            .spawn(move || {
                let _nobody_asks = tell.send(rustix::thread::gettid().as_raw_nonzero().get());
                run::run(&shared, index, &exits);
                shared.gate.gone();
            })
            .map_err(|error| failed(error.to_string()))?;
        self.thread_id.store(told.recv().unwrap_or_default(), Ordering::Relaxed);
        *lock(&self.thread) = Some(thread);
        Ok(())
    }

    /// Asks it to leave the guest; [`wait_paused`](Self::wait_paused) waits for it.
    pub fn pause(&self) {
        self.shared.gate.close();
        self.kick();
    }

    /// Waits until it has left the guest with no exit unfinished. `false`: it did not in time.
    pub fn wait_paused(&self) -> bool {
        let deadline = Instant::now() + PAUSE_DEADLINE;
        loop {
            let look = (Instant::now() + KICK_AGAIN).min(deadline);
            if self.shared.gate.wait_parked(look) {
                return true;
            }
            if look == deadline {
                return false;
            }
            self.kick();
        }
    }

    /// Lets it run. `false`: its thread is gone.
    pub fn resume(&self) -> bool {
        self.shared.gate.open()
    }

    /// Its file descriptor, for reading and setting state. Waits while it is in the guest: pause it first.
    pub fn fd(&self) -> MutexGuard<'_, VcpuFd> {
        lock(&self.shared.fd)
    }

    /// Reads state between two entries to the guest, without stopping the machine: a running vCPU leaves the guest for as long as
    /// `f` takes. `None`: it did not leave it at once (its thread is held up in an exit).
    pub fn visit<T>(&self, f: impl FnOnce(&VcpuFd) -> T) -> Option<T> {
        let visit = Visit::begin(self);
        let deadline = Instant::now() + VISIT_DEADLINE;
        let result = loop {
            match self.shared.fd.try_lock() {
                Ok(fd) => break Some(f(&fd)),
                Err(TryLockError::Poisoned(fd)) => break Some(f(&fd.into_inner())),
                Err(TryLockError::WouldBlock) if Instant::now() < deadline => thread::sleep(VISIT_AGAIN),
                Err(TryLockError::WouldBlock) => break None,
            }
        };
        drop(visit);
        result
    }

    /// Ends its thread, and waits for it. It cannot be resumed any more.
    pub fn end(&self) {
        self.shared.gate.end();
        self.kick();
        if let Some(thread) = lock(&self.thread).take()
            // The last owner of a machine may be what a vCPU just told of: that thread ends by itself, and enters no guest any more.
            && thread.thread().id() != thread::current().id()
            && thread.join().is_err()
        {
            tracing::error!(vcpu = self.index, "the vCPU thread panicked");
        }
    }

    fn kick(&self) {
        self.shared.immediate_exit.set(1);
        if let Some(thread) = lock(&self.thread).as_ref()
            && let Err(error) = thread.kill(kick_signal())
        {
            tracing::error!(vcpu = self.index, %error, "a vCPU thread cannot be kicked");
        }
    }
}

/// A vCPU that is kept out of the guest.
struct Visit<'a>(&'a Gate);

impl<'a> Visit<'a> {
    fn begin(vcpu: &'a Vcpu) -> Self {
        vcpu.shared.gate.visit();
        vcpu.kick();
        Self(&vcpu.shared.gate)
    }
}

impl Drop for Visit<'_> {
    fn drop(&mut self) {
        self.0.leave();
    }
}

impl Drop for Vcpu {
    fn drop(&mut self) {
        self.end();
    }
}

fn kick_signal() -> c_int {
    vmm_sys_util::signal::SIGRTMIN()
}

/// Nothing to do: that a signal came is what ends KVM_RUN.
extern "C" fn on_kick(_: c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}
