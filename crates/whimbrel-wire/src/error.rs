//! The one error type of the crate. Every error about received bytes carries the absolute offset in its stream; where
//! QEMU has a text for the fault, the text is QEMU's (see [`crate::qemu_texts`]).

use std::io;
use std::sync::Arc;

use crate::qemu_texts as texts;

/// What can be wrong with bytes that arrive, or with values that are to be sent.
///
/// `offset` is the absolute position in the stream of the first byte of the faulty item, except in
/// [`WireError::Truncated`] and [`WireError::Io`], where it is the position at which the stream broke off.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WireError {
    /// The transport failed.
    #[error("{source} (stream offset {offset:#x})")]
    Io {
        /// Bytes received before the failure.
        offset: u64,
        /// The transport's error.
        source: IoError,
    },
    /// The stream ended inside an item.
    #[error("stream ends inside {what}: {wanted} more bytes wanted (stream offset {offset:#x})")]
    Truncated {
        /// Length of the stream that was there.
        offset: u64,
        /// Bytes that were still missing to complete the read.
        wanted: u64,
        /// The item being read.
        what: &'static str,
    },
    /// A name or text is not UTF-8.
    #[error("{what} is not UTF-8 (stream offset {offset:#x})")]
    NotUtf8 {
        /// Where the text begins.
        offset: u64,
        /// The item being read.
        what: &'static str,
    },
    /// A length from the peer is beyond what is accepted.
    #[error("{what} is {length} bytes long, more than the {limit} accepted (stream offset {offset:#x})")]
    TooLong {
        /// Where the item begins.
        offset: u64,
        /// The item being read.
        what: &'static str,
        /// Announced length or count.
        length: u64,
        /// Greatest length or count accepted.
        limit: u64,
    },

    /// The stream doesn't begin with QEMU's magic number.
    #[error("{} (magic {got:#010x}, stream offset {offset:#x})", texts::NOT_A_MIGRATION_STREAM)]
    BadMagic {
        /// Where the magic number stands.
        offset: u64,
        /// What stands there.
        got: u32,
    },
    /// The stream is of another version than 3.
    #[error("{} (stream offset {offset:#x})", texts::stream_version(*.version))]
    UnsupportedVersion {
        /// Where the version stands.
        offset: u64,
        /// What stands there.
        version: u32,
    },
    /// The header isn't followed by a configuration section.
    #[error(
        "the header must be followed by the configuration (0x07), not by {got:#04x} (stream offset {offset:#x})"
    )]
    ExpectedConfiguration {
        /// Where it should begin.
        offset: u64,
        /// The byte that stands there.
        got: u8,
    },
    /// The configuration holds a subsection this crate doesn't know.
    #[error("unknown subsection '{name}' in the configuration (stream offset {offset:#x})")]
    UnknownConfigurationSubsection {
        /// Where the subsection begins.
        offset: u64,
        /// Its name.
        name: String,
    },
    /// A subsection of the configuration has a version this crate doesn't know.
    #[error("{} (stream offset {offset:#x})", texts::unsupported_version(.name, *.version, 1))]
    ConfigurationSubsectionVersion {
        /// Where the subsection begins.
        offset: u64,
        /// Its name.
        name: String,
        /// Its version; only 1 is known.
        version: u32,
    },
    /// A subsection of the configuration occurs twice.
    #[error("subsection '{name}' occurs twice in the configuration (stream offset {offset:#x})")]
    DuplicateConfigurationSubsection {
        /// Where the second one begins.
        offset: u64,
        /// Its name.
        name: String,
    },
    /// The configuration names a capability outside the validated set.
    #[error("unknown capability '{name}' in the configuration (stream offset {offset:#x})")]
    UnknownCapability {
        /// Where the name stands.
        offset: u64,
        /// The name.
        name: String,
    },
    /// The peer runs another machine type.
    #[error("{}", texts::machine_type_mismatch(.received, .local))]
    MachineMismatch {
        /// The peer's machine type.
        received: String,
        /// Ours.
        local: String,
    },
    /// The peer's target page size differs.
    #[error("the sender's pages have {received} bits, ours {local}")]
    PageBitsMismatch {
        /// The peer's page size as a power of two.
        received: u32,
        /// Ours.
        local: u32,
    },
    /// A capability that the stream validates is on at one side only.
    #[error("{}", texts::capability_mismatch(.name, *.received))]
    CapabilityMismatch {
        /// The capability.
        name: &'static str,
        /// Whether the peer has it on.
        received: bool,
    },
    /// Both sides have a uuid and they differ.
    #[error("{}", texts::uuid_mismatch(.received, .local))]
    UuidMismatch {
        /// The peer's VM uuid, in textual order.
        received: [u8; 16],
        /// Ours.
        local: [u8; 16],
    },

    /// A byte that begins no element.
    #[error("{} (stream offset {offset:#x})", texts::unknown_section_type(*.element))]
    UnknownElement {
        /// Where it stands.
        offset: u64,
        /// The byte.
        element: u8,
    },
    /// A section isn't followed by its footer.
    #[error("{} (found {got:#04x}, stream offset {offset:#x})", texts::missing_section_footer(.section))]
    MissingFooter {
        /// Where the footer should begin.
        offset: u64,
        /// The section's idstr.
        section: String,
        /// The byte that stands there.
        got: u8,
    },
    /// A footer carries another section's id.
    #[error("{} (stream offset {offset:#x})", texts::footer_mismatch(.section, *.read, *.expected))]
    FooterMismatch {
        /// Where the footer begins.
        offset: u64,
        /// The section's idstr.
        section: String,
        /// The id received.
        read: u32,
        /// The id of the section that ended.
        expected: u32,
    },
    /// A subsection was expected and something else came.
    #[error("a subsection (0x05) was expected, not {got:#04x} (stream offset {offset:#x})")]
    ExpectedSubsection {
        /// Where it should begin.
        offset: u64,
        /// The byte that stands there.
        got: u8,
    },

    /// A command that doesn't exist.
    #[error("{} (stream offset {offset:#x})", texts::unknown_command(*.command, *.length))]
    UnknownCommand {
        /// Where the command's number stands.
        offset: u64,
        /// The number.
        command: u16,
        /// The announced payload length.
        length: u16,
    },
    /// A command's payload has a length that the command can't have.
    #[error("command {command} can't have a payload of {length} bytes (stream offset {offset:#x})")]
    CommandLength {
        /// Where the command's number stands.
        offset: u64,
        /// The command's name.
        command: &'static str,
        /// The announced payload length.
        length: u16,
    },
    /// The payload of a RAM discard is malformed.
    #[error("malformed RAM discard: {why} (stream offset {offset:#x})")]
    Discard {
        /// Where the faulty byte or range stands.
        offset: u64,
        /// What is wrong.
        why: &'static str,
    },

    /// A return-path message of a type that doesn't exist.
    #[error("{} (return path offset {offset:#x})", texts::invalid_message(*.kind, *.length))]
    UnknownMessage {
        /// Where the message begins.
        offset: u64,
        /// The type.
        kind: u16,
        /// The announced payload length.
        length: u16,
    },
    /// A return-path message's payload has a length that the message can't have.
    #[error("{message} message can't have a payload of {length} bytes (return path offset {offset:#x})")]
    MessageLength {
        /// Where the message begins.
        offset: u64,
        /// The message's name.
        message: &'static str,
        /// The announced payload length.
        length: u16,
    },
    /// A received bitmap has a size that isn't a multiple of 8, or doesn't end with its mark.
    #[error("malformed received bitmap of block '{block}': {why} (return path offset {offset:#x})")]
    Bitmap {
        /// Where the faulty word stands.
        offset: u64,
        /// The RAM block.
        block: String,
        /// What is wrong.
        why: &'static str,
    },

    /// A RAM record whose flags contradict each other or don't exist.
    #[error("{} (stream offset {offset:#x})", texts::unknown_ram_flags(*.flags))]
    RamFlags {
        /// Where the record begins.
        offset: u64,
        /// The flags.
        flags: u64,
    },
    /// A RAM record of a kind that exists but isn't supported: RDMA hooks and `compress` pages.
    #[error("RAM records with flag {flags:#x} ({name}) are not supported (stream offset {offset:#x})")]
    UnsupportedRamRecord {
        /// Where the record begins.
        offset: u64,
        /// The flags.
        flags: u64,
        /// The flag's name.
        name: &'static str,
    },
    /// A RAM record that carries no address has one.
    #[error("RAM record with flags {flags:#x} carries the address {address:#x} (stream offset {offset:#x})")]
    UnexpectedAddress {
        /// Where the record begins.
        offset: u64,
        /// The flags.
        flags: u64,
        /// The address.
        address: u64,
    },
    /// A page record continues the previous block where there is none.
    #[error("a RAM page continues the previous block, but there was none (stream offset {offset:#x})")]
    NoPreviousBlock {
        /// Where the record begins.
        offset: u64,
    },
    /// A RAM block that the receiver doesn't have.
    #[error("{} (stream offset {offset:#x})", texts::unknown_ram_block(.name))]
    UnknownRamBlock {
        /// Where the record begins.
        offset: u64,
        /// The name received.
        name: String,
    },
    /// An XBZRLE record whose header is malformed.
    #[error("malformed XBZRLE record: {why} (stream offset {offset:#x})")]
    Xbzrle {
        /// Where the record begins.
        offset: u64,
        /// What is wrong.
        why: &'static str,
    },
    /// The block list is malformed.
    #[error("malformed RAM block list at block '{name}': {why} (stream offset {offset:#x})")]
    BlockList {
        /// Where the block's entry begins.
        offset: u64,
        /// The block's name.
        name: String,
        /// What is wrong.
        why: &'static str,
    },

    /// A value to be sent doesn't fit its place on the wire. Only encoders return it.
    #[error("{what} can't be sent: {value} is outside what the stream can carry ({range})")]
    Unsendable {
        /// The item.
        what: &'static str,
        /// Its value or length.
        value: u64,
        /// What would fit.
        range: &'static str,
    },
}

/// An [`io::Error`] that can be cloned and compared (by kind and operating-system code).
#[derive(Debug, Clone)]
pub struct IoError(Arc<io::Error>);

impl IoError {
    /// The error itself.
    pub fn get(&self) -> &io::Error {
        &self.0
    }

    /// What kind of failure it was.
    pub fn kind(&self) -> io::ErrorKind {
        self.0.kind()
    }
}

impl From<io::Error> for IoError {
    fn from(error: io::Error) -> Self {
        IoError(Arc::new(error))
    }
}

impl PartialEq for IoError {
    fn eq(&self, other: &Self) -> bool {
        self.0.kind() == other.0.kind() && self.0.raw_os_error() == other.0.raw_os_error()
    }
}

impl Eq for IoError {}

impl std::fmt::Display for IoError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

impl std::error::Error for IoError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.source()
    }
}
