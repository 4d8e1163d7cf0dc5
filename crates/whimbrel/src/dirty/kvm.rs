//! The KVM dirty bitmap, with manual protect: `sync` reads the log without re-arming it, `rearm` write-protects a range
//! again just before its pages are read, so a page written many times meanwhile is sent once.
//!
//! Also gathers what host-side writers put into the regions' own bitmaps: loaders, devices, DMA.

mod abi;
pub mod ring;

use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use self::abi::*;
use super::DirtySource;
use crate::bitmap::DirtyBitmap;
use crate::memory::{PAGE_SIZE, RamBlock};
use vmm_sys_util::ioctl::{ioctl_with_mut_ref, ioctl_with_ref};

/// A KVM memory slot and the part of a RAM block it maps.
#[derive(Debug, Clone, Copy)]
pub struct KvmSlot {
    /// KVM's number of it.
    pub slot: u32,
    /// Index of the block in [`Machine::ram`](crate::machine::Machine::ram).
    pub block: usize,
    /// Where it starts in the block, bytes.
    pub offset: u64,
    /// Its length, bytes.
    pub len: u64,
    /// Guest-physical address.
    pub gpa: u64,
    /// Where it is mapped in this process.
    pub userspace_addr: u64,
    /// KVM flags it has beside dirty logging (KVM_MEM_READONLY).
    pub flags: u32,
}

impl KvmSlot {
    /// Words of a bitmap with one bit a page of it.
    fn words(&self) -> usize {
        (self.len / PAGE_SIZE).div_ceil(64) as usize
    }

    /// The word of its block's bitmap at which its own begins.
    fn first_word(&self) -> usize {
        (self.offset / PAGE_SIZE / 64) as usize
    }
}

/// Dirty log of one VM.
pub struct KvmDirtyLog {
    vm: OwnedFd,
    slots: Vec<Slot>,
    blocks: Vec<RamBlock>,
    manual: bool,
}

struct Slot {
    at: KvmSlot,
    /// Harvested and not yet re-armed, one bit a page of the slot.
    harvested: Vec<u64>,
    /// Where KVM writes the log to; as long as the slot's.
    log: Vec<u64>,
}

impl KvmDirtyLog {
    /// Asks KVM for manual protect; once, right after the VM was created. Whether it has it.
    pub fn enable_manual_protect(vm: BorrowedFd<'_>) -> bool {
        enable(vm, CAP_MANUAL_DIRTY_LOG_PROTECT2, MANUAL_PROTECT_ENABLE).is_ok()
    }

    /// A log over `slots` of `vm`. `blocks` are the machine's, in its order. `manual`: what
    /// [`enable_manual_protect`](Self::enable_manual_protect) said.
    ///
    /// # Errors
    /// If the file descriptor cannot be duplicated.
    pub fn new(
        vm: BorrowedFd<'_>,
        slots: Vec<KvmSlot>,
        blocks: &[RamBlock],
        manual: bool,
    ) -> io::Result<Self> {
        let slots = slots
            .into_iter()
            .map(|at| {
                let words = at.words();
                Slot { at, harvested: vec![0; words], log: vec![0; words] }
            })
            .collect();
        Ok(Self { vm: vm.try_clone_to_owned()?, slots, blocks: blocks.to_vec(), manual })
    }
}

impl DirtySource for KvmDirtyLog {
    fn start(&mut self) -> io::Result<()> {
        for block in &self.blocks {
            block.forget_host_writes();
        }
        set_logging(self.vm.as_fd(), self.slots.iter().map(|slot| &slot.at), true)
    }

    fn sync(&mut self, block: usize, into: &mut DirtyBitmap) -> io::Result<u64> {
        let mut new = 0;
        for slot in self.slots.iter_mut().filter(|slot| slot.at.block == block) {
            read_log(self.vm.as_fd(), &slot.at, &mut slot.log)?;
            let first = slot.at.first_word();
            for (index, bits) in slot.log.iter().enumerate().filter(|(_, bits)| **bits != 0) {
                slot.harvested[index] |= bits;
                new += into.merge_word(first + index, *bits);
            }
        }
        new += self.blocks[block].take_host_writes(into);
        Ok(new)
    }

    fn rearm(&mut self, block: usize, pages: Range<u64>) -> io::Result<()> {
        if !self.manual {
            return Ok(());
        }
        for slot in self.slots.iter_mut().filter(|slot| slot.at.block == block) {
            let first = slot.at.offset / PAGE_SIZE;
            let end = first + slot.at.len / PAGE_SIZE;
            let (from, to) = (pages.start.max(first), pages.end.min(end));
            if from >= to {
                continue;
            }
            // KVM wants a first page that is a multiple of 64, and a count that is one too unless it reaches the slot's end.
            let (low, high) = ((from - first) / 64, (to - first).div_ceil(64));
            let words = &mut slot.harvested[low as usize..high as usize];
            if words.iter().all(|bits| *bits == 0) {
                continue;
            }
            let count = ((high - low) * 64).min(end - first - low * 64);
            let mut request = ClearDirtyLog {
                slot: slot.at.slot,
                num_pages: count as u32,
                first_page: low * 64,
                bitmap: words.as_mut_ptr() as u64,
            };
            // SAFETY: KVM reads `count` bits of `words`, which holds them; it keeps no pointer.
            if unsafe { ioctl_with_mut_ref(&self.vm.as_fd(), KVM_CLEAR_DIRTY_LOG(), &mut request) } != 0 {
                return Err(named("KVM_CLEAR_DIRTY_LOG", slot.at.slot));
            }
            words.fill(0);
        }
        Ok(())
    }

    fn stop(&mut self) {
        if let Err(error) = set_logging(self.vm.as_fd(), self.slots.iter().map(|slot| &slot.at), false) {
            tracing::warn!(%error, "dirty logging stays on: the guest runs on, more slowly");
        }
    }
}

fn set_logging<'a>(
    vm: BorrowedFd<'_>,
    slots: impl IntoIterator<Item = &'a KvmSlot>,
    on: bool,
) -> io::Result<()> {
    for slot in slots {
        let region = UserspaceMemoryRegion {
            slot: slot.slot,
            flags: slot.flags | if on { MEM_LOG_DIRTY_PAGES } else { 0 },
            guest_phys_addr: slot.gpa,
            memory_size: slot.len,
            userspace_addr: slot.userspace_addr,
        };
        // SAFETY: the same range of the same mapping as the VMM registered; only the flags change, so KVM gets no new memory.
        if unsafe { ioctl_with_ref(&vm, KVM_SET_USER_MEMORY_REGION(), &region) } != 0 {
            return Err(named("KVM_SET_USER_MEMORY_REGION", slot.slot));
        }
    }
    Ok(())
}

/// KVM's bitmap of a slot into `log`, which has at least the slot's [`words`](KvmSlot::words).
fn read_log(vm: BorrowedFd<'_>, slot: &KvmSlot, log: &mut [u64]) -> io::Result<()> {
    assert!(log.len() >= slot.words(), "KVM writes a bit for every page of the slot");
    let request = DirtyLog { slot: slot.slot, padding: 0, bitmap: log.as_mut_ptr() as u64 };
    // SAFETY: KVM writes one bit a page of the slot, rounded up to 64: `log` has room for them; it keeps no pointer.
    if unsafe { ioctl_with_ref(&vm, KVM_GET_DIRTY_LOG(), &request) } != 0 {
        return Err(named("KVM_GET_DIRTY_LOG", slot.slot));
    }
    Ok(())
}

/// KVM_ENABLE_CAP of a VM.
fn enable(vm: BorrowedFd<'_>, cap: u32, argument: u64) -> io::Result<()> {
    let request = EnableCap { cap, args: [argument, 0, 0, 0], ..EnableCap::default() };
    // SAFETY: KVM reads the struct, which is laid out as the kernel's `kvm_enable_cap` and outlives the call.
    if unsafe { ioctl_with_ref(&vm, KVM_ENABLE_CAP(), &request) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

fn named(ioctl: &str, slot: u32) -> io::Error {
    let error = io::Error::last_os_error();
    io::Error::new(error.kind(), format!("{ioctl} of slot {slot}: {error}"))
}
