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

/// The capabilities that a stream names when they are on, and that must be on at both sides or at none. The last is whimbrel's
/// own: QEMU refuses a stream that names it.
pub const VALIDATED_CAPABILITIES: [&str; 3] = ["x-ignore-shared", "mapped-ram", "x-whimbrel-table-digest"];

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
    /// Writes the section, its type byte included. Fails, writing nothing, on a machine name above [`MAX_MACHINE_NAME`]
    /// bytes or capabilities outside [`VALIDATED_CAPABILITIES`].
    pub fn encode(&self, out: &mut Output) -> Result<(), WireError> {
        let start = out.len();
        self.encode_unguarded(out).inspect_err(|_| out.truncate(start))
    }

    fn encode_unguarded(&self, out: &mut Output) -> Result<(), WireError> {
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
                if !VALIDATED_CAPABILITIES.contains(&name.as_str()) {
                    let (what, value) = ("a capability", name.len() as u64);
                    return Err(WireError::Unsendable { what, value, range: "the validated capabilities" });
                }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{bytes, encoded, input, refused};

    const SEQUENCE: [u8; 16] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15];

    fn microvm() -> Configuration {
        Configuration { machine: "microvm".into(), ..Configuration::default() }
    }

    fn decoded(stream: &str) -> Result<Configuration, WireError> {
        Configuration::decode(&mut input(&bytes(stream)))
    }

    #[test]
    fn a_machine_name_alone_is_the_shortest_configuration() {
        let stream = "07 00000007 'microvm'";
        assert_eq!(encoded(|out| microvm().encode(out)), bytes(stream));
        assert_eq!(decoded(stream), Ok(microvm()));
    }

    #[test]
    fn all_subsections_have_their_bytes_and_are_read_in_any_order() {
        let full = Configuration {
            target_page_bits: Some(12),
            capabilities: vec!["x-ignore-shared".into(), "mapped-ram".into()],
            uuid: Some(SEQUENCE),
            ..microvm()
        };
        let bits = "05 1e'configuration/target-page-bits' 00000001 0000000c";
        let capabilities =
            "05 1a'configuration/capabilities' 00000001 00000002 0f'x-ignore-shared' 0a'mapped-ram'";
        let uuid = "05 12'configuration/uuid' 00000001 000102030405060708090a0b0c0d0e0f";
        let name = "07 00000007 'microvm'";
        assert_eq!(encoded(|out| full.encode(out)), bytes(&[name, bits, capabilities, uuid].concat()));
        assert_eq!(decoded(&[name, bits, capabilities, uuid].concat()), Ok(full.clone()));
        assert_eq!(decoded(&[name, uuid, bits, capabilities].concat()), Ok(full));
    }

    #[test]
    fn malformed_configurations_are_refused_with_their_offset() {
        let name = "07 00000001 'm'";
        let refused = |rest: &str| decoded(&format!("{name}{rest}")).unwrap_err();
        assert_eq!(decoded("01 00000000"), Err(WireError::ExpectedConfiguration { offset: 0, got: 1 }));
        let what = "the machine type name";
        let error = WireError::TooLong { offset: 1, what, length: 256, limit: 255 };
        assert_eq!(decoded("07 00000100"), Err(error));
        assert_eq!(decoded("07 00000001 ff"), Err(WireError::NotUtf8 { offset: 5, what }));
        let error = refused("05 15'configuration/machine' 00000001");
        let unknown = "configuration/machine".to_owned();
        assert_eq!(error, WireError::UnknownConfigurationSubsection { offset: 6, name: unknown });
        let error = refused("05 12'configuration/uuid' 00000002");
        let uuid = "configuration/uuid".to_owned();
        assert_eq!(error, WireError::ConfigurationSubsectionVersion { offset: 6, name: uuid, version: 2 });
        let bits = "05 1e'configuration/target-page-bits' 00000001 0000000c";
        let name = "configuration/target-page-bits".to_owned();
        let error = WireError::DuplicateConfigurationSubsection { offset: 46, name };
        assert_eq!(refused(&[bits, bits].concat()), error);
        let error = refused("05 1a'configuration/capabilities' 00000001 00000001 03'foo'");
        assert_eq!(error, WireError::UnknownCapability { offset: 42, name: "foo".into() });
        let error = refused("05 1a'configuration/capabilities' 00000001 ffffffff");
        let what = "the capability list";
        assert_eq!(error, WireError::TooLong { offset: 38, what, length: 0xffff_ffff, limit: 3 });
    }

    #[test]
    fn configurations_that_would_not_be_read_are_not_sent() {
        let long = Configuration { machine: "x".repeat(256), ..microvm() };
        let error =
            WireError::Unsendable { what: "the machine type name", value: 256, range: "at most 255 bytes" };
        assert_eq!(refused(|out| long.encode(out)), error);
        let many = Configuration { capabilities: vec!["mapped-ram".into(); 4], ..microvm() };
        assert!(matches!(refused(|out| many.encode(out)), WireError::Unsendable { value: 4, .. }));
        let unknown = Configuration { capabilities: vec!["xbzrle".into()], ..microvm() };
        assert!(matches!(refused(|out| unknown.encode(out)), WireError::Unsendable { .. }));
    }

    #[test]
    fn another_machine_type_is_refused_and_so_is_a_prefix() {
        for received in ["pc-foo!", "micro", "microvm2", ""] {
            let peer = Configuration { machine: received.into(), ..microvm() };
            let error = peer.check(&microvm(), DEFAULT_PAGE_BITS_X86).unwrap_err();
            let text = format!("Machine type received is '{received}' and local is 'microvm'");
            assert_eq!(error.to_string(), text);
        }
        assert_eq!(microvm().check(&microvm(), DEFAULT_PAGE_BITS_X86), Ok(()));
    }

    #[test]
    fn an_absent_page_size_means_the_architectures_default() {
        let named = Configuration { target_page_bits: Some(12), ..microvm() };
        assert_eq!(named.check(&microvm(), DEFAULT_PAGE_BITS_X86), Ok(()));
        assert_eq!(microvm().check(&named, DEFAULT_PAGE_BITS_X86), Ok(()));
        let error = WireError::PageBitsMismatch { received: 10, local: 12 };
        assert_eq!(microvm().check(&named, DEFAULT_PAGE_BITS_ARM), Err(error));
    }

    #[test]
    fn a_validated_capability_must_be_on_at_both_sides_or_at_none() {
        let shared = Configuration { capabilities: vec!["x-ignore-shared".into()], ..microvm() };
        let error = shared.check(&microvm(), 12).unwrap_err();
        assert_eq!(error, WireError::CapabilityMismatch { name: "x-ignore-shared", received: true });
        assert_eq!(error.to_string(), "Capability x-ignore-shared is off, but received capability is on");
        let error = microvm().check(&shared, 12).unwrap_err();
        assert_eq!(error, WireError::CapabilityMismatch { name: "x-ignore-shared", received: false });
        assert_eq!(shared.check(&shared, 12), Ok(()));
    }

    #[test]
    fn uuids_are_compared_only_where_both_sides_have_one() {
        let with = |uuid| Configuration { uuid: Some(uuid), ..microvm() };
        assert_eq!(with(SEQUENCE).check(&microvm(), 12), Ok(()));
        assert_eq!(microvm().check(&with(SEQUENCE), 12), Ok(()));
        assert_eq!(with(SEQUENCE).check(&with(SEQUENCE), 12), Ok(()));
        let error = with(SEQUENCE).check(&with([0xff; 16]), 12).unwrap_err();
        assert_eq!(
            error.to_string(),
            "UUID received is 00010203-0405-0607-0809-0a0b0c0d0e0f and local is \
             ffffffff-ffff-ffff-ffff-ffffffffffff"
        );
    }
}
