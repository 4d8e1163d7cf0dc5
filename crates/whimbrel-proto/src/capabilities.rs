//! Capabilities: QEMU's names in QEMU's order and after them whimbrel's own, the set of those that are on, and which go together.

use whimbrel_wire::qemu_texts;

macro_rules! capabilities {
    ($($(#[$doc:meta])* $variant:ident = $name:literal,)*) => {
        /// A migration capability, in the order of QEMU 10.0's enum (the order `query-migrate-capabilities` lists). Those that
        /// begin with `x-whimbrel-` are not QEMU's, and come last.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        #[repr(u8)]
        pub enum Capability {
            $($(#[$doc])* $variant,)*
        }

        impl Capability {
            /// Every capability, in enum order.
            pub const ALL: &[Self] = &[$(Self::$variant),*];

            /// The name QMP uses.
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)*
                }
            }
        }
    };
}

capabilities! {
    /// Delta encoding of pages sent again.
    Xbzrle = "xbzrle",
    /// RDMA only.
    RdmaPinAll = "rdma-pin-all",
    /// Throttle the vCPUs when the guest dirties too fast.
    AutoConverge = "auto-converge",
    /// Sparse zeroes of block migration; unused.
    ZeroBlocks = "zero-blocks",
    /// Emit MIGRATION and MIGRATION_PASS events on this side.
    Events = "events",
    /// Allow the switch to post-copy.
    PostcopyRam = "postcopy-ram",
    /// COLO.
    XColo = "x-colo",
    /// The source frees pages after sending them in post-copy.
    ReleaseRam = "release-ram",
    /// Open the return path.
    ReturnPath = "return-path",
    /// Wait in pre-switchover for `migrate-continue`.
    PauseBeforeSwitchover = "pause-before-switchover",
    /// Several channels for pages.
    Multifd = "multifd",
    /// Migrate named block dirty bitmaps.
    DirtyBitmaps = "dirty-bitmaps",
    /// Measure what post-copy blocked.
    PostcopyBlocktime = "postcopy-blocktime",
    /// Do not activate images while the restored guest is paused.
    LateBlockActivate = "late-block-activate",
    /// Leave out RAM that is shared by a named file.
    XIgnoreShared = "x-ignore-shared",
    /// Send the machine's UUID, for the destination to compare.
    ValidateUuid = "validate-uuid",
    /// Save a running guest as of one instant.
    BackgroundSnapshot = "background-snapshot",
    /// Send pages without copying them (MSG_ZEROCOPY).
    ZeroCopySend = "zero-copy-send",
    /// A channel of its own for requested pages.
    PostcopyPreempt = "postcopy-preempt",
    /// Switch over only when the destination has agreed.
    SwitchoverAck = "switchover-ack",
    /// Limit each vCPU's dirty rate by the dirty ring.
    DirtyLimit = "dirty-limit",
    /// RAM at fixed offsets of a file.
    MappedRam = "mapped-ram",
    /// The source sends digests of the tables that stand in guest RAM, for the destination to compare. On at both ends or none.
    TableDigest = "x-whimbrel-table-digest",
}

impl Capability {
    /// The capability with this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|capability| capability.name() == name)
    }

    /// whimbrel does what this capability asks for; the others are refused.
    pub fn is_built(self) -> bool {
        matches!(
            self,
            Self::Events
                | Self::ReturnPath
                | Self::PauseBeforeSwitchover
                | Self::SwitchoverAck
                | Self::ValidateUuid
                | Self::TableDigest
        )
    }

    fn bit(self) -> u32 {
        1u32.checked_shl(u32::from(self as u8)).unwrap_or(0)
    }
}

/// The circumstances that decide whether a set may be taken.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CapabilityContext {
    /// A migration is under way, out or in.
    pub migrating: bool,
    /// `migrate-incoming` (or `-incoming URI`) has begun.
    pub incoming_started: bool,
    /// KVM's dirty ring is in use.
    pub dirty_ring: bool,
    /// `tls-creds` is set.
    pub tls: bool,
    /// `multifd-compression` is something else than none.
    pub compression: bool,
}

/// The capabilities that are on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Capabilities(u32);

impl Capabilities {
    /// None is on.
    pub const NONE: Self = Self(0);

    /// Is it on?
    pub fn has(self, capability: Capability) -> bool {
        self.0 & capability.bit() != 0
    }

    /// Switches one.
    pub fn set(&mut self, capability: Capability, on: bool) {
        if on {
            self.0 |= capability.bit();
        } else {
            self.0 &= !capability.bit();
        }
    }

    /// The same with one more on.
    #[must_use]
    pub fn with(mut self, capability: Capability) -> Self {
        self.set(capability, true);
        self
    }

    /// Those that are on, in enum order.
    pub fn iter(self) -> impl Iterator<Item = Capability> {
        Capability::ALL.iter().copied().filter(move |&capability| self.has(capability))
    }

    /// May `new` replace `old`? The checks are QEMU 10.0's, on the complete new set, with its texts; then whimbrel's
    /// own: what is not built is refused, rather than accepted and not done.
    pub fn check(new: Self, old: Self, context: CapabilityContext) -> Result<(), String> {
        if context.migrating {
            return Err(qemu_texts::MIGRATION_IN_PROGRESS.into());
        }
        if context.incoming_started {
            let turned_on = |capability| new.has(capability) && !old.has(capability);
            if turned_on(Capability::Multifd) {
                return Err(qemu_texts::MULTIFD_BEFORE_INCOMING.into());
            }
            if turned_on(Capability::PostcopyPreempt) {
                return Err(qemu_texts::PREEMPT_BEFORE_INCOMING.into());
            }
        }
        new.conflicts(context)?;
        match new.iter().find(|capability| !capability.is_built()) {
            Some(capability) => Err(not_built(capability.name())),
            None => Ok(()),
        }
    }

    /// The first conflict within the set, with QEMU 10.0's text.
    pub fn conflicts(self, context: CapabilityContext) -> Result<(), String> {
        use Capability::*;
        let snapshot_conflict = SNAPSHOT_CONFLICTS.iter().find(|&&capability| self.has(capability));
        let zero_copy_possible =
            self.has(Multifd) && !self.has(Xbzrle) && !context.compression && !context.tls;
        let ack_needs_return_path = qemu_texts::capability_requires(SwitchoverAck.name(), ReturnPath.name());
        let rules: &[(bool, &str)] = &[
            (self.has(PostcopyRam) && self.has(XIgnoreShared), qemu_texts::POSTCOPY_IGNORE_SHARED),
            (self.has(PostcopyRam) && self.has(Multifd), qemu_texts::POSTCOPY_MULTIFD),
            (self.has(PostcopyPreempt) && !self.has(PostcopyRam), qemu_texts::PREEMPT_NEEDS_POSTCOPY),
            (self.has(ZeroCopySend) && !zero_copy_possible, qemu_texts::ZERO_COPY_ONLY),
            (self.has(Multifd) && self.has(Xbzrle), qemu_texts::MULTIFD_XBZRLE),
            (self.has(SwitchoverAck) && !self.has(ReturnPath), &ack_needs_return_path),
            (self.has(DirtyLimit) && self.has(AutoConverge), qemu_texts::DIRTY_LIMIT_AUTO_CONVERGE),
            (self.has(DirtyLimit) && !context.dirty_ring, qemu_texts::DIRTY_LIMIT_NEEDS_RING),
            (self.has(MappedRam) && self.has(Xbzrle), qemu_texts::MAPPED_RAM_XBZRLE),
            (self.has(MappedRam) && self.has(PostcopyRam), qemu_texts::MAPPED_RAM_POSTCOPY),
        ];
        if let (true, Some(other)) = (self.has(BackgroundSnapshot), snapshot_conflict) {
            return Err(qemu_texts::snapshot_incompatible(other.name()));
        }
        match rules.iter().find(|(broken, _)| *broken) {
            Some((_, text)) => Err((*text).into()),
            None => Ok(()),
        }
    }
}

impl FromIterator<Capability> for Capabilities {
    fn from_iter<I: IntoIterator<Item = Capability>>(capabilities: I) -> Self {
        capabilities.into_iter().fold(Self::NONE, Self::with)
    }
}

/// whimbrel's own: a capability of a feature that it doesn't have.
fn not_built(capability: &str) -> String {
    format!("Capability '{capability}' is not built into this whimbrel yet")
}

/// What a background snapshot can't be combined with, in the order in which QEMU tells it.
const SNAPSHOT_CONFLICTS: &[Capability] = &[
    Capability::PostcopyRam,
    Capability::DirtyBitmaps,
    Capability::PostcopyBlocktime,
    Capability::LateBlockActivate,
    Capability::ReturnPath,
    Capability::Multifd,
    Capability::PauseBeforeSwitchover,
    Capability::AutoConverge,
    Capability::ReleaseRam,
    Capability::RdmaPinAll,
    Capability::Xbzrle,
    Capability::XColo,
    Capability::ValidateUuid,
    Capability::ZeroCopySend,
];

#[cfg(test)]
mod tests {
    use super::Capability::*;
    use super::*;

    fn on(capabilities: &[Capability]) -> Capabilities {
        capabilities.iter().copied().collect()
    }

    #[test]
    fn names_come_in_the_order_of_qemu_10_and_then_our_own() {
        let names: Vec<_> = Capability::ALL.iter().map(|capability| capability.name()).collect();
        let (qemus, own) = names.split_at(22);
        assert_eq!(qemus[..3], ["xbzrle", "rdma-pin-all", "auto-converge"]);
        assert_eq!(qemus[19..], ["switchover-ack", "dirty-limit", "mapped-ram"]);
        assert!(own.iter().all(|name| name.starts_with("x-whimbrel-")) && !own.is_empty());
        for &capability in Capability::ALL {
            assert_eq!(Capability::from_name(capability.name()), Some(capability));
        }
        assert_eq!(Capability::from_name("compress"), None);
    }

    #[test]
    fn a_set_holds_exactly_what_was_put_in() {
        let mut set = on(&[Xbzrle, MappedRam]);
        assert_eq!(set.iter().collect::<Vec<_>>(), [Xbzrle, MappedRam]);
        set.set(Xbzrle, false);
        assert_eq!(set, on(&[MappedRam]));
        assert!(!set.has(Xbzrle));
    }

    #[test]
    fn conflicts_are_told_in_qemus_words() {
        let ring = CapabilityContext { dirty_ring: true, ..Default::default() };
        let none = CapabilityContext::default();
        let table: &[(&[Capability], CapabilityContext, &str)] = &[
            (&[PostcopyRam, XIgnoreShared], none, "Postcopy is not compatible with ignore-shared"),
            (&[PostcopyRam, Multifd], none, "Postcopy is not yet compatible with multifd"),
            (&[PostcopyPreempt], none, "Postcopy preempt requires postcopy-ram"),
            (&[Multifd, Xbzrle], none, "Multifd is not compatible with xbzrle"),
            (&[ZeroCopySend], none, "Zero copy only available for non-compressed non-TLS multifd migration"),
            (&[SwitchoverAck], none, "Capability 'switchover-ack' requires capability 'return-path'"),
            (
                &[DirtyLimit, AutoConverge],
                ring,
                "dirty-limit conflicts with auto-converge either of then available currently",
            ),
            (&[DirtyLimit], none, "dirty-limit requires KVM with accelerator property 'dirty-ring-size' set"),
            (&[MappedRam, Xbzrle], none, "Mapped-ram migration is incompatible with xbzrle"),
            (&[MappedRam, PostcopyRam], none, "Mapped-ram migration is incompatible with postcopy"),
            (
                &[BackgroundSnapshot, ReturnPath],
                none,
                "Background-snapshot is not compatible with return-path",
            ),
        ];
        for (set, context, text) in table {
            assert_eq!(Capabilities::check(on(set), Capabilities::NONE, *context), Err((*text).to_string()));
        }
    }

    #[test]
    fn zero_copy_needs_plain_multifd() {
        let set = on(&[ZeroCopySend, Multifd]);
        assert_eq!(set.conflicts(CapabilityContext::default()), Ok(()));
        for context in [
            CapabilityContext { tls: true, ..Default::default() },
            CapabilityContext { compression: true, ..Default::default() },
        ] {
            assert!(set.conflicts(context).is_err());
        }
    }

    #[test]
    fn what_is_not_built_is_refused_and_the_rest_taken() {
        let none = CapabilityContext::default();
        let built =
            on(&[Events, ReturnPath, PauseBeforeSwitchover, SwitchoverAck, ValidateUuid, TableDigest]);
        assert_eq!(Capabilities::check(built, Capabilities::NONE, none), Ok(()));
        assert_eq!(
            Capabilities::check(on(&[Events, Multifd]), Capabilities::NONE, none),
            Err("Capability 'multifd' is not built into this whimbrel yet".into())
        );
    }

    #[test]
    fn nothing_changes_during_a_migration() {
        let context = CapabilityContext { migrating: true, ..Default::default() };
        assert_eq!(
            Capabilities::check(on(&[Events]), Capabilities::NONE, context),
            Err("There's a migration process in progress".into())
        );
        let incoming = CapabilityContext { incoming_started: true, ..Default::default() };
        assert_eq!(
            Capabilities::check(on(&[Multifd]), Capabilities::NONE, incoming),
            Err("Multifd must be set before incoming starts".into())
        );
    }
}
