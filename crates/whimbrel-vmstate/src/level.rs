//! The compatibility level: which QEMU's stream a state is written for, or was read from.
//!
//! The wire form of some sections differs between QEMU versions without any version number saying so (`globalstate`, the
//! description's `index` rule). Whoever saves, loads or describes states the level once, and every description can ask for it.

use std::fmt;
use std::str::FromStr;

/// A QEMU version whose stream we speak, oldest first. Comparisons read as "at least": `level >= Level::V9_0`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Level {
    /// QEMU 7.2 (Debian 12's own).
    V7_2,
    /// QEMU 9.0, the first with mapped-ram.
    V9_0,
    /// QEMU 10.0: switchover-start, the configuration in the description.
    #[default]
    V10_0,
}

impl Level {
    /// Every level, oldest first.
    pub const ALL: [Level; 3] = [Level::V7_2, Level::V9_0, Level::V10_0];

    /// The level's name as the user writes it: `7.2`, `9.0`, `10.0`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Level::V7_2 => "7.2",
            Level::V9_0 => "9.0",
            Level::V10_0 => "10.0",
        }
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for Level {
    type Err = UnknownLevel;

    fn from_str(text: &str) -> Result<Self, UnknownLevel> {
        Self::ALL.into_iter().find(|l| l.as_str() == text).ok_or_else(|| UnknownLevel(text.to_owned()))
    }
}

/// The text is no level's name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown compatibility level '{0}' (known: 7.2, 9.0, 10.0)")]
pub struct UnknownLevel(pub String);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_level_reads_back_from_its_name() {
        for level in Level::ALL {
            assert_eq!(level.to_string().parse(), Ok(level));
        }
        assert_eq!("7.20".parse::<Level>(), Err(UnknownLevel("7.20".into())));
        assert!(Level::V7_2 < Level::V9_0 && Level::V9_0 < Level::V10_0);
    }
}
