//! Saving: a state's fields become the body of its section.

use whimbrel_wire::{Output, subsection};

use crate::trail::{SectionName, Trail};
use crate::visitor::{Cells, Chain, ElementFields, Fields, Form, Intent, Present, Visitor, VmState, Vmsd};
use crate::{Level, Place, Reason, Result};

/// Stands for a NULL element of an array of pointers.
pub(crate) const NULL: u8 = 0x30;

/// Appends the body of `state`'s section (what stands between header and footer), as a peer at `level` reads it, to `out`.
///
/// The header's `version_id` is `state.vmsd().version`.
///
/// # Errors
/// Only what the description itself refuses, or a length that differs from its count. `out` is then as before.
pub fn save(section: &SectionName, state: &mut dyn VmState, level: Level, out: &mut Output) -> Result<()> {
    let start = out.len();
    let mut save = Save { trail: Trail::new(section, level), start, out };
    save.trail.enter("", state.vmsd().version);
    state.fields(&mut save).inspect_err(|_| out.truncate(start))
}

struct Save<'a> {
    trail: Trail,
    /// Where the body begins in `out`.
    start: usize,
    out: &'a mut Output,
}

impl Save<'_> {
    /// Bytes of the body so far.
    fn offset(&self) -> u64 {
        self.out.len().saturating_sub(self.start) as u64
    }

    fn field(&self, name: &str) -> Result<()> {
        self.trail.field(name, self.offset())
    }

    /// A description inside this one.
    fn inside(
        &mut self,
        segment: String,
        version: u32,
        f: impl FnOnce(&mut Self) -> Result<()>,
    ) -> Result<()> {
        self.trail.enter(segment, version);
        f(self)?;
        self.trail.leave();
        Ok(())
    }
}

impl Visitor for Save<'_> {
    fn level(&self) -> Level {
        self.trail.level
    }

    fn version(&self) -> u32 {
        self.trail.version()
    }

    fn place(&self, field: Option<&str>) -> Place {
        self.trail.place(field, self.offset())
    }

    fn intent(&self) -> Intent {
        Intent::Save
    }

    fn cells(&mut self, name: &str, _ty: &'static str, _form: Form, cells: Cells<'_>) -> Result<()> {
        self.field(name)?;
        macro_rules! each {
            ($values:ident) => {
                $values.iter().for_each(|value| self.out.bytes(&value.to_be_bytes()))
            };
        }
        match cells {
            Cells::U8(values) => self.out.bytes(values),
            Cells::Bool(values) => values.iter().for_each(|value| self.out.u8(u8::from(*value))),
            Cells::U16(values) => each!(values),
            Cells::U32(values) => each!(values),
            Cells::U64(values) => each!(values),
            Cells::I8(values) => each!(values),
            Cells::I16(values) => each!(values),
            Cells::I32(values) => each!(values),
            Cells::I64(values) => each!(values),
        }
        Ok(())
    }

    fn unused(&mut self, length: usize) -> Result<()> {
        self.field("unused")?;
        (0..length).for_each(|_| self.out.u8(0));
        Ok(())
    }

    fn since(&mut self, version: u32, f: Fields<'_>) -> Result<()> {
        if self.version() >= version { f(self) } else { Ok(()) }
    }

    fn when(&mut self, condition: bool, f: Fields<'_>) -> Result<()> {
        if condition { f(self) } else { Ok(()) }
    }

    fn structure(&mut self, name: &str, vmsd: Vmsd, f: Fields<'_>) -> Result<()> {
        self.field(name)?;
        self.inside(name.to_owned(), vmsd.version, |save| f(save))
    }

    fn structures(&mut self, name: &str, vmsd: Vmsd, count: usize, f: ElementFields<'_>) -> Result<()> {
        self.field(name)?;
        (0..count).try_for_each(|i| self.inside(format!("{name}[{i}]"), vmsd.version, |save| f(i, save)))
    }

    fn pointers(&mut self, name: &str, vmsd: Vmsd, present: &[bool], f: ElementFields<'_>) -> Result<()> {
        self.field(name)?;
        for (i, present) in present.iter().enumerate() {
            if *present {
                self.inside(format!("{name}[{i}]"), vmsd.version, |save| f(i, save))?;
            } else {
                self.out.u8(NULL);
            }
        }
        Ok(())
    }

    fn chain(
        &mut self,
        name: &str,
        chain: Chain,
        vmsd: Vmsd,
        count: usize,
        f: ElementFields<'_>,
    ) -> Result<usize> {
        self.field(name)?;
        if chain == Chain::Gtree {
            let Ok(nodes) = u32::try_from(count) else {
                let reason = Reason::TooMany { count, maximum: usize::try_from(u32::MAX).unwrap_or(count) };
                return Err(self.trail.error(Some(name), self.offset(), reason));
            };
            self.out.be32(nodes);
        }
        for i in 0..count {
            self.out.u8(1);
            self.inside(format!("{name}[{i}]"), vmsd.version, |save| f(i, save))?;
        }
        self.out.u8(0);
        Ok(count)
    }

    fn tmp(&mut self, name: &str, vmsd: Vmsd, f: Fields<'_>) -> Result<()> {
        self.structure(name, vmsd, f)
    }

    fn opaque(&mut self, name: &str, _ty: &'static str, f: Fields<'_>) -> Result<()> {
        self.field(name)?;
        let version = self.version();
        self.inside(name.to_owned(), version, |save| f(save))
    }

    fn subsection(&mut self, vmsd: Vmsd, needed: bool, f: Fields<'_>) -> Result<Present> {
        self.trail.seal();
        if !needed {
            return Ok(Present::No);
        }
        let written = subsection::encode(self.out, vmsd.name, vmsd.version);
        written.map_err(|error| self.trail.error(Some(vmsd.name), self.offset(), error.into()))?;
        self.inside(vmsd.name.to_owned(), vmsd.version, |save| f(save))?;
        Ok(Present::Yes)
    }
}
