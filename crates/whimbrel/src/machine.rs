//! What a VMM implements to be migrated. The hard orders (stop, switchover, hand-over) live in the engine, not here.

use std::time::Duration;

use thiserror::Error;

use crate::dirty::DirtySource;
use crate::memory::RamBlock;

/// A machine the engine can stop, move and start.
///
/// Every method may be called from the engine's main loop or from its migration thread, never from two threads at once
/// except [`ram`](Machine::ram) and [`blockers`](Machine::blockers).
pub trait Machine: Send + Sync {
    /// All guest RAM, in a fixed order. Blocks live as long as the machine; more may come by
    /// [`blocks_announced`](Machine::blocks_announced) only.
    fn ram(&self) -> &[RamBlock];

    /// Destination: the blocks the source has, told before any page. A machine whose blocks follow the source's (resizable
    /// ones, ROMs it keeps for a later move) makes them here; [`ram`](Machine::ram) has them from then on, behind those it had
    /// before. What still differs is refused by the engine.
    ///
    /// # Errors
    /// Names the block that cannot be had.
    fn blocks_announced(&self, blocks: &[AnnouncedBlock]) -> Result<(), MachineError> {
        let _ = blocks;
        Ok(())
    }

    /// A new dirty log over [`ram`](Machine::ram), not started.
    ///
    /// # Errors
    /// If the host cannot track writes.
    fn dirty_source(&self) -> Result<Box<dyn DirtySource>, MachineError>;

    /// Takes every vCPU out of the guest and waits until all are out. Idempotent.
    ///
    /// # Errors
    /// If a vCPU does not come out in time.
    fn pause_vcpus(&self) -> Result<(), MachineError>;

    /// Lets every vCPU run. Idempotent. What can fail has failed in [`apply`](Machine::apply) already.
    ///
    /// # Errors
    /// If a vCPU thread is gone.
    fn resume_vcpus(&self) -> Result<(), MachineError>;

    /// Stops the guest's clocks. Called before the vCPUs are paused. Idempotent.
    ///
    /// # Errors
    /// If a clock cannot be read.
    fn freeze_clocks(&self) -> Result<(), MachineError>;

    /// Lets the guest's clocks go on. Called before the vCPUs are resumed. Idempotent.
    ///
    /// # Errors
    /// If a clock cannot be set.
    fn thaw_clocks(&self) -> Result<(), MachineError>;

    /// Destination: puts every loaded register and device into KVM. After it only [`thaw_clocks`](Machine::thaw_clocks)
    /// and [`resume_vcpus`](Machine::resume_vcpus) remain. May be called again after further sections were loaded.
    ///
    /// # Errors
    /// Names the register, device or ioctl that was refused.
    fn apply(&self) -> Result<(), MachineError>;

    /// Puts vCPUs, devices and boot images back to power-on. Called with the vCPUs paused. Writes to RAM must be seen by
    /// the dirty log (they are, if they go through [`RamBlock`]).
    ///
    /// # Errors
    /// If KVM refuses the reset state.
    fn reset(&self) -> Result<(), MachineError>;

    /// Reasons why the machine cannot be migrated now; empty if it can.
    fn blockers(&self) -> Vec<String> {
        Vec::new()
    }

    /// What stopping, capturing, applying and resuming are expected to take without any RAM, from what this machine has
    /// measured on itself; part of the predicted pause.
    fn fixed_pause(&self) -> Duration {
        Duration::from_millis(1)
    }
}

/// A block of the source, as its block list has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AnnouncedBlock {
    /// Its name.
    pub name: String,
    /// Bytes in use, whole pages. From the peer: unchecked.
    pub len: u64,
}

/// A machine's own failure, in words that name the device, register or ioctl.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{0}")]
pub struct MachineError(pub String);

impl<T: Into<String>> From<T> for MachineError {
    fn from(text: T) -> Self {
        Self(text.into())
    }
}
