//! The encoder: the stream's primitives into a growing byte vector. It never talks to a transport.

use crate::error::WireError;

/// Bytes being put together for the stream.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Output {
    bytes: Vec<u8>,
}

impl Output {
    /// An empty output.
    pub fn new() -> Self {
        Self::default()
    }

    /// An empty output with room for `capacity` bytes.
    pub fn with_capacity(capacity: usize) -> Self {
        Output { bytes: Vec::with_capacity(capacity) }
    }

    /// One byte.
    pub fn u8(&mut self, value: u8) {
        self.bytes.push(value);
    }

    /// A big-endian 16-bit number.
    pub fn be16(&mut self, value: u16) {
        self.bytes(&value.to_be_bytes());
    }

    /// A big-endian 32-bit number.
    pub fn be32(&mut self, value: u32) {
        self.bytes(&value.to_be_bytes());
    }

    /// A big-endian 64-bit number.
    pub fn be64(&mut self, value: u64) {
        self.bytes(&value.to_be_bytes());
    }

    /// Raw bytes.
    pub fn bytes(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// A string preceded by its length in one byte; [`WireError::Unsendable`] above 255 bytes, and then nothing is
    /// written.
    pub fn pstr(&mut self, text: &str) -> Result<(), WireError> {
        let length = u8::try_from(text.len()).map_err(|_| WireError::Unsendable {
            what: "a name",
            value: text.len() as u64,
            range: "at most 255 bytes",
        })?;
        self.u8(length);
        self.bytes(text.as_bytes());
        Ok(())
    }

    /// Bytes written so far.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether nothing has been written.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// What was written.
    pub fn as_slice(&self) -> &[u8] {
        &self.bytes
    }

    /// What was written, and the output is gone.
    pub fn into_vec(self) -> Vec<u8> {
        self.bytes
    }

    /// Forgets what was written and keeps the memory.
    pub fn clear(&mut self) {
        self.bytes.clear();
    }

    /// Forgets all but the first `length` bytes: takes back an element that could not be completed.
    pub fn truncate(&mut self, length: usize) {
        self.bytes.truncate(length);
    }
}

impl AsRef<[u8]> for Output {
    fn as_ref(&self) -> &[u8] {
        self.as_slice()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{bytes, refused};

    #[test]
    fn primitives_are_big_endian() {
        let mut out = Output::with_capacity(64);
        out.u8(1);
        out.be16(0x0203);
        out.be32(0x0405_0607);
        out.be64(0x0809_0a0b_0c0d_0e0f);
        out.pstr("ram").unwrap();
        out.bytes(&[0xff]);
        assert_eq!(out.as_slice(), bytes("01 0203 04050607 08090a0b0c0d0e0f 03'ram' ff"));
        out.truncate(3);
        assert_eq!(out.into_vec(), [1, 2, 3]);
    }

    #[test]
    fn a_name_holds_255_bytes_and_no_more() {
        let mut out = Output::new();
        out.pstr(&"x".repeat(255)).unwrap();
        assert_eq!(out.len(), 256);
        let error = WireError::Unsendable { what: "a name", value: 256, range: "at most 255 bytes" };
        assert_eq!(refused(|out| out.pstr(&"x".repeat(256))), error);
    }
}
