//! `globalstate`: the run state the guest had before it was stopped for the switchover, by name. Always the last section.
//!
//! | level | bytes |
//! |---|---|
//! | below 10.0 | be32 length of the name + 1, name in 100 bytes, NUL-padded |
//! | 10.0 | be32 length, name in 32 bytes, `has_vm_was_suspended` 1, `vm_was_suspended`, 66 zeros |
//!
//! Both are 104 bytes and read each other.

use whimbrel_proto::run_state::RunState;
use whimbrel_vmstate::{Level, Result, Visitor, VmState, Vmsd};

/// The section.
pub(crate) const IDSTR: &str = "globalstate";

const NAME: usize = 100;
const NAME_10_0: usize = 32;

/// The section's content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GlobalState {
    size: u32,
    name: [u8; NAME],
}

impl Default for GlobalState {
    fn default() -> Self {
        Self { size: 0, name: [0; NAME] }
    }
}

impl GlobalState {
    /// For a guest that was in `state`.
    pub fn new(state: RunState) -> Self {
        let mut this = Self { size: state.name().len() as u32 + 1, ..Self::default() };
        this.name[..state.name().len()].copy_from_slice(state.name().as_bytes());
        this
    }

    /// The state it names.
    ///
    /// # Errors
    /// The text, if it is the name of no run state.
    pub fn run_state(&self) -> std::result::Result<RunState, String> {
        let end = self.name[..NAME_10_0].iter().position(|byte| *byte == 0).unwrap_or(NAME_10_0);
        let name = String::from_utf8_lossy(&self.name[..end]);
        RunState::from_name(&name).ok_or_else(|| format!("'{name}' is no run state"))
    }
}

impl VmState for GlobalState {
    fn vmsd(&self) -> Vmsd {
        Vmsd::new(IDSTR, 1)
    }

    fn fields(&mut self, v: &mut dyn Visitor) -> Result<()> {
        v.u32("size", &mut self.size)?;
        if v.level() < Level::V10_0 {
            return v.buffer("runstate", &mut self.name);
        }
        let (name, rest) = self.name.split_at_mut(NAME_10_0);
        v.buffer("runstate", name)?;
        let (mut has_suspended, mut suspended) = (1, u8::from(name.starts_with(b"suspended\0")));
        v.u8("has_vm_was_suspended", &mut has_suspended)?;
        v.u8("vm_was_suspended", &mut suspended)?;
        v.buffer("unused", &mut rest[2..])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use whimbrel_vmstate::{SectionName, load_body, save};
    use whimbrel_wire::Output;

    #[test]
    fn every_state_arrives_across_levels() {
        let name = SectionName::new(IDSTR, 0);
        for state in RunState::ALL {
            for (from, to) in
                [(Level::V7_2, Level::V10_0), (Level::V10_0, Level::V7_2), (Level::V10_0, Level::V10_0)]
            {
                let mut out = Output::new();
                save(&name, &mut GlobalState::new(state), from, &mut out).unwrap();
                assert_eq!(out.len(), 104);
                let mut loaded = GlobalState::default();
                load_body(&name, &mut loaded, 1, out.as_slice(), 0, to).unwrap();
                assert_eq!(loaded.run_state(), Ok(state));
            }
        }
    }

    #[test]
    fn an_unknown_state_is_named() {
        let mut state = GlobalState::default();
        state.name[..5].copy_from_slice(b"bogus");
        assert_eq!(state.run_state(), Err("'bogus' is no run state".into()));
    }
}
