//! Gathered output: bytes of our own and pages of guest RAM leave in one `writev`, straight from where they are.
//!
//! One of the named modules with `unsafe`: guest RAM is handed to the kernel as iovecs, never as a Rust slice.

use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::Arc;

use vm_memory::{GuestMemoryRegion, MemoryRegionAddress};

use crate::memory::Region;

/// Linux accepts this many iovecs a call (UIO_MAXIOV).
const MAX_SEGMENTS: usize = 1024;

/// A part of the output.
pub(crate) enum Segment {
    /// A range of the gather's own bytes.
    Own(Range<usize>),
    /// Guest memory: the region (by its place in `regions`), the offset in it and the length.
    Guest { region: usize, at: u64, len: usize },
}

/// Output that waits to be sent, in order.
#[derive(Default)]
pub(crate) struct Gather {
    own: Vec<u8>,
    segments: Vec<Segment>,
    regions: Vec<Arc<Region>>,
    len: usize,
}

impl Gather {
    /// Appends bytes of our own.
    pub(crate) fn bytes(&mut self, bytes: &[u8]) {
        let start = self.own.len();
        self.own.extend_from_slice(bytes);
        self.len += bytes.len();
        match self.segments.last_mut() {
            Some(Segment::Own(range)) if range.end == start => range.end = self.own.len(),
            _ => self.segments.push(Segment::Own(start..self.own.len())),
        }
    }

    /// Appends guest memory, which is read when it is sent. The range must lie in the region.
    pub(crate) fn guest(&mut self, region: &Arc<Region>, at: u64, len: usize) {
        debug_assert!(region.get_slice(MemoryRegionAddress(at), len).is_ok());
        if !self.regions.last().is_some_and(|last| Arc::ptr_eq(last, region)) {
            self.regions.push(region.clone());
        }
        self.segments.push(Segment::Guest { region: self.regions.len() - 1, at, len });
        self.len += len;
    }

    /// Bytes waiting.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// No further page fits into one call.
    pub(crate) fn is_full(&self) -> bool {
        self.segments.len() + 2 > MAX_SEGMENTS
    }

    /// Forgets everything.
    pub(crate) fn clear(&mut self) {
        self.own.clear();
        self.segments.clear();
        self.regions.clear();
        self.len = 0;
    }

    /// One `writev` from byte `from` on; how much of it the kernel took.
    pub(crate) fn write(&self, fd: BorrowedFd<'_>, from: usize) -> io::Result<usize> {
        let mut iovecs = Vec::with_capacity(self.segments.len().min(MAX_SEGMENTS));
        let mut guards = Vec::with_capacity(self.segments.len().min(MAX_SEGMENTS));
        let mut skip = from;
        for segment in &self.segments {
            let len = match segment {
                Segment::Own(range) => range.len(),
                Segment::Guest { len, .. } => *len,
            };
            if skip >= len {
                skip -= len;
                continue;
            }
            if iovecs.len() == MAX_SEGMENTS {
                break;
            }
            let base = match segment {
                Segment::Own(range) => self.own[range.start + skip..].as_ptr().cast_mut(),
                Segment::Guest { region, at, len } => {
                    let slice = self.regions[*region]
                        .get_slice(MemoryRegionAddress(*at + skip as u64), len - skip)
                        .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error.to_string()))?;
                    guards.push(slice.ptr_guard());
                    guards.last().map_or(std::ptr::null_mut(), |guard| guard.as_ptr().cast_mut())
                }
            };
            iovecs.push(libc::iovec { iov_base: base.cast(), iov_len: len - skip });
            skip = 0;
        }
        // SAFETY: every iovec lies in `own` (borrowed, unchanged during the call) or in guest memory that `regions` keeps mapped
        // and whose bounds `get_slice` checked. The kernel only reads; a guest writing at the same time changes bytes, nothing else.
        let sent = unsafe { libc::writev(fd.as_raw_fd(), iovecs.as_ptr(), iovecs.len() as libc::c_int) };
        drop(guards);
        if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(sent as usize) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;
    use vm_memory::{Bytes as _, GuestAddress};

    #[test]
    fn order_is_kept_whatever_the_kernel_takes() {
        let region = Arc::new(Region::from_range(GuestAddress(0), 1 << 16, None).unwrap());
        region.write_slice(&[7; 4096], MemoryRegionAddress(4096)).unwrap();
        let mut gather = Gather::default();
        gather.bytes(b"ab");
        gather.guest(&region, 4096, 4096);
        gather.bytes(b"cd");
        gather.guest(&region, 0, 4096);
        let expected = [b"ab".to_vec(), vec![7; 4096], b"cd".to_vec(), vec![0; 4096]].concat();
        assert_eq!(gather.len(), expected.len());
        for from in [0, 1, 2, 3, 4097, 4098, 4100, 8000] {
            let (ours, mut theirs) = UnixStream::pair().unwrap();
            let sent = gather.write(ours.as_fd(), from).unwrap();
            drop(ours);
            let mut received = Vec::new();
            theirs.read_to_end(&mut received).unwrap();
            assert_eq!(sent, received.len());
            assert_eq!(received, expected[from..]);
        }
    }
}
