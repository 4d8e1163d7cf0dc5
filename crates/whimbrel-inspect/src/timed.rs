//! A recorded stream: bytes with the times at which they arrived.

use std::collections::VecDeque;
use std::io::{self, Read};
use std::time::Duration;

use crate::{PipeStream, Stream};

/// Most times that are kept of bytes that were read and not yet asked for. What arrives beyond them has the last one's.
const MAX_TIMES: usize = 1 << 20;

/// Bytes that know when they arrived.
pub trait Recorded: Read {
    /// When the bytes of the last read arrived, counted from the start of the recording.
    fn arrived(&self) -> Duration;
}

/// A recorded stream, as a stream to inspect.
#[derive(Debug)]
pub struct TimedStream<R> {
    pipe: PipeStream<Noted<R>>,
}

impl<R: Recorded> TimedStream<R> {
    /// The stream that `recorded` is; its first byte has the offset 0.
    pub fn new(recorded: R) -> Self {
        let noted = Noted { inner: recorded, position: 0, times: VecDeque::new() };
        TimedStream { pipe: PipeStream::new(noted) }
    }
}

impl<R: Recorded> Read for TimedStream<R> {
    fn read(&mut self, room: &mut [u8]) -> io::Result<usize> {
        self.pipe.read(room)
    }
}

impl<R: Recorded> Stream for TimedStream<R> {
    fn tail(&mut self) -> io::Result<Option<Vec<u8>>> {
        self.pipe.tail()
    }

    /// Offsets must be asked for in ascending order.
    fn arrived(&mut self, offset: u64) -> Option<Duration> {
        self.pipe.get_mut().time(offset)
    }
}

/// Notes the time of every read.
#[derive(Debug)]
struct Noted<R> {
    inner: R,
    position: u64,
    /// From which offset on bytes arrived when.
    times: VecDeque<(u64, Duration)>,
}

impl<R> Noted<R> {
    fn time(&mut self, offset: u64) -> Option<Duration> {
        while self.times.get(1).is_some_and(|(next, _)| *next <= offset) {
            self.times.pop_front();
        }
        self.times.front().filter(|(first, _)| *first <= offset).map(|(_, time)| *time)
    }
}

impl<R: Recorded> Read for Noted<R> {
    fn read(&mut self, room: &mut [u8]) -> io::Result<usize> {
        let received = self.inner.read(room)?;
        let time = self.inner.arrived();
        let is_new = self.times.back().is_none_or(|(_, last)| *last != time);
        if received > 0 && is_new && self.times.len() < MAX_TIMES {
            self.times.push_back((self.position, time));
        }
        self.position = self.position.saturating_add(received as u64);
        Ok(received)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Ten bytes a second, 1000 in all.
    struct Slow {
        read: u64,
        second: u64,
    }

    impl Read for Slow {
        fn read(&mut self, room: &mut [u8]) -> io::Result<usize> {
            let length = room.len().min((10 - self.read % 10) as usize).min((1000 - self.read) as usize);
            self.second = self.read / 10 + 1;
            self.read += length as u64;
            room[..length].fill(7);
            Ok(length)
        }
    }

    impl Recorded for Slow {
        fn arrived(&self) -> Duration {
            Duration::from_secs(self.second)
        }
    }

    #[test]
    fn every_byte_has_the_time_of_its_read_however_far_ahead_is_read() {
        let mut stream = TimedStream::new(Slow { read: 0, second: 0 });
        assert_eq!(stream.arrived(0), None);
        assert_eq!(stream.read(&mut [0; 64]).unwrap(), 10);
        assert_eq!(stream.tail().unwrap().unwrap().len(), 990);
        for (offset, second) in [(0, 1), (9, 1), (10, 2), (555, 56), (999, 100)] {
            assert_eq!(stream.arrived(offset), Some(Duration::from_secs(second)), "{offset}");
        }
    }
}
