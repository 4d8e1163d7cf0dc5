//! Where a stream is read from: a file, a pipe, memory. Beside its bytes a source may let itself be looked at from its end,
//! where the description stands, pass over bytes without reading them, and tell when bytes arrived.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::time::Duration;

/// How much of the end of a file is searched for the description: the longest description, and some.
const TAIL: u64 = 17 << 20;

/// How much of a pipe is read ahead, from its first device section on, to find the description behind the device state.
const AHEAD: usize = 64 << 20;

/// A source of a stream's bytes.
pub trait Stream: Read {
    /// Whether [`Stream::tail`] costs neither waiting nor memory, so that it may be asked at once.
    fn is_seekable(&self) -> bool {
        false
    }

    /// The last bytes of the stream, at least as many as a description may have, without consuming any. `None` where the
    /// end is too far away to be looked at.
    fn tail(&mut self) -> io::Result<Option<Vec<u8>>>;

    /// Drops up to `length` bytes and tells how many there were.
    fn pass_over(&mut self, length: u64) -> io::Result<u64> {
        io::copy(&mut Read::take(&mut *self, length), &mut io::sink())
    }

    /// When the byte at this stream offset arrived, counted from the recording's start, if that was recorded.
    fn arrived(&mut self, _offset: u64) -> Option<Duration> {
        None
    }
}

/// A stream's bytes, which can be read a second time.
pub trait ReadAt {
    /// Fills `room` from this stream offset on.
    ///
    /// # Errors
    /// They cannot be read, or there are fewer.
    fn read_exact_at(&self, room: &mut [u8], offset: u64) -> io::Result<()>;
}

/// A file has the offsets of the stream in it.
impl ReadAt for File {
    fn read_exact_at(&self, room: &mut [u8], offset: u64) -> io::Result<()> {
        FileExt::read_exact_at(self, room, offset)
    }
}

/// A stream in memory, whose first byte has the offset 0.
impl ReadAt for &[u8] {
    fn read_exact_at(&self, room: &mut [u8], offset: u64) -> io::Result<()> {
        let rest = usize::try_from(offset).ok().and_then(|offset| self.get(offset..));
        rest.unwrap_or_default().read_exact(room)
    }
}

/// A stream in memory.
impl Stream for &[u8] {
    fn is_seekable(&self) -> bool {
        true
    }

    fn tail(&mut self) -> io::Result<Option<Vec<u8>>> {
        let start = self.len().saturating_sub(usize::try_from(TAIL).unwrap_or(usize::MAX));
        Ok(Some(self.get(start..).unwrap_or_default().to_vec()))
    }
}

impl<S: Stream + ?Sized> Stream for Box<S> {
    fn is_seekable(&self) -> bool {
        (**self).is_seekable()
    }

    fn tail(&mut self) -> io::Result<Option<Vec<u8>>> {
        (**self).tail()
    }

    fn pass_over(&mut self, length: u64) -> io::Result<u64> {
        (**self).pass_over(length)
    }

    fn arrived(&mut self, offset: u64) -> Option<Duration> {
        (**self).arrived(offset)
    }
}

/// A stream in a regular file.
#[derive(Debug)]
pub struct FileStream {
    file: File,
    position: u64,
    length: u64,
}

impl FileStream {
    /// The stream that begins at `offset` of `file` and goes on to its end.
    pub fn new(mut file: File, offset: u64) -> io::Result<Self> {
        let length = file.metadata()?.len();
        let position = file.seek(SeekFrom::Start(offset))?;
        Ok(FileStream { file, position, length })
    }
}

impl Read for FileStream {
    fn read(&mut self, room: &mut [u8]) -> io::Result<usize> {
        let received = self.file.read(room)?;
        self.position = self.position.saturating_add(received as u64);
        Ok(received)
    }
}

impl Stream for FileStream {
    fn is_seekable(&self) -> bool {
        true
    }

    fn tail(&mut self) -> io::Result<Option<Vec<u8>>> {
        self.file.seek(SeekFrom::Start(self.length.saturating_sub(TAIL).max(self.position)))?;
        let mut tail = Vec::new();
        self.file.by_ref().take(TAIL).read_to_end(&mut tail)?;
        self.file.seek(SeekFrom::Start(self.position))?;
        Ok(Some(tail))
    }

    fn pass_over(&mut self, length: u64) -> io::Result<u64> {
        let passed = length.min(self.length.saturating_sub(self.position));
        self.position = self.file.seek(SeekFrom::Start(self.position.saturating_add(passed)))?;
        Ok(passed)
    }
}

/// A stream that can only be read once, from front to back.
#[derive(Debug)]
pub struct PipeStream<R> {
    inner: R,
    /// What has been read ahead; what stands before `taken` has been handed on.
    ahead: Vec<u8>,
    taken: usize,
}

impl<R: Read> PipeStream<R> {
    /// The stream that `inner` is.
    pub fn new(inner: R) -> Self {
        PipeStream { inner, ahead: Vec::new(), taken: 0 }
    }

    pub(crate) fn get_mut(&mut self) -> &mut R {
        &mut self.inner
    }
}

impl<R: Read> Read for PipeStream<R> {
    fn read(&mut self, room: &mut [u8]) -> io::Result<usize> {
        let mut ahead = self.ahead.get(self.taken..).unwrap_or_default();
        if ahead.is_empty() {
            return self.inner.read(room);
        }
        let taken = ahead.read(room)?;
        self.taken = self.taken.saturating_add(taken);
        if self.taken == self.ahead.len() {
            (self.ahead, self.taken) = (Vec::new(), 0);
        }
        Ok(taken)
    }
}

impl<R: Read> Stream for PipeStream<R> {
    fn tail(&mut self) -> io::Result<Option<Vec<u8>>> {
        self.ahead.drain(..self.taken);
        self.taken = 0;
        let room = AHEAD.saturating_sub(self.ahead.len()) as u64;
        let received = self.inner.by_ref().take(room).read_to_end(&mut self.ahead)?;
        Ok(((received as u64) < room).then(|| self.ahead.clone()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rest(stream: &mut impl Stream) -> Vec<u8> {
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).unwrap();
        rest
    }

    #[test]
    fn looking_at_the_tail_consumes_nothing() {
        let bytes: Vec<u8> = (0..=255).cycle().take(3000).collect();
        let path = std::env::temp_dir().join(format!("whimbrel-inspect-stream-{}", std::process::id()));
        std::fs::write(&path, &bytes).unwrap();
        let file = FileStream::new(File::open(&path).unwrap(), 100).unwrap();
        std::fs::remove_file(&path).unwrap();
        let streams: [Box<dyn Stream>; 3] =
            [Box::new(file), Box::new(PipeStream::new(&bytes[100..])), Box::new(&bytes[100..])];
        for mut stream in streams {
            assert_eq!(stream.read(&mut [0; 10]).unwrap(), 10);
            assert_eq!(stream.tail().unwrap().unwrap(), bytes[110..]);
            assert_eq!(stream.read(&mut [0; 10]).unwrap(), 10);
            assert_eq!(stream.tail().unwrap().unwrap(), bytes[120..]);
            assert_eq!(stream.pass_over(1000).unwrap(), 1000);
            assert_eq!(rest(&mut stream), bytes[1120..]);
            assert_eq!(stream.pass_over(1).unwrap(), 0);
        }
    }

    #[test]
    fn a_pipe_whose_end_is_far_away_is_not_kept_in_memory() {
        let mut stream = PipeStream::new(io::repeat(7));
        assert!(stream.tail().unwrap().is_none());
        assert!(stream.tail().unwrap().is_none());
        assert_eq!(stream.ahead.len(), AHEAD);
        assert_eq!(stream.pass_over(2 * AHEAD as u64).unwrap(), 2 * AHEAD as u64);
        assert!(stream.ahead.is_empty());
    }
}
