//! The live states of one outgoing migration: their sections, numbered from 1 in the registry's order.

use std::sync::Arc;
use std::time::Instant;

use whimbrel_proto::action::HandlerId;
use whimbrel_proto::event::{Event, Pages};
use whimbrel_wire::element::{self, Element, SectionHeader};

use crate::error::StreamError;
use crate::handlers::Registry;
use crate::live::{LiveHandler, LiveSource, Quota};
use crate::outgoing::Outgoing;

pub(crate) struct LiveSources {
    registry: Arc<Registry>,
    /// Those that were set up.
    sources: Vec<Box<dyn LiveSource>>,
}

impl LiveSources {
    pub(crate) fn new(registry: Arc<Registry>) -> Self {
        Self { registry, sources: Vec::new() }
    }

    /// Every handler, in its order.
    pub(crate) fn ids(&self) -> Vec<HandlerId> {
        (0..self.registry.live_handlers().len() as u32).map(HandlerId).collect()
    }

    /// Begins one: SECTION_START. They are begun in their order.
    pub(crate) fn setup(&mut self, id: HandlerId, out: &mut Outgoing) -> Result<(), StreamError> {
        let Some(handler) = self.registry.live_handlers().get(id.0 as usize) else { return Ok(()) };
        let LiveHandler { idstr, instance_id, version_id, state, .. } = handler;
        let header = SectionHeader {
            section_id: section_of(id),
            idstr: idstr.clone(),
            instance_id: *instance_id,
            version_id: *version_id,
        };
        let named = |error: StreamError| error.of_section(idstr);
        let mut source = state.source().map_err(named)?;
        out.put(|out| Element::SectionStart(header).encode(out))?;
        source.setup(out).map_err(named)?;
        end_section(id, out)?;
        self.sources.push(source);
        out.flush()
    }

    /// What is left of each, as far as is known.
    pub(crate) fn estimate(&self) -> Vec<Event> {
        let left = (0..).zip(&self.sources).map(|(id, source)| Event::Pending {
            handler: HandlerId(id),
            must: source.pending(),
            may_postcopy: 0,
            exact: false,
            newly: 0,
        });
        left.chain([Event::Done]).collect()
    }

    /// The same after taking in what was written.
    pub(crate) fn sync(&mut self, last: bool) -> Result<Vec<Event>, StreamError> {
        let mut answers = Vec::new();
        for (id, source) in (0..).zip(&mut self.sources) {
            let newly = source.sync(last).map_err(|error| named(&self.registry, HandlerId(id), error))?;
            let must = source.pending();
            let handler = HandlerId(id);
            answers.push(Event::Pending { handler, must, may_postcopy: 0, exact: true, newly });
        }
        answers.push(Event::Done);
        Ok(answers)
    }

    /// Sends some of one: a SECTION_PART.
    pub(crate) fn iterate(
        &mut self,
        id: HandlerId,
        at_most: u64,
        until: Instant,
        out: &mut Outgoing,
    ) -> Result<Event, StreamError> {
        let start = out.position() - out.held_up();
        let quota = Quota::new(out, at_most, until);
        out.put(|out| Element::SectionPart { section_id: section_of(id) }.encode(out))?;
        let pages = self.with(id, Pages::default(), |source| source.iterate(out, &quota))?;
        end_section(id, out)?;
        out.flush()?;
        Ok(self.progress(id, start, pages, out))
    }

    /// The same while the guest stands still for it: the turn is over at `until`, whatever the peer takes. What it has not taken by
    /// then counts as left.
    pub(crate) fn iterate_stopped(
        &mut self,
        id: HandlerId,
        at_most: u64,
        until: Instant,
        out: &mut Outgoing,
    ) -> Result<Event, StreamError> {
        out.send_until(Some(until));
        let done = self.iterate(id, at_most, until, out);
        out.send_until(None);
        done
    }

    /// The guest is stopped: sends what is left of one, and SECTION_END if that was all.
    pub(crate) fn complete(
        &mut self,
        id: HandlerId,
        at_most: u64,
        until: Instant,
        out: &mut Outgoing,
    ) -> Result<Event, StreamError> {
        let start = out.position() - out.held_up();
        let mut sent = Pages::default();
        if self.left(id) + out.held_up() > 0
            && let Event::Progress { pages, .. } = self.iterate_stopped(id, at_most, until, out)?
        {
            sent = pages;
        }
        if self.left(id) + out.held_up() == 0 {
            out.put(|out| Element::SectionEnd { section_id: section_of(id) }.encode(out))?;
            self.with(id, (), |source| source.complete(out))?;
            end_section(id, out)?;
        }
        Ok(self.progress(id, start, sent, out))
    }

    /// Ends all tracking.
    pub(crate) fn end(&mut self) {
        self.sources.clear();
    }

    fn left(&self, id: HandlerId) -> u64 {
        self.sources.get(id.0 as usize).map_or(0, |source| source.pending())
    }

    /// What has been sent since `start`, and what is left.
    fn progress(&self, id: HandlerId, start: u64, pages: Pages, out: &Outgoing) -> Event {
        let bytes = out.position() - out.held_up() - start;
        Event::Progress { handler: id, bytes, pages, left: self.left(id) + out.held_up() }
    }

    /// What one that was set up does; its errors name it.
    fn with<T>(
        &mut self,
        id: HandlerId,
        otherwise: T,
        act: impl FnOnce(&mut dyn LiveSource) -> Result<T, StreamError>,
    ) -> Result<T, StreamError> {
        let Some(source) = self.sources.get_mut(id.0 as usize) else { return Ok(otherwise) };
        act(&mut **source).map_err(|error| named(&self.registry, id, error))
    }
}

fn named(registry: &Registry, id: HandlerId, error: StreamError) -> StreamError {
    match registry.live_handlers().get(id.0 as usize) {
        Some(handler) => error.of_section(&handler.idstr),
        None => error,
    }
}

/// The number of a live handler's section; the devices' follow them.
fn section_of(id: HandlerId) -> u32 {
    id.0 + 1
}

fn end_section(id: HandlerId, out: &mut Outgoing) -> Result<(), StreamError> {
    out.put(|out| {
        element::encode_footer(out, section_of(id));
        Ok(())
    })
}
