//! Writing a recording.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use super::{CUT, DATA, END, HEADER, MAGIC, MAX_DATA, OPEN, VERSION, WHOLE};
use crate::{Direction, RelayError};

/// Writes one.
#[derive(Debug)]
pub struct Recorder {
    file: File,
    path: PathBuf,
    start: Instant,
    /// Data bytes so far.
    bytes: u64,
}

impl Recorder {
    /// Creates the file, or empties it.
    ///
    /// # Errors
    /// The file cannot be created or written.
    pub fn create(path: &Path) -> Result<Self, RelayError> {
        let failed = |source| RelayError::File { doing: "create", path: path.to_owned(), source };
        let mut file = File::create(path).map_err(failed)?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let millis = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
        let mut header = Vec::from(MAGIC);
        header.extend(VERSION.to_be_bytes());
        header.extend(0_u32.to_be_bytes());
        header.extend(millis.to_be_bytes());
        file.write_all(&header).map_err(failed)?;
        Ok(Self { file, path: path.to_owned(), start: Instant::now(), bytes: 0 })
    }

    /// A connection opens. They are numbered from 0, in order.
    ///
    /// # Errors
    /// As all that write: the file takes no more.
    pub fn open(&mut self, connection: u16) -> Result<(), RelayError> {
        self.record(OPEN, Direction::Forward, connection, &[])
    }

    /// Bytes were passed on.
    ///
    /// # Errors
    /// The file takes no more.
    pub fn data(&mut self, connection: u16, direction: Direction, bytes: &[u8]) -> Result<(), RelayError> {
        for part in bytes.chunks(MAX_DATA) {
            self.record(DATA, direction, connection, part)?;
            self.bytes = self.bytes.saturating_add(part.len() as u64);
        }
        Ok(())
    }

    /// Nothing more goes in that direction.
    ///
    /// # Errors
    /// The file takes no more.
    pub fn end(&mut self, connection: u16, direction: Direction) -> Result<(), RelayError> {
        self.record(END, direction, connection, &[])
    }

    /// The relay cut the connection.
    ///
    /// # Errors
    /// The file takes no more.
    pub fn cut(&mut self, connection: u16) -> Result<(), RelayError> {
        self.record(CUT, Direction::Forward, connection, &[])
    }

    /// Nothing more will come, at all. Returns how many bytes of data there are.
    ///
    /// # Errors
    /// The file takes no more.
    pub fn finish(mut self) -> Result<u64, RelayError> {
        self.record(WHOLE, Direction::Forward, 0, &[])?;
        Ok(self.bytes)
    }

    fn record(
        &mut self,
        kind: u8,
        direction: Direction,
        connection: u16,
        data: &[u8],
    ) -> Result<(), RelayError> {
        let micros = u64::try_from(self.start.elapsed().as_micros()).unwrap_or(u64::MAX);
        let length = u32::try_from(data.len()).unwrap_or(u32::MAX);
        let mut record = Vec::with_capacity(HEADER.saturating_add(data.len()));
        record.extend([kind, u8::from(direction == Direction::Back)]);
        record.extend(connection.to_be_bytes());
        record.extend(length.to_be_bytes());
        record.extend(micros.to_be_bytes());
        record.extend_from_slice(data);
        // At once, so that a relay that is killed leaves whole records.
        let written = self.file.write_all(&record);
        written.map_err(|source| RelayError::File { doing: "write", path: self.path.clone(), source })
    }
}
