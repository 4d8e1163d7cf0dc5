//! What comes in, read in its order: header, elements, the bodies of sections, and the vmdesc behind EOF. Each goes to the
//! live state or the device it is for.

use std::sync::Arc;
use std::time::Duration;

use whimbrel_proto::capabilities::Capability;
use whimbrel_proto::event::{DestinationEvent, ElementHeader};
use whimbrel_vmstate::SectionName;
use whimbrel_wire::element::{self, Element, SectionHeader};
use whimbrel_wire::{Configuration, Input, WireError, header, qemu_texts, vmdescription};

use super::{Driver, lost, no_stream};
use crate::channel::{Link, LinkReader, Patience};
use crate::error::StreamError;
use crate::faults::CrashPoint;
use crate::live::LivePart;
use crate::lock;
use crate::migration::Context;
use crate::sections;

/// x86-64's and aarch64's target pages, which a stream without the subsection has.
const DEFAULT_PAGE_BITS: u32 = 12;
/// How long the vmdesc of a source that has handed over may take; the guest runs meanwhile.
const DRAIN: Duration = Duration::from_secs(5);
/// How long it may take where the guest stands still until it is there.
const TRAILER: Duration = Duration::from_secs(1);

/// The accepted channel, both ways.
pub(super) struct Stream {
    pub(super) link: Arc<Link>,
    pub(super) input: Input<LinkReader>,
    pub(super) patience: Arc<Patience>,
}

/// What a section's header has announced.
pub(super) enum Body {
    Device {
        header: SectionHeader,
        /// Where it starts.
        at: u64,
    },
    Live {
        section_id: u32,
        part: LivePart,
    },
}

impl Driver<'_> {
    pub(super) fn read_header(&mut self) -> Result<(), StreamError> {
        let identity = &self.context.identity;
        // A uuid is compared if the source sends its own, whatever is set here.
        let local =
            Configuration { uuid: identity.uuid, ..identity.configuration(*lock(&self.shared.capabilities)) };
        let stream = self.stream()?;
        // Nobody connects without something to say.
        stream.patience.inside_element();
        header::decode(&mut stream.input)?;
        Configuration::decode(&mut stream.input)?.check(&local, DEFAULT_PAGE_BITS)?;
        Ok(())
    }

    pub(super) fn read_element(&mut self) -> Result<ElementHeader, StreamError> {
        let stream = self.stream()?;
        stream.patience.between_elements();
        stream.input.reading("an element's type").peek_u8()?;
        stream.patience.inside_element();
        let at = stream.input.offset();
        let element = Element::decode(&mut stream.input)?;
        tracing::trace!(?element, at, "element");
        Ok(match element {
            Element::Eof => {
                self.live.check_whole(at)?;
                self.crash(CrashPoint::AfterEof);
                ElementHeader::Eof
            }
            Element::Command(command) => ElementHeader::Command(command),
            Element::SectionFull(header) => {
                let idstr = header.idstr.clone();
                self.element = Some(Body::Device { header, at });
                ElementHeader::Device { idstr }
            }
            Element::SectionStart(header) => {
                self.live.begin(&header, at)?;
                self.announced(header.section_id, at, LivePart::Start)?
            }
            Element::SectionPart { section_id } => self.announced(section_id, at, LivePart::Part)?,
            Element::SectionEnd { section_id } => self.announced(section_id, at, LivePart::End)?,
            _ => {
                return Err(WireError::UnknownElement { offset: at, element: element::VM_DESCRIPTION }.into());
            }
        })
    }

    /// The body of a live section follows.
    fn announced(&mut self, section_id: u32, at: u64, part: LivePart) -> Result<ElementHeader, StreamError> {
        let idstr = self.live.name(section_id, at)?;
        self.element = Some(Body::Live { section_id, part });
        Ok(ElementHeader::Live { idstr, end: part == LivePart::End })
    }

    pub(super) fn load(&mut self) -> Result<(), StreamError> {
        let Some(body) = self.element.take() else {
            return Err(StreamError::Section { text: "no section to load".into(), offset: 0 });
        };
        let Some(stream) = &mut self.stream else { return Err(no_stream()) };
        let (header, at) = match body {
            Body::Device { header, at } => (header, at),
            Body::Live { section_id, part } => {
                self.live.load(section_id, part, &mut stream.input)?;
                let setup = part == LivePart::Start;
                self.crash(if setup { CrashPoint::Setup } else { CrashPoint::Iterate });
                return Ok(());
            }
        };
        let Context { registry, identity, .. } = self.context;
        let digests =
            lock(&self.shared.capabilities).has(Capability::TableDigest).then_some(&mut self.digests);
        self.arrived.insert(SectionName::new(&header.idstr, header.instance_id));
        if let Some(global) =
            sections::load(registry, identity.level, digests, &header, at, &mut stream.input)?
        {
            let state = global.run_state().map_err(|text| StreamError::Section { text, offset: at })?;
            self.hand(DestinationEvent::SourceState(state));
        }
        self.crash(CrashPoint::BeforePong);
        Ok(())
    }

    /// What follows EOF is read so that the source sees an orderly end. Nothing in it matters; but while the source may still
    /// take its guest back, whether it is there does.
    pub(super) fn drain(&mut self) -> DestinationEvent {
        let committed = self.destination.committed();
        let Some(stream) = &mut self.stream else { return DestinationEvent::Drained };
        stream.patience.limit_to(if committed { DRAIN } else { TRAILER });
        match vmdescription::decode_trailer(&mut stream.input) {
            Ok(vmdescription::Trailer::Description(_)) => {}
            Ok(vmdescription::Trailer::Other(byte)) => {
                tracing::warn!("{}", qemu_texts::expected_vmdescription(byte))
            }
            Ok(vmdescription::Trailer::Nothing) if !committed => {
                return lost(
                    "the connection ended before the source could hear that the guest is here".into(),
                );
            }
            Ok(vmdescription::Trailer::Nothing) => tracing::debug!("no vmdesc"),
            Err(error) if !committed && !is_silence(&error) => return self.failure(&error.into()),
            Err(error) => tracing::debug!(%error, "the vmdesc broke off"),
        }
        DestinationEvent::Drained
    }
}

/// Nothing came in time: a source that sends no vmdesc.
fn is_silence(error: &WireError) -> bool {
    matches!(error, WireError::Io { source, .. } if source.kind() == std::io::ErrorKind::TimedOut)
}
