//! An interrupt translation service (ITS) of Arm's GICv3: its registers, and what its tables in RAM say.
//!
//! ```text
//! device id ─▶ event id ─▶ LPI (the interrupt) ─▶ collection ─▶ redistributor (of a vCPU)
//! ```
//! The tables are written into guest RAM when a machine stops, in a layout that GITS_IIDR names; `whimbrel-its` reads KVM's. To walk
//! them, pages are read a second time, and only those that the walk comes by: of a pipe that cannot be done. What they say is the
//! guest's affair and changes nothing in what is verified. They are hostile, as all of the stream is: what is read and what is kept
//! is bounded.

mod memory;
pub(crate) mod registers;

use std::fmt;

use whimbrel_its::{Collection, Device, Mapping};

use self::memory::GuestMemory;
use crate::fields::{Field, Number, Value};
use crate::index::Index;
use crate::report::{Body, Report};
use crate::{ReadAt, Stream};

/// The name of an ITS's section, and of its GIC's.
const IDSTR: &str = "arm_gicv3_its";
const GIC: &str = "arm_gicv3";

/// Most ITSs whose tables are read. QEMU's machines have one.
const MAX_ITSS: usize = 4;
/// Most mappings, and most pending interrupts, that are kept. There are fewer LPIs.
pub const MAX_KEPT: usize = 1 << 16;
/// Most errors that are kept.
pub const MAX_ERRORS: usize = 64;
/// Most redistributors whose pending tables are read: KVM has no more.
const MAX_REDISTRIBUTORS: usize = 512;
/// GICR_CTLR: this redistributor has LPIs.
const ENABLE_LPIS: u64 = 1;

/// An ITS of a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Its {
    /// Its section's name.
    pub section: String,
    /// What its tables say, or why they were not read.
    pub tables: Result<Tables, Unread>,
}

/// What an ITS's tables say.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tables {
    /// Devices, by id.
    pub devices: Vec<Device>,
    /// Collections, in the table's order.
    pub collections: Vec<Collection>,
    /// Events, by device and event id: the first [`MAX_KEPT`].
    pub mappings: Vec<Mapping>,
    /// Interrupts that are pending, of each redistributor that has any: the first [`MAX_KEPT`] of all together.
    pub pending: Vec<Pending>,
    /// What could not be read, each table up to its first error: the first [`MAX_ERRORS`].
    pub errors: Vec<String>,
    /// What was found beyond those: mappings, pending interrupts and errors.
    pub left_out: usize,
}

/// A redistributor's pending LPIs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pending {
    /// Its number, which is its vCPU's.
    pub redistributor: u64,
    /// The interrupts, ascending.
    pub lpis: Vec<u32>,
}

/// Why tables were not read.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Unread {
    /// There are none.
    NotSetUp,
    /// Nobody here knows their layout.
    Layout(whimbrel_its::Error),
    /// RAM could be read only once.
    Once,
    /// Where the machine's RAM lies is not known.
    NoAddress,
}

impl fmt::Display for Unread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotSetUp => f.write_str("the guest has set up no tables"),
            // As QEMU 10.0's emulation has it; its entries begin with V, and those of an ITT have 12 bytes.
            Self::Layout(whose @ whimbrel_its::Error::UnknownLayout { iidr: 0 }) => {
                write!(f, "{whose}; 0 is what an ITS has that QEMU emulates")
            }
            Self::Layout(whose) => write!(f, "{whose}"),
            Self::Once => f.write_str("give a file, not a pipe: RAM is read a second time for them"),
            Self::NoAddress => {
                write!(f, "where RAM lies in this machine is not known, only of {}", memory::known_blocks())
            }
        }
    }
}

/// Walks a stream as [`inspect`](crate::inspect()) does, and then the tables of its ITSs, whose pages are read again out of
/// `bytes`.
pub fn inspect_with_tables<S: Stream>(stream: S, start: u64, bytes: &dyn ReadAt) -> Report {
    let mut index = Index::of(|block| memory::address(block).is_some());
    let mut report = crate::inspect(stream, start, &mut index);
    report.its = all(&report, Some((&index, bytes)));
    report
}

/// The ITSs that the report has the registers of: the first [`MAX_ITSS`].
pub(crate) fn all(report: &Report, ram: Option<(&Index, &dyn ReadAt)>) -> Vec<Its> {
    let found = report.sections().filter(|(_, section)| section.idstr == IDSTR);
    let found = found.filter_map(|(_, section)| match &section.body {
        Body::Fields(fields) => Some(Its { section: section.name(), tables: tables(report, fields, ram)? }),
        _ => None,
    });
    found.take(MAX_ITSS).collect()
}

/// `None`: the section is not that of an ITS after all.
fn tables(
    report: &Report,
    fields: &[Field],
    ram: Option<(&Index, &dyn ReadAt)>,
) -> Option<Result<Tables, Unread>> {
    let iidr = u32::try_from(number(fields, "iidr")?).ok()?;
    let basers = basers(fields)?;
    let memory = || {
        let (index, bytes) = ram.ok_or(Unread::Once)?;
        GuestMemory::new(report, index, bytes).ok_or(Unread::NoAddress)
    };
    if basers.iter().all(|baser| baser >> 63 == 0) {
        return Some(Err(Unread::NotSetUp));
    }
    let layout = whimbrel_its::check_layout(iidr).map_err(Unread::Layout);
    Some(layout.and_then(|()| memory()).map(|memory| Tables::read(&basers, gic(report), &memory)))
}

impl Tables {
    fn read(basers: &[u64; 8], gic: &[Field], memory: &GuestMemory<'_>) -> Self {
        let mut this = Self::default();
        let found = whimbrel_its::survey(basers, memory, |error| this.wrong(&error, memory));
        (this.devices, this.collections, this.mappings) = (found.devices, found.collections, found.mappings);
        this.left_out = this.left_out.saturating_add(this.mappings.len().saturating_sub(MAX_KEPT));
        this.mappings.truncate(MAX_KEPT);
        this.pending(gic, memory);
        this
    }

    fn pending(&mut self, gic: &[Field], memory: &GuestMemory<'_>) {
        let mut room = MAX_KEPT;
        for (redistributor, fields) in (0..).zip(redistributors(gic)) {
            let register = |name| number(fields, name).unwrap_or(0);
            if register("gicr_ctlr") & ENABLE_LPIS == 0 {
                continue;
            }
            let (propbaser, pendbaser) = (register("gicr_propbaser"), register("gicr_pendbaser"));
            match whimbrel_its::pending_lpis(propbaser, pendbaser, memory) {
                Ok(mut lpis) => {
                    self.left_out = self.left_out.saturating_add(lpis.len().saturating_sub(room));
                    lpis.truncate(room);
                    room = room.saturating_sub(lpis.len());
                    if !lpis.is_empty() {
                        self.pending.push(Pending { redistributor, lpis });
                    }
                }
                Err(error) => self.wrong(&error, memory),
            }
        }
    }

    fn wrong(&mut self, error: &whimbrel_its::Error, memory: &GuestMemory<'_>) {
        if self.errors.len() == MAX_ERRORS {
            self.left_out = self.left_out.saturating_add(1);
            return;
        }
        self.errors.push(match (error, memory.why()) {
            (whimbrel_its::Error::Outside { table, address }, Some(why)) => {
                format!("{table}, at {address:#x}: {why}")
            }
            _ => error.to_string(),
        });
    }
}

/// The fields of the machine's GIC; none if it has no section.
fn gic(report: &Report) -> &[Field] {
    let mut sections = report.sections().filter(|(_, section)| section.idstr == GIC);
    match sections.next().map(|(_, section)| &section.body) {
        Some(Body::Fields(fields)) => fields,
        _ => &[],
    }
}

/// The fields of each redistributor. A single one is described as a struct, not as an array.
fn redistributors(gic: &[Field]) -> impl Iterator<Item = &[Field]> {
    let all = match value(gic, "cpu") {
        Some(Value::Array(elements)) => elements.iter().map(|element| &element.value).collect(),
        Some(one) => vec![one],
        None => Vec::new(),
    };
    let all = all.into_iter().take(MAX_REDISTRIBUTORS);
    all.map(|value| if let Value::Group { fields, .. } = value { fields.as_slice() } else { &[] })
}

fn basers(fields: &[Field]) -> Option<[u64; 8]> {
    let Value::Numbers(numbers) = value(fields, "baser")? else { return None };
    let mut basers = [0; 8];
    for (place, number) in basers.iter_mut().zip(numbers) {
        let Number::Unsigned(value) = number else { return None };
        *place = *value;
    }
    Some(basers)
}

fn number(fields: &[Field], name: &str) -> Option<u64> {
    match value(fields, name)? {
        Value::Number(Number::Unsigned(value)) => Some(*value),
        _ => None,
    }
}

fn value<'a>(fields: &'a [Field], name: &str) -> Option<&'a Value> {
    fields.iter().find(|field| field.name == name).map(|field| &field.value)
}
