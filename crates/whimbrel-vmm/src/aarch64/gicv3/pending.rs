//! The pending tables: a table a redistributor in guest RAM, with one bit an LPI. KVM keeps to itself what is pending, writes it
//! there when told, and goes on keeping it.
//!
//! ```text
//! save    KVM sets the bit of each LPI that is pending, and clears that of each that is mapped and is not
//! start   there: KVM takes a bit, and clears it, when the LPI is mapped; this is done as the ITS restores itself
//!         here:  KVM has the interrupt anyway. The bit is cleared before a vCPU runs ([`Written::undo`])
//! ```
//! A bit left behind here would become a second interrupt as soon as the guest maps the LPI anew (DISCARD, MAPTI); and behind a
//! MOVI, which leaves the table of the vCPU from which the LPI has gone as it is, it would travel and become one elsewhere.
//!
//! Only what the saves have set is cleared. Any other bit is of an LPI that is not mapped: the guest may have set it before it
//! switched LPIs on, and KVM will take it when the guest maps that LPI. So nothing is cleared for a guest that has arrived and
//! has not been saved here: what KVM has not taken out of its tables was nobody's at the source, too.

use std::collections::BTreeMap;

use whimbrel::handlers::Digest;
use whimbrel::machine::MachineError;

use super::registers::{ENABLE_LPIS, GICR_CTLR, GICR_PENDBASER, GICR_PROPBASER, Part};
use crate::aarch64::attributes::KvmDevice;
use crate::aarch64::memory::Tables;
use crate::memory::GuestRam;
use crate::state::GicV3;

/// A redistributor whose LPIs are on.
pub(super) struct Redistributor {
    cpu: u64,
    propbaser: u64,
    pendbaser: u64,
}

impl Redistributor {
    /// All of them in KVM, for vCPUs of these affinities.
    ///
    /// # Errors
    /// Names the register.
    pub(super) fn all(device: &KvmDevice, cpus: &[u64]) -> Result<Vec<Self>, MachineError> {
        let mut all = Vec::new();
        for (cpu, affinity) in (0..).zip(cpus) {
            let r = Part::Redistributor(*affinity);
            if r.get(device, GICR_CTLR)? & ENABLE_LPIS != 0 {
                let propbaser = r.get_wide(device, GICR_PROPBASER)?;
                all.push(Self { cpu, propbaser, pendbaser: r.get_wide(device, GICR_PENDBASER)? });
            }
        }
        Ok(all)
    }

    /// All of them in a section.
    pub(super) fn of(gic: &GicV3) -> Vec<Self> {
        let enabled = (0..).zip(&gic.cpus).filter(|(_, cpu)| cpu.ctlr & ENABLE_LPIS != 0);
        enabled.map(|(n, cpu)| Self { cpu: n, propbaser: cpu.propbaser, pendbaser: cpu.pendbaser }).collect()
    }

    /// Its LPIs that are pending by its table; `None` if that is not in guest RAM. KVM does not mind: it looks only at the bits of
    /// LPIs that are mapped, and then fails.
    fn pending(&self, ram: &GuestRam) -> Option<Vec<u32>> {
        whimbrel_its::pending_lpis(self.propbaser, self.pendbaser, &Tables(ram)).ok()
    }
}

/// Of every LPI that is pending: the vCPU, the interrupt. Of a table outside guest RAM that it is one.
pub(super) fn digest(redistributors: &[Redistributor], ram: &GuestRam) -> Digest {
    const OUTSIDE: u64 = u64::MAX;
    let mut digest = Digest::new();
    for redistributor in redistributors {
        match redistributor.pending(ram) {
            Some(pending) => {
                pending.iter().for_each(|lpi| digest.add(&[redistributor.cpu, u64::from(*lpi)]));
            }
            None => digest.add(&[redistributor.cpu, OUTSIDE]),
        }
    }
    digest
}

/// Bits in guest RAM: the address of each byte that has any, and which.
#[derive(Default)]
pub(super) struct Bits(BTreeMap<u64, u8>);

impl Bits {
    /// Those that are set in pending tables now.
    pub(super) fn read(redistributors: &[Redistributor], ram: &GuestRam) -> Self {
        let mut bits = Self::default();
        for redistributor in redistributors {
            let table = whimbrel_its::pending_table(redistributor.pendbaser);
            for lpi in redistributor.pending(ram).unwrap_or_default() {
                *bits.0.entry(table + u64::from(lpi / 8)).or_default() |= 1 << (lpi % 8);
            }
        }
        bits
    }
}

/// What saves have set since the machine ran last.
#[derive(Default)]
pub(super) struct Written(Bits);

impl Written {
    /// A save has made `after` of `before`. What an earlier save of the same stop has set stays noted.
    pub(super) fn note(&mut self, before: &Bits, after: &Bits) {
        for (address, byte) in &after.0 {
            let set = byte & !before.0.get(address).copied().unwrap_or_default();
            if set != 0 {
                *self.0.0.entry(*address).or_default() |= set;
            }
        }
    }

    /// Clears it, by ways that the dirty log sees.
    ///
    /// # Errors
    /// If guest RAM is not where it was.
    pub(super) fn undo(&mut self, ram: &GuestRam) -> Result<(), MachineError> {
        for (address, set) in std::mem::take(&mut self.0.0) {
            let mut byte = [0];
            let cleared = ram.read(address, &mut byte).and_then(|()| ram.write(address, &[byte[0] & !set]));
            cleared.map_err(|error| format!("pending table, at {address:#x}: {error}"))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::aarch64::memory;
    use crate::config::{MemoryBackend, VmConfig};

    const TABLE: u64 = 0x4010_0000;

    fn ram() -> GuestRam {
        let config = VmConfig { memory: 8 << 20, backend: MemoryBackend::Anonymous, ..VmConfig::default() };
        memory::allocate(&config).unwrap()
    }

    /// With LPIs 8192 to 16383.
    fn redistributor(pendbaser: u64) -> [Redistributor; 1] {
        [Redistributor { cpu: 0, propbaser: 13, pendbaser }]
    }

    fn set(ram: &GuestRam, lpi: u64) {
        let mut byte = [0];
        ram.read(TABLE + lpi / 8, &mut byte).unwrap();
        ram.write(TABLE + lpi / 8, &[byte[0] | 1 << (lpi % 8)]).unwrap();
    }

    #[test]
    fn what_saves_have_set_is_cleared_and_nothing_else() {
        let ram = ram();
        let pending = |ram: &GuestRam| redistributor(TABLE)[0].pending(ram).unwrap();
        let mut written = Written::default();
        let save = |written: &mut Written, lpis: &[u64]| {
            let before = Bits::read(&redistributor(TABLE), &ram);
            lpis.iter().for_each(|lpi| set(&ram, *lpi));
            written.note(&before, &Bits::read(&redistributor(TABLE), &ram));
        };
        // The guest's own, before it switched LPIs on.
        set(&ram, 8193);
        save(&mut written, &[8192, 9000]);
        save(&mut written, &[8192, 8199]);
        assert_eq!(pending(&ram), [8192, 8193, 8199, 9000]);
        written.undo(&ram).unwrap();
        assert_eq!(pending(&ram), [8193]);
        // It is done once: what is set now is another's.
        set(&ram, 8192);
        written.undo(&ram).unwrap();
        assert_eq!(pending(&ram), [8192, 8193]);
    }

    #[test]
    fn a_table_outside_of_memory_is_no_error_and_is_in_the_digest() {
        let ram = ram();
        let outside = digest(&redistributor(1 << 40), &ram);
        assert_eq!(outside.entries(), 1);
        assert_ne!(outside, digest(&redistributor(TABLE), &ram));
        assert!(Bits::read(&redistributor(1 << 40), &ram).0.is_empty());
    }
}
