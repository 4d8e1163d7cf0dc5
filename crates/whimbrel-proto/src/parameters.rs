//! Parameters: QEMU 10.0's names, types, defaults and ranges, each listed once.
//!
//! [`ParametersPatch`] is what `migrate-set-parameters` gives: any subset. [`Parameters::apply`] checks the whole and
//! answers with QEMU's texts. Parameters of features that are not built are stored and checked all the same.

use std::ops::RangeInclusive;
use std::time::Duration;

use whimbrel_wire::qemu_texts;

/// QEMU's smallest page; `xbzrle-cache-size` may not be less.
const TARGET_PAGE_SIZE: u64 = 4096;

macro_rules! parameters {
    ($($(#[$doc:meta])* $field:ident: $type:ty = $default:expr, $name:literal;)*) => {
        /// Every parameter's value.
        #[derive(Debug, Clone, PartialEq)]
        pub struct Parameters {
            $($(#[$doc])* pub $field: $type,)*
        }

        impl Default for Parameters {
            fn default() -> Self {
                Self { $($field: $default,)* }
            }
        }

        /// Parameters to change; `None` leaves one as it is.
        #[derive(Debug, Clone, Default, PartialEq)]
        pub struct ParametersPatch {
            $($(#[$doc])* pub $field: Option<$type>,)*
        }

        impl Parameters {
            /// Every name, as QMP spells it.
            pub const NAMES: &[&str] = &[$($name),*];

            /// These parameters with the patch's in place, unchecked.
            fn patched(&self, patch: ParametersPatch) -> Self {
                Self { $($field: patch.$field.unwrap_or_else(|| self.$field.clone()),)* }
            }
        }
    };
}

parameters! {
    /// Milliseconds before the first self-announce.
    announce_initial: u64 = 50, "announce-initial";
    /// Most milliseconds between self-announces.
    announce_max: u64 = 550, "announce-max";
    /// Self-announces to send.
    announce_rounds: u64 = 5, "announce-rounds";
    /// Milliseconds by which the delay between self-announces grows.
    announce_step: u64 = 100, "announce-step";
    /// Percent of what was transferred that must be dirtied to count as not converging.
    throttle_trigger_threshold: u8 = 50, "throttle-trigger-threshold";
    /// Percent of the first throttling.
    cpu_throttle_initial: u8 = 20, "cpu-throttle-initial";
    /// Percent by which throttling grows.
    cpu_throttle_increment: u8 = 10, "cpu-throttle-increment";
    /// Make throttling grow more slowly towards its end.
    cpu_throttle_tailslow: bool = false, "cpu-throttle-tailslow";
    /// TLS credentials object; empty is none.
    tls_creds: String = String::new(), "tls-creds";
    /// The name to verify the peer's certificate against.
    tls_hostname: String = String::new(), "tls-hostname";
    /// Authorization object for clients' certificates.
    tls_authz: String = String::new(), "tls-authz";
    /// Bytes per second; 0 is no limit.
    max_bandwidth: u64 = 128 << 20, "max-bandwidth";
    /// Bytes per second to count on in the switchover; 0 counts on what was measured.
    avail_switchover_bandwidth: u64 = 0, "avail-switchover-bandwidth";
    /// Milliseconds that the guest may stand still.
    downtime_limit: u64 = 300, "downtime-limit";
    /// Milliseconds between COLO checkpoints.
    x_checkpoint_delay: u32 = 20_000, "x-checkpoint-delay";
    /// Channels for pages.
    multifd_channels: u8 = 2, "multifd-channels";
    /// Compression of those channels.
    multifd_compression: MultifdCompression = MultifdCompression::None, "multifd-compression";
    /// Level of zlib.
    multifd_zlib_level: u8 = 1, "multifd-zlib-level";
    /// Level of QATzip.
    multifd_qatzip_level: u8 = 1, "multifd-qatzip-level";
    /// Level of zstd.
    multifd_zstd_level: u8 = 1, "multifd-zstd-level";
    /// Bytes of the cache of sent pages.
    xbzrle_cache_size: u64 = 64 << 20, "xbzrle-cache-size";
    /// Bytes per second of the background in post-copy; 0 is no limit.
    max_postcopy_bandwidth: u64 = 0, "max-postcopy-bandwidth";
    /// Percent that throttling may reach.
    max_cpu_throttle: u8 = 99, "max-cpu-throttle";
    /// Names of block nodes and their dirty bitmaps on the wire; `None` sends the real ones.
    block_bitmap_mapping: Option<Vec<BitmapNode>> = None, "block-bitmap-mapping";
    /// Milliseconds between controls of the vCPUs' dirty rate.
    x_vcpu_dirty_limit_period: u64 = 1000, "x-vcpu-dirty-limit-period";
    /// MB/s that each vCPU may dirty.
    vcpu_dirty_limit: u64 = 1, "vcpu-dirty-limit";
    /// What kind of migration.
    mode: MigrationMode = MigrationMode::Normal, "mode";
    /// Who looks for zero pages.
    zero_page_detection: ZeroPageDetection = ZeroPageDetection::Multifd, "zero-page-detection";
    /// Bypass the page cache.
    direct_io: bool = false, "direct-io";
}

impl Parameters {
    /// The downtime limit as a time.
    pub fn downtime_limit(&self) -> Duration {
        Duration::from_millis(self.downtime_limit)
    }

    /// These parameters with the patch's in place, or QEMU's text for the first that is out of range.
    pub fn apply(&self, patch: ParametersPatch) -> Result<Self, String> {
        let new = self.patched(patch);
        new.check()?;
        Ok(new)
    }

    fn check(&self) -> Result<(), String> {
        let percent = 1..=99;
        let throttle = self.cpu_throttle_initial..=99;
        let cache_fits =
            self.xbzrle_cache_size >= TARGET_PAGE_SIZE && self.xbzrle_cache_size.is_power_of_two();
        within(self.throttle_trigger_threshold, 1..=100, "throttle_trigger_threshold", INTEGER)?;
        holds(percent.contains(&self.cpu_throttle_initial), qemu_texts::CPU_THROTTLE_INITIAL_RANGE)?;
        within(self.cpu_throttle_increment, 1..=99, "cpu_throttle_increment", INTEGER)?;
        holds(self.downtime_limit <= 2_000_000, qemu_texts::DOWNTIME_LIMIT_RANGE)?;
        holds(self.multifd_channels >= 1, qemu_texts::MULTIFD_CHANNELS_RANGE)?;
        within(self.multifd_zlib_level, 0..=9, "multifd_zlib_level", VALUE)?;
        within(self.multifd_qatzip_level, 1..=9, "multifd_qatzip_level", VALUE)?;
        within(self.multifd_zstd_level, 0..=20, "multifd_zstd_level", VALUE)?;
        holds(cache_fits, qemu_texts::XBZRLE_CACHE_SIZE_RANGE)?;
        holds(throttle.contains(&self.max_cpu_throttle), qemu_texts::MAX_CPU_THROTTLE_RANGE)?;
        within(self.announce_initial, 0..=100_000, "announce_initial", VALUE)?;
        within(self.announce_max, 0..=100_000, "announce_max", VALUE)?;
        within(self.announce_rounds, 0..=1000, "announce_rounds", VALUE)?;
        // QEMU refuses 0 with a text that allows it.
        let step = if self.announce_step == 0 { u64::MAX } else { self.announce_step };
        within(step, 0..=10_000, "announce_step", VALUE)?;
        within(self.x_vcpu_dirty_limit_period, 1..=1000, "x-vcpu-dirty-limit-period", VALUE)?;
        holds(self.vcpu_dirty_limit >= 1, qemu_texts::VCPU_DIRTY_LIMIT_RANGE)
    }
}

/// The two ways in which QEMU words a range.
const INTEGER: [&str; 2] = ["an integer in the range of", "to"];
const VALUE: [&str; 2] = ["a value between", "and"];

fn within<T: Into<u64>>(
    value: T,
    range: RangeInclusive<u64>,
    name: &str,
    [expects, to]: [&str; 2],
) -> Result<(), String> {
    if range.contains(&value.into()) {
        return Ok(());
    }
    let range = format!("{expects} {} {to} {}", range.start(), range.end());
    Err(qemu_texts::parameter_type(name, &range))
}

fn holds(fits: bool, text: &str) -> Result<(), String> {
    if fits { Ok(()) } else { Err(text.into()) }
}

macro_rules! names {
    ($(#[$outer:meta])* $enum:ident { $($(#[$doc:meta])* $variant:ident = $name:literal,)* }) => {
        $(#[$outer])*
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum $enum {
            $($(#[$doc])* $variant,)*
        }

        impl $enum {
            /// Every value.
            pub const ALL: &[Self] = &[$(Self::$variant),*];

            /// The name QMP uses.
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)*
                }
            }

            /// The value with this name.
            pub fn from_name(name: &str) -> Option<Self> {
                Self::ALL.iter().copied().find(|value| value.name() == name)
            }
        }
    };
}

names! {
    /// How multifd channels compress.
    MultifdCompression {
        /// Not at all.
        #[default]
        None = "none",
        /// By zlib.
        Zlib = "zlib",
        /// By zstd.
        Zstd = "zstd",
    }
}

names! {
    /// What kind of migration.
    MigrationMode {
        /// Live.
        #[default]
        Normal = "normal",
        /// To a file or so, over a reboot of the host.
        CprReboot = "cpr-reboot",
        /// To another process of the host, which takes over the memory.
        CprTransfer = "cpr-transfer",
    }
}

names! {
    /// Who looks for zero pages.
    ZeroPageDetection {
        /// Nobody: zero pages are sent as any other.
        None = "none",
        /// The migration thread.
        Legacy = "legacy",
        /// The multifd threads.
        #[default]
        Multifd = "multifd",
    }
}

/// A block node's name on the wire.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BitmapNode {
    /// Here.
    pub node_name: String,
    /// On the wire.
    pub alias: String,
    /// Its bitmaps.
    pub bitmaps: Vec<BitmapAlias>,
}

/// A dirty bitmap's name on the wire.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BitmapAlias {
    /// Here.
    pub name: String,
    /// On the wire.
    pub alias: String,
    /// Make it persistent (or not) at the destination.
    pub persistent: Option<bool>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(patch: ParametersPatch) -> String {
        Parameters::default().apply(patch).unwrap_err()
    }

    #[test]
    fn the_defaults_are_qemus_and_pass_their_own_checks() {
        let defaults = Parameters::default();
        assert_eq!(defaults.max_bandwidth, 134_217_728);
        assert_eq!(defaults.xbzrle_cache_size, 67_108_864);
        assert_eq!((defaults.downtime_limit, defaults.multifd_channels), (300, 2));
        assert_eq!(defaults.zero_page_detection.name(), "multifd");
        assert_eq!(defaults.apply(ParametersPatch::default()), Ok(Parameters::default()));
        assert_eq!(Parameters::NAMES.len(), 29);
    }

    #[test]
    fn a_patch_changes_what_it_names_and_nothing_else() {
        let patch = ParametersPatch {
            downtime_limit: Some(5),
            block_bitmap_mapping: Some(Some(Vec::new())),
            ..Default::default()
        };
        let new = Parameters::default().apply(patch).unwrap();
        let expected =
            Parameters { downtime_limit: 5, block_bitmap_mapping: Some(Vec::new()), ..Default::default() };
        assert_eq!(new, expected);
    }

    #[test]
    fn values_out_of_range_are_refused_in_qemus_words() {
        macro_rules! text {
            ($field:ident: $value:expr) => {
                refused(ParametersPatch { $field: Some($value), ..Default::default() })
            };
        }
        assert_eq!(
            text!(downtime_limit: 2_000_001),
            "Parameter 'downtime_limit' expects an integer in the range of 0 to (2000 * 1000) ms"
        );
        assert_eq!(
            text!(multifd_channels: 0),
            "Parameter 'multifd_channels' expects a value between 1 and 255"
        );
        for size in [0, 2048, 12_288] {
            assert_eq!(
                text!(xbzrle_cache_size: size),
                "Parameter 'xbzrle_cache_size' expects a power of two no less than the target page size"
            );
        }
        assert_eq!(
            text!(cpu_throttle_initial: 0),
            "Parameter 'cpu_throttle_initial' expects an integer in the range of 1 to 99"
        );
        assert_eq!(
            text!(max_cpu_throttle: 19),
            "Parameter 'max_cpu_throttle' expects an integer in the range of cpu_throttle_initial to 99"
        );
        assert_eq!(text!(vcpu_dirty_limit: 0), "Parameter 'vcpu_dirty_limit' must be greater than 1 MB/s");
        assert_eq!(text!(announce_step: 0), "Parameter 'announce_step' expects a value between 0 and 10000");
        for refused in [
            text!(announce_initial: 100_001),
            text!(announce_max: 100_001),
            text!(announce_rounds: 1001),
            text!(throttle_trigger_threshold: 101),
            text!(cpu_throttle_increment: 100),
            text!(multifd_zlib_level: 10),
            text!(multifd_zstd_level: 21),
            text!(multifd_qatzip_level: 0),
            text!(x_vcpu_dirty_limit_period: 0),
        ] {
            assert!(refused.starts_with("Parameter '"), "{refused}");
        }
    }

    #[test]
    fn the_ends_of_every_range_are_taken() {
        let patch = ParametersPatch {
            downtime_limit: Some(2_000_000),
            multifd_channels: Some(255),
            xbzrle_cache_size: Some(4096),
            cpu_throttle_initial: Some(99),
            announce_step: Some(10_000),
            max_bandwidth: Some(u64::MAX),
            ..Default::default()
        };
        assert!(Parameters::default().apply(patch).is_ok());
    }

    #[test]
    fn names_of_values_are_read_back() {
        assert_eq!(MultifdCompression::from_name("lz4"), None);
        for &value in MigrationMode::ALL {
            assert_eq!(MigrationMode::from_name(value.name()), Some(value));
        }
    }
}
