//! One direction of one connection of a recording, as bytes, with their times.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::Path;
use std::time::Duration;

use super::{Reader, What};
use crate::{Direction, RelayError};

/// Reads one direction of one connection.
#[derive(Debug)]
pub struct Stream {
    reader: Reader<BufReader<File>>,
    connection: u16,
    direction: Direction,
    data: Vec<u8>,
    /// Of `data`, already read.
    taken: usize,
    at: Duration,
}

impl Stream {
    /// Of the connection with that number: 0 is the first that was opened.
    ///
    /// # Errors
    /// The file cannot be opened, or is no recording, or a damaged one, or has no such connection.
    pub fn open(path: &Path, connection: u16, direction: Direction) -> Result<Self, RelayError> {
        let mut reader = Reader::open(path)?;
        while reader.connections() <= connection.into() {
            if reader.next()?.is_none() {
                let connections = reader.connections();
                return Err(RelayError::NoConnection { path: path.to_owned(), connection, connections });
            }
        }
        Ok(Self { reader, connection, direction, data: Vec::new(), taken: 0, at: Duration::ZERO })
    }

    /// When the bytes read last passed, since the recording began.
    pub fn time(&self) -> Duration {
        self.at
    }
}

impl Read for Stream {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        while self.taken == self.data.len() {
            let record = match self.reader.next() {
                Ok(Some(record)) => record,
                Ok(None) => return Ok(0),
                Err(error) => return Err(io::Error::new(io::ErrorKind::InvalidData, error)),
            };
            if let What::Data(direction, data) = record.what
                && (record.connection, direction) == (self.connection, self.direction)
            {
                (self.data, self.taken, self.at) = (data, 0, record.at);
            }
        }
        let read = self.data.get(self.taken..).unwrap_or_default().read(buf)?;
        self.taken = self.taken.saturating_add(read);
        Ok(read)
    }
}
