//! Reading a recording, record by record.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{CUT, DATA, END, HEADER, MAGIC, MAX_DATA, OPEN, VERSION, WHOLE};
use crate::{Direction, RelayError};

/// One record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// When, since the recording began.
    pub at: Duration,
    /// On which connection.
    pub connection: u16,
    /// What happened.
    pub what: What,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum What {
    /// The connection opened.
    Open,
    /// Bytes were passed on.
    Data(Direction, Vec<u8>),
    /// Nothing more went in that direction.
    End(Direction),
    /// The relay cut the connection.
    Cut,
}

/// Reads records and checks that they can be true.
#[derive(Debug)]
pub struct Reader<R> {
    inner: R,
    path: PathBuf,
    /// Of the next byte in the file.
    offset: u64,
    began: Duration,
    last: Duration,
    /// For each connection, whether forward and back may still carry something.
    open: Vec<[bool; 2]>,
    whole: bool,
}

impl Reader<BufReader<File>> {
    /// Opens a recording.
    ///
    /// # Errors
    /// The file cannot be opened, or is no recording.
    pub fn open(path: &Path) -> Result<Self, RelayError> {
        let file = File::open(path).map_err(|source| RelayError::File {
            doing: "open",
            path: path.to_owned(),
            source,
        })?;
        Self::new(BufReader::with_capacity(MAX_DATA, file), path)
    }
}

impl<R: Read> Reader<R> {
    /// Reads what `inner` gives; errors name `path`.
    ///
    /// # Errors
    /// It is no recording.
    pub fn new(inner: R, path: &Path) -> Result<Self, RelayError> {
        let mut reader = Self {
            inner,
            path: path.to_owned(),
            offset: 0,
            began: Duration::ZERO,
            last: Duration::ZERO,
            open: Vec::new(),
            whole: false,
        };
        const SHORT: &str = "it is shorter than a recording's header";
        let magic: [u8; 8] = reader.array()?.ok_or_else(|| reader.bad(0, SHORT))?;
        let version: [u8; 4] = reader.array()?.ok_or_else(|| reader.bad(8, SHORT))?;
        let zero: [u8; 4] = reader.array()?.ok_or_else(|| reader.bad(12, SHORT))?;
        let began: [u8; 8] = reader.array()?.ok_or_else(|| reader.bad(16, SHORT))?;
        if magic != *MAGIC {
            return Err(reader.bad(0, "it does not begin with 'whimrec'"));
        }
        if u32::from_be_bytes(version) != VERSION {
            return Err(reader.bad(8, "its version is not 1"));
        }
        if zero != [0; 4] {
            return Err(reader.bad(12, "this must be 0"));
        }
        reader.began = Duration::from_millis(u64::from_be_bytes(began));
        Ok(reader)
    }

    /// When it was made, since 1970.
    pub fn began(&self) -> Duration {
        self.began
    }

    /// How many connections have opened up to the record that was read last.
    pub fn connections(&self) -> usize {
        self.open.len()
    }

    /// Where in the file the record ends that was read last.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// The recorder came to its end: known once [`next`](Self::next) has given `None`.
    pub fn is_whole(&self) -> bool {
        self.whole
    }

    /// The next record, or `None` at the end.
    ///
    /// # Errors
    /// A record that cannot be, or that is not whole, with its offset in the file.
    #[expect(clippy::should_implement_trait, reason = "an error ends it, which an iterator would hide")]
    pub fn next(&mut self) -> Result<Option<Record>, RelayError> {
        let at = self.offset;
        let header: [u8; HEADER] = match self.array()? {
            Some(header) => header,
            None if self.offset == at => return Ok(None),
            None => return Err(self.bad(at, "it breaks off inside a record")),
        };
        if self.whole {
            return Err(self.bad(at, "a record behind the last"));
        }
        let [kind, direction, c0, c1, l0, l1, l2, l3, t0, t1, t2, t3, t4, t5, t6, t7] = header;
        let connection = u16::from_be_bytes([c0, c1]);
        let length = usize::try_from(u32::from_be_bytes([l0, l1, l2, l3])).unwrap_or(usize::MAX);
        let time = Duration::from_micros(u64::from_be_bytes([t0, t1, t2, t3, t4, t5, t6, t7]));
        let direction = match direction {
            0 => Direction::Forward,
            1 if matches!(kind, DATA | END) => Direction::Back,
            _ => return Err(self.bad(at, "a direction that there is not")),
        };
        if length > MAX_DATA {
            return Err(self.bad(at, "a record of more than 1 MiB"));
        }
        if (length > 0) != (kind == DATA) {
            return Err(self.bad(at, "data and nothing but data has a length"));
        }
        if time < self.last {
            return Err(self.bad(at, "time goes back"));
        }
        self.last = time;
        let what = match kind {
            OPEN if usize::from(connection) == self.open.len() => {
                self.open.push([true; 2]);
                What::Open
            }
            OPEN => return Err(self.bad(at, "a connection out of order")),
            WHOLE if connection != 0 => return Err(self.bad(at, "the last record names a connection")),
            WHOLE => {
                self.whole = true;
                return self.next();
            }
            DATA | END | CUT => {
                let Some(open) = self.open.get_mut(usize::from(connection)) else {
                    return Err(self.bad(at, "a connection that never opened"));
                };
                let [forward, back] = open;
                let way = if direction == Direction::Forward { forward } else { back };
                match kind {
                    CUT => {
                        *open = [false; 2];
                        What::Cut
                    }
                    _ if !*way => return Err(self.bad(at, "more in a direction that has ended")),
                    END => {
                        *way = false;
                        What::End(direction)
                    }
                    _ => What::Data(direction, self.data(at, length)?),
                }
            }
            _ => return Err(self.bad(at, "a record of an unknown kind")),
        };
        Ok(Some(Record { at: time, connection, what }))
    }

    fn data(&mut self, at: u64, length: usize) -> Result<Vec<u8>, RelayError> {
        // At most MAX_DATA, and no more than the file has.
        let mut data = Vec::new();
        let taken = (&mut self.inner).take(length as u64).read_to_end(&mut data);
        taken.map_err(|source| self.failed(source))?;
        self.offset = self.offset.saturating_add(data.len() as u64);
        if data.len() < length {
            return Err(self.bad(at, "it breaks off inside a record"));
        }
        Ok(data)
    }

    /// The next `N` bytes; `None` if there are fewer. `offset` tells whether there were any.
    fn array<const N: usize>(&mut self) -> Result<Option<[u8; N]>, RelayError> {
        let mut array = [0; N];
        let mut filled = 0;
        while let Some(room) = array.get_mut(filled..).filter(|room| !room.is_empty()) {
            match self.inner.read(room) {
                Ok(0) => return Ok(None),
                Ok(read) => {
                    filled = filled.saturating_add(read);
                    self.offset = self.offset.saturating_add(read as u64);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(self.failed(error)),
            }
        }
        Ok(Some(array))
    }

    fn bad(&self, offset: u64, why: &'static str) -> RelayError {
        RelayError::Recording { path: self.path.clone(), offset, why }
    }

    fn failed(&self, source: io::Error) -> RelayError {
        RelayError::File { doing: "read", path: self.path.clone(), source }
    }
}
