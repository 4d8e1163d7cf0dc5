//! A pull reader over a byte stream: big-endian numbers, counted strings, look-ahead and borrowed views, with the
//! absolute offset of every byte.
//!
//! It reads as much as the transport has, up to its buffer, so that pages arrive without a system call each; it never
//! waits for a byte beyond those it was asked for.
//!
//! When the transport fails (a deadline, say), numbers, strings, views and looks ahead have consumed nothing of the item
//! and can be repeated; [`Input::read_exact`], [`Input::bytes`] and [`Input::skip`] have consumed a part.

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
        let length = self.peek_u8()?.ok_or_else(|| self.truncated(1))?;
        let (offset, what) = (self.offset, self.what);
        let name = self.view(usize::from(length).saturating_add(1))?.get(1..).unwrap_or_default();
        std::str::from_utf8(name).map(String::from).map_err(|_| WireError::NotUtf8 { offset, what })
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

    /// Drops `length` bytes, those that are not in the buffer by way of `pass_over`: it is told how many to drop at the
    /// transport, and tells how many there were.
    pub fn skip_by(
        &mut self,
        length: u64,
        pass_over: impl FnOnce(&mut R, u64) -> io::Result<u64>,
    ) -> Result<(), WireError> {
        let buffered = length.min(self.buffered().len() as u64);
        self.skip(buffered)?;
        let wanted = length.saturating_sub(buffered);
        if wanted == 0 {
            return Ok(());
        }
        let passed = pass_over(&mut self.inner, wanted).map_err(|error| self.failed(error))?.min(wanted);
        self.offset = self.offset.saturating_add(passed);
        match wanted.saturating_sub(passed) {
            0 => Ok(()),
            missing => Err(self.truncated(missing)),
        }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::bytes;
    use std::collections::VecDeque;

    /// A transport that hands out one prepared result a read.
    struct Script(VecDeque<io::Result<Vec<u8>>>);

    impl Script {
        fn new(steps: impl IntoIterator<Item = io::Result<&'static [u8]>>) -> Self {
            Script(steps.into_iter().map(|step| step.map(<[u8]>::to_vec)).collect())
        }
    }

    impl Read for Script {
        fn read(&mut self, room: &mut [u8]) -> io::Result<usize> {
            match self.0.pop_front() {
                None => Ok(0),
                Some(Err(error)) => Err(error),
                Some(Ok(mut step)) => {
                    let now = step.len().min(room.len());
                    room[..now].copy_from_slice(&step[..now]);
                    if now < step.len() {
                        self.0.push_front(Ok(step.split_off(now)));
                    }
                    Ok(now)
                }
            }
        }
    }

    fn would_block() -> io::Result<&'static [u8]> {
        Err(io::ErrorKind::WouldBlock.into())
    }

    #[test]
    fn primitives_are_big_endian_and_advance_the_offset() {
        let stream = bytes("01 0203 04050607 08090a0b0c0d0e0f 03'ram' aabbcc dddd ee");
        let mut input = Input::new(&stream[..]).starting_at(100);
        assert_eq!(input.u8().unwrap(), 0x01);
        assert_eq!(input.be16().unwrap(), 0x0203);
        assert_eq!(input.be32().unwrap(), 0x0405_0607);
        assert_eq!(input.be64().unwrap(), 0x0809_0a0b_0c0d_0e0f);
        assert_eq!(input.offset(), 115);
        assert_eq!(input.pstr().unwrap(), "ram");
        assert_eq!(input.array().unwrap(), [0xaa, 0xbb, 0xcc]);
        input.skip(2).unwrap();
        assert_eq!(input.offset(), 124);
        assert!(!input.at_end().unwrap());
        assert_eq!(input.bytes(1, 1).unwrap(), [0xee]);
        assert!(input.at_end().unwrap());
        assert_eq!(input.offset(), 125);
    }

    #[test]
    fn every_way_to_read_gives_the_same_bytes_however_the_transport_cuts_them() {
        let stream: Vec<u8> = (0..70_000u32).map(|i| (i * 7 + i / 251) as u8).collect();
        for step in [1, 3, 4095, 8192, 70_000] {
            let steps = stream.chunks(step).map(|chunk| Ok(chunk.to_vec())).collect();
            let mut input = Input::with_capacity(Script(steps), 0);
            let mut read = input.peek(300).unwrap().to_vec();
            assert_eq!(input.offset(), 0);
            input.skip(300).unwrap();
            for _ in 0..4 {
                read.extend_from_slice(input.view(4096).unwrap());
                read.push(input.u8().unwrap());
                read.extend_from_slice(&input.be64().unwrap().to_be_bytes());
            }
            read.extend_from_slice(input.view(MIN_CAPACITY).unwrap());
            read.extend(input.bytes(10_000, 10_000).unwrap());
            let mut rest = vec![0; stream.len() - read.len()];
            input.read_exact(&mut rest).unwrap();
            read.extend(rest);
            assert!(read == stream, "transport in steps of {step}");
            assert_eq!(input.offset(), 70_000);
            assert!(input.at_end().unwrap());
        }
    }

    #[test]
    fn no_read_waits_for_a_byte_that_was_not_asked_for() {
        let mut input = Input::new(Script::new([Ok(&b"\x00\x00\x00\x05"[..]), would_block()]));
        assert_eq!(input.be32().unwrap(), 5);
        let mut input = Input::new(Script::new([Ok(&b"\x05abc"[..]), would_block()]));
        assert_eq!(input.peek(2).unwrap(), b"\x05a");
        let mut four = [0; 4];
        input.read_exact(&mut four).unwrap();
        assert_eq!(&four, b"\x05abc");
    }

    #[test]
    fn a_failed_read_loses_nothing_and_can_be_repeated() {
        let mut input = Input::new(Script::new([Ok(&b"\x01\x02"[..]), would_block(), Ok(&b"\x03\x04"[..])]))
            .starting_at(10);
        let error = WireError::Io { offset: 12, source: io::Error::from(io::ErrorKind::WouldBlock).into() };
        assert_eq!(input.be32(), Err(error));
        assert_eq!(input.offset(), 10);
        assert_eq!(input.be32(), Ok(0x0102_0304));
    }

    #[test]
    fn a_signal_does_not_end_a_read() {
        let steps = [Ok(&b"\x01"[..]), Err(io::ErrorKind::Interrupted.into()), Ok(&b"\x02"[..])];
        assert_eq!(Input::new(Script::new(steps)).be16(), Ok(0x0102));
    }

    #[test]
    fn a_stream_that_ends_inside_an_item_says_where_and_what_is_missing() {
        let truncated = |offset, wanted| Err(WireError::Truncated { offset, wanted, what: "a thing" });
        let three = || {
            let mut input = Input::new(&b"\xff\xfe\xfd"[..]).starting_at(7);
            input.reading("a thing");
            input
        };
        assert_eq!(three().be32(), truncated(10, 1).map(|()| 0));
        assert_eq!(three().be64(), truncated(10, 5).map(|()| 0));
        assert_eq!(three().skip(1 << 40), truncated(10, (1 << 40) - 3));
        assert_eq!(three().bytes(5000, 5000), truncated(10, 4997).map(|()| vec![]));
        assert_eq!(three().view(4096).map(drop), truncated(10, 4093));
        assert_eq!(three().pstr(), truncated(10, 253).map(|()| String::new()));
        assert_eq!(three().read_exact(&mut [0; 5]), truncated(10, 2));
        assert_eq!(three().read_exact(&mut vec![0; DEFAULT_CAPACITY + 3]), truncated(10, 1 << 20));
        assert_eq!(three().peek(9).unwrap(), b"\xff\xfe\xfd");
    }

    #[test]
    fn bytes_that_are_skipped_past_the_buffer_count_and_must_be_there() {
        let stream: Vec<u8> = (0..=255).cycle().take(3 * MIN_CAPACITY).collect();
        let seek = |inner: &mut &[u8], length: u64| {
            let passed = inner.len().min(length as usize);
            *inner = &inner[passed..];
            Ok(passed as u64)
        };
        let mut input = Input::with_capacity(&stream[..], 0).starting_at(100);
        assert_eq!(input.be16(), Ok(1));
        input.skip_by(2 * MIN_CAPACITY as u64, seek).unwrap();
        assert_eq!((input.offset(), input.u8()), (2 * MIN_CAPACITY as u64 + 102, Ok(2)));
        input.skip_by(1, seek).unwrap();
        assert_eq!(input.u8(), Ok(4));
        let offset = 100 + stream.len() as u64;
        let error = WireError::Truncated { offset, wanted: 7, what: "the stream" };
        assert_eq!(input.skip_by(MIN_CAPACITY as u64 + 2, seek), Err(error));
    }

    #[test]
    fn lengths_beyond_a_limit_are_refused_before_anything_is_read() {
        let mut input = Input::with_capacity(&b"abc"[..], 0);
        let too_long = |length, limit| WireError::TooLong { offset: 0, what: "a blob", length, limit };
        assert_eq!(input.reading("a blob").bytes(u64::MAX, 16), Err(too_long(u64::MAX, 16)));
        assert_eq!(input.view(MIN_CAPACITY + 1).map(drop), Err(too_long(8193, 8192)));
        assert_eq!(input.peek(MIN_CAPACITY + 1).map(drop), Err(too_long(8193, 8192)));
        assert_eq!(input.offset(), 0);
    }

    #[test]
    fn names_that_are_not_utf_8_are_refused() {
        let error = WireError::NotUtf8 { offset: 0, what: "a name" };
        assert_eq!(Input::new(&b"\x02\xc3\x28"[..]).reading("a name").pstr(), Err(error));
    }

    #[test]
    fn a_transport_that_claims_more_than_its_room_is_not_believed() {
        struct Liar;
        impl Read for Liar {
            fn read(&mut self, room: &mut [u8]) -> io::Result<usize> {
                Ok(room.len() + 1000)
            }
        }
        let mut input = Input::with_capacity(Liar, 0);
        assert_eq!(input.view(MIN_CAPACITY).unwrap(), [0; MIN_CAPACITY]);
        input.read_exact(&mut vec![0; 3 * MIN_CAPACITY]).unwrap();
        assert_eq!(input.offset(), 4 * MIN_CAPACITY as u64);
    }
}
