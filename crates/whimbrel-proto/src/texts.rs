//! The texts that `migrate-set-capabilities` and `migrate-set-parameters` answer with. Those of QEMU 10.0 are quoted
//! word for word, because clients compare them.

/// Something is set while a migration runs.
pub(crate) const IN_PROGRESS: &str = "There's a migration process in progress";
/// `multifd` turned on too late.
pub(crate) const MULTIFD_BEFORE_INCOMING: &str = "Multifd must be set before incoming starts";
/// `postcopy-preempt` turned on too late.
pub(crate) const PREEMPT_BEFORE_INCOMING: &str = "Postcopy preempt must be set before incoming starts";
/// `postcopy-ram` with `x-ignore-shared`.
pub(crate) const POSTCOPY_IGNORE_SHARED: &str = "Postcopy is not compatible with ignore-shared";
/// `postcopy-ram` with `multifd`.
pub(crate) const POSTCOPY_MULTIFD: &str = "Postcopy is not yet compatible with multifd";
/// `postcopy-preempt` without `postcopy-ram`.
pub(crate) const PREEMPT_WITHOUT_POSTCOPY: &str = "Postcopy preempt requires postcopy-ram";
/// `multifd` with `xbzrle`.
pub(crate) const MULTIFD_XBZRLE: &str = "Multifd is not compatible with xbzrle";
/// `zero-copy-send` without plain multifd.
pub(crate) const ZERO_COPY: &str = "Zero copy only available for non-compressed non-TLS multifd migration";
/// `switchover-ack` without `return-path`.
pub(crate) const SWITCHOVER_ACK_WITHOUT_RETURN_PATH: &str =
    "Capability 'switchover-ack' requires capability 'return-path'";
/// `dirty-limit` with `auto-converge`.
pub(crate) const DIRTY_LIMIT_AUTO_CONVERGE: &str =
    "dirty-limit conflicts with auto-converge either of then available currently";
/// `dirty-limit` without the dirty ring.
pub(crate) const DIRTY_LIMIT_WITHOUT_RING: &str =
    "dirty-limit requires KVM with accelerator property 'dirty-ring-size' set";
/// `mapped-ram` with `xbzrle`.
pub(crate) const MAPPED_RAM_XBZRLE: &str = "Mapped-ram migration is incompatible with xbzrle";
/// `mapped-ram` with `postcopy-ram`.
pub(crate) const MAPPED_RAM_POSTCOPY: &str = "Mapped-ram migration is incompatible with postcopy";

/// `background-snapshot` with something it can't be combined with.
pub(crate) fn background_snapshot_conflict(other: &str) -> String {
    format!("Background-snapshot is not compatible with {other}")
}

/// A parameter out of its range: `expects` is QEMU's wording of the range. QEMU spells the name with underscores here.
pub(crate) fn out_of_range(name: &str, expects: &str) -> String {
    format!("Parameter '{name}' expects {expects}")
}

/// `vcpu-dirty-limit` of 0.
pub(crate) const VCPU_DIRTY_LIMIT: &str = "Parameter 'vcpu_dirty_limit' must be greater than 1 MB/s";

/// whimbrel's own: a capability of a feature that it doesn't have.
pub(crate) fn not_built(capability: &str) -> String {
    format!("Capability '{capability}' is not built into this whimbrel yet")
}

/// The destination's SHUT with an error.
pub(crate) fn sibling_error(value: u32) -> String {
    format!("Sibling indicated error {value}")
}
