//! The configuration section: what the sender's machine is, checked before anything is loaded.
//!
//! ```text
//! 07  be32 length  machine type name  { subsection }
//! ```
//!
//! It has no section id, no version and no footer. Its subsections (version 1 each), in the order they are sent:
//!
//! | name | when | body |
//! |---|---|---|
//! | `configuration/target-page-bits` | page size above the architecture's oldest one | be32 |
//! | `configuration/capabilities` | a validated capability is on | be32 count, count × pstr |
//! | `configuration/uuid` | the VM has a uuid and `validate-uuid` is on | 16 bytes in textual order |

use std::io::Read;

use crate::element::CONFIGURATION;
use crate::error::WireError;
use crate::input::Input;
use crate::output::Output;
use crate::subsection::{self, Subsection};

/// The capabilities that a stream names when they are on, and that must be on at both sides or at none.
pub const VALIDATED_CAPABILITIES: [&str; 2] = ["x-ignore-shared", "mapped-ram"];

/// Longest machine type name accepted, in bytes.
pub const MAX_MACHINE_NAME: u32 = 255;

/// Page size, as a power of two, that a stream means when it names none: 4 KiB on x86.
pub const DEFAULT_PAGE_BITS_X86: u32 = 12;

/// Page size, as a power of two, that a stream means when it names none: 1 KiB on Arm (so 4 KiB is always named).
pub const DEFAULT_PAGE_BITS_ARM: u32 = 10;

const TARGET_PAGE_BITS: &str = "configuration/target-page-bits";
const CAPABILITIES: &str = "configuration/capabilities";
const UUID: &str = "configuration/uuid";

/// What the configuration section says about a machine.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Configuration {
    /// Canonical, versioned machine type: `microvm`, `pc-q35-7.2`.
    pub machine: String,
    /// Target page size as a power of two; `None` means the architecture's default.
    pub target_page_bits: Option<u32>,
    /// Those of [`VALIDATED_CAPABILITIES`] that are on.
    pub capabilities: Vec<String>,
    /// The VM's uuid in textual order.
    pub uuid: Option<[u8; 16]>,
}

impl Configuration {
    /// Writes the section, its type byte included. Fails on a machine name above [`MAX_MACHINE_NAME`] bytes or a
    /// capability outside [`VALIDATED_CAPABILITIES`].
    pub fn encode(&self, out: &mut Output) -> Result<(), WireError> {
        let length = u32::try_from(self.machine.len()).ok().filter(|length| *length <= MAX_MACHINE_NAME);
        let length = length.ok_or(WireError::Unsendable {
            what: "the machine type name",
            value: self.machine.len() as u64,
            range: "at most 255 bytes",
        })?;
        out.u8(CONFIGURATION);
        out.be32(length);
        out.bytes(self.machine.as_bytes());
        if let Some(bits) = self.target_page_bits {
            subsection::encode(out, TARGET_PAGE_BITS, 1)?;
            out.be32(bits);
        }
        if !self.capabilities.is_empty() {
            subsection::encode(out, CAPABILITIES, 1)?;
            let count = u32::try_from(self.capabilities.len()).unwrap_or(u32::MAX);
            if count as usize > VALIDATED_CAPABILITIES.len() {
                let range = "the validated capabilities, each once";
                return Err(WireError::Unsendable { what: "capability count", value: count.into(), range });
            }
            out.be32(count);
            for name in &self.capabilities {
                out.pstr(name)?;
            }
        }
        if let Some(uuid) = &self.uuid {
            subsection::encode(out, UUID, 1)?;
            out.bytes(uuid);
        }
        Ok(())
    }

    /// Reads the section, its type byte included. Subsections may come in any order, each at most once.
    pub fn decode<R: Read>(input: &mut Input<R>) -> Result<Self, WireError> {
        let offset = input.offset();
        let got = input.reading("the configuration").u8()?;
        if got != CONFIGURATION {
            return Err(WireError::ExpectedConfiguration { offset, got });
        }
        let offset = input.offset();
        let length = input.reading("the machine type name").be32()?;
        if length > MAX_MACHINE_NAME {
            let (length, limit) = (length.into(), MAX_MACHINE_NAME.into());
            return Err(WireError::TooLong { offset, what: input.what(), length, limit });
        }
        let machine = input.text(length as usize)?;
        let mut configuration = Configuration { machine, ..Self::default() };
        let mut seen = Vec::new();
        // No other element begins with this byte, so the prefix rule of device state isn't needed here.
        while input.peek_u8()? == Some(subsection::SUBSECTION) {
            let offset = input.offset();
            let Subsection { name, version_id } = Subsection::decode(input)?;
            if seen.contains(&name) {
                return Err(WireError::DuplicateConfigurationSubsection { offset, name });
            }
            match name.as_str() {
                TARGET_PAGE_BITS | CAPABILITIES | UUID if version_id != 1 => {
                    return Err(WireError::ConfigurationSubsectionVersion {
                        offset,
                        name,
                        version: version_id,
                    });
                }
                TARGET_PAGE_BITS => {
                    configuration.target_page_bits = Some(input.reading("the target page bits").be32()?);
                }
                CAPABILITIES => configuration.capabilities = decode_capabilities(input)?,
                UUID => configuration.uuid = Some(input.reading("the uuid").array()?),
                _ => return Err(WireError::UnknownConfigurationSubsection { offset, name }),
            }
            seen.push(name);
        }
        Ok(configuration)
    }

    /// Whether a machine that is `local` may load a stream with this configuration. `default_page_bits` is what an
    /// absent page size means for the local architecture.
    ///
    /// The names must be equal. (QEMU compares only as many bytes as it received, so it takes `micro` for `microvm`;
    /// there is no honest sender of a prefix, and it is refused here.) A uuid is compared only where both sides have
    /// one.
    pub fn check(&self, local: &Configuration, default_page_bits: u32) -> Result<(), WireError> {
        if self.machine != local.machine {
            let (received, local) = (self.machine.clone(), local.machine.clone());
            return Err(WireError::MachineMismatch { received, local });
        }
        let page_bits = |side: &Configuration| side.target_page_bits.unwrap_or(default_page_bits);
        if page_bits(self) != page_bits(local) {
            return Err(WireError::PageBitsMismatch { received: page_bits(self), local: page_bits(local) });
        }
        for name in VALIDATED_CAPABILITIES {
            let on = |side: &Configuration| side.capabilities.iter().any(|capability| capability == name);
            if on(self) != on(local) {
                return Err(WireError::CapabilityMismatch { name, received: on(self) });
            }
        }
        match (self.uuid, local.uuid) {
            (Some(received), Some(local)) if received != local => {
                Err(WireError::UuidMismatch { received, local })
            }
            _ => Ok(()),
        }
    }
}

fn decode_capabilities<R: Read>(input: &mut Input<R>) -> Result<Vec<String>, WireError> {
    let offset = input.offset();
    let count = input.reading("the capability list").be32()?;
    let limit = VALIDATED_CAPABILITIES.len();
    if count as usize > limit {
        let (length, limit) = (count.into(), limit as u64);
        return Err(WireError::TooLong { offset, what: "the capability list", length, limit });
    }
    let mut capabilities = Vec::new();
    for _ in 0..count {
        let offset = input.offset();
        let name = input.reading("a capability's name").pstr()?;
        if !VALIDATED_CAPABILITIES.contains(&name.as_str()) {
            return Err(WireError::UnknownCapability { offset, name });
        }
        capabilities.push(name);
    }
    Ok(capabilities)
}
