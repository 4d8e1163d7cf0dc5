//! The KVM dirty ring: each vCPU has a ring into which KVM puts the pages that it writes. What a sync costs follows what was
//! written, not how much memory there is.
//!
//! ```text
//!           vCPU writes            harvest: marked            KVM_RESET_DIRTY_RINGS
//! protected ───────────▶ in a ring ───────────────▶ harvested ─────────────────────▶ protected
//!                                  └───── one step for whoever takes marks ────────┘
//! ```
//!
//! Harvest, mark and reset are one step under a lock. Could a sync take a mark before the reset, the page might be read, and
//! then be written once more before it is protected: that write would be seen by nobody. So every page that a sync reports is
//! protected again already, before it is read, and [`rearm`](DirtySource::rearm) has nothing to do. (A reset is of all rings: it
//! cannot wait for the chunk that is about to be read.)
//!
//! A ring that is full takes its vCPU out of the guest. That vCPU does what a sync does ([`KvmDirtyRings::collect`]) and goes on,
//! however slow the migration's thread is: the marks wait in bitmaps, which never fill up. It also does so when nobody tracks
//! any more, for a ring outlives the attempt that filled it.
//!
//! **What no ring sees.** Writes while no vCPU runs (an ITS that saves its tables) have no ring to go to; KVM keeps them in a
//! bitmap, where it has one (KVM_CAP_DIRTY_LOG_RING_WITH_BITMAP), and [`last_sync`](DirtySource::last_sync) reads it too. Host
//! writers are in their regions' own bitmaps, as ever.
//!
//! One of the named modules with `unsafe`: the rings are mapped, and KVM is asked by ioctl.

mod mapped;

use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex};

use vmm_sys_util::ioctl::ioctl_with_val;

use self::mapped::{ENTRY_BYTES, Ring, reset};
use super::{KvmSlot, abi, enable, read_log, set_logging};
use crate::bitmap::DirtyBitmap;
use crate::dirty::DirtySource;
use crate::lock;
use crate::memory::{PAGE_SIZE, RamBlock};

/// Which kernels have rings: those of x86 came first, those of aarch64 later, with their own capability.
const NO_RING: &str = if cfg!(target_arch = "aarch64") {
    "this host's KVM has none (no KVM_CAP_DIRTY_LOG_RING_ACQ_REL, which Linux has from 6.2 on); track writes by the bitmap"
} else {
    "this host's KVM has none (no KVM_CAP_DIRTY_LOG_RING, which Linux has from 5.11 on); track writes by the bitmap"
};
const NO_BITMAP: &str = "that of this host's KVM misses the tables of an ITS (no KVM_CAP_DIRTY_LOG_RING_WITH_BITMAP, which Linux has \
     from 6.2 on); track writes by the bitmap";

/// The dirty rings of a VM. They live as long as it does, whether writes are tracked or not.
pub struct KvmDirtyRings {
    vm: OwnedFd,
    entries: u32,
    /// KVM has a bitmap beside the rings.
    backup: bool,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// One a vCPU.
    rings: Vec<Ring>,
    /// Entries that were harvested and not reset: between two holders of the lock 0, unless KVM refused.
    harvested: u64,
    tracking: Option<Tracking>,
}

/// An attempt's share.
struct Tracking {
    slots: Vec<KvmSlot>,
    /// Harvested since the last sync, by block. All of it is protected again.
    marked: Vec<DirtyBitmap>,
    /// Why the log is worthless.
    failure: Option<String>,
}

impl KvmDirtyRings {
    /// Entries of a ring, if nothing else is known: a guest that writes 1 GiB/s fills one 64 times a second.
    pub const DEFAULT_ENTRIES: u32 = 4096;
    /// A smaller ring would be full all the time; KVM itself keeps several hundred entries in reserve.
    pub const MIN_ENTRIES: u32 = 1024;

    /// Gives each vCPU of `vm` a ring of `entries` entries, a power of two. To be called before the VM has a vCPU or a memory
    /// slot.
    ///
    /// # Errors
    /// [`io::ErrorKind::Unsupported`] if this host's KVM has no ring that sees every write, [`io::ErrorKind::InvalidInput`] if
    /// it has none of this size; each says so.
    pub fn enable(vm: BorrowedFd<'_>, entries: u32) -> io::Result<Self> {
        let offered = [abi::CAP_DIRTY_LOG_RING_ACQ_REL, abi::CAP_DIRTY_LOG_RING];
        let offered = offered.map(|cap| (cap, extension(vm, cap))).into_iter().find(|(_, bytes)| *bytes > 0);
        let Some((cap, max_bytes)) = offered else {
            return Err(unsupported(NO_RING));
        };
        let backup = extension(vm, abi::CAP_DIRTY_LOG_RING_WITH_BITMAP) > 0;
        if cfg!(target_arch = "aarch64") && !backup {
            return Err(unsupported(NO_BITMAP));
        }
        let max = max_bytes / ENTRY_BYTES;
        if !entries.is_power_of_two() || !(Self::MIN_ENTRIES..=max).contains(&entries) {
            let text =
                format!("{entries} entries: a power of two from {} to {max} is needed", Self::MIN_ENTRIES);
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        let refused = |error: io::Error| {
            io::Error::new(error.kind(), format!("KVM_ENABLE_CAP of the dirty ring: {error}"))
        };
        enable(vm, cap, u64::from(entries * ENTRY_BYTES)).map_err(refused)?;
        if backup {
            enable(vm, abi::CAP_DIRTY_LOG_RING_WITH_BITMAP, 0).map_err(refused)?;
        }
        Ok(Self { vm: vm.try_clone_to_owned()?, entries, backup, state: Mutex::default() })
    }

    /// Maps the ring of a vCPU; once for each, before it runs.
    ///
    /// # Errors
    /// If its descriptor cannot be mapped.
    pub fn add_vcpu(&self, vcpu: BorrowedFd<'_>) -> io::Result<()> {
        let ring = Ring::map(vcpu, self.entries)?;
        lock(&self.state).rings.push(ring);
        Ok(())
    }

    /// What a vCPU does that left the guest by KVM_EXIT_DIRTY_RING_FULL, before it enters it again: makes room. It waits for a
    /// sync that is under way, and for nothing else.
    ///
    /// # Errors
    /// If KVM does not take the entries back. The vCPU cannot go on.
    pub fn collect(&self) -> io::Result<()> {
        // Tests look for it: only then have they come this way.
        tracing::debug!("a dirty ring is full");
        self.empty(&mut lock(&self.state))
    }

    /// A dirty log over `slots`; `blocks` are the machine's, in its order. Nothing is tracked yet.
    pub fn log(self: &Arc<Self>, slots: Vec<KvmSlot>, blocks: &[RamBlock]) -> KvmRingLog {
        let words = slots.iter().map(KvmSlot::words).max().filter(|_| self.backup).unwrap_or(0);
        KvmRingLog { rings: self.clone(), slots, blocks: blocks.to_vec(), backup: vec![0; words], on: false }
    }

    /// Harvest, mark, reset.
    fn empty(&self, State { rings, harvested, tracking }: &mut State) -> io::Result<()> {
        for ring in rings {
            *harvested += ring.harvest(|slot, page| {
                if let Some(tracking) = tracking {
                    tracking.mark(slot, page);
                }
            });
        }
        let whole = *harvested == 0 || reset(self.vm.as_fd(), harvested)?;
        if let Some(tracking) = tracking.as_mut().filter(|_| !whole) {
            let text = "KVM_RESET_DIRTY_RINGS was interrupted: pages may be unprotected; migrate again";
            tracking.failure.get_or_insert_with(|| text.to_owned());
        }
        Ok(())
    }
}

impl Tracking {
    fn new(slots: &[KvmSlot], blocks: &[RamBlock]) -> Self {
        let marked = blocks.iter().map(|block| DirtyBitmap::empty(block.pages())).collect();
        Self { slots: slots.to_vec(), marked, failure: None }
    }

    fn mark(&mut self, slot: u32, page: u64) {
        let at = self.slots.iter().find(|at| at.slot == slot && page < at.len / PAGE_SIZE);
        match at {
            Some(at) => {
                self.marked[at.block].insert(at.offset / PAGE_SIZE + page);
            }
            None => {
                let text =
                    || format!("KVM's dirty ring has page {page:#x} of slot {slot}, which is not tracked");
                self.failure.get_or_insert_with(text);
            }
        }
    }
}

/// Dirty log of one VM, by its rings.
pub struct KvmRingLog {
    rings: Arc<KvmDirtyRings>,
    slots: Vec<KvmSlot>,
    blocks: Vec<RamBlock>,
    /// Where KVM writes its bitmap of a slot to; as long as the longest slot's. Empty if there is no such bitmap.
    backup: Vec<u64>,
    on: bool,
}

impl DirtySource for KvmRingLog {
    fn start(&mut self) -> io::Result<()> {
        for block in &self.blocks {
            block.forget_host_writes();
        }
        let tracking = &mut lock(&self.rings.state).tracking;
        if tracking.is_some() {
            return Err(io::Error::other("the dirty rings are read by another log"));
        }
        *tracking = Some(Tracking::new(&self.slots, &self.blocks));
        self.on = true;
        set_logging(self.rings.vm.as_fd(), &self.slots, true)
    }

    fn sync(&mut self, block: usize, into: &mut DirtyBitmap) -> io::Result<u64> {
        let mut new = 0;
        let mut state = lock(&self.rings.state);
        self.rings.empty(&mut state)?;
        let tracking = state.tracking.as_mut().filter(|_| self.on);
        let tracking = tracking.ok_or_else(|| io::Error::other("dirty tracking is off"))?;
        if let Some(failure) = &tracking.failure {
            return Err(io::Error::other(failure.clone()));
        }
        tracking.marked[block].drain_words(|index, bits| new += into.merge_word(index, bits));
        drop(state);
        new += self.blocks[block].take_host_writes(into);
        Ok(new)
    }

    fn last_sync(&mut self, block: usize, into: &mut DirtyBitmap) -> io::Result<u64> {
        let mut new = self.sync(block, into)?;
        if self.rings.backup {
            for slot in self.slots.iter().filter(|slot| slot.block == block) {
                // Reading it protects its pages again: manual protect is not on with a ring.
                read_log(self.rings.vm.as_fd(), slot, &mut self.backup)?;
                for (index, bits) in
                    self.backup[..slot.words()].iter().enumerate().filter(|(_, bits)| **bits != 0)
                {
                    new += into.merge_word(slot.first_word() + index, *bits);
                }
            }
        }
        Ok(new)
    }

    fn rearm(&mut self, _block: usize, _pages: Range<u64>) -> io::Result<()> {
        Ok(())
    }

    fn stop(&mut self) {
        if !std::mem::take(&mut self.on) {
            return;
        }
        if let Err(error) = set_logging(self.rings.vm.as_fd(), &self.slots, false) {
            tracing::warn!(%error, "dirty logging stays on: the guest runs on, more slowly");
        }
        // Nothing is put into the rings any more. What is left in them is of this attempt.
        let mut state = lock(&self.rings.state);
        state.tracking = None;
        if let Err(error) = self.rings.empty(&mut state) {
            tracing::warn!(%error, "the dirty rings are not empty");
        }
    }
}

/// What KVM says of a capability of this VM: 0 if it has it not.
fn extension(vm: BorrowedFd<'_>, cap: u32) -> u32 {
    // SAFETY: the argument is a number; KVM touches no memory of ours.
    let answer = unsafe { ioctl_with_val(&vm, abi::KVM_CHECK_EXTENSION(), cap.into()) };
    u32::try_from(answer).unwrap_or(0)
}

fn unsupported(text: &str) -> io::Error {
    io::Error::new(io::ErrorKind::Unsupported, text)
}
