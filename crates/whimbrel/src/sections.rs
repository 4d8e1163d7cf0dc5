//! Device sections of the main stream: saved in the registry's order, loaded by name, described at the end.

use std::any::Any;
use std::collections::{HashMap, HashSet};
use std::io::Read;

use whimbrel_vmstate::{Level, SectionName, VmState, description};
use whimbrel_wire::element::{self, Element, SectionHeader};
use whimbrel_wire::{Configuration, Input, qemu_texts};

use crate::error::StreamError;
use crate::faults::{Fault, Faults};
use crate::global_state::{self, GlobalState};
use crate::handlers::{DeviceHandler, Digest, Registry};
use crate::outgoing::Outgoing;

/// Saved device state of one outgoing migration, kept for the vmdesc.
pub(crate) struct Saved {
    level: Level,
    sections: Vec<(SectionName, Box<dyn VmState>)>,
    next_id: u32,
}

impl Saved {
    /// `first_id`: the number of the first device section.
    pub(crate) fn new(level: Level, first_id: u32) -> Self {
        Self { level, sections: Vec::new(), next_id: first_id }
    }

    /// Captures and writes every handler's section, early ones or the rest. Returns the bytes.
    pub(crate) fn save(
        &mut self,
        registry: &Registry,
        early: bool,
        faults: &Faults,
        out: &mut Outgoing,
    ) -> Result<u64, StreamError> {
        let start = out.position();
        for handler in registry.devices().iter().filter(|handler| handler.early == early) {
            if faults.once(Fault::SaveFails) {
                return Err(device_error(handler, "saving fails, as asked for by a fault switch".into()));
            }
            let state = handler.device.save().map_err(|source| device_error(handler, source))?;
            self.section(SectionName::new(&handler.idstr, handler.instance_id), state, out)?;
        }
        Ok(out.position() - start)
    }

    /// Writes a section for each device with tables in guest RAM: the digest of what they say.
    pub(crate) fn save_digests(
        &mut self,
        registry: &Registry,
        out: &mut Outgoing,
    ) -> Result<u64, StreamError> {
        let start = out.position();
        for tables in registry.tables() {
            let digest = tables.digest().map_err(StreamError::Tables)?;
            self.section(SectionName::new(tables.section(), 0), Box::new(digest), out)?;
        }
        Ok(out.position() - start)
    }

    /// Writes the last section.
    pub(crate) fn save_global_state(
        &mut self,
        state: GlobalState,
        out: &mut Outgoing,
    ) -> Result<u64, StreamError> {
        let start = out.position();
        self.section(SectionName::new(global_state::IDSTR, 0), Box::new(state), out)?;
        Ok(out.position() - start)
    }

    fn section(
        &mut self,
        name: SectionName,
        mut state: Box<dyn VmState>,
        out: &mut Outgoing,
    ) -> Result<(), StreamError> {
        let section_id = self.next_id;
        self.next_id += 1;
        let header = SectionHeader {
            section_id,
            idstr: name.idstr.clone(),
            instance_id: name.instance,
            version_id: state.vmsd().version,
        };
        out.put(|out| Element::SectionFull(header).encode(out))?;
        let mut body = whimbrel_wire::Output::new();
        whimbrel_vmstate::save(&name, &mut *state, self.level, &mut body)?;
        out.bytes(body.as_slice());
        out.put(|out| {
            element::encode_footer(out, section_id);
            Ok(())
        })?;
        self.sections.push((name, state));
        Ok(())
    }

    /// The vmdesc of what was saved.
    pub(crate) fn describe(&mut self, configuration: &Configuration) -> Result<String, StreamError> {
        let level = self.level;
        let devices = self
            .sections
            .iter_mut()
            .map(|(name, state)| whimbrel_vmstate::describe(name, &mut **state, level))
            .collect::<Result<Vec<_>, _>>()?;
        Ok(description(level, configuration, devices))
    }
}

/// Bytes of all device sections, as far as their shape tells it beforehand.
pub(crate) fn expected_size(registry: &Registry, level: Level) -> u64 {
    let size = |handler: &DeviceHandler| {
        let mut out = whimbrel_wire::Output::new();
        let name = SectionName::new(&handler.idstr, handler.instance_id);
        let body = whimbrel_vmstate::save(&name, &mut *handler.device.blank(), level, &mut out);
        body.map_or(0, |()| out.len() as u64 + handler.idstr.len() as u64 + 19)
    };
    registry.devices().iter().filter(|handler| !handler.early).map(size).sum()
}

/// Loads the section whose header was read: body and footer. `globalstate` is returned to the caller. Digests are put into
/// `digests`; without it they are sections that nobody knows.
pub(crate) fn load<R: Read>(
    registry: &Registry,
    level: Level,
    digests: Option<&mut HashMap<String, Digest>>,
    header: &SectionHeader,
    at: u64,
    input: &mut Input<R>,
) -> Result<Option<GlobalState>, StreamError> {
    let name = SectionName::new(&header.idstr, header.instance_id);
    let input = input.reading("the section's state");
    if header.idstr == global_state::IDSTR && header.instance_id == 0 {
        let mut state = GlobalState::default();
        whimbrel_vmstate::load(&name, &mut state, header.version_id, input, level)?;
        element::decode_footer(input, &header.idstr, header.section_id)?;
        return Ok(Some(state));
    }
    let tables = registry.tables().find(|tables| tables.section() == header.idstr && header.instance_id == 0);
    if let (Some(digests), Some(tables)) = (digests, tables) {
        let mut digest = Digest::new();
        whimbrel_vmstate::load(&name, &mut digest, header.version_id, input, level)?;
        element::decode_footer(input, &header.idstr, header.section_id)?;
        digests.insert(tables.name().to_owned(), digest);
        return Ok(None);
    }
    let handler = find(registry, header).ok_or_else(|| StreamError::Section {
        text: qemu_texts::unknown_section_or_instance(&header.idstr, header.instance_id),
        offset: at,
    })?;
    let mut state = handler.device.blank();
    whimbrel_vmstate::load(&name, &mut *state, header.version_id, input, level)?;
    element::decode_footer(input, &header.idstr, header.section_id)?;
    handler.device.load(state).map_err(|source| device_error(handler, source))?;
    Ok(None)
}

/// Asks every device of ours whose section is not in `arrived` whether it can do without. A device without its state would
/// run on from power-on: half a guest is none.
///
/// # Errors
/// Names the first that cannot, and why.
pub(crate) fn tell_absent(registry: &Registry, arrived: &HashSet<SectionName>) -> Result<(), String> {
    for handler in registry.devices() {
        let name = SectionName::new(&handler.idstr, handler.instance_id);
        if !arrived.contains(&name) {
            handler.device.absent().map_err(|why| {
                format!("the stream has no section '{}' instance {}: {why}", name.idstr, name.instance)
            })?;
            tracing::warn!(
                section = name.idstr,
                instance = name.instance,
                "not in the stream, and not needed"
            );
        }
    }
    Ok(())
}

fn find<'r>(registry: &'r Registry, header: &SectionHeader) -> Option<&'r DeviceHandler> {
    registry
        .devices()
        .iter()
        .find(|handler| handler.idstr == header.idstr && handler.instance_id == header.instance_id)
}

fn device_error(handler: &DeviceHandler, source: crate::machine::MachineError) -> StreamError {
    let section = match handler.instance_id {
        0 => handler.idstr.clone(),
        instance => format!("{} {instance}", handler.idstr),
    };
    StreamError::Device { section, source }
}

/// A device's own type back from what the stream loaded into its [`blank`](crate::handlers::Device::blank).
///
/// # Errors
/// If the state is not the device's: a fault of the registry.
pub fn downcast<T: VmState>(state: Box<dyn VmState>) -> Result<Box<T>, crate::machine::MachineError> {
    let vmsd = state.vmsd();
    (state as Box<dyn Any>)
        .downcast()
        .map_err(|_| format!("state of another type than '{}'", vmsd.name).into())
}
