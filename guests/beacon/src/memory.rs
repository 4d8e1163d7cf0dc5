//! Guest-physical memory as the host's check reads it: a VMM's own, or a flat dump such as QEMU's `pmemsave` writes.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// Reads guest-physical memory of a stopped guest.
pub trait GuestMemory {
    /// Fills `buf` from guest-physical address `gpa`, whole or not at all.
    fn read(&self, gpa: u64, buf: &mut [u8]) -> io::Result<()>;
}

impl<M: GuestMemory + ?Sized> GuestMemory for &M {
    fn read(&self, gpa: u64, buf: &mut [u8]) -> io::Result<()> {
        (**self).read(gpa, buf)
    }
}

/// A dump in a file.
#[derive(Debug)]
pub struct DumpFile {
    file: File,
    start: u64,
}

impl DumpFile {
    /// A dump whose first byte lies at guest-physical address `start`.
    pub fn new(file: File, start: u64) -> Self {
        Self { file, start }
    }
}

impl GuestMemory for DumpFile {
    fn read(&self, gpa: u64, buf: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(buf, gpa.checked_sub(self.start).ok_or(io::ErrorKind::UnexpectedEof)?)
    }
}

/// A dump in memory.
#[derive(Clone, Copy, Debug)]
pub struct DumpSlice<'a> {
    bytes: &'a [u8],
    start: u64,
}

impl<'a> DumpSlice<'a> {
    /// A dump whose first byte lies at guest-physical address `start`.
    pub fn new(bytes: &'a [u8], start: u64) -> Self {
        Self { bytes, start }
    }
}

impl GuestMemory for DumpSlice<'_> {
    fn read(&self, gpa: u64, buf: &mut [u8]) -> io::Result<()> {
        let source = gpa
            .checked_sub(self.start)
            .and_then(|offset| usize::try_from(offset).ok())
            .and_then(|offset| self.bytes.get(offset..)?.get(..buf.len()))
            .ok_or(io::ErrorKind::UnexpectedEof)?;
        buf.copy_from_slice(source);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_outside_a_dump_fail_whole() {
        let dump = DumpSlice::new(&[1, 2, 3, 4], 0x1000);
        let mut buf = [0; 2];
        assert!(dump.read(0xfff, &mut buf).is_err());
        assert!(dump.read(0x1003, &mut buf).is_err());
        assert_eq!(buf, [0, 0]);
        dump.read(0x1002, &mut buf).expect("inside");
        assert_eq!(buf, [3, 4]);
    }
}
