//! The comparison of devices' tables in guest RAM, `x-whimbrel-table-digest`: on at both ends of a move or at neither, since either
//! end refuses the other's stream if it alone has it.
//!
//! | what is known of the ends | while it moves | afterwards |
//! |---|---|---|
//! | both, and both have the capability | on | on if both had it on before, else off |
//! | both, and QEMU or an older whimbrel is among them | off | off |
//! | both, but it goes into a file, for whomever | off | as in the first row |
//! | the source only | as it is set there: whoever set it can set the other end | |
//!
//! After a move whose outcome is unknown nothing is touched: an end that still loads would refuse to change.

use whimbrel_qmp::QmpError;

use crate::monitor::Monitor;

const CAPABILITY: &str = "x-whimbrel-table-digest";

/// The capability as it was at both ends; `None` where the end has no such capability.
#[derive(Debug, Clone, Copy)]
pub(super) struct Comparison {
    source: Option<bool>,
    destination: Option<bool>,
}

impl Comparison {
    /// Asks both ends.
    pub(super) fn of(source: &mut Monitor, destination: &mut Monitor) -> Result<Self, QmpError> {
        Ok(Self { source: source.capability(CAPABILITY)?, destination: destination.capability(CAPABILITY)? })
    }

    /// Whether both ends have it, on or off.
    pub(super) fn is_common(self) -> bool {
        self.source.is_some() && self.destination.is_some()
    }

    /// Switches it at both ends, as far as they have it.
    pub(super) fn set(
        self,
        source: &mut Monitor,
        destination: &mut Monitor,
        on: bool,
    ) -> Result<(), QmpError> {
        set(destination, self.destination, on)?;
        set(source, self.source, on)
    }

    /// On if both had it on before, else off. An end that is gone needs nothing.
    pub(super) fn restore(self, source: &mut Monitor, destination: &mut Monitor) {
        let before = self.source == Some(true) && self.destination == Some(true);
        let _gone = set(destination, self.destination, before);
        let _gone = set(source, self.source, before);
    }

    /// For a person who is told that a move begins.
    pub(super) fn text(self) -> &'static str {
        match (self.source, self.destination) {
            (Some(_), Some(_)) => "; tables in guest RAM are compared",
            (Some(_), None) => "; tables in guest RAM are not compared: the destination cannot",
            (None, Some(_)) => "; tables in guest RAM are not compared: the source cannot",
            (None, None) => "",
        }
    }
}

/// Whether a source whose destination nobody asked has it on; and the word on it for a person.
pub(super) fn of_source_alone(source: &mut Monitor) -> Result<(bool, &'static str), QmpError> {
    Ok(match source.capability(CAPABILITY)? {
        Some(true) => (true, "; tables in guest RAM are compared, as set at the source"),
        Some(false) => (false, "; tables in guest RAM are not compared: that needs --destination"),
        None => (false, ""),
    })
}

fn set(monitor: &mut Monitor, was: Option<bool>, on: bool) -> Result<(), QmpError> {
    if was.is_some() { monitor.set_capability(CAPABILITY, on) } else { Ok(()) }
}
