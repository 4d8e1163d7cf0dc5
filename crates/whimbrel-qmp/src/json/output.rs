//! Values to bytes, spaced as QEMU spaces them: `{"return": {}}`, since scripts compare lines.

use std::io::{self, Write};

use serde::Serialize;
use serde_json::Value;
use serde_json::ser::{Formatter, Serializer};

/// One message, ended by CR LF.
pub(crate) fn to_line(value: &Value) -> Vec<u8> {
    let mut line = Vec::with_capacity(256);
    // Writing a `Value` into memory cannot fail: its keys are strings and its numbers finite.
    let _cannot_fail = value.serialize(&mut Serializer::with_formatter(&mut line, Spaced));
    line.extend_from_slice(b"\r\n");
    line
}

struct Spaced;

impl Formatter for Spaced {
    fn begin_array_value<W: ?Sized + Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_value<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        writer.write_all(b": ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_reads_as_qemu_writes_it() {
        let value = serde_json::json!({"return": {"a": [1, 2], "b": {}}, "id": "é\n"});
        assert_eq!(
            String::from_utf8(to_line(&value)).unwrap(),
            "{\"return\": {\"a\": [1, 2], \"b\": {}}, \"id\": \"é\\n\"}\r\n"
        );
    }
}
