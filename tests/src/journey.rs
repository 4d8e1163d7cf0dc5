//! One guest that is never restarted, through machine after machine.
//!
//! ```text
//! Journey::start(guest) ─▶ hop(machine) ─▶ hop(machine) … ─▶ finish()
//!                            │ source killed once the destination beats      │ host's check of all RAM,
//!                            └ how long the guest was silent                 └ heartbeat through all machines
//! ```

use std::time::Duration;

use beacon::check::Report;
use beacon::heartbeat::{self, Stream, Summary};

use crate::{Launch, Vm, moves};

/// How long the guest works on each machine before it goes on.
const STAY: Duration = Duration::from_millis(300);

/// A guest on its way.
#[derive(Debug)]
pub struct Journey {
    here: Vm,
    /// What it beat on the machines it has left.
    left: Vec<Stream>,
}

impl Journey {
    /// From a machine with its guest at work.
    ///
    /// # Panics
    /// If it does not work.
    #[track_caller]
    pub fn start(mut here: Vm) -> Self {
        here.let_run(STAY);
        Self { here, left: Vec::new() }
    }

    /// Moves the guest to the same machine as `to` runs it, lets it work there, and ends the machine it left. Returns how
    /// long it was silent.
    ///
    /// # Panics
    /// If the move fails, the guest does not work on, or it has found something wrong.
    #[track_caller]
    pub fn hop(&mut self, to: &Launch) -> Duration {
        self.hop_by(to.incoming().start(), |source, destination| {
            moves::migrate(source, destination, moves::LIMIT);
        })
    }

    /// As [`hop`](Self::hop), to a machine that waits already, by a move of the test's own.
    #[track_caller]
    pub fn hop_by(&mut self, mut there: Vm, migrate: impl FnOnce(&mut Vm, &mut Vm)) -> Duration {
        migrate(&mut self.here, &mut there);
        assert_eq!(self.here.run_state(), "postmigrate");
        there.let_run(STAY);
        for vm in [&self.here, &there] {
            assert_eq!(vm.complaints(), [""; 0], "on {:?}", vm.launch.peer);
        }
        let mut source = std::mem::replace(&mut self.here, there);
        source.kill();
        let left = source.heartbeat.beats();
        let pair = heartbeat::summarise([&left, &self.here.heartbeat.beats()]);
        self.left.push(left);
        pair.hand_overs[0].length
    }

    /// The machine the guest is on.
    pub fn here(&mut self) -> &mut Vm {
        &mut self.here
    }

    /// Checks all memory, and that no beat was lost, repeated or overlapping anywhere on the way.
    ///
    /// # Panics
    /// If anything was.
    #[track_caller]
    pub fn finish(mut self) -> (Report, Summary) {
        let report = self.here.assert_clean();
        let summary = heartbeat::summarise(self.left.iter().chain([&self.here.heartbeat.beats()]));
        assert!(summary.is_whole(), "{:?}", summary.breaks);
        assert_eq!(summary.hand_overs.len(), self.left.len());
        (report, summary)
    }
}
