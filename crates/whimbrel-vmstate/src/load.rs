//! Loading: a section's body fills a state's fields.
//!
//! Subsections have no length, so a record can only be read by the description it belongs to; yet they may come in any order. The
//! rule, QEMU's: while a subsection record is next, the innermost description whose name is a true prefix of the record's name takes
//! it; others leave it to the description around them; a record that nobody takes is an error. So a description is visited
//! once for its fields and those subsections that come in declared order, and then once more, fields passed over, for
//! each record that is still next and begins with its name:
//!
//! ```text
//!   fields, subsections in declared order ─▶ record next? ─ no ──────────────────────▶ done
//!                                              │ yes, our prefix                 ▲
//!                                              ▼                                 │ not our prefix: the outer one's
//!                                   visit again, subsections only ─ taken ─▶ record next?
//!                                              └ not taken: unknown or repeated, an error
//! ```
//!
//! A bool other than 0 and 1, a wrong list marker and a repeated subsection are refused, where QEMU is laxer.

use whimbrel_wire::Input;

use crate::save::NULL;
use crate::trail::{SectionName, Trail};
use crate::visitor::{Cells, Chain, ElementFields, Fields, Form, Intent, Present, Visitor, VmState, Vmsd};
use crate::{Error, Level, Place, Reason, Result, Source};

/// Loads the body of a section whose header said `version` into `state`, which begins as the device is after a reset: what the
/// stream doesn't carry stays so. Leaves `source` at the byte after the body, the footer.
///
/// # Errors
/// A version outside the accepted range, a truncated body, a value the description refuses, a subsection nobody knows.
pub fn load(
    section: &SectionName,
    state: &mut dyn VmState,
    version: u32,
    source: &mut dyn Source,
    level: Level,
) -> Result<()> {
    let vmsd = state.vmsd();
    let start = source.offset();
    let mut load = Load { trail: Trail::new(section, level), source, mark: start, passes: Vec::new() };
    load.check_version(if vmsd.is_described() { vmsd.name } else { &section.idstr }, vmsd, version)?;
    load.description("", vmsd, version, &mut |v| state.fields(v))?;
    match load.next_subsection("")? {
        Some(name) => Err(load.here(None, Reason::UnknownSubsection(name))),
        None => Ok(()),
    }
}

/// Loads a section whose whole body is at hand, beginning at `offset` of the stream.
///
/// # Errors
/// As [`load`], and bytes left over.
pub fn load_body(
    section: &SectionName,
    state: &mut dyn VmState,
    version: u32,
    body: &[u8],
    offset: u64,
    level: Level,
) -> Result<()> {
    let mut source = Input::with_capacity(body, 0).starting_at(offset);
    load(section, state, version, &mut source, level)?;
    let end = offset.saturating_add(body.len() as u64);
    match end.saturating_sub(source.offset()) {
        0 => Ok(()),
        left => Err(Trail::new(section, level).error(None, source.offset(), Reason::Unconsumed(left))),
    }
}

struct Load<'s> {
    trail: Trail,
    source: &'s mut dyn Source,
    /// Where the field at hand begins.
    mark: u64,
    /// One for each description entered.
    passes: Vec<Pass>,
}

/// How far a description is loaded.
#[derive(Default)]
struct Pass {
    /// The description's name.
    name: &'static str,
    /// Fields are done: visited for subsections only.
    fields_done: bool,
    /// Subsections loaded.
    taken: Vec<&'static str>,
}

impl Load<'_> {
    fn here(&self, field: Option<&str>, reason: Reason) -> Error {
        self.trail.error(field, self.mark, reason)
    }

    fn take(&mut self, name: &str, into: &mut [u8]) -> Result<()> {
        self.source.read_exact(into).map_err(|error| self.here(Some(name), error.into()))
    }

    fn take_array<const N: usize>(&mut self, name: &str) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        self.take(name, &mut bytes)?;
        Ok(bytes)
    }

    /// Takes a byte that is 0 or 1.
    fn take_marker(&mut self, name: &str, expected: &'static str) -> Result<bool> {
        self.mark = self.source.offset();
        match self.take_array(name)? {
            [0] => Ok(false),
            [1] => Ok(true),
            [received] => Err(self.here(Some(name), Reason::BadMarker { received, expected })),
        }
    }

    /// Begins a field. False: it was loaded in an earlier pass.
    fn field(&mut self, name: &str) -> Result<bool> {
        if self.passes.last().is_some_and(|pass| pass.fields_done) {
            return Ok(false);
        }
        self.mark = self.source.offset();
        self.trail.field(name, self.mark)?;
        Ok(true)
    }

    fn check_version(&self, name: &str, vmsd: Vmsd, received: u32) -> Result<()> {
        let (vmsd, own, minimum) = (name.to_owned(), vmsd.version, vmsd.minimum);
        if received > own {
            Err(self.here(None, Reason::TooNew { vmsd, received, own }))
        } else if received < minimum {
            Err(self.here(None, Reason::TooOld { vmsd, received, minimum }))
        } else {
            Ok(())
        }
    }

    /// Name of the subsection record of `parent` that is next, if one is.
    fn next_subsection(&mut self, parent: &str) -> Result<Option<String>> {
        self.mark = self.source.offset();
        self.source.peek_subsection(parent).map_err(|error| self.here(None, error.into()))
    }

    /// Loads one description: its fields, then its subsections in whatever order they come.
    fn description(&mut self, segment: &str, vmsd: Vmsd, version: u32, f: Fields<'_>) -> Result<()> {
        self.trail.enter(segment, version);
        self.passes.push(Pass { name: vmsd.name, ..Pass::default() });
        f(self)?;
        while let Some(name) = self.next_subsection(vmsd.name)? {
            let taken = self.taken(&name);
            if let Some(pass) = self.passes.last_mut() {
                pass.fields_done = true;
            }
            if taken {
                return Err(self.here(None, Reason::RepeatedSubsection(name)));
            }
            f(self)?;
            if !self.taken(&name) {
                return Err(self.here(None, Reason::UnknownSubsection(name)));
            }
        }
        self.passes.pop();
        self.trail.leave();
        Ok(())
    }

    /// Whether the innermost description has loaded subsection `name`.
    fn taken(&self, name: &str) -> bool {
        self.passes.last().is_some_and(|pass| pass.taken.contains(&name))
    }

    fn element(&mut self, name: &str, i: usize, vmsd: Vmsd, f: &mut ElementFields<'_>) -> Result<()> {
        self.description(&format!("{name}[{i}]"), vmsd, vmsd.version, &mut |v| f(i, v))
    }
}

impl Visitor for Load<'_> {
    fn level(&self) -> Level {
        self.trail.level
    }

    fn version(&self) -> u32 {
        self.trail.version()
    }

    fn place(&self, field: Option<&str>) -> Place {
        self.trail.place(field, self.mark)
    }

    fn intent(&self) -> Intent {
        Intent::Load
    }

    fn cells(&mut self, name: &str, _ty: &'static str, _form: Form, cells: Cells<'_>) -> Result<()> {
        if !self.field(name)? {
            return Ok(());
        }
        macro_rules! each {
            ($values:ident, $type:ty) => {
                for value in $values {
                    *value = <$type>::from_be_bytes(self.take_array(name)?);
                }
            };
        }
        match cells {
            Cells::U8(values) => self.take(name, values)?,
            Cells::Bool(values) => {
                for value in values {
                    *value = self.take_marker(name, "a bool (0 or 1)")?;
                }
            }
            Cells::U16(values) => each!(values, u16),
            Cells::U32(values) => each!(values, u32),
            Cells::U64(values) => each!(values, u64),
            Cells::I8(values) => each!(values, i8),
            Cells::I16(values) => each!(values, i16),
            Cells::I32(values) => each!(values, i32),
            Cells::I64(values) => each!(values, i64),
        }
        Ok(())
    }

    fn unused(&mut self, length: usize) -> Result<()> {
        if self.field("unused")? {
            for _ in 0..length {
                let [_] = self.take_array("unused")?;
            }
        }
        Ok(())
    }

    fn since(&mut self, version: u32, f: Fields<'_>) -> Result<()> {
        if self.version() >= version { f(self) } else { Ok(()) }
    }

    fn when(&mut self, condition: bool, f: Fields<'_>) -> Result<()> {
        if condition { f(self) } else { Ok(()) }
    }

    fn structure(&mut self, name: &str, vmsd: Vmsd, f: Fields<'_>) -> Result<()> {
        if self.field(name)? { self.description(name, vmsd, vmsd.version, f) } else { Ok(()) }
    }

    fn structures(&mut self, name: &str, vmsd: Vmsd, count: usize, mut f: ElementFields<'_>) -> Result<()> {
        if self.field(name)? {
            (0..count).try_for_each(|i| self.element(name, i, vmsd, &mut f))?;
        }
        Ok(())
    }

    fn pointers(&mut self, name: &str, vmsd: Vmsd, present: &[bool], mut f: ElementFields<'_>) -> Result<()> {
        if !self.field(name)? {
            return Ok(());
        }
        for (i, present) in present.iter().enumerate() {
            if *present {
                self.element(name, i, vmsd, &mut f)?;
                continue;
            }
            self.mark = self.source.offset();
            let [received] = self.take_array(name)?;
            if received != NULL {
                let expected = "an absent element (0x30)";
                return Err(self.here(Some(name), Reason::BadMarker { received, expected }));
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
        mut f: ElementFields<'_>,
    ) -> Result<usize> {
        if !self.field(name)? {
            return Ok(count);
        }
        let announced = match chain {
            Chain::Gtree => Some(u32::from_be_bytes(self.take_array(name)?)),
            Chain::Qtailq | Chain::Qlist => None,
        };
        let mut found = 0_usize;
        while self.take_marker(name, "an element (1) or the end (0)")? {
            self.element(name, found, vmsd, &mut f)?;
            found = found.saturating_add(1);
        }
        match announced {
            Some(announced) if usize::try_from(announced) != Ok(found) => {
                Err(self.here(Some(name), Reason::TreeCount { announced, found }))
            }
            _ => Ok(found),
        }
    }

    fn tmp(&mut self, name: &str, vmsd: Vmsd, f: Fields<'_>) -> Result<()> {
        self.structure(name, vmsd, f)
    }

    fn opaque(&mut self, name: &str, _ty: &'static str, f: Fields<'_>) -> Result<()> {
        if self.field(name)? {
            self.trail.enter(name, self.trail.version());
            let name_of_outer = self.passes.last().map_or("", |pass| pass.name);
            self.passes.push(Pass { name: name_of_outer, ..Pass::default() });
            f(self)?;
            self.passes.pop();
            self.trail.leave();
        }
        Ok(())
    }

    fn subsection(&mut self, vmsd: Vmsd, _needed: bool, f: Fields<'_>) -> Result<Present> {
        self.trail.seal();
        if self.taken(vmsd.name) {
            return Ok(Present::Yes);
        }
        let parent = self.passes.last().map_or("", |pass| pass.name);
        if self.next_subsection(parent)?.as_deref() != Some(vmsd.name) {
            return Ok(Present::No);
        }
        let mut header = vec![0; vmsd.name.len().saturating_add(2)];
        self.take(vmsd.name, &mut header)?;
        let version = u32::from_be_bytes(self.take_array(vmsd.name)?);
        self.check_version(vmsd.name, vmsd, version)?;
        if let Some(pass) = self.passes.last_mut() {
            pass.taken.push(vmsd.name);
        }
        self.description(vmsd.name, vmsd, version, f)?;
        Ok(Present::Yes)
    }
}
