//! A guest for aarch64 that makes every fault in the move of an ITS visible, and the host's view of it.
//!
//! The guest maps devices, events and collections, keeps remapping some of them while it runs, and counts the MSIs it takes by
//! interrupt number. The host reads its control block ([`Control`]) from guest memory and compares. It never starts a machine.
//!
//! | device | events | what the guest does with them |
//! |---|---|---|
//! | [`STEADY_DEVICE`] | 0 to [`STEADY_EVENTS`] − 1 | each keeps its LPI, [`FIRST_LPI`] + event; moved between CPUs (MOVI) |
//! | | [`HOLD_EVENT`] | takes no interrupt for 2 s of its own time |
//! | | [`CHURN_EVENT`] | stops remapping, or goes on |
//! | | [`RESET_EVENT`] | asks for a reset of the machine (PSCI SYSTEM_RESET) |
//! | [`MOVING_DEVICE`] | 0 to [`MOVING_EVENTS`] − 1 | DISCARD, MAPTI to another LPI, round and round |
//! | [`PASSING_DEVICE`] | 0 to [`PASSING_EVENTS`] − 1 | the device is unmapped and mapped again (MAPD) with another table and other LPIs |
//! | [`LEAVING_DEVICE`] | 0 | with the option `leaves=1`: unmapped while there is no remapping, as is event 0 of [`MOVING_DEVICE`] |

use std::fmt;

include!(concat!(env!("OUT_DIR"), "/built.rs"));

/// Where the control block lies in guest-physical memory.
pub const CONTROL: u64 = 0x40a0_0000;
/// Bytes of it.
pub const CONTROL_LEN: usize = ARRAYS + 4 * (MOVING_EVENTS + PASSING_EVENTS + 2 * COUNTED);
/// Where the pending tables of its LPIs lie, one behind the other.
pub const PENDING: u64 = 0x4091_0000;
/// Bytes of them.
pub const PENDING_LEN: u64 = 0x2_0000;
/// The first LPI there is.
pub const FIRST_LPI: u32 = 8192;
/// LPIs that are counted, from the first on.
pub const COUNTED: usize = 512;
/// See above.
pub const STEADY_DEVICE: u32 = 5;
/// Its events that keep their LPI.
pub const STEADY_EVENTS: usize = 64;
/// Its event upon which no interrupts are taken for a while.
pub const HOLD_EVENT: u32 = 64;
/// Its event upon which remapping stops or goes on.
pub const CHURN_EVENT: u32 = 65;
/// Its event upon which the guest asks for a reset.
pub const RESET_EVENT: u32 = 66;
/// See above.
pub const MOVING_DEVICE: u32 = 0x2123;
/// Its events.
pub const MOVING_EVENTS: usize = 32;
/// See above.
pub const PASSING_DEVICE: u32 = 0x456;
/// Its events.
pub const PASSING_EVENTS: usize = 8;
/// See above.
pub const LEAVING_DEVICE: u32 = 1;
/// The LPI of its event 0.
pub const LEAVING_LPI: u32 = FIRST_LPI + 272;

const MAGIC: u64 = 0x3149_534d_574d_4857;
/// Where the arrays begin, behind the words.
const ARRAYS: usize = 18 * 8;

/// The guest's control block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Control {
    /// CPUs at work.
    pub cpus: u64,
    /// Rounds of the first CPU.
    pub beats: u64,
    /// Remappings done.
    pub churns: u64,
    /// It remaps.
    pub churning: bool,
    /// Which CPU takes no interrupts.
    pub holding: [bool; 2],
    /// Interrupts that were none of its own.
    pub stray: u64,
    /// ITS commands that were not taken.
    pub failed: u64,
    /// An exception it did not expect: vector + 1, syndrome, address of the instruction, address of the fault. All 0: none.
    pub death: [u64; 4],
    /// How often the virtual counter went back.
    pub backwards: u64,
    /// Its biggest step between two rounds, in µs.
    pub biggest_step: u64,
    /// The device table has two levels.
    pub two_level: bool,
    /// What the virtual counter stood at last.
    pub count: u64,
    /// What it counts in a second.
    pub frequency: u64,
    /// The LPI of each event of [`MOVING_DEVICE`]; 0 while it is remapped.
    pub moving: [u32; MOVING_EVENTS],
    /// Of [`PASSING_DEVICE`].
    pub passing: [u32; PASSING_EVENTS],
    /// Interrupts taken, by LPI from the first on, all CPUs together.
    pub counts: [u32; COUNTED],
}

/// Why bytes are no control block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Error {
    /// The guest is not ready, or this is no such guest's memory.
    NotReady,
    /// There are fewer bytes than [`CONTROL_LEN`].
    Short(usize),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotReady => write!(f, "no control block of a guest that is ready"),
            Self::Short(len) => write!(f, "a control block has {CONTROL_LEN} bytes, here are {len}"),
        }
    }
}

impl std::error::Error for Error {}

impl Control {
    /// Reads it from the [`CONTROL_LEN`] bytes at [`CONTROL`].
    ///
    /// # Errors
    /// If the guest is not ready.
    pub fn parse(bytes: &[u8]) -> Result<Self, Error> {
        if bytes.len() < CONTROL_LEN {
            return Err(Error::Short(bytes.len()));
        }
        let (words, arrays) = bytes.split_at(ARRAYS);
        let word = |n: usize| u64::from_le_bytes(std::array::from_fn(|byte| words[n * 8 + byte]));
        if word(0) != MAGIC {
            return Err(Error::NotReady);
        }
        let mut values = arrays.as_chunks::<4>().0.iter().map(|bytes| u32::from_le_bytes(*bytes));
        let mut next = || values.next().unwrap_or_default();
        let mut this = Self {
            cpus: word(1),
            beats: word(2),
            churns: word(3),
            churning: word(4) != 0,
            holding: [word(5) != 0, word(6) != 0],
            stray: word(7),
            failed: word(8),
            death: std::array::from_fn(|n| word(9 + n)),
            backwards: word(13),
            biggest_step: word(14),
            two_level: word(15) != 0,
            count: word(16),
            frequency: word(17),
            moving: std::array::from_fn(|_| next()),
            passing: std::array::from_fn(|_| next()),
            counts: std::array::from_fn(|_| next()),
        };
        this.counts.iter_mut().for_each(|count| *count = count.wrapping_add(next()));
        Ok(this)
    }

    /// How often an LPI was taken; `None` if it is not counted.
    pub fn count(&self, lpi: u32) -> Option<u32> {
        self.counts.get(usize::try_from(lpi.checked_sub(FIRST_LPI)?).ok()?).copied()
    }

    /// What no guest should have met, in words; empty if all is well.
    pub fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        if self.death[0] != 0 {
            let [vector, syndrome, at, address] = self.death;
            faults.push(format!("exception {}: esr {syndrome:#x} elr {at:#x} far {address:#x}", vector - 1));
        }
        for (what, number) in [
            ("stray interrupts", self.stray),
            ("ITS commands not taken", self.failed),
            ("steps back of the virtual counter", self.backwards),
        ] {
            if number != 0 {
                faults.push(format!("{what}: {number}"));
            }
        }
        faults
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_control_block_is_read_field_by_field() {
        let mut bytes = vec![0; CONTROL_LEN];
        assert_eq!(Control::parse(&bytes), Err(Error::NotReady));
        let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
        put(0, &MAGIC.to_le_bytes());
        put(8, &2u64.to_le_bytes());
        put(7 * 8, &3u64.to_le_bytes());
        put(ARRAYS, &9u32.to_le_bytes());
        put(ARRAYS + 4 * MOVING_EVENTS, &8u32.to_le_bytes());
        let counts = ARRAYS + 4 * (MOVING_EVENTS + PASSING_EVENTS);
        put(counts + 4, &5u32.to_le_bytes());
        put(counts + 4 * COUNTED + 4, &6u32.to_le_bytes());
        let control = Control::parse(&bytes).unwrap();
        assert_eq!((control.cpus, control.moving[0], control.passing[0]), (2, 9, 8));
        assert_eq!(
            (control.count(FIRST_LPI + 1), control.count(FIRST_LPI + 512), control.count(0)),
            (Some(11), None, None)
        );
        assert_eq!(control.faults(), ["stray interrupts: 3"]);
        assert_eq!(Control::parse(&bytes[1..]), Err(Error::Short(CONTROL_LEN - 1)));
    }

    #[test]
    fn the_image_is_an_arm64_linux_image() {
        match IMAGE {
            Ok(image) => assert_eq!(&image[56..60], b"ARM\x64"),
            Err(reason) => assert!(reason.contains("apt-get install"), "{reason}"),
        }
    }
}
