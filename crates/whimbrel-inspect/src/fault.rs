//! What can be wrong with a stream: each with the offset, and what should have been there.

use whimbrel_wire::{IoError, WireError, qemu_texts as texts};

/// Something wrong with a stream, or with reading it. It either ends the walk or is noted on the way.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Fault {
    /// The stream's framing is broken.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// A section goes on that never began.
    #[error("{} (stream offset {offset:#x})", texts::unknown_section(*.section_id))]
    UnknownSection {
        /// Where the element begins.
        offset: u64,
        /// The sender's number of the section.
        section_id: u32,
    },
    /// The element may not stand here.
    #[error("{what} (stream offset {offset:#x})")]
    OutOfPlace {
        /// Where it begins.
        offset: u64,
        /// What it is, and why it may not.
        what: &'static str,
    },
    /// The end of a section without description could not be found.
    #[error(
        "section {section} begins at {offset:#x}; up to the stream's end at {end:#x} no footer of it is followed by an element"
    )]
    NoFooter {
        /// Where its body begins.
        offset: u64,
        /// Its idstr and instance.
        section: String,
        /// How far was searched.
        end: u64,
    },
    /// The section's state isn't followed by its footer.
    #[error("section {section}: after the {length} bytes that the VM description gives it, {cause}")]
    Length {
        /// The section's idstr and instance.
        section: String,
        /// Bytes of its body by the description.
        length: u64,
        /// What stands there.
        cause: WireError,
    },
    /// The stream and its description disagree.
    #[error("{place}: {expected} expected, {found} found (stream offset {offset:#x})")]
    Disagreement {
        /// Where in the stream.
        offset: u64,
        /// Section and field.
        place: String,
        /// What the description says, or the format demands.
        expected: String,
        /// What is there.
        found: String,
    },
    /// The description is no JSON, or not of the form that a description has.
    #[error("the VM description: {why} (stream offset {offset:#x})")]
    Description {
        /// Where the fault stands; its text's beginning, if it isn't known more exactly.
        offset: u64,
        /// What is wrong.
        why: String,
    },
    /// A page lies outside its block.
    #[error(
        "block '{block}': page at {page:#x} is outside the block's {length:#x} bytes (stream offset {offset:#x})"
    )]
    OutsideBlock {
        /// Where the record begins.
        offset: u64,
        /// The block.
        block: String,
        /// Offset in the block.
        page: u64,
        /// The block's length.
        length: u64,
    },
    /// The stream's RAM can't be read in this form.
    #[error("RAM: {why} (stream offset {offset:#x})")]
    Ram {
        /// Where.
        offset: u64,
        /// What is wrong or not supported.
        why: String,
    },
    /// More than is kept in memory.
    #[error("more than {limit} {what} (stream offset {offset:#x})")]
    TooMany {
        /// Where.
        offset: u64,
        /// Of what.
        what: &'static str,
        /// How many there may be.
        limit: u64,
    },
    /// Pages are read a second time, and that takes too long.
    #[error("pages are made of too many pieces, all over the stream (stream offset {offset:#x})")]
    TooManyReads {
        /// The piece that was one too many.
        offset: u64,
    },
    /// Bytes behind the stream's end.
    #[error("{length} bytes behind the end of the stream (stream offset {offset:#x})")]
    Trailing {
        /// Where they begin.
        offset: u64,
        /// How many.
        length: u64,
    },
    /// The stream has no description to verify device state with.
    #[error("device state can't be verified: the stream has no VM description (stream offset {offset:#x})")]
    Undescribed {
        /// Where the first device section begins.
        offset: u64,
    },
    /// What was read could not be written down, or not be read again.
    #[error("{what}: {source}")]
    Io {
        /// What was to be done.
        what: String,
        /// The system's error.
        source: IoError,
    },
}

impl Fault {
    /// Where in the stream, if it is about a place in it.
    pub fn offset(&self) -> Option<u64> {
        match self {
            Fault::Wire(cause) | Fault::Length { cause, .. } => wire_offset(cause),
            Fault::UnknownSection { offset, .. }
            | Fault::OutOfPlace { offset, .. }
            | Fault::NoFooter { offset, .. }
            | Fault::Disagreement { offset, .. }
            | Fault::Description { offset, .. }
            | Fault::OutsideBlock { offset, .. }
            | Fault::Ram { offset, .. }
            | Fault::TooMany { offset, .. }
            | Fault::TooManyReads { offset }
            | Fault::Trailing { offset, .. }
            | Fault::Undescribed { offset } => Some(*offset),
            Fault::Io { .. } => None,
        }
    }

    /// An error of the system while doing `what`.
    pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> Fault {
        move |error| Fault::Io { what: what.into(), source: error.into() }
    }
}

fn wire_offset(error: &WireError) -> Option<u64> {
    Some(match error {
        WireError::Io { offset, .. }
        | WireError::Truncated { offset, .. }
        | WireError::NotUtf8 { offset, .. }
        | WireError::TooLong { offset, .. }
        | WireError::BadMagic { offset, .. }
        | WireError::UnsupportedVersion { offset, .. }
        | WireError::ExpectedConfiguration { offset, .. }
        | WireError::UnknownConfigurationSubsection { offset, .. }
        | WireError::ConfigurationSubsectionVersion { offset, .. }
        | WireError::DuplicateConfigurationSubsection { offset, .. }
        | WireError::UnknownCapability { offset, .. }
        | WireError::UnknownElement { offset, .. }
        | WireError::MissingFooter { offset, .. }
        | WireError::FooterMismatch { offset, .. }
        | WireError::ExpectedSubsection { offset, .. }
        | WireError::UnknownCommand { offset, .. }
        | WireError::CommandLength { offset, .. }
        | WireError::Discard { offset, .. }
        | WireError::RamFlags { offset, .. }
        | WireError::UnsupportedRamRecord { offset, .. }
        | WireError::UnexpectedAddress { offset, .. }
        | WireError::NoPreviousBlock { offset }
        | WireError::UnknownRamBlock { offset, .. }
        | WireError::Xbzrle { offset, .. }
        | WireError::BlockList { offset, .. }
        | WireError::UnknownMessage { offset, .. }
        | WireError::MessageLength { offset, .. }
        | WireError::Bitmap { offset, .. } => *offset,
        _ => return None,
    })
}
