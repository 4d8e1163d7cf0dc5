//! One vCPU's dirty ring as it is mapped, and giving entries back to KVM.
//!
//! ```text
//! 0 flags (u32) · 4 slot (u32) · 8 page of the slot (u64)
//!
//! flags   0 ──KVM fills it──▶ DIRTY ──harvest──▶ RESET ──KVM_RESET_DIRTY_RINGS──▶ 0
//! ```
//! KVM fills entries in order around the ring, and they are harvested in that order. Whoever finds DIRTY by an acquiring load sees
//! the slot and page that belong to it; RESET is stored with release, after they were read.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};
use std::ptr::{NonNull, null_mut};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use vmm_sys_util::ioctl::ioctl;

use crate::dirty::kvm::abi;
use crate::memory::PAGE_SIZE;

/// Bytes of an entry.
pub(super) const ENTRY_BYTES: u32 = size_of::<Entry>() as u32;
/// KVM is asked this often to take all entries back. Where it can be interrupted, it takes none for every attempt that was.
const RESETS: u32 = 1000;

/// The kernel's `kvm_dirty_gfn`. KVM and we both write to it.
#[repr(C)]
struct Entry {
    flags: AtomicU32,
    slot: AtomicU32,
    page: AtomicU64,
}

/// One vCPU's ring.
pub(super) struct Ring {
    entries: NonNull<Entry>,
    /// A power of two.
    count: u32,
    /// Counts up: the entry that KVM fills next after those that were harvested.
    next: u32,
}

// SAFETY: the mapping belongs to the process, not to a thread, and its entries are atomics.
unsafe impl Send for Ring {}

impl Ring {
    /// Maps the ring of a vCPU that was made after KVM was told of rings with `count` entries.
    pub(super) fn map(vcpu: BorrowedFd<'_>, count: u32) -> io::Result<Self> {
        let (bytes, offset) = (bytes(count), abi::DIRTY_LOG_PAGE_OFFSET * PAGE_SIZE);
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice; it overlaps nothing of ours.
        let mapped = unsafe { mmap(null_mut(), bytes, access, MapFlags::SHARED, vcpu, offset) };
        let mapped = mapped
            .map_err(|error| io::Error::new(error.kind(), format!("mapping a vCPU's dirty ring: {error}")))?;
        let entries =
            NonNull::new(mapped.cast()).ok_or_else(|| io::Error::other("a dirty ring at address 0"))?;
        Ok(Self { entries, count, next: 0 })
    }

    /// Gives every entry that KVM has filled to `found` as (slot, page of the slot); returns how many. They are KVM's again after
    /// a [`reset`], and only then is the ring less full.
    pub(super) fn harvest(&mut self, mut found: impl FnMut(u32, u64)) -> u64 {
        let mut harvested = 0;
        // A vCPU may go on filling it meanwhile, but not beyond what is there.
        for _ in 0..self.count {
            let entry = self.entry(self.next);
            if entry.flags.load(Ordering::Acquire) != abi::DIRTY_GFN_F_DIRTY {
                break;
            }
            found(entry.slot.load(Ordering::Relaxed), entry.page.load(Ordering::Relaxed));
            entry.flags.store(abi::DIRTY_GFN_F_RESET, Ordering::Release);
            self.next = self.next.wrapping_add(1);
            harvested += 1;
        }
        harvested
    }

    fn entry(&self, number: u32) -> &Entry {
        // SAFETY: the index is below `count`, which is how many entries are mapped as long as `self`.
        unsafe { self.entries.add((number & (self.count - 1)) as usize).as_ref() }
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // SAFETY: exactly what `map` has mapped, which nothing refers to any more.
        if let Err(error) = unsafe { munmap(self.entries.as_ptr().cast(), bytes(self.count)) } {
            tracing::warn!(%error, "a dirty ring stays mapped");
        }
    }
}

fn bytes(count: u32) -> usize {
    count as usize * size_of::<Entry>()
}

/// Protects the pages of all harvested entries of the VM, of which there are `left`, and gives the entries back to KVM. `false`: it was interrupted on the way, and some of the pages may not be protected.
///
/// A kernel of 2025 and later stops at a pending signal: it returns early, and forgets to protect pages whose entries it has
/// taken back already. So no signal may come. What cannot be blocked (SIGSTOP, a debugger) shows in the count, unless it comes
/// with the last entry of all.
pub(super) fn reset(vm: BorrowedFd<'_>, left: &mut u64) -> io::Result<bool> {
    let _blocked = SignalsBlocked::new()?;
    for attempt in 0..RESETS {
        // SAFETY: takes no argument and touches no memory but the rings, of which each entry is KVM's until it is DIRTY again.
        let answer = unsafe { ioctl(&vm.as_fd(), abi::KVM_RESET_DIRTY_RINGS()) };
        let taken = u64::try_from(answer).or_else(|_| match io::Error::last_os_error() {
            error if error.kind() == io::ErrorKind::Interrupted => Ok(0),
            error => Err(io::Error::new(error.kind(), format!("KVM_RESET_DIRTY_RINGS: {error}"))),
        })?;
        *left = left.saturating_sub(taken);
        if *left == 0 {
            return Ok(attempt == 0);
        }
    }
    Err(io::Error::other(format!("KVM_RESET_DIRTY_RINGS left {left} entries")))
}

/// No signal reaches this thread until it is dropped.
struct SignalsBlocked {
    before: libc::sigset_t,
}

impl SignalsBlocked {
    fn new() -> io::Result<Self> {
        let (mut all, mut before) = (MaybeUninit::uninit(), MaybeUninit::uninit());
        // SAFETY: `sigfillset` makes a whole set of what it is given, and never fails.
        let all = unsafe {
            libc::sigfillset(all.as_mut_ptr());
            all.assume_init()
        };
        // SAFETY: reads one set and writes the other, both of this frame.
        match unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &all, before.as_mut_ptr()) } {
            // SAFETY: it succeeded, and so has filled `before`.
            0 => Ok(Self { before: unsafe { before.assume_init() } }),
            error => Err(io::Error::from_raw_os_error(error)),
        }
    }
}

impl Drop for SignalsBlocked {
    fn drop(&mut self) {
        // SAFETY: the set is the one that was there before; nothing is written.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &self.before, null_mut()) };
    }
}
