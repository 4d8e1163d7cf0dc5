//! Write protection by userfaultfd: a dirty source for the memory of any process, without KVM.
//!
//! Every page is write-protected. The first write to one faults; a thread of this source marks the page, lifts its protection
//! and lets the writer go on, unhindered until the page is re-armed.
//!
//! ```text
//! protected ──write──▶ fault: mark and lift ──▶ written at will ──sync takes the mark──▶ harvested ──rearm──▶ protected
//! ```
//!
//! Mark and lift are one step for `sync` (a lock). Could it take the mark between the two, the page might be re-armed and read
//! before the lift, and the write after it would be seen by nobody.
//!
//! It needs Linux 5.14 for private anonymous memory, 5.19 for shared memory; hugetlbfs is refused at the first write. Only writes through the mapping of
//! the [`RamBlock`]s are seen, not those through another mapping of the same file. Memory that is given back to the kernel
//! while it is tracked (`MADV_DONTNEED`) loses its protection: a balloon must log such pages itself.
//!
//! One of the named modules with `unsafe`: userfaultfd's ioctls take addresses.

use std::io;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::mm::{Advice, UserfaultfdFlags, madvise, userfaultfd};
use vm_memory::{GuestMemoryRegion, MemoryRegionAddress};
use vmm_sys_util::ioctl::{ioctl_with_mut_ref, ioctl_with_ref};

use super::DirtySource;
use crate::bitmap::DirtyBitmap;
use crate::lock;
use crate::memory::{PAGE_SIZE, RamBlock};

/// Who writes to the memory that is tracked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Writers {
    /// Only instructions of this process. Needs no privilege (Linux 5.11). A system call that writes to tracked memory, such
    /// as `read` into it, fails with EFAULT.
    UserSpace,
    /// System calls, vhost and KVM too. Needs CAP_SYS_PTRACE or `vm.unprivileged_userfaultfd=1`.
    Anyone,
}

/// Dirty log of some RAM blocks.
pub struct WriteProtect {
    blocks: Vec<RamBlock>,
    writers: Writers,
    /// Taken by a sync and not yet re-armed, by block.
    harvested: Vec<DirtyBitmap>,
    tracking: Option<Tracking>,
}

impl WriteProtect {
    /// A log over `blocks`, which are the machine's, in its order. Nothing is tracked yet.
    pub fn new(blocks: &[RamBlock], writers: Writers) -> Self {
        let harvested = blocks.iter().map(|block| DirtyBitmap::empty(block.pages())).collect();
        Self { blocks: blocks.to_vec(), writers, harvested, tracking: None }
    }
}

impl DirtySource for WriteProtect {
    fn start(&mut self) -> io::Result<()> {
        for block in &self.blocks {
            block.forget_host_writes();
        }
        self.tracking = Some(Tracking::start(&self.blocks, self.writers)?);
        Ok(())
    }

    fn sync(&mut self, block: usize, into: &mut DirtyBitmap) -> io::Result<u64> {
        let mut new = 0;
        let harvested = &mut self.harvested[block];
        let mut log = lock(&on(&self.tracking)?.log);
        if let Some(failure) = &log.failure {
            return Err(io::Error::other(failure.clone()));
        }
        log.marked[block].drain_words(|index, bits| {
            harvested.merge_word(index, bits);
            new += into.merge_word(index, bits);
        });
        drop(log);
        // They fault too; but a writer between its write and its entry in the region's bitmap must not be missed either.
        new += self.blocks[block].take_host_writes(into);
        Ok(new)
    }

    fn rearm(&mut self, block: usize, pages: Range<u64>) -> io::Result<()> {
        // Pages that no sync took since they were armed are either protected or marked: nothing is to be done for them.
        let taken = |page: &u64| *page < pages.end;
        let Some(first) = self.harvested[block].next(pages.start).filter(taken) else { return Ok(()) };
        let shared = on(&self.tracking)?;
        for span in shared.spans.iter().filter(|span| span.block == block) {
            let start = first.max(span.first_page);
            let end = pages.end.min(span.first_page + span.pages());
            if start < end {
                let addr = span.addr + (start - span.first_page) * PAGE_SIZE;
                shared.protect(addr, (end - start) * PAGE_SIZE, true)?;
            }
        }
        for (index, bits) in DirtyBitmap::words_of(pages) {
            self.harvested[block].remove_word(index, bits);
        }
        Ok(())
    }

    fn stop(&mut self) {
        self.tracking = None;
    }
}

fn on(tracking: &Option<Tracking>) -> io::Result<&Shared> {
    tracking
        .as_ref()
        .map(|tracking| &*tracking.shared)
        .ok_or_else(|| io::Error::other("write tracking is off"))
}

/// Tracking that is on. Dropping it turns it off: no page stays protected, no writer stays blocked.
struct Tracking {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    uffd: OwnedFd,
    /// Becomes readable when the thread is to end.
    end: OwnedFd,
    spans: Vec<Span>,
    log: Mutex<Log>,
}

/// A mapped part of a block.
#[derive(Debug, Clone, Copy)]
struct Span {
    block: usize,
    first_page: u64,
    addr: u64,
    len: u64,
    /// Shared memory, whose protection also holds for pages that do not exist yet.
    shared: bool,
}

struct Log {
    /// Written since the last sync, by block. A page in it is not protected, or about to be lifted under the lock.
    marked: Vec<DirtyBitmap>,
    /// Why faults are no longer served; the log is worthless from then on.
    failure: Option<String>,
}

impl Span {
    fn pages(&self) -> u64 {
        self.len / PAGE_SIZE
    }
}

impl Tracking {
    fn start(blocks: &[RamBlock], writers: Writers) -> io::Result<Self> {
        let spans = spans(blocks)?;
        let marked = blocks.iter().map(|block| DirtyBitmap::empty(block.pages())).collect();
        let shared = Arc::new(Shared {
            uffd: open(writers, spans.iter().any(|span| span.shared))?,
            end: eventfd(0, EventfdFlags::CLOEXEC)?,
            spans,
            log: Mutex::new(Log { marked, failure: None }),
        });
        let server = shared.clone();
        let serve = move || {
            if let Err(error) = server.serve() {
                tracing::error!(%error, "write tracking ends: the migration cannot go on");
                lock(&server.log).failure = Some(format!("faults are no longer served: {error}"));
                server.unregister();
            }
        };
        let thread = std::thread::Builder::new().name("dirty-log".into()).spawn(serve)?;
        // From here on, dropping `tracking` undoes what was done.
        let tracking = Self { shared, thread: Some(thread) };
        for span in &tracking.shared.spans {
            tracking.shared.watch(span)?;
        }
        Ok(tracking)
    }
}

impl Drop for Tracking {
    fn drop(&mut self) {
        let _always_room = rustix::io::write(&self.shared.end, &1_u64.to_ne_bytes());
        if let Some(Err(_)) = self.thread.take().map(JoinHandle::join) {
            tracing::error!("the write-tracking thread panicked");
        }
        // A writer that faulted after the thread's end is woken by this.
        self.shared.unregister();
    }
}

impl Shared {
    /// Registers and protects a span.
    fn watch(&self, span: &Span) -> io::Result<()> {
        if !span.shared {
            // Protection sticks to pages that are mapped. Reading maps the zero page where nothing was written, which costs
            // page tables and no memory.
            let (addr, len) = (span.addr as *mut _, span.len as usize);
            // SAFETY: the advice only maps pages of a range that is mapped and that the block keeps mapped; contents stay.
            unsafe { madvise(addr, len, Advice::LinuxPopulateRead) }.map_err(named("MADV_POPULATE_READ"))?;
        }
        let range = abi::Range { start: span.addr, len: span.len };
        let mut register = abi::Register { range, mode: abi::REGISTER_MODE_WP, ioctls: 0 };
        // SAFETY: the range is the block's; its faults are served by our thread from before this call until it is unregistered.
        if unsafe { ioctl_with_mut_ref(&self.uffd, abi::UFFDIO_REGISTER(), &mut register) } != 0 {
            return Err(last("UFFDIO_REGISTER"));
        }
        self.protect(span.addr, span.len, true)
    }

    /// Protects a range, or lifts its protection and wakes whoever waits for that.
    fn protect(&self, start: u64, len: u64, on: bool) -> io::Result<()> {
        let mode = if on { abi::WRITEPROTECT_MODE_WP } else { 0 };
        let mut request = abi::WriteProtect { range: abi::Range { start, len }, mode };
        loop {
            // SAFETY: only the protection of a range that is registered, which is ours, changes; contents stay.
            if unsafe { ioctl_with_mut_ref(&self.uffd, abi::UFFDIO_WRITEPROTECT(), &mut request) } == 0 {
                return Ok(());
            }
            let error = last("UFFDIO_WRITEPROTECT");
            // EAGAIN: another thread is changing the address space.
            if !matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) {
                return Err(error);
            }
        }
    }

    /// Lifts all protection, wakes everyone and forgets the spans.
    fn unregister(&self) {
        for span in &self.spans {
            let range = abi::Range { start: span.addr, len: span.len };
            // SAFETY: ends what `watch` began, or (for a span not reached) changes nothing.
            if unsafe { ioctl_with_ref(&self.uffd, abi::UFFDIO_UNREGISTER(), &range) } != 0 {
                tracing::debug!(error = %last("UFFDIO_UNREGISTER"), ?span, "was not tracked");
            }
        }
    }

    /// The thread: serves faults until it is told to end.
    fn serve(&self) -> io::Result<()> {
        let mut messages = [0; 64 * abi::MESSAGE];
        loop {
            let mut fds = [PollFd::new(&self.end, PollFlags::IN), PollFd::new(&self.uffd, PollFlags::IN)];
            match poll(&mut fds, None) {
                Err(rustix::io::Errno::INTR) => continue,
                polled => polled.map_err(named("poll"))?,
            };
            if !fds[0].revents().is_empty() {
                return Ok(());
            }
            let len = match rustix::io::read(&self.uffd, &mut messages) {
                Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => continue,
                read => read.map_err(named("reading userfaultfd"))?,
            };
            let mut log = lock(&self.log);
            for message in messages[..len].as_chunks().0 {
                self.fault(&mut log, abi::page_fault(message)?)?;
            }
        }
    }

    /// One write: mark and lift, under the lock.
    fn fault(&self, log: &mut Log, addr: u64) -> io::Result<()> {
        let span = self.spans.iter().find(|span| (span.addr..span.addr + span.len).contains(&addr));
        let span = span.ok_or_else(|| io::Error::other(format!("a fault outside of RAM, at {addr:#x}")))?;
        let page = (addr - span.addr) / PAGE_SIZE;
        log.marked[span.block].insert(span.first_page + page);
        self.protect(span.addr + page * PAGE_SIZE, PAGE_SIZE, false)
    }
}

fn spans(blocks: &[RamBlock]) -> io::Result<Vec<Span>> {
    let mut spans = Vec::new();
    for (block, ram) in blocks.iter().enumerate() {
        for piece in ram.pieces() {
            let addr = piece.region.get_host_address(MemoryRegionAddress(0)).map_err(io::Error::other)?;
            spans.push(Span {
                block,
                first_page: piece.offset / PAGE_SIZE,
                addr: addr as u64,
                len: piece.region.len(),
                shared: piece.region.flags() & libc::MAP_SHARED != 0,
            });
        }
    }
    Ok(spans)
}

/// A userfaultfd that can protect against writes.
fn open(writers: Writers, shared_memory: bool) -> io::Result<OwnedFd> {
    let user_mode_only = match writers {
        Writers::UserSpace => UserfaultfdFlags::from_bits_retain(abi::USER_MODE_ONLY),
        Writers::Anyone => UserfaultfdFlags::empty(),
    };
    // SAFETY: creates a file descriptor; what is done with it is each ioctl's concern.
    let uffd =
        unsafe { userfaultfd(UserfaultfdFlags::CLOEXEC | UserfaultfdFlags::NONBLOCK | user_mode_only) };
    let uffd = uffd.map_err(|error| match (error, writers) {
        (rustix::io::Errno::PERM, Writers::Anyone) => io::Error::new(
            io::ErrorKind::PermissionDenied,
            "userfaultfd needs CAP_SYS_PTRACE or `sysctl vm.unprivileged_userfaultfd=1`",
        ),
        (rustix::io::Errno::PERM, Writers::UserSpace) => io::Error::new(
            io::ErrorKind::PermissionDenied,
            "userfaultfd is refused, perhaps by a container's seccomp profile",
        ),
        _ => named("userfaultfd")(error),
    })?;
    let features =
        abi::FEATURE_PAGEFAULT_FLAG_WP | if shared_memory { abi::FEATURE_WP_HUGETLBFS_SHMEM } else { 0 };
    let mut api = abi::Api { api: abi::API, features, ioctls: 0 };
    // SAFETY: the kernel reads and writes the struct, which is laid out as its `uffdio_api`.
    if unsafe { ioctl_with_mut_ref(&uffd, abi::UFFDIO_API(), &mut api) } != 0 {
        let memory = if shared_memory { "shared memory (Linux 5.19)" } else { "memory (Linux 5.7)" };
        return Err(last(&format!("userfaultfd cannot write-protect {memory} on this kernel: UFFDIO_API")));
    }
    Ok(uffd)
}

fn last(what: &str) -> io::Error {
    let error = io::Error::last_os_error();
    io::Error::new(error.kind(), format!("{what}: {error}"))
}

fn named(what: &'static str) -> impl Fn(rustix::io::Errno) -> io::Error {
    move |error| io::Error::new(error.kind(), format!("{what}: {error}"))
}

/// The kernel's ABI (linux/userfaultfd.h), the part this file speaks.
mod abi {
    use std::io;

    use vmm_sys_util::{ioctl_ior_nr, ioctl_iowr_nr};

    pub(super) const API: u64 = 0xAA;
    pub(super) const USER_MODE_ONLY: u32 = 1;
    pub(super) const FEATURE_PAGEFAULT_FLAG_WP: u64 = 1 << 0;
    pub(super) const FEATURE_WP_HUGETLBFS_SHMEM: u64 = 1 << 12;
    pub(super) const REGISTER_MODE_WP: u64 = 1 << 1;
    pub(super) const WRITEPROTECT_MODE_WP: u64 = 1 << 0;
    const EVENT_PAGEFAULT: u8 = 0x12;
    const PAGEFAULT_FLAG_WP: u64 = 1 << 1;

    /// Bytes of a message.
    pub(super) const MESSAGE: usize = 32;

    #[repr(C)]
    pub(super) struct Api {
        pub(super) api: u64,
        pub(super) features: u64,
        pub(super) ioctls: u64,
    }

    #[repr(C)]
    pub(super) struct Range {
        pub(super) start: u64,
        pub(super) len: u64,
    }

    #[repr(C)]
    pub(super) struct Register {
        pub(super) range: Range,
        pub(super) mode: u64,
        pub(super) ioctls: u64,
    }

    #[repr(C)]
    pub(super) struct WriteProtect {
        pub(super) range: Range,
        pub(super) mode: u64,
    }

    ioctl_iowr_nr!(UFFDIO_API, 0xAA, 0x3F, Api);
    ioctl_iowr_nr!(UFFDIO_REGISTER, 0xAA, 0x00, Register);
    ioctl_ior_nr!(UFFDIO_UNREGISTER, 0xAA, 0x01, Range);
    ioctl_iowr_nr!(UFFDIO_WRITEPROTECT, 0xAA, 0x06, WriteProtect);

    /// The address of a write that faulted.
    ///
    /// ```text
    /// 0 event (u8) · 8 flags (u64) · 16 address (u64) · 24 thread
    /// ```
    pub(super) fn page_fault(message: &[u8; MESSAGE]) -> io::Result<u64> {
        let words: &[[u8; 8]] = message.as_chunks().0;
        let [flags, address] = [words[1], words[2]].map(u64::from_ne_bytes);
        match message[0] {
            EVENT_PAGEFAULT if flags & PAGEFAULT_FLAG_WP != 0 => Ok(address),
            event => Err(io::Error::other(format!("unexpected userfaultfd event {event:#x}"))),
        }
    }
}

#[cfg(test)]
mod tests;
