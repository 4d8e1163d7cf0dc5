//! RAM as a live-state handler: [`source`] sends what is dirty while the guest runs, [`destination`] puts it in place.

mod destination;
mod source;

use std::sync::Arc;

use whimbrel_wire::ram;

use crate::error::StreamError;
use crate::faults::Faults;
use crate::handlers::Priority;
use crate::live::{LiveDestination, LiveHandler, LiveSource, LiveState};
use crate::machine::Machine;
use crate::memory::RamBlock;

use destination::RamDestination;
use source::RamSource;

/// The RAM of a machine.
struct Ram {
    machine: Arc<dyn Machine>,
    faults: Faults,
}

impl LiveState for Ram {
    fn source(&self) -> Result<Box<dyn LiveSource>, StreamError> {
        let log = self.machine.dirty_source();
        let log = log.map_err(|error| StreamError::DirtyLog(std::io::Error::other(error.to_string())))?;
        Ok(Box::new(RamSource::new(self.machine.clone(), log, self.faults.clone())))
    }

    fn destination(&self) -> Result<Box<dyn LiveDestination + '_>, StreamError> {
        Ok(Box::new(RamDestination::new(&*self.machine)))
    }
}

/// What to register for the RAM of `machine`.
pub(crate) fn handler(machine: Arc<dyn Machine>, faults: Faults) -> LiveHandler {
    LiveHandler {
        idstr: ram::IDSTR.to_owned(),
        instance_id: 0,
        version_id: ram::SECTION_VERSION,
        priority: Priority::Default,
        state: Arc::new(Ram { machine, faults }),
    }
}

/// Bytes of all blocks.
pub(crate) fn total(machine: &dyn Machine) -> u64 {
    machine.ram().iter().map(RamBlock::len).sum()
}

/// Blocks in stream order: the longest first, as QEMU lists them.
fn stream_order(blocks: &[RamBlock]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..blocks.len()).collect();
    order.sort_by_key(|&index| std::cmp::Reverse(blocks[index].len()));
    order
}
