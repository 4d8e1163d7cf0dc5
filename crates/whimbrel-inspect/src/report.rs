//! What a stream holds, as the walk found it.

use std::time::Duration;

use whimbrel_wire::{Command, Configuration, ReturnPathMessage};

use crate::fields::Field;
use crate::its::Its;
use crate::{Block, Fault};

/// Most elements that are listed. Parts of one section that follow one another are listed as one.
pub const MAX_ENTRIES: usize = 1 << 20;

/// Most faults that are kept of those that do not end the walk.
pub const MAX_FINDINGS: usize = 4096;

/// A stream, walked.
#[derive(Debug, Default)]
pub struct Report {
    /// Size of the pages on the wire, in bytes; 0 for a return path.
    pub page_size: u64,
    /// Its elements, in stream order.
    pub entries: Vec<Entry>,
    /// Its RAM blocks, in the order of the stream.
    pub blocks: Vec<Block>,
    /// Barriers of multifd channels: if there are any, pages came on other connections.
    pub multifd_flushes: u64,
    /// Interrupt translation services, and what their tables say.
    pub its: Vec<Its>,
    /// Whether it has a description that could be read ahead.
    pub described: bool,
    /// What is wrong, and did not end the walk: the first [`MAX_FINDINGS`].
    pub findings: Vec<Fault>,
    /// What ended the walk before the end of the stream.
    pub stopped: Option<Fault>,
    /// Stream offset behind the last byte that is accounted for.
    pub end: u64,
}

/// An element of the stream.
#[derive(Debug)]
pub struct Entry {
    /// Where it begins.
    pub offset: u64,
    /// Its bytes, a section's footer included.
    pub size: u64,
    /// When its first byte arrived, counted from the start of the recording, if that was recorded.
    pub arrived: Option<Duration>,
    /// What it is.
    pub what: What,
}

/// Kinds of elements.
#[derive(Debug)]
pub enum What {
    /// Magic and version.
    Header,
    /// The sender's machine, and the fields that the description gives it.
    Configuration(Configuration, Vec<Field>),
    /// A command.
    Command(Command),
    /// A package, and what it holds.
    Package(Vec<Entry>),
    /// A section.
    Section(Section),
    /// A message of a return path.
    Message(ReturnPathMessage),
    /// The end of the stream.
    Eof,
    /// The description.
    Description,
    /// Bytes behind the end.
    Trailing,
}

/// Which element of a section it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// The first of a live section.
    Start,
    /// So many further ones, one behind the other.
    Part(u64),
    /// The last.
    End,
    /// The one of a device.
    Full,
}

/// A section, or parts of one.
#[derive(Debug)]
pub struct Section {
    /// Which part.
    pub part: Part,
    /// The sender's number.
    pub id: u32,
    /// Device path and state name, or the state name alone.
    pub idstr: String,
    /// Tells sections with equal `idstr` apart.
    pub instance: u32,
    /// Version of the state.
    pub version: u32,
    /// What it holds.
    pub body: Body,
}

/// What a section holds.
#[derive(Debug)]
pub enum Body {
    /// RAM records; see the report's blocks.
    Ram,
    /// Device state, by its description.
    Fields(Vec<Field>),
    /// Device state without description. Its end was found by its footer.
    Bytes(Vec<u8>),
    /// A live section that only its device can read, of so many bytes. Its end was found by its footer.
    Opaque(u64),
}

impl Report {
    /// Whether nothing is wrong with the stream.
    pub fn is_clean(&self) -> bool {
        self.findings.is_empty() && self.stopped.is_none()
    }

    /// Notes what is wrong and doesn't end the walk.
    pub(crate) fn note(&mut self, fault: Fault) {
        if self.findings.len() < MAX_FINDINGS {
            self.findings.push(fault);
        }
    }

    /// Every fault, in the order they were met.
    pub fn faults(&self) -> impl Iterator<Item = &Fault> {
        self.findings.iter().chain(&self.stopped)
    }

    /// Why the stream can't be called verified though nothing is wrong with it: device state without a description.
    pub fn unverifiable(&self) -> Option<Fault> {
        let undescribed = self.sections().find(|(_, section)| matches!(section.body, Body::Bytes(_)));
        undescribed.map(|(entry, _)| Fault::Undescribed { offset: entry.offset })
    }

    /// The configuration, if the stream has one.
    pub fn configuration(&self) -> Option<&Configuration> {
        self.entries.iter().find_map(|entry| match &entry.what {
            What::Configuration(configuration, _) => Some(configuration),
            _ => None,
        })
    }

    /// Every section, those in packages too.
    pub fn sections(&self) -> impl Iterator<Item = (&Entry, &Section)> {
        let flat = self.entries.iter().flat_map(|entry| {
            let inner = match &entry.what {
                What::Package(inner) => inner.as_slice(),
                _ => &[],
            };
            std::iter::once(entry).chain(inner)
        });
        flat.filter_map(|entry| match &entry.what {
            What::Section(section) => Some((entry, section)),
            _ => None,
        })
    }
}

impl Section {
    /// `idstr`, and the instance where it isn't 0.
    pub fn name(&self) -> String {
        name(&self.idstr, self.instance)
    }
}

/// A section's name for people.
pub(crate) fn name(idstr: &str, instance: u32) -> String {
    match instance {
        0 => idstr.to_owned(),
        instance => format!("{idstr}:{instance}"),
    }
}
