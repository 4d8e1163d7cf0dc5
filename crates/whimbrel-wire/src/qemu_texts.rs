//! QEMU's texts that clients and operators depend on, word for word: error descriptions and event names. They stand
//! here and nowhere else.
//!
//! A function returns a text with values in it, a constant one without.

// ---- The stream's container ----

/// The stream doesn't begin with the magic number.
pub const NOT_A_MIGRATION_STREAM: &str = "Not a migration stream";

/// The stream is of version 2.
pub const V2_OBSOLETE: &str = "SaveVM v2 format is obsolete and don't work anymore";

/// The stream is of another version than 3. The text for versions other than 2 is our own.
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

/// Something else than the VM description follows the end of the stream (only logged). At the end of the stream QEMU
/// reports the byte 0.
pub fn expected_vmdescription(got: u8) -> String {
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

/// A page beyond its block's used length.
pub fn illegal_ram_offset(offset: u64) -> String {
    format!("Illegal RAM offset {offset:#x}")
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

/// The connection broke before SHUT (`error` is the system's text, such as [`INPUT_OUTPUT_ERROR`]).
pub fn channel_error(error: &str) -> String {
    format!("Channel error: {error}")
}

/// Post-copy can't be recovered: the source has dropped the pages that it sent.
pub const RECOVERY_WITH_RELEASE_RAM: &str =
    "Postcopy recovery cannot work when release-ram capability is set";

// ---- Addresses and channels ----

/// Both or neither of `uri` and `channels` (10.0).
pub const NEED_URI_OR_CHANNELS: &str = "need either 'uri' or 'channels' argument";
/// Several main channels.
pub const MORE_THAN_ONE_MAIN_CHANNEL: &str = "Channel list has more than one main entry";
/// An incoming side with several channels.
pub const ONLY_ONE_CHANNEL: &str = "Channel list must have only one entry, for type 'main'";
/// CPR needs a second channel.
pub const MISSING_CPR_CHANNEL: &str = "missing 'cpr' migration channel";
/// cpr-transfer to a file.
pub const NEEDS_STREAMABLE_TRANSPORT: &str = "Migration requires streamable transport (eg unix)";
/// Multifd over a transport of one channel (10.0).
pub const NEEDS_MULTI_CHANNEL_URI: &str = "Migration requires multi-channel URIs (e.g. tcp)";
/// mapped-ram over a transport without offsets.
pub const NEEDS_SEEKABLE_TRANSPORT: &str = "Migration requires seekable transport (e.g. file)";
/// A URI of an unknown scheme, 7.2.
pub const INVALID_PROTOCOL_7_2: &str = "Parameter 'uri' expects a valid migration protocol";

/// A URI of an unknown scheme, 10.0.
pub fn unknown_protocol(uri: &str) -> String {
    format!("unknown migration protocol: {uri}")
}

/// A TCP address that can't be parsed.
pub fn bad_address(address: &str) -> String {
    format!("error parsing address '{address}'")
}

/// The destination can't be reached; `error` is the system's text.
pub fn connect_failed(address: &str, error: &str) -> String {
    format!("Failed to connect to '{address}': {error}")
}

/// The command of `exec:` has gone; `error` is the system's text.
pub fn command_write_failed(error: &str) -> String {
    format!("{WRITING_TO_COMMAND}: {error}")
}

/// What [`command_write_failed`] begins with.
pub const WRITING_TO_COMMAND: &str = "Unable to write to command";

/// The program of `exec` can't be started; `error` is the system's text.
pub fn execute_failed(program: &str, error: &str) -> String {
    format!("Failed to execute child process “{program}” ({error})")
}

/// The file of `file:` can't be opened for writing; `error` is the system's text.
pub fn could_not_create(path: &str, error: &str) -> String {
    format!("Could not create '{path}': {error}")
}

/// The file of `file:` can't be opened for reading; `error` is the system's text.
pub fn could_not_open(path: &str, error: &str) -> String {
    format!("Could not open '{path}': {error}")
}

/// `fd:` without a name.
pub const INVALID_DESCRIPTOR_ADDRESS: &str = "invalid file descriptor address";
/// `unix:` without a path.
pub const INVALID_UNIX_ADDRESS: &str = "invalid Unix socket address";

/// A vsock address whose CID or port (`part`) is no number.
pub fn vsock_parse_failed(part: &str, text: &str) -> String {
    format!("Failed to parse {part} '{text}'")
}

/// A `file:` URI's offset that is no size.
pub fn bad_file_offset(offset: &str) -> String {
    format!("file URI has bad offset {offset}: Invalid argument")
}

// ---- File descriptors ----

/// A command that needs a descriptor came without one.
pub const NO_DESCRIPTOR_SUPPLIED: &str = "No file descriptor supplied via SCM_RIGHTS";
/// `getfd` with a name that could be a number.
pub const FDNAME_STARTS_WITH_DIGIT: &str = "Parameter 'fdname' expects a name not starting with a digit";
/// `add-fd` to a negative set.
pub const FDSET_ID_NEGATIVE: &str = "Parameter 'fdset-id' expects a non-negative value";

/// `closefd` or `remove-fd` of what isn't held.
pub fn descriptor_not_found(name: &str) -> String {
    format!("File descriptor named '{name}' not found")
}

/// `fd:` of what isn't held.
pub fn descriptor_has_not_been_found(name: &str) -> String {
    format!("File descriptor named '{name}' has not been found")
}

/// `/dev/fdset/N` of a set that isn't held.
pub fn fdset_not_found(path: &str) -> String {
    format!("Failed to find fdset {path}")
}

/// `/dev/fdset/N` without a descriptor of the access needed; as `open` takes it.
pub fn no_matching_descriptor(flags: impl std::fmt::LowerHex) -> String {
    format!("Failed to find file descriptor with matching flags={flags:#x}")
}

// ---- Capabilities ----

/// A capability, or `migrate`, while a migration runs.
pub const MIGRATION_IN_PROGRESS: &str = "There's a migration process in progress";
/// Multifd turned on after the incoming side started (10.0).
pub const MULTIFD_BEFORE_INCOMING: &str = "Multifd must be set before incoming starts";
/// Post-copy preempt turned on after the incoming side started (10.0).
pub const PREEMPT_BEFORE_INCOMING: &str = "Postcopy preempt must be set before incoming starts";
/// postcopy-ram with x-ignore-shared.
pub const POSTCOPY_IGNORE_SHARED: &str = "Postcopy is not compatible with ignore-shared";
/// postcopy-ram with multifd (8.0 to 10.0).
pub const POSTCOPY_MULTIFD: &str = "Postcopy is not yet compatible with multifd";
/// postcopy-ram where the host lacks userfaultfd (10.0 appends `: ` and the reason).
pub const POSTCOPY_UNSUPPORTED: &str = "Postcopy is not supported";
/// postcopy-preempt without postcopy-ram.
pub const PREEMPT_NEEDS_POSTCOPY: &str = "Postcopy preempt requires postcopy-ram";
/// multifd with xbzrle (10.0).
pub const MULTIFD_XBZRLE: &str = "Multifd is not compatible with xbzrle";
/// zero-copy-send without multifd, or with xbzrle, compression or TLS.
pub const ZERO_COPY_ONLY: &str = "Zero copy only available for non-compressed non-TLS multifd migration";
/// dirty-limit with auto-converge.
pub const DIRTY_LIMIT_AUTO_CONVERGE: &str =
    "dirty-limit conflicts with auto-converge either of then available currently";
/// dirty-limit without KVM's dirty ring.
pub const DIRTY_LIMIT_NEEDS_RING: &str =
    "dirty-limit requires KVM with accelerator property 'dirty-ring-size' set";
/// mapped-ram with xbzrle.
pub const MAPPED_RAM_XBZRLE: &str = "Mapped-ram migration is incompatible with xbzrle";
/// mapped-ram with postcopy-ram.
pub const MAPPED_RAM_POSTCOPY: &str = "Mapped-ram migration is incompatible with postcopy";
/// background-snapshot where the kernel lacks userfaultfd write-protect.
pub const SNAPSHOT_HOST_KERNEL: &str = "Background-snapshot is not supported by host kernel";
/// background-snapshot where the guest's memory can't be write-protected.
pub const SNAPSHOT_GUEST_MEMORY: &str =
    "Background-snapshot is not compatible with guest memory configuration";

/// A capability that needs another, as switchover-ack needs return-path.
pub fn capability_requires(capability: &str, required: &str) -> String {
    format!("Capability '{capability}' requires capability '{required}'")
}

/// background-snapshot with one of the capabilities that it excludes.
pub fn snapshot_incompatible(capability: &str) -> String {
    format!("Background-snapshot is not compatible with {capability}")
}

/// A capability that the CPR modes exclude.
pub fn cannot_use_with_cpr(what: &str) -> String {
    format!("Cannot use {what} with CPR")
}

// ---- Parameters ----

// These spell a parameter with underscores, unlike everywhere else, and print limits as they stand in QEMU.

/// `ipv4=off,ipv6=off`.
pub const NO_FAMILY: &str = "Cannot disable IPv4 and IPv6 at same time";
/// `to=` that is no port.
pub const BAD_TO: &str = "error parsing to= argument";

/// An option of a tcp address that is neither on nor off.
pub fn bad_flag(name: &str, value: &str) -> String {
    format!("error parsing '{name}' flag '={value}'")
}

/// A host or a port that means nothing.
pub fn resolution_failed(host: &str, port: &str, why: &str) -> String {
    format!("address resolution failed for {host}:{port}: {why}")
}

/// mapped-ram with TLS, at `migrate`.
pub const MAPPED_RAM_TLS: &str = "Cannot use TLS with mapped-ram";
/// mapped-ram with compression, at `migrate`.
pub const MAPPED_RAM_COMPRESSION: &str = "Cannot use compression with mapped-ram";
/// downtime-limit out of range.
pub const DOWNTIME_LIMIT_RANGE: &str =
    "Parameter 'downtime_limit' expects an integer in the range of 0 to (2000 * 1000) ms";
/// multifd-channels 0.
pub const MULTIFD_CHANNELS_RANGE: &str = "Parameter 'multifd_channels' expects a value between 1 and 255";
/// xbzrle-cache-size out of range.
pub const XBZRLE_CACHE_SIZE_RANGE: &str =
    "Parameter 'xbzrle_cache_size' expects a power of two no less than the target page size";
/// cpu-throttle-initial out of range.
pub const CPU_THROTTLE_INITIAL_RANGE: &str =
    "Parameter 'cpu_throttle_initial' expects an integer in the range of 1 to 99";
/// max-cpu-throttle out of range.
pub const MAX_CPU_THROTTLE_RANGE: &str =
    "Parameter 'max_cpu_throttle' expects an integer in the range of cpu_throttle_initial to 99";
/// vcpu-dirty-limit 0.
pub const VCPU_DIRTY_LIMIT_RANGE: &str = "Parameter 'vcpu_dirty_limit' must be greater than 1 MB/s";

/// A value that its type can't hold; `expected` is the type, such as `uint8_t`.
pub fn parameter_type(parameter: &str, expected: &str) -> String {
    format!("Parameter '{parameter}' expects {expected}")
}

/// A value that is none of an enumeration's.
pub fn parameter_value(parameter: &str, value: &str) -> String {
    format!("Parameter '{parameter}' does not accept value '{value}'")
}

// ---- QMP ----

/// A command before `qmp_capabilities`; class CommandNotFound.
pub const EXPECTING_NEGOTIATION: &str = "Expecting capabilities negotiation with 'qmp_capabilities'";
/// A second `qmp_capabilities`; class CommandNotFound.
pub const NEGOTIATION_COMPLETE: &str = "Capabilities negotiation is already complete, command ignored";
/// Input that isn't a JSON object.
pub const INPUT_NOT_AN_OBJECT: &str = "QMP input must be a JSON object";
/// `execute` isn't a string.
pub const EXECUTE_NOT_A_STRING: &str = "QMP input member 'execute' must be a string";

/// Input that isn't JSON, at a bare word.
pub fn json_invalid_keyword(word: &str) -> String {
    format!("JSON parse error, invalid keyword '{word}'")
}

/// An object with a member that isn't QMP's.
pub fn unexpected_member(member: &str) -> String {
    format!("QMP input member '{member}' is unexpected")
}

/// An argument is missing.
pub fn parameter_missing(parameter: &str) -> String {
    format!("Parameter '{parameter}' is missing")
}

/// An argument that the command doesn't have.
pub fn parameter_unexpected(parameter: &str) -> String {
    format!("Parameter '{parameter}' is unexpected")
}

/// An argument of the wrong JSON type; `expected` such as `string`.
pub fn parameter_json_type(parameter: &str, expected: &str) -> String {
    format!("Invalid parameter type for '{parameter}', expected: {expected}")
}

/// A command that doesn't exist; class CommandNotFound.
pub fn command_not_found(command: &str) -> String {
    format!("The command {command} has not been found")
}

/// A command that may not run out of band.
pub fn no_out_of_band(command: &str) -> String {
    format!("The command {command} does not support OOB")
}

// ---- Migration commands ----

/// `migrate` again after success, without `cont`.
pub const ALREADY_POSTMIGRATE: &str = "Can't migrate the vm that was paused due to previous migration";
/// `migrate` on an incoming VM.
pub const WAITING_FOR_INCOMING: &str = "Guest is waiting for an incoming migration";
/// `migrate` with `resume` where nothing is paused.
pub const NOTHING_TO_RESUME: &str = "Cannot resume if there is no paused migration";
/// `migrate-incoming` without `-incoming`.
pub const NOT_AN_INCOMING_VM: &str = "'-incoming' was not specified on the command line";
/// A second `migrate-incoming`.
pub const INCOMING_ALREADY_STARTED: &str = "The incoming migration has already been started";
/// `migrate-start-postcopy` without postcopy-ram.
pub const POSTCOPY_NOT_ENABLED: &str =
    "Enable postcopy with migrate_set_capability before the start of migration";
/// `migrate-start-postcopy` before any migration.
pub const POSTCOPY_NOT_STARTED: &str = "Postcopy must be started after migration has been started";
/// `migrate_cancel` in post-copy (10.0).
pub const POSTCOPY_CANNOT_CANCEL: &str = "Postcopy migration in progress, cannot cancel.";
/// `migrate-recover` where post-copy isn't paused.
pub const RECOVER_WRONG_STATE: &str = "Migrate recover can only be run when postcopy is paused.";
/// `migrate-pause` outside post-copy, 7.2.
pub const PAUSE_WRONG_STATE_7_2: &str =
    "migrate-pause is currently only supported during postcopy-active state";
/// `migrate-pause` outside post-copy, 10.0.
pub const PAUSE_WRONG_STATE: &str =
    "migrate-pause is currently only supported during postcopy-active or postcopy-recover state";
/// `cont` while the source finishes a migration.
pub const NOT_FINALIZED: &str = "Migration is not finalized yet";
/// `cont` after a guest's end that only a reset leaves.
pub const RESET_REQUIRED: &str = "Resetting the Virtual Machine is required";
/// `calc-dirty-rate` out of range, 7.2.
pub const CALC_TIME_RANGE_7_2: &str = "calc-time is out of range[1, 60].";
/// `calc-dirty-rate` out of range, 10.0.
pub const CALC_TIME_RANGE: &str = "Calculation time is out of range [50ms, 60000ms].";
/// `calc-dirty-rate` by dirty ring where there is none.
pub const DIRTY_RING_NOT_ENABLED: &str = "mode dirty-ring is not enabled, use other method instead.";

/// `migrate-continue` in another status than it names; `state` is the status that is.
pub fn not_in_expected_state(state: &str) -> String {
    format!("Migration not in expected state: {state}")
}

/// A device that can't migrate.
pub fn blocked_by_device(device: &str) -> String {
    format!("State blocked by non-migratable device '{device}'")
}

// ---- Events ----

/// Names of the QMP events around a migration.
pub mod event {
    /// The migration's status changed; `status`. Only with the capability `events`.
    pub const MIGRATION: &str = "MIGRATION";
    /// The dirty log was read; `pass`. Only with the capability `events`.
    pub const MIGRATION_PASS: &str = "MIGRATION_PASS";
    /// The guest stopped.
    pub const STOP: &str = "STOP";
    /// The guest runs again.
    pub const RESUME: &str = "RESUME";
    /// The machine was reset; `guest`, `reason`.
    pub const RESET: &str = "RESET";
    /// The machine shuts down; `guest`, `reason`.
    pub const SHUTDOWN: &str = "SHUTDOWN";
    /// The guest suspended.
    pub const SUSPEND: &str = "SUSPEND";
    /// The guest woke up.
    pub const WAKEUP: &str = "WAKEUP";
    /// A failover device is to be unplugged; `device-id`.
    pub const UNPLUG_PRIMARY: &str = "UNPLUG_PRIMARY";
    /// The `reason` of SHUTDOWN by `quit`.
    pub const REASON_QUIT: &str = "host-qmp-quit";
    /// The `reason` of RESET by `system_reset`.
    pub const REASON_SYSTEM_RESET: &str = "host-qmp-system-reset";
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_with_values_read_as_qemu_prints_them() {
        for (text, expected) in [
            (unknown_section(9), "Unknown savevm section 9"),
            (unsupported_version("i8259", 2, 1), "savevm: unsupported version 2 for 'i8259' v1"),
            (size_mismatch("pc.bios", 0x20000, 0x10000), "Size mismatch: pc.bios: 0x20000 != 0x10000"),
            (expected_vmdescription(4), "Expected vmdescription section, but got 4"),
            (load_failed(INPUT_OUTPUT_ERROR), "load of migration failed: Input/output error"),
            (sibling_indicated_error(1), "Sibling indicated error 1"),
            (channel_error(INPUT_OUTPUT_ERROR), "Channel error: Input/output error"),
            (unknown_protocol("foo:bar"), "unknown migration protocol: foo:bar"),
            (
                connect_failed("127.0.0.1:1", "Connection refused"),
                "Failed to connect to '127.0.0.1:1': Connection refused",
            ),
            (
                capability_requires("switchover-ack", "return-path"),
                "Capability 'switchover-ack' requires capability 'return-path'",
            ),
            (parameter_type("multifd-channels", "uint8_t"), "Parameter 'multifd-channels' expects uint8_t"),
            (command_not_found("bogus"), "The command bogus has not been found"),
        ] {
            assert_eq!(text, expected);
        }
        assert_eq!(
            unknown_section_or_instance("i8259", 7),
            "Unknown savevm section or instance 'i8259' 7. Make sure that your current VM setup matches your saved VM \
             setup, including any hotplugged devices"
        );
    }
}
