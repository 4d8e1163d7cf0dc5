//! All vCPUs of a machine at once: let go, stopped, counted.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use whimbrel::machine::MachineError;

use super::Vcpu;

/// What a pause is expected to take before there was one.
const PAUSE_GUESS: Duration = Duration::from_micros(300);

/// Whether a machine's vCPUs run, and what stopping them took.
pub struct Running {
    /// vCPUs have been let run since the last pause.
    running: AtomicBool,
    /// What the last pause of running vCPUs took, in ns.
    last_pause: AtomicU64,
}

impl Default for Running {
    fn default() -> Self {
        Self { running: AtomicBool::new(false), last_pause: AtomicU64::new(PAUSE_GUESS.as_nanos() as u64) }
    }
}

impl Running {
    /// Takes every vCPU out of the guest, then does what else belongs to the pause.
    ///
    /// # Errors
    /// Names the vCPU that does not come out in time.
    pub fn pause<'v>(
        &self,
        vcpus: impl Iterator<Item = &'v Vcpu> + Clone,
        then: impl FnOnce(),
    ) -> Result<(), MachineError> {
        let begin = Instant::now();
        vcpus.clone().for_each(Vcpu::pause);
        for vcpu in vcpus {
            if !vcpu.wait_paused() {
                return Err(format!("vCPU {} did not leave the guest in time", vcpu.index()).into());
            }
        }
        then();
        if self.running.swap(false, Ordering::Relaxed) {
            self.last_pause.store(begin.elapsed().as_nanos() as u64, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Lets every vCPU run.
    ///
    /// # Errors
    /// Names a vCPU whose thread is gone.
    pub fn resume<'v>(&self, mut vcpus: impl Iterator<Item = &'v Vcpu>) -> Result<(), MachineError> {
        self.running.store(true, Ordering::Relaxed);
        match vcpus.find(|vcpu| !vcpu.resume()) {
            Some(vcpu) => Err(format!("vCPU {}: its thread is gone", vcpu.index()).into()),
            None => Ok(()),
        }
    }

    /// What the last pause took, or one is expected to take.
    pub fn last_pause(&self) -> Duration {
        Duration::from_nanos(self.last_pause.load(Ordering::Relaxed))
    }
}
