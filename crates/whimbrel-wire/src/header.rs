//! The eight bytes that begin every stream.
//!
//! | offset | size | value |
//! |---|---|---|
//! | 0 | be32 | magic `0x5145564d`, "QEVM" |
//! | 4 | be32 | version 3 |
//!
//! A post-copy recovery connection has no header.

use std::io::Read;

use crate::error::WireError;
use crate::input::Input;
use crate::output::Output;

/// "QEVM".
pub const MAGIC: u32 = 0x5145_564d;

/// The only version in use since QEMU 0.12.
pub const VERSION: u32 = 3;

/// Version 2: known, and refused with a text of its own.
pub const OBSOLETE_VERSION: u32 = 2;

/// Writes magic and version.
pub fn encode(out: &mut Output) {
    out.be32(MAGIC);
    out.be32(VERSION);
}

/// Reads and checks magic and version.
pub fn decode<R: Read>(input: &mut Input<R>) -> Result<(), WireError> {
    let offset = input.offset();
    let got = input.reading("the stream's magic number").be32()?;
    if got != MAGIC {
        return Err(WireError::BadMagic { offset, got });
    }
    let offset = input.offset();
    match input.reading("the stream's version").be32()? {
        VERSION => Ok(()),
        version => Err(WireError::UnsupportedVersion { offset, version }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{bytes, encoded, input};

    fn decoded(stream: &str) -> Result<(), WireError> {
        decode(&mut input(&bytes(stream)))
    }

    #[test]
    fn the_header_is_qevm_and_3() {
        let stream = encoded(|out| {
            encode(out);
            Ok(())
        });
        assert_eq!(stream, bytes("'QEVM' 00000003"));
        assert_eq!(decoded("'QEVM' 00000003"), Ok(()));
    }

    #[test]
    fn other_magics_and_versions_are_refused_in_qemus_words() {
        let error = decoded("'QEVX' 00000003").unwrap_err();
        assert_eq!(error, WireError::BadMagic { offset: 0, got: 0x5145_5658 });
        assert!(error.to_string().starts_with("Not a migration stream"));
        let error = decoded("'QEVM' 00000002").unwrap_err();
        assert_eq!(error, WireError::UnsupportedVersion { offset: 4, version: OBSOLETE_VERSION });
        assert!(error.to_string().starts_with("SaveVM v2 format is obsolete"));
        let error = decoded("'QEVM' 00000004").unwrap_err();
        assert_eq!(error, WireError::UnsupportedVersion { offset: 4, version: 4 });
        assert_eq!(error.to_string(), "unsupported migration stream version 4 (stream offset 0x4)");
    }
}
