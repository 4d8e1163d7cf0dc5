//! One direction of one connection of a recording, read again at any place.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::{Reader, What};
use crate::{Direction, RelayError};

/// Where in the file the bytes stand: 24 bytes a record.
#[derive(Debug)]
pub struct Places {
    file: File,
    /// Ascending, without gaps.
    pieces: Vec<Piece>,
}

#[derive(Debug)]
struct Piece {
    /// Of the stream.
    offset: u64,
    /// Of the file.
    at: u64,
    length: u64,
}

impl Places {
    /// Of the connection with that number. Reads the recording from its first record to its last.
    ///
    /// # Errors
    /// The file cannot be read, or is no recording, or a damaged one.
    pub fn open(path: &Path, connection: u16, direction: Direction) -> Result<Self, RelayError> {
        let failed = |source| RelayError::File { doing: "open", path: path.to_owned(), source };
        let file = File::open(path).map_err(failed)?;
        let mut reader = Reader::open(path)?;
        let mut pieces = Vec::new();
        let mut offset = 0_u64;
        while let Some(record) = reader.next()? {
            if let What::Data(way, data) = record.what
                && (record.connection, way) == (connection, direction)
            {
                let length = data.len() as u64;
                pieces.push(Piece { offset, at: reader.offset().saturating_sub(length), length });
                offset = offset.saturating_add(length);
            }
        }
        Ok(Self { file, pieces })
    }

    /// Fills `room` with what passed from this offset on.
    ///
    /// # Errors
    /// The file cannot be read, or less passed.
    pub fn read_exact_at(&self, mut room: &mut [u8], mut offset: u64) -> io::Result<()> {
        while !room.is_empty() {
            let place = self.pieces.partition_point(|piece| piece.offset <= offset).checked_sub(1);
            let piece = place.and_then(|place| self.pieces.get(place)).ok_or(io::ErrorKind::UnexpectedEof)?;
            let within = offset.saturating_sub(piece.offset);
            let length = usize::try_from(piece.length.saturating_sub(within)).unwrap_or(usize::MAX);
            let (part, rest) = room.split_at_mut(length.min(room.len()));
            if part.is_empty() {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            self.file.read_exact_at(part, piece.at.saturating_add(within))?;
            offset = offset.saturating_add(part.len() as u64);
            room = rest;
        }
        Ok(())
    }
}
