//! One boot for many tests: where ring 0 is emulated, QEMU's firmware runs for seconds before the guest does.
//!
//! ```text
//! first machine of a kind    boot ─▶ guest at work ─▶ saved by its own QEMU ─▶ ended
//! every machine of the kind                             └─▶ loaded by its own QEMU ─▶ guest at work
//! ```
//!
//! What is loaded is what that QEMU's firmware and that guest have made, through no code but QEMU's own. whimbrel boots a guest
//! at once, so there nothing is saved.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::sync::{Mutex, PoisonError};

use serde_json::json;

use crate::scratch::Scratch;
use crate::{Launch, Vm, moves, wait_for};

/// A guest at work, saved. The file has no name: it goes with the test process.
struct Saved {
    machine: Launch,
    stream: File,
}

static SAVED: Mutex<Vec<Saved>> = Mutex::new(Vec::new());

impl Launch {
    /// Starts it with its guest at work, by a boot of its own or another machine's. The guest writes `beacon: ready` only where
    /// it boots, and `query-migrate` tells of a machine that has loaded; further arguments must not make it another machine.
    ///
    /// # Panics
    /// With the program's own words, if it does not come up.
    #[track_caller]
    pub fn start_at_work(&self) -> Vm {
        if !self.peer.is_qemu() {
            return self.boot();
        }
        let uri = self.saved_at_work();
        let mut vm = self.incoming().start();
        moves::load(&mut vm, &uri, moves::LIMIT);
        wait_for("the guest to work on", moves::LIMIT, || (vm.heartbeat.count() > 0).then_some(()));
        vm
    }

    /// Where a machine of the kind finds its guest; saved there if none has needed it before.
    #[track_caller]
    fn saved_at_work(&self) -> String {
        let machine = Self { extra: Vec::new(), ..self.clone() };
        let mut all = SAVED.lock().unwrap_or_else(PoisonError::into_inner);
        let known = all.iter().position(|saved| saved.machine == machine);
        let index = known.unwrap_or_else(|| {
            let stream = machine.boot().save_away();
            all.push(Saved { machine, stream });
            all.len() - 1
        });
        format!("exec:cat /proc/{}/fd/{}", std::process::id(), all[index].stream.as_raw_fd())
    }

    /// Starts it, and waits until its guest has booted and works.
    ///
    /// # Panics
    /// With the program's own words, if it does not come up.
    #[track_caller]
    pub fn boot(&self) -> Vm {
        let mut vm = self.start();
        vm.wait_ready();
        vm
    }
}

impl Vm {
    /// Saves the guest, at work, into a file without a name.
    #[track_caller]
    fn save_away(mut self) -> File {
        let folder = Scratch::new("booted");
        let path = folder.join("stream");
        self.set(json!({"max-bandwidth": 1_u64 << 33}));
        moves::save(&mut self, &format!("exec:cat > {}", path.display()), moves::LIMIT);
        File::open(&path).expect("the stream was written")
    }
}
