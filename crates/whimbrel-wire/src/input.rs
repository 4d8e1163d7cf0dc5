//! A pull reader over a byte stream: big-endian numbers, counted strings, look-ahead and borrowed views, with the
//! absolute offset of every byte.
//!
//! It reads as much as the transport has, up to its buffer, so that pages arrive without a system call each; it never
//! waits for a byte beyond those it was asked for.

use std::io::{self, Read};

use crate::error::WireError;

/// Buffer size unless told otherwise: 256 pages a system call.
pub const DEFAULT_CAPACITY: usize = 1 << 20;

/// Least buffer size: a page and the longest record header fit.
pub const MIN_CAPACITY: usize = 8192;

/// A buffered reader of the stream's primitives. See the module's text.
///
/// ```
/// use whimbrel_wire::Input;
/// let mut input = Input::new(&b"\x00\x00\x00\x07microvm"[..]);
/// let length = input.reading("machine type name").be32()?;
/// assert_eq!(input.text(length as usize)?, "microvm");
/// assert!(input.at_end()?);
/// # Ok::<(), whimbrel_wire::WireError>(())
/// ```
#[derive(Debug)]
pub struct Input<R> {
    inner: R,
    /// `buffer[start..end]` has been received and not yet consumed.
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
    /// Stream offset of `buffer[start]`.
    offset: u64,
    what: &'static str,
}

impl<R: Read> Input<R> {
    /// A reader with a buffer of [`DEFAULT_CAPACITY`] bytes.
    pub fn new(inner: R) -> Self {
        Self::with_capacity(inner, DEFAULT_CAPACITY)
    }

    /// A reader with a buffer of `capacity` bytes, at least [`MIN_CAPACITY`].
    pub fn with_capacity(inner: R, capacity: usize) -> Self {
        let buffer = vec![0; capacity.max(MIN_CAPACITY)].into_boxed_slice();
        Input { inner, buffer, start: 0, end: 0, offset: 0, what: "the stream" }
    }

    /// Counts offsets from `offset` on: for a package, whose errors should name positions of the outer stream.
    pub fn starting_at(mut self, offset: u64) -> Self {
        self.offset = offset;
        self
    }

    /// Names the item that the next reads belong to; errors carry it. It stays until the next call.
    pub fn reading(&mut self, what: &'static str) -> &mut Self {
        self.what = what;
        self
    }

    /// Absolute stream offset of the next byte.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Bytes that were received and not yet consumed.
    pub fn buffered(&self) -> &[u8] {
        self.buffer.get(self.start..self.end).unwrap_or_default()
    }

    /// The transport.
    pub fn get_ref(&self) -> &R {
        &self.inner
    }

    /// The transport. Reading from it directly loses the buffered bytes' place.
    pub fn get_mut(&mut self) -> &mut R {
        &mut self.inner
    }

    /// One byte.
    pub fn u8(&mut self) -> Result<u8, WireError> {
        self.array::<1>().map(|[byte]| byte)
    }

    /// A big-endian 16-bit number.
    pub fn be16(&mut self) -> Result<u16, WireError> {
        self.array().map(u16::from_be_bytes)
    }

    /// A big-endian 32-bit number.
    pub fn be32(&mut self) -> Result<u32, WireError> {
        self.array().map(u32::from_be_bytes)
    }

    /// A big-endian 64-bit number.
    pub fn be64(&mut self) -> Result<u64, WireError> {
        self.array().map(u64::from_be_bytes)
    }

    /// `N` bytes.
    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], WireError> {
        self.fill(N)?;
        let array = self.buffered().first_chunk::<N>().copied().ok_or_else(|| self.truncated(N as u64))?;
        self.consume(N);
        Ok(array)
    }

    /// A string of at most 255 bytes, preceded by its length in one byte.
    pub fn pstr(&mut self) -> Result<String, WireError> {
        let length = self.u8()?;
        self.text(usize::from(length))
    }

    /// `length` bytes of UTF-8, at most the buffer's size.
    pub fn text(&mut self, length: usize) -> Result<String, WireError> {
        let (offset, what) = (self.offset, self.what);
        let bytes = self.view(length)?;
        std::str::from_utf8(bytes).map(String::from).map_err(|_| WireError::NotUtf8 { offset, what })
    }

    /// `length` bytes, refused with [`WireError::TooLong`] above `limit`. Memory is taken as bytes arrive, not as they
    /// are announced.
    pub fn bytes(&mut self, length: u64, limit: u64) -> Result<Vec<u8>, WireError> {
        if length > limit {
            return Err(WireError::TooLong { offset: self.offset, what: self.what, length, limit });
        }
        let mut bytes = Vec::new();
        let mut left = length;
        while left > 0 {
            let chunk = self.some(left)?;
            bytes.extend_from_slice(chunk);
            let taken = chunk.len();
            self.consume(taken);
            left = left.saturating_sub(taken as u64);
        }
        Ok(bytes)
    }

    /// Fills `destination`. A large one is filled by the transport directly, past the buffer.
    pub fn read_exact(&mut self, destination: &mut [u8]) -> Result<(), WireError> {
        let mut rest = destination;
        while !rest.is_empty() {
            if self.buffered().is_empty() && rest.len() >= self.buffer.len() {
                let received = read_retrying(&mut self.inner, rest).map_err(|error| self.failed(error))?;
                if received == 0 {
                    return Err(self.truncated(rest.len() as u64));
                }
                self.offset = self.offset.saturating_add(received as u64);
                rest = rest.get_mut(received..).unwrap_or_default();
                continue;
            }
            let chunk = self.some(rest.len() as u64)?;
            let taken = chunk.len();
            let (head, tail) = rest.split_at_mut(taken);
            head.copy_from_slice(chunk);
            rest = tail;
            self.consume(taken);
        }
        Ok(())
    }

    /// The next `length` bytes, borrowed from the buffer: page payload without a copy. `length` is at most the buffer's
    /// size, which is at least [`MIN_CAPACITY`].
    pub fn view(&mut self, length: usize) -> Result<&[u8], WireError> {
        self.fill(length)?;
        if self.buffered().len() < length {
            return Err(self.truncated(length as u64));
        }
        let start = self.start;
        self.consume(length);
        Ok(self.buffer.get(start..self.start).unwrap_or_default())
    }

    /// Drops `length` bytes.
    pub fn skip(&mut self, length: u64) -> Result<(), WireError> {
        let mut left = length;
        while left > 0 {
            let taken = self.some(left)?.len();
            self.consume(taken);
            left = left.saturating_sub(taken as u64);
        }
        Ok(())
    }

    /// The next byte without consuming it; `None` at the end of the stream.
    pub fn peek_u8(&mut self) -> Result<Option<u8>, WireError> {
        Ok(self.peek(1)?.first().copied())
    }

    /// The next `length` bytes without consuming them; fewer only if the stream ends before. `length` is at most the
    /// buffer's size.
    pub fn peek(&mut self, length: usize) -> Result<&[u8], WireError> {
        self.fill(length)?;
        let available = self.buffered();
        Ok(available.get(..length).unwrap_or(available))
    }

    /// Whether the stream has ended. Waits for a byte or the end.
    pub fn at_end(&mut self) -> Result<bool, WireError> {
        Ok(self.peek_u8()?.is_none())
    }

    /// The error of a stream that ends while `wanted` bytes from here are needed.
    pub(crate) fn truncated(&self, wanted: u64) -> WireError {
        let available = self.buffered().len() as u64;
        WireError::Truncated {
            offset: self.offset.saturating_add(available),
            wanted: wanted.saturating_sub(available),
            what: self.what,
        }
    }

    /// The item named last, for errors of decoders.
    pub(crate) fn what(&self) -> &'static str {
        self.what
    }

    /// Whatever is buffered of the next `wanted` bytes, at least one.
    fn some(&mut self, wanted: u64) -> Result<&[u8], WireError> {
        self.fill(1)?;
        if self.buffered().is_empty() {
            return Err(self.truncated(wanted));
        }
        let length = usize::try_from(wanted).unwrap_or(usize::MAX).min(self.buffered().len());
        Ok(self.buffered().get(..length).unwrap_or_default())
    }

    fn consume(&mut self, length: usize) {
        self.start = self.start.saturating_add(length).min(self.end);
        self.offset = self.offset.saturating_add(length as u64);
    }

    /// Has `length` bytes in the buffer, or all up to the end of the stream.
    #[inline]
    fn fill(&mut self, length: usize) -> Result<(), WireError> {
        if self.end.saturating_sub(self.start) >= length { Ok(()) } else { self.refill(length) }
    }

    #[inline(never)]
    fn refill(&mut self, length: usize) -> Result<(), WireError> {
        let capacity = self.buffer.len();
        if length > capacity {
            let (length, limit) = (length as u64, capacity as u64);
            return Err(WireError::TooLong { offset: self.offset, what: self.what, length, limit });
        }
        if self.start == self.end || self.start.saturating_add(length) > capacity {
            self.buffer.copy_within(self.start..self.end, 0);
            self.end = self.end.saturating_sub(self.start);
            self.start = 0;
        }
        while self.end.saturating_sub(self.start) < length {
            let room = self.buffer.get_mut(self.end..).unwrap_or_default();
            match read_retrying(&mut self.inner, room) {
                Ok(0) => break,
                Ok(received) => self.end = self.end.saturating_add(received),
                Err(error) => return Err(self.failed(error)),
            }
        }
        Ok(())
    }

    fn failed(&self, error: io::Error) -> WireError {
        let offset = self.offset.saturating_add(self.buffered().len() as u64);
        WireError::Io { offset, source: error.into() }
    }
}

/// One read that a signal doesn't end. A transport that claims more than it was given room for is not believed.
fn read_retrying(inner: &mut impl Read, room: &mut [u8]) -> io::Result<usize> {
    loop {
        match inner.read(room) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result.map(|received| received.min(room.len())),
        }
    }
}
