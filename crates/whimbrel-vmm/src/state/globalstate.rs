//! `globalstate`: the run state the VM had before it was stopped for the switchover.

use whimbrel_vmstate::{Intent, Level, Result, Visitor, VmState, Vmsd};

/// Room for the name in 7.2, all in all.
const ROOM: usize = 100;
/// Room for the name since 9.0; what it left of the rest is used otherwise.
const NAME: usize = 32;

/// The run state to go on with. 104 bytes: the name's length with its NUL, then
///
/// | level | |
/// |---|---|
/// | 7.2 | name\[100\] |
/// | 9.0, 10.0 | name\[32\], u8 1, u8 `vm_was_suspended`, 66 zeros |
///
/// Each reads the other's: behind the NUL 7.2 looks at nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GlobalState {
    /// QEMU's name: `running`, `prelaunch`, `paused`… Whether there is such a state is for the run-state machine to say.
    pub run_state: String,
    /// Whether the guest was suspended before; `None` when the sender doesn't say (7.2).
    pub was_suspended: Option<bool>,
}

impl VmState for GlobalState {
    fn vmsd(&self) -> Vmsd {
        Vmsd::new("globalstate", 1)
    }

    fn fields(&mut self, v: &mut dyn Visitor) -> Result<()> {
        if self.run_state.len() >= NAME {
            return Err(v.refuse("runstate", format!("'{}' is no run state", self.run_state)));
        }
        let mut size = self.run_state.len() as u32 + 1;
        let mut room = [0; ROOM];
        room[..self.run_state.len()].copy_from_slice(self.run_state.as_bytes());
        v.u32("size", &mut size)?;
        if v.level() < Level::V9_0 {
            v.buffer("runstate", &mut room)?;
        } else {
            let (name, rest) = room.split_at_mut(NAME);
            let [has_was_suspended, was_suspended, unused @ ..] = rest else { return Ok(()) };
            *has_was_suspended = 1;
            *was_suspended = self.was_suspended.unwrap_or_default().into();
            v.buffer("runstate", name)?;
            v.u8("has_vm_was_suspended", has_was_suspended)?;
            v.u8("vm_was_suspended", was_suspended)?;
            v.buffer("unused", unused)?;
        }
        if v.intent() == Intent::Load {
            let name = room[..NAME].split(|byte| *byte == 0).next().unwrap_or_default();
            let known =
                std::str::from_utf8(name).ok().filter(|name| name.len() as u64 + 1 == u64::from(size));
            self.run_state =
                known.ok_or_else(|| v.refuse("runstate", "not a name of its length"))?.to_owned();
            let says = v.level() >= Level::V9_0 && room[NAME] != 0;
            self.was_suspended = says.then_some(room[NAME + 1] != 0);
        }
        Ok(())
    }
}
