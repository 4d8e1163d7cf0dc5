//! Tables in guest RAM: state that a device keeps to itself while the guest runs and writes into guest RAM at each stop (an
//! ITS's devices and events, pending LPIs). That they were written is checked, not believed.
//!
//! ```text
//! stop N   clocks frozen ─▶ vCPUs paused ─▶ N begins ─▶ save: stamped N ─▶ last sync ─▶ rest of RAM ─▶ every stamp N? ─▶ END
//!                                                                                                        │ no: the guest resumes
//! destination   RAM ─▶ devices ─▶ apply (tables restored) ─▶ digest of what they say now = the source's? ─▶ PONG
//! ```
//!
//! A save that was left out bears an earlier stop's stamp, and so does one made before the last vCPU was paused: a stop has its
//! number only from then on. The digest needs whimbrel at both ends and the capability `x-whimbrel-table-digest`; it finds
//! tables that were saved, and are not what arrived.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use whimbrel_vmstate::{Visitor, VmState, Vmsd};

use crate::machine::MachineError;

/// Name of a digest's section, after the device's.
const SECTION: &str = "x-whimbrel-table-digest";

/// A device with state that must stand in guest RAM before the guest can be moved.
///
/// Registered with [`Registry::ram_tables`](crate::handlers::Registry::ram_tables), which gives it its place among the
/// state-change callbacks. The engine calls it, and keeps the number of the stop at which it was saved.
pub trait RamTables: Send + Sync {
    /// Writes the state into guest RAM, by ways that the dirty log sees. Called with all vCPUs paused, at every stop, for whatever
    /// reason, and at the switchover of a guest that does not run; with nothing to write (the guest has not set the device up yet)
    /// it succeeds.
    ///
    /// # Errors
    /// Names the ioctl and its errno. A switchover is abandoned, and the guest runs on; any other stop is not held up by it.
    fn save(&self) -> Result<(), MachineError>;

    /// What the tables in guest RAM say, decoded from there, in an order that does not depend on the host. Called with the guest
    /// stopped: at the source after [`save`](RamTables::save), at the destination after
    /// [`Machine::apply`](crate::machine::Machine::apply).
    ///
    /// # Errors
    /// Names the table that cannot be decoded, and where it lies. The migration fails before its commit.
    fn digest(&self) -> Result<Digest, MachineError>;
}

/// A digest of a list of table entries. It is for finding what was lost, and no defence against one who forges.
///
/// FNV-1a, 64 bits, over each entry's words, little-endian.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Digest {
    entries: u64,
    hash: u64,
}

impl Digest {
    const BASIS: u64 = 0xcbf2_9ce4_8422_2325;
    const PRIME: u64 = 0x100_0000_01b3;

    /// Of no entry.
    pub fn new() -> Self {
        Self { entries: 0, hash: Self::BASIS }
    }

    /// Adds one entry (a mapping: device, event, INTID, redistributor), whose words are as many for every entry.
    pub fn add(&mut self, entry: &[u64]) {
        self.entries += 1;
        for byte in entry.iter().flat_map(|word| word.to_le_bytes()) {
            self.hash = (self.hash ^ u64::from(byte)).wrapping_mul(Self::PRIME);
        }
    }

    /// How many entries.
    pub fn entries(&self) -> u64 {
        self.entries
    }
}

/// As it is carried, in a section of its own: `DEVICE/x-whimbrel-table-digest`.
impl VmState for Digest {
    fn vmsd(&self) -> Vmsd {
        Vmsd::new(SECTION, 1)
    }

    fn fields(&mut self, v: &mut dyn Visitor) -> whimbrel_vmstate::Result<()> {
        v.u64("entries", &mut self.entries)?;
        v.u64("hash", &mut self.hash)
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} entries, {:016x}", self.entries, self.hash)
    }
}

impl Default for Digest {
    fn default() -> Self {
        Self::new()
    }
}

/// A registered device's tables, and when they were saved.
pub(crate) struct Tables {
    name: String,
    device: Arc<dyn RamTables>,
    /// The number of the stop at which they were saved last. 0, no stop's: the guest has never run here.
    saved_at: AtomicU64,
}

impl Tables {
    pub(crate) fn new(name: String, device: Arc<dyn RamTables>) -> Self {
        Self { name, device, saved_at: AtomicU64::new(0) }
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// The idstr of their digest's section.
    pub(crate) fn section(&self) -> String {
        format!("{}/{SECTION}", self.name)
    }

    pub(crate) fn digest(&self) -> Result<Digest, MachineError> {
        self.device.digest().map_err(|error| self.error(&error.to_string()))
    }

    /// Whether what they say here is what they said at the source.
    pub(crate) fn compare(&self, source: Option<&Digest>) -> Result<(), MachineError> {
        let Some(source) = source else {
            return Err(self.error("the source sent no digest of its tables in guest RAM"));
        };
        let here = self.digest()?;
        if here == *source {
            return Ok(());
        }
        Err(self.error(&format!(
            "its tables in guest RAM are not what the source saved: {here} here, {source} there"
        )))
    }

    /// Saves them at stop number `stop`.
    pub(crate) fn save(&self, stop: u64) -> Result<(), MachineError> {
        self.device.save().map_err(|error| self.error(&error.to_string()))?;
        self.saved_at.store(stop, Ordering::Release);
        Ok(())
    }

    /// Whether what stands in guest RAM is of stop number `stop`.
    pub(crate) fn check(&self, stop: u64) -> Result<(), MachineError> {
        let saved_at = self.saved_at.load(Ordering::Acquire);
        if saved_at == stop {
            return Ok(());
        }
        Err(self.error(&format!(
            "its tables in guest RAM are those of stop {saved_at}, but this is stop {stop}: they were not saved, or saved \
             before the last vCPU was paused"
        )))
    }

    /// An error that names the device.
    pub(crate) fn error(&self, text: &str) -> MachineError {
        format!("device '{}': {text}", self.name).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_depends_on_every_word_and_on_the_order() {
        let of = |entries: &[[u64; 2]]| {
            let mut digest = Digest::new();
            entries.iter().for_each(|entry| digest.add(entry));
            digest
        };
        let digest = of(&[[1, 2], [3, 4]]);
        assert_eq!(digest, of(&[[1, 2], [3, 4]]));
        assert_eq!(digest.entries(), 2);
        for other in [of(&[]), of(&[[1, 2]]), of(&[[3, 4], [1, 2]]), of(&[[1, 2], [3, 5]]), of(&[[0, 0]; 2])]
        {
            assert_ne!(digest, other);
        }
        assert_eq!(of(&[]).hash, 0xcbf2_9ce4_8422_2325, "FNV-1a of nothing");
    }

    #[test]
    fn tables_of_another_stop_are_named_with_both_numbers() {
        struct Fine;
        impl RamTables for Fine {
            fn save(&self) -> Result<(), MachineError> {
                Ok(())
            }
            fn digest(&self) -> Result<Digest, MachineError> {
                Ok(Digest::new())
            }
        }
        let tables = Tables::new("its".into(), Arc::new(Fine));
        assert_eq!(tables.check(0), Ok(()));
        tables.save(3).unwrap();
        assert_eq!(tables.check(3), Ok(()));
        let text = tables.check(4).unwrap_err().to_string();
        assert!(
            text.starts_with("device 'its': its tables in guest RAM are those of stop 3, but this is stop 4")
        );
    }
}
