//! Capabilities that exclude or need each other, and those that a version does not know.

use super::{Asked, Raw, generic, ok, set_capabilities};

/// What a version says to capabilities that are switched on together.
#[derive(Clone, Copy)]
enum Says {
    /// Refused, with this.
    Refused(&'static str),
    /// It does not know this one.
    Unknown(&'static str),
    Taken,
}

use Says::{Refused, Taken, Unknown};

const NOT_WITH_MULTIFD: &str = "Zero copy only available for non-compressed non-TLS multifd migration";

/// Capabilities, 10.0's word, 7.2's. Whimbrel's is 10.0's: none of 10.0's words here is "taken".
const CONFLICTS: [(&[&str], Says, Says); 20] = [
    (&["postcopy-ram", "x-ignore-shared"], IGNORE_SHARED, IGNORE_SHARED),
    (&["postcopy-ram", "multifd"], Refused("Postcopy is not yet compatible with multifd"), Taken),
    (&["postcopy-preempt"], PREEMPT, PREEMPT),
    (&["multifd", "xbzrle"], Refused("Multifd is not compatible with xbzrle"), Taken),
    (&["zero-copy-send"], Refused(NOT_WITH_MULTIFD), Refused(NOT_WITH_MULTIFD)),
    (&["zero-copy-send", "xbzrle"], Refused(NOT_WITH_MULTIFD), Refused(NOT_WITH_MULTIFD)),
    (&["zero-copy-send", "multifd", "xbzrle"], Refused(NOT_WITH_MULTIFD), Refused(NOT_WITH_MULTIFD)),
    (
        &["switchover-ack"],
        Refused("Capability 'switchover-ack' requires capability 'return-path'"),
        Unknown("switchover-ack"),
    ),
    (
        &["dirty-limit", "auto-converge"],
        Refused("dirty-limit conflicts with auto-converge either of then available currently"),
        Unknown("dirty-limit"),
    ),
    (
        &["dirty-limit"],
        Refused("dirty-limit requires KVM with accelerator property 'dirty-ring-size' set"),
        Unknown("dirty-limit"),
    ),
    (
        &["mapped-ram", "xbzrle"],
        Refused("Mapped-ram migration is incompatible with xbzrle"),
        Unknown("mapped-ram"),
    ),
    (
        &["mapped-ram", "postcopy-ram"],
        Refused("Mapped-ram migration is incompatible with postcopy"),
        Unknown("mapped-ram"),
    ),
    (&["bogus"], Unknown("bogus"), Unknown("bogus")),
    (&["events", "bogus"], Unknown("bogus"), Unknown("bogus")),
    // Gone since 7.2.
    (&["compress"], Unknown("compress"), Taken),
    (&["block"], Unknown("block"), Taken),
    (&["multifd", "compress"], Unknown("compress"), Refused("Multifd is not compatible with compress")),
    (
        &["postcopy-ram", "postcopy-preempt", "compress"],
        Unknown("compress"),
        Refused("Postcopy preempt not compatible with compress"),
    ),
    (&["zero-copy-send", "multifd", "compress"], Unknown("compress"), Refused(NOT_WITH_MULTIFD)),
    (
        &["background-snapshot", "compress"],
        Unknown("compress"),
        Refused("Background-snapshot is not compatible with compress"),
    ),
];

const IGNORE_SHARED: Says = Refused("Postcopy is not compatible with ignore-shared");
const PREEMPT: Says = Refused("Postcopy preempt requires postcopy-ram");

/// None of these goes with background-snapshot, in any version.
const NOT_IN_A_SNAPSHOT: [&str; 14] = [
    "postcopy-ram",
    "dirty-bitmaps",
    "postcopy-blocktime",
    "late-block-activate",
    "return-path",
    "multifd",
    "pause-before-switchover",
    "auto-converge",
    "release-ram",
    "rdma-pin-all",
    "xbzrle",
    "x-colo",
    "validate-uuid",
    "zero-copy-send",
];

/// Each conflict, on a connection that has negotiated. They are refused as a whole, so that nothing of one lasts; what 7.2 takes is
/// taken back.
pub(crate) fn converse_about_capabilities(raw: &mut Raw, asked: Asked) {
    let before = raw.ask(r#"{"execute":"query-migrate-capabilities"}"#);
    for (names, in_10, in_7) in CONFLICTS {
        let expected = match if asked == Asked::Qemu7 { in_7 } else { in_10 } {
            Refused(text) => generic(text),
            Unknown(name) => generic(&format!("Parameter 'capability' does not accept value '{name}'")),
            Taken => ok(),
        };
        assert_eq!(raw.ask(&set_capabilities(names, true)), expected, "{asked:?}: {names:?}");
        if expected == ok() {
            assert_eq!(raw.ask(&set_capabilities(names, false)), ok(), "{asked:?}: {names:?}");
        }
    }
    for name in NOT_IN_A_SNAPSHOT {
        let text = format!("Background-snapshot is not compatible with {name}");
        let request = set_capabilities(&["background-snapshot", name], true);
        assert_eq!(raw.ask(&request), generic(&text), "{asked:?}: {name}");
    }
    assert_eq!(raw.ask(r#"{"execute":"query-migrate-capabilities"}"#), before, "nothing of it lasts");
}
