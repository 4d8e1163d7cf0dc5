//! What can be wrong with tables.

use std::fmt;

use crate::entry::bits;

/// A table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Table {
    /// The device table, or the page of it that an entry of the first level points to.
    Devices,
    /// The first level of a device table of two.
    DevicePages,
    /// The collection table.
    Collections,
    /// The interrupt translation table of a device.
    Translation {
        /// Its id.
        device: u32,
    },
    /// The pending table of a redistributor.
    Pending,
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Devices => f.write_str("device table"),
            Self::DevicePages => f.write_str("first level of the device table"),
            Self::Collections => f.write_str("collection table"),
            Self::Translation { device } => write!(f, "translation table of device {device:#x}"),
            Self::Pending => f.write_str("pending table"),
        }
    }
}

/// Why tables cannot be decoded.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The tables are another ITS's than KVM's, or of another revision of KVM's ABI.
    #[error(
        "GITS_IIDR {iidr:#x}: how implementer {:#x}, product {:#x}, revision {} lays out tables is not known, only how KVM does: 0x43b, \
         0x4b, 0",
        bits((*.iidr).into(), 11, 0),
        bits((*.iidr).into(), 31, 24),
        bits((*.iidr).into(), 15, 12)
    )]
    UnknownLayout {
        /// The register.
        iidr: u32,
    },
    /// A register names a table of another layout than KVM's.
    #[error("GITS_BASER {baser:#x}: {what}")]
    Layout {
        /// The register.
        baser: u64,
        /// What is different.
        what: &'static str,
    },
    /// A table leaves guest memory.
    #[error("{table}: no memory at {address:#x}")]
    Outside {
        /// The table.
        table: Table,
        /// Guest-physical address of its entry.
        address: u64,
    },
    /// An entry cannot be.
    #[error("{table}: entry {index} at {address:#x} is {entry:#x}: {what}")]
    Entry {
        /// The table.
        table: Table,
        /// The entry's number.
        index: u64,
        /// Guest-physical address of it.
        address: u64,
        /// The entry.
        entry: u64,
        /// What is wrong.
        what: &'static str,
    },
    /// There is more in the tables than any guest has use for.
    #[error("{table}: the tables take more than {limit} steps to read")]
    TooMuch {
        /// The table that was one too many.
        table: Table,
        /// The most they may take, all together; looking at an entry is one step, and other work some of them.
        limit: u64,
    },
}
