//! What the tables of a GICv3 ITS in guest memory say: device id → event id → interrupt → collection → redistributor.
//!
//! KVM keeps mappings to itself while the guest runs and writes them into the guest's tables on request, in a layout of its own
//! that its documentation fixes (Documentation/virt/kvm/devices/arm-vgic-its: ABI revision 0). This crate reads that layout, by
//! the very walk KVM takes when it restores from it, so that what it finds is what KVM will have mapped.
//!
//! It reads guest memory through [`ReadMemory`] and nothing else: no KVM, no I/O. Tables are a guest's, so they are hostile: every
//! read is checked, every loop bounded.
//!
//! ```text
//! device table    63 V │ 62:49 next │ 48:5 ITT address 51:8 │ 4:0 event id bits − 1      one level, or two: pages of it behind
//! ITT             63:48 next │ 47:16 interrupt │ 15:0 collection                           63 V │ 51:16 address
//! collection      63 V │ 51:16 redistributor │ 15:0 collection                           an entry without V ends it
//! ```
//! *next* is the distance to the next valid entry; 0: there is none. Entries between are not looked at.

#![forbid(unsafe_code)]
#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects,
        clippy::cast_possible_truncation
    )
)]

mod entry;
mod error;
mod pending;
mod place;
mod walk;

pub use entry::check_layout;
pub use error::{Error, Table};
pub use pending::{pending_lpis, pending_table};
pub use place::{Places, places};
pub use walk::{decode, survey};

/// Guest-physical memory.
pub trait ReadMemory {
    /// Fills `bytes` from `address` on. `false`: some of it is no memory.
    fn read(&self, address: u64, bytes: &mut [u8]) -> bool;
}

/// All that is mapped, in ascending order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tables {
    /// Devices, by id.
    pub devices: Vec<Device>,
    /// Collections, in the table's order.
    pub collections: Vec<Collection>,
    /// Events, by device and event id.
    pub mappings: Vec<Mapping>,
}

/// A device that is mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Device {
    /// Its id.
    pub id: u32,
    /// Where its interrupt translation table is.
    pub table: u64,
    /// Bits of its event ids.
    pub event_bits: u32,
}

/// A collection that is mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Collection {
    /// Its id.
    pub id: u16,
    /// Number of the redistributor (KVM: of the vCPU) it stands for; `None`: events name it, and the guest has not mapped it.
    pub target: Option<u64>,
}

/// An event that is mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mapping {
    /// Device id.
    pub device: u32,
    /// Event id.
    pub event: u32,
    /// The interrupt: an LPI, from 8192 on.
    pub intid: u32,
    /// Its collection.
    pub collection: u16,
    /// The redistributor that the collection stands for; `None` if it is not mapped, or in a survey not there.
    pub target: Option<u64>,
}
