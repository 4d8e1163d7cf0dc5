//! QEMU's texts that clients and operators depend on, word for word: error descriptions and event names. They stand
//! here and nowhere else.
//!
//! A function returns a text with values in it, a constant one without.

// ---- The stream's container ----

/// The stream doesn't begin with the magic number.
pub const NOT_A_MIGRATION_STREAM: &str = "Not a migration stream";

/// The stream is of version 2.
pub const V2_OBSOLETE: &str = "SaveVM v2 format is obsolete";

/// The stream is of another version than 3.
pub fn stream_version(version: u32) -> String {
    match version {
        2 => V2_OBSOLETE.to_owned(),
        version => format!("unsupported migration stream version {version}"),
    }
}

/// The peer runs another machine type.
pub fn machine_type_mismatch(received: &str, local: &str) -> String {
    format!("Machine type received is '{received}' and local is '{local}'")
}

/// A capability that the stream validates is on at one side only.
pub fn capability_mismatch(name: &str, received: bool) -> String {
    let state = |on| if on { "on" } else { "off" };
    format!("Capability {name} is {}, but received capability is {}", state(!received), state(received))
}

/// Both sides have a uuid and they differ.
pub fn uuid_mismatch(received: &[u8; 16], local: &[u8; 16]) -> String {
    format!("UUID received is {} and local is {}", uuid(received), uuid(local))
}

/// A byte that begins no element.
pub fn unknown_section_type(element: u8) -> String {
    format!("Unknown savevm section type {element}")
}

/// A part or end of a section that was never announced.
pub fn unknown_section(section_id: u32) -> String {
    format!("Unknown savevm section {section_id}")
}

/// A section that no handler of the receiver matches.
pub fn unknown_section_or_instance(idstr: &str, instance_id: u32) -> String {
    format!(
        "Unknown savevm section or instance '{idstr}' {instance_id}. Make sure that your current VM setup matches your \
         saved VM setup, including any hotplugged devices"
    )
}

/// A section's version is above the receiver's.
pub fn unsupported_version(idstr: &str, received: u32, local: u32) -> String {
    format!("savevm: unsupported version {received} for '{idstr}' v{local}")
}

/// A footer carries another section's id.
pub fn footer_mismatch(idstr: &str, read: u32, expected: u32) -> String {
    format!("Mismatched section id in footer for {idstr} - read {read:#x} expected {expected:#x}")
}

/// A section isn't followed by its footer.
pub fn missing_section_footer(idstr: &str) -> String {
    format!("Missing section footer for {idstr}")
}

/// Something else than the VM description follows the end of the stream (only logged). `None`: the stream ended.
pub fn expected_vmdescription(got: i32) -> String {
    format!("Expected vmdescription section, but got {got}")
}

/// The load failed; `error` is the system's text of the error code, such as [`INVALID_ARGUMENT`].
pub fn load_failed(error: &str) -> String {
    format!("load of migration failed: {error}")
}

/// The system's text of EINVAL.
pub const INVALID_ARGUMENT: &str = "Invalid argument";
/// The system's text of EIO: the stream broke off.
pub const INPUT_OUTPUT_ERROR: &str = "Input/output error";

// ---- RAM ----

/// A RAM record whose flags contradict each other or don't exist.
pub fn unknown_ram_flags(flags: u64) -> String {
    format!("Unknown combination of migration flags: {flags:#x}")
}

/// A zero page that isn't filled with zero.
pub fn nonzero_zero_page(fill: u8) -> String {
    format!("Found a zero page with value {fill}")
}

/// A RAM block that the receiver doesn't have.
pub fn unknown_ram_block(name: &str) -> String {
    format!("Unknown ramblock \"{name}\", cannot accept migration")
}

/// A RAM block whose length differs, received first.
pub fn size_mismatch(name: &str, received: u64, local: u64) -> String {
    format!("Size mismatch: {name}: {received:#x} != {local:#x}")
}

/// A page of a block whose pages don't travel.
pub fn block_should_not_be_migrated(name: &str) -> String {
    format!("block {name} should not be migrated !")
}

// ---- Commands and the return path ----

/// A command that doesn't exist.
pub fn unknown_command(command: u16, length: u16) -> String {
    format!("MIG_CMD {command:#x} unknown (len {length:#x})")
}

/// A return-path message of a type that doesn't exist.
pub fn invalid_message(kind: u16, length: u16) -> String {
    format!("Received invalid message {kind:#06x} length {length:#06x}")
}

/// The destination said that it failed.
pub fn sibling_indicated_error(value: u32) -> String {
    format!("Sibling indicated error {value}")
}

/// 16 bytes as a uuid's text.
fn uuid(bytes: &[u8; 16]) -> String {
    let mut text = String::with_capacity(36);
    for (index, byte) in bytes.iter().enumerate() {
        if matches!(index, 4 | 6 | 8 | 10) {
            text.push('-');
        }
        text.push_str(&format!("{byte:02x}"));
    }
    text
}
