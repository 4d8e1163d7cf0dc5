//! The description at the end of a saved stream: what each section holds, by names, types and sizes.

use std::path::Path;

use serde_json::Value;

/// Reads it.
///
/// # Panics
/// If none ends the stream.
pub fn read(stream: &Path) -> Value {
    let bytes = std::fs::read(stream).expect("the stream");
    // EOF, then VMDESCRIPTION (6) and the text's length, up to the end of the file.
    let starts: Vec<usize> = (0..bytes.len().saturating_sub(6))
        .filter(|&at| {
            bytes[at..at + 2] == [0, 6]
                && u32::from_be_bytes([bytes[at + 2], bytes[at + 3], bytes[at + 4], bytes[at + 5]]) as usize
                    == bytes.len() - at - 6
        })
        .collect();
    let start = *starts.last().expect("a vmdesc ends the stream");
    serde_json::from_slice(&bytes[start + 6..]).expect("JSON")
}
