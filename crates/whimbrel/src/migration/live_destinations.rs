//! The live states of one incoming migration: which have begun, by the source's numbers, and which are whole.

use std::collections::HashMap;

use whimbrel_wire::element::{self, SectionHeader};
use whimbrel_wire::qemu_texts;

use crate::error::StreamError;
use crate::handlers::Registry;
use crate::live::{Incoming, LiveDestination, LiveHandler, LivePart};

pub(crate) struct LiveDestinations<'a> {
    registry: &'a Registry,
    /// By the source's section numbers.
    begun: HashMap<u32, Arriving<'a>>,
}

struct Arriving<'a> {
    handler: &'a LiveHandler,
    destination: Box<dyn LiveDestination + 'a>,
    /// Its SECTION_END was loaded.
    whole: bool,
}

impl<'a> LiveDestinations<'a> {
    pub(crate) fn new(registry: &'a Registry) -> Self {
        Self { registry, begun: HashMap::new() }
    }

    /// A SECTION_START was read, at offset `at`.
    pub(crate) fn begin(&mut self, header: &SectionHeader, at: u64) -> Result<(), StreamError> {
        let SectionHeader { section_id, idstr, instance_id, version_id } = header;
        let refuse = |text: String| Err(StreamError::Section { text, offset: at });
        let ours = |handler: &&LiveHandler| handler.idstr == *idstr && handler.instance_id == *instance_id;
        let Some(handler) = self.registry.live_handlers().iter().find(ours) else {
            return refuse(qemu_texts::unknown_section_or_instance(idstr, *instance_id));
        };
        if handler.version_id != *version_id {
            return refuse(qemu_texts::unsupported_version(idstr, *version_id, handler.version_id));
        }
        if self.begun.values().any(|begun| std::ptr::eq(begun.handler, handler)) {
            return refuse(format!("section '{idstr}': it starts twice"));
        }
        if self.begun.contains_key(section_id) {
            return refuse(format!("section '{idstr}': its number {section_id} is another's"));
        }
        let destination = handler.state.destination().map_err(|error| error.of_section(idstr))?;
        self.begun.insert(*section_id, Arriving { handler, destination, whole: false });
        Ok(())
    }

    /// The name of the section with this number, of which a PART or END was read at offset `at`.
    pub(crate) fn name(&self, section_id: u32, at: u64) -> Result<String, StreamError> {
        self.begun
            .get(&section_id)
            .map(|begun| begun.handler.idstr.clone())
            .ok_or_else(|| StreamError::Section { text: qemu_texts::unknown_section(section_id), offset: at })
    }

    /// Reads a body and its footer.
    pub(crate) fn load(
        &mut self,
        section_id: u32,
        part: LivePart,
        input: &mut Incoming,
    ) -> Result<(), StreamError> {
        let at = input.offset();
        let Some(begun) = self.begun.get_mut(&section_id) else {
            return Err(StreamError::Section { text: qemu_texts::unknown_section(section_id), offset: at });
        };
        let idstr = &begun.handler.idstr;
        begun.destination.load(part, input).map_err(|error| error.of_section(idstr))?;
        element::decode_footer(input, idstr, section_id)?;
        begun.whole |= part == LivePart::End;
        Ok(())
    }

    /// EOF was read, at offset `at`: half of a state is none.
    pub(crate) fn check_whole(&self, at: u64) -> Result<(), StreamError> {
        let whole = |handler: &&LiveHandler| {
            self.begun.values().any(|begun| begun.whole && std::ptr::eq(begun.handler, *handler))
        };
        match self.registry.live_handlers().iter().find(|handler| !whole(handler)) {
            None => Ok(()),
            Some(LiveHandler { idstr, .. }) => {
                let text = format!("section '{idstr}': the stream ends before all of it was sent");
                Err(StreamError::Section { text, offset: at })
            }
        }
    }
}
