//! Device sections, led by the description; and whether the description and what came are of one another.

use whimbrel_wire::element::decode_footer;
use whimbrel_wire::footer::LENGTH as FOOTER;
use whimbrel_wire::input::DEFAULT_CAPACITY;
use whimbrel_wire::{Input, SectionHeader, WireError};

use super::{Walk, footer};
use crate::description::{Description, Device};
use crate::fields::Field;
use crate::report::{Body, Part, Report, What, name};
use crate::{Fault, Stream};

/// Most device state kept of one stream, in bytes.
const MAX_STATE: u64 = 1 << 30;

/// How far ahead a state's end is looked at; of a longer state the description is taken at its word.
const SIGHT: usize = DEFAULT_CAPACITY - FOOTER;

/// The description, and which of its devices have been met.
pub(super) struct Described {
    pub(super) description: Description,
    met: Vec<bool>,
    next: usize,
}

impl Walk<'_> {
    pub(super) fn device<S: Stream>(
        &mut self,
        input: &mut Input<S>,
        offset: u64,
        header: SectionHeader,
    ) -> Result<(), Fault> {
        if !self.looked {
            self.look_for_description(input)?;
            self.check_description();
        }
        let begins = input.offset();
        let device = match &mut self.description {
            Some(described) => described.device(&header, offset, &mut self.report),
            None => None,
        };
        let left = MAX_STATE.saturating_sub(self.state_bytes);
        let body = match device {
            Some(device) => Body::Fields(self.described(input, &header, &device, left)?),
            None => Body::Bytes(footer::find(input, &header, &self.live, footer::Keep::UpTo(left))?),
        };
        decode_footer(input, &header.idstr, header.section_id)?;
        self.state_bytes = self.state_bytes.saturating_add(input.offset().saturating_sub(begins));
        self.enter_section(input, offset, Part::Full, header, body)
    }

    /// Reads a state up to its footer, and gives the fields that it has by its description. If no footer stands where the
    /// state should end, that is noted, and the footer is looked for.
    fn described<S: Stream>(
        &mut self,
        input: &mut Input<S>,
        header: &SectionHeader,
        device: &Device,
        left: u64,
    ) -> Result<Vec<Field>, Fault> {
        let place = name(&header.idstr, header.instance_id);
        let (begins, length) = (input.offset(), device.state.length());
        if length > left {
            let (offset, what) = (begins, "a device's state");
            return Err(WireError::TooLong { offset, what, length, limit: left }.into());
        }
        let within_sight = usize::try_from(length).ok().filter(|length| *length < SIGHT);
        let Some(in_sight) = within_sight else {
            let body = input.reading("a device's state").bytes(length, left)?;
            let (fields, fault) = self.decoder.decode(&place, &device.state, &body, begins);
            fault.into_iter().for_each(|fault| self.report.note(fault));
            return Ok(fields);
        };
        let ahead = input.reading("a device's state").peek(in_sight.saturating_add(FOOTER))?;
        let (body, behind) = ahead.split_at_checked(in_sight).unwrap_or((ahead, &[]));
        let (fields, fault) = self.decoder.decode(&place, &device.state, body, begins);
        fault.into_iter().for_each(|fault| self.report.note(fault));
        let ends = begins.saturating_add(body.len() as u64);
        let mut behind = Input::with_capacity(behind, 0).starting_at(ends);
        match decode_footer(&mut behind, &header.idstr, header.section_id) {
            Ok(()) => input.skip(length)?,
            Err(cause) => {
                self.report.note(Fault::Length { section: place, length, cause });
                footer::find(input, header, &self.live, footer::Keep::Nothing)?;
            }
        }
        Ok(fields)
    }

    pub(super) fn look_for_description<S: Stream>(&mut self, input: &mut Input<S>) -> Result<(), Fault> {
        self.looked = true;
        let mut tail = if input.get_ref().is_seekable() { Vec::new() } else { input.buffered().to_vec() };
        let Some(rest) = input.get_mut().tail().map_err(Fault::io("reading ahead"))? else { return Ok(()) };
        tail.extend(rest);
        self.description = Description::find(&tail).map(|description| {
            let met = vec![false; description.devices.len()];
            Described { description, met, next: 0 }
        });
        self.report.described = self.description.is_some();
        Ok(())
    }

    /// Holds what came before the sections against the description, once that is known.
    pub(super) fn check_description(&mut self) {
        let Some(Described { description, .. }) = &self.description else { return };
        let (expected, page_size) = (description.page_size, self.report.page_size);
        for entry in &mut self.entries {
            let What::Configuration(_, fields) = &mut entry.what else { continue };
            if let Some(expected) = expected.filter(|expected| *expected != page_size) {
                let (place, expected) = ("page size".to_owned(), format!("{expected}, as described,"));
                let (offset, found) = (entry.offset, page_size.to_string());
                self.report.note(Fault::Disagreement { offset, place, expected, found });
            }
            let Some(state) = &description.configuration else { continue };
            // The type byte isn't described.
            let (at, body) =
                (entry.offset.saturating_add(1), self.configuration.get(1..).unwrap_or_default());
            let (decoded, fault) = self.decoder.decode("configuration", state, body, at);
            *fields = decoded;
            fault.into_iter().for_each(|fault| self.report.note(fault));
        }
    }

    /// Every device that is described has come, and the description that led the walk is the one at the end.
    pub(super) fn all_met(&mut self, offset: u64, found: &Description) {
        let Some(described) = &self.description else { return };
        if *found != described.description {
            let why = "another description stands further behind".to_owned();
            self.report.note(Fault::Description { offset, why });
        }
        for (device, met) in described.description.devices.iter().zip(&described.met) {
            if !met {
                let place = name(&device.name, device.instance);
                let (expected, found) = ("its section".to_owned(), "none".to_owned());
                self.report.note(Fault::Disagreement { offset, place, expected, found });
            }
        }
    }
}

impl Described {
    /// The description of a section that has come. Its version must be the one described; its place should be.
    fn device(&mut self, header: &SectionHeader, offset: u64, report: &mut Report) -> Option<Device> {
        let devices = || self.description.devices.iter().zip(&self.met).enumerate();
        // It should be the next one.
        let mut unmet =
            devices().skip(self.next).chain(devices().take(self.next)).filter(|(_, (_, met))| !**met);
        let found = unmet
            .find(|(_, (device, _))| device.name == header.idstr && device.instance == header.instance_id);
        let place = name(&header.idstr, header.instance_id);
        let Some((at, (device, _))) = found else {
            let expected = "a section that is described".to_owned();
            let found = "one that is not".to_owned();
            report.note(Fault::Disagreement { offset, place, expected, found });
            return None;
        };
        let device = device.clone();
        if at != self.next {
            let (expected, found) = (format!("device {} of the description", self.next), at.to_string());
            report.note(Fault::Disagreement { offset, place: place.clone(), expected, found });
        }
        if let Some(version) = device.state.version.filter(|version| *version != header.version_id) {
            let (expected, found) = (format!("version {version}"), header.version_id.to_string());
            report.note(Fault::Disagreement { offset, place, expected, found });
        }
        self.next = at.saturating_add(1);
        if let Some(met) = self.met.get_mut(at) {
            *met = true;
        }
        Some(device)
    }
}
