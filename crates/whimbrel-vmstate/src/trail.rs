//! Where a visitor stands: the section, and the stack of descriptions it has entered. Every visitor keeps one.

use crate::{Error, Level, Place, Reason, Result};

/// A section's name on the stream.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SectionName {
    /// Name, with the device's path before it: `cpu`, `virtio-mmio@00000000feb02e00/virtio-blk`. At most 255 bytes.
    pub idstr: String,
    /// 0, 1, 2… among sections of one name; the CPU's index for CPUs.
    pub instance: u32,
}

impl SectionName {
    /// The name `idstr`, `instance`.
    pub fn new(idstr: impl Into<String>, instance: u32) -> Self {
        SectionName { idstr: idstr.into(), instance }
    }
}

/// The section, and the descriptions entered so far.
#[derive(Debug)]
pub(crate) struct Trail {
    section: SectionName,
    pub(crate) level: Level,
    frames: Vec<Frame>,
}

/// One description entered: the section itself, a struct, a subsection.
#[derive(Debug)]
struct Frame {
    /// Its part of the path; empty for the section.
    segment: String,
    version: u32,
    /// A subsection was visited: no field may follow.
    sealed: bool,
}

impl Trail {
    pub(crate) fn new(section: &SectionName, level: Level) -> Self {
        Trail { section: section.clone(), level, frames: Vec::new() }
    }

    pub(crate) fn enter(&mut self, segment: impl Into<String>, version: u32) {
        self.frames.push(Frame { segment: segment.into(), version, sealed: false });
    }

    pub(crate) fn leave(&mut self) {
        self.frames.pop();
    }

    /// Version of the innermost description.
    pub(crate) fn version(&self) -> u32 {
        self.frames.last().map_or(0, |frame| frame.version)
    }

    /// Notes that subsections have begun.
    pub(crate) fn seal(&mut self) {
        if let Some(frame) = self.frames.last_mut() {
            frame.sealed = true;
        }
    }

    /// Checks that no subsection came before this field.
    pub(crate) fn field(&self, name: &str, offset: u64) -> Result<()> {
        if self.frames.last().is_some_and(|frame| frame.sealed) {
            let reason = Reason::Description("a field stands after a subsection");
            return Err(self.error(Some(name), offset, reason));
        }
        Ok(())
    }

    pub(crate) fn place(&self, field: Option<&str>, offset: u64) -> Place {
        let segments = self.frames.iter().map(|frame| frame.segment.as_str()).chain(field);
        let path = segments.filter(|segment| !segment.is_empty()).collect::<Vec<_>>().join(".");
        Place { section: self.section.idstr.clone(), instance: self.section.instance, path, offset }
    }

    pub(crate) fn error(&self, field: Option<&str>, offset: u64, reason: Reason) -> Error {
        Error { place: Box::new(self.place(field, offset)), reason }
    }
}
