//! CPU models by name, in QEMU's spelling: `host`, `qemu64`, and what is added or taken away.

use std::fmt;
use std::str::FromStr;

use super::features;

/// A CPU model. `Default` is `host,pmu=off`: a guest that counts events by AMD's counters could not be moved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CpuModel {
    /// Where it begins.
    pub(super) base: Base,
    /// Features added or taken away, in the order given: word, bits, added.
    pub(super) changes: Vec<(usize, u32, bool)>,
    /// A feature that the host lacks is an error, not a warning.
    pub(super) enforce: bool,
    /// Performance counters; `None`: as the model has it.
    pub(super) pmu: Option<bool>,
    /// As it was given.
    text: String,
}

/// A model's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Base {
    /// All that this host can give.
    Host,
    /// QEMU's lowest 64-bit CPU, the same on every host.
    Qemu64,
}

impl CpuModel {
    /// Whether the guest gets performance counters.
    pub(crate) fn pmu(&self) -> bool {
        self.pmu.unwrap_or(self.base == Base::Host)
    }
}

impl Default for CpuModel {
    fn default() -> Self {
        let text = "host,pmu=off".to_owned();
        Self { base: Base::Host, changes: Vec::new(), enforce: false, pmu: Some(false), text }
    }
}

impl FromStr for CpuModel {
    type Err = String;

    /// `host` or `qemu64`, then `,+feature`, `,-feature`, `,feature=on|off`, `,enforce`, `,pmu=on|off`.
    fn from_str(text: &str) -> Result<Self, String> {
        let mut parts = text.split(',');
        let base = match parts.next() {
            Some("host") => Base::Host,
            Some("qemu64") => Base::Qemu64,
            other => return Err(format!("no CPU model '{}': host or qemu64", other.unwrap_or_default())),
        };
        let mut model = Self { base, changes: Vec::new(), enforce: false, pmu: None, text: text.to_owned() };
        for part in parts {
            let (name, on) = switch(part)?;
            match name {
                "enforce" => model.enforce = on,
                "pmu" => model.pmu = Some(on),
                name => {
                    // QEMU takes the underscores of its older spelling too.
                    let (word, bits) = features::find(&name.replace('_', "-"))
                        .ok_or_else(|| format!("no CPU feature '{name}' that a guest could be moved with"))?;
                    model.changes.push((word, bits, on));
                }
            }
        }
        Ok(model)
    }
}

impl fmt::Display for CpuModel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// `+name`, `-name`, `name`, `name=on`, `name=off`.
fn switch(part: &str) -> Result<(&str, bool), String> {
    if let Some(name) = part.strip_prefix('+') {
        return Ok((name, true));
    }
    if let Some(name) = part.strip_prefix('-') {
        return Ok((name, false));
    }
    match part.split_once('=') {
        None => Ok((part, true)),
        Some((name, "on")) => Ok((name, true)),
        Some((name, "off")) => Ok((name, false)),
        Some((name, other)) => Err(format!("'{name}={other}': on or off")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn qemus_spellings_are_read() {
        let model: CpuModel = "qemu64,+sse4.1,-pni,tsc_deadline=on,enforce,pmu=off".parse().unwrap();
        assert_eq!(model.changes, [(1, 1 << 19, true), (1, 1, false), (1, 1 << 24, true)]);
        assert!(model.enforce && !model.pmu());
        assert!("host".parse::<CpuModel>().unwrap().pmu(), "as in QEMU");
        let default = CpuModel::default();
        assert_eq!(default.to_string().parse(), Ok(default));
        assert_eq!(model.to_string(), "qemu64,+sse4.1,-pni,tsc_deadline=on,enforce,pmu=off");
    }

    #[test]
    fn what_is_not_known_is_named() {
        let refused = |text: &str| text.parse::<CpuModel>().unwrap_err();
        assert!(refused("Skylake-Server").contains("Skylake-Server"));
        assert!(refused("host,+svm").contains("'svm'"));
        assert!(refused("host,pmu=maybe").contains("pmu=maybe"));
    }
}
