//! Guest memory to a file: `pmemsave`.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;

use rustix::fs::OFlags;
use serde_json::{Value, json};
use whimbrel::error::CommandError;

use crate::arguments::arguments;
use crate::command::{Command, Runs};
use crate::server::{Host, Vm};

/// Bytes read at a time.
const CHUNK: u64 = 1 << 20;

pub(super) fn commands() -> Vec<Command> {
    vec![Command::new("pmemsave", Runs::ReadOnly, pmemsave)]
}

arguments! {
    /// Of `pmemsave`.
    struct Pmemsave {
        /// Guest-physical address.
        val: u64 = "val",
        /// Bytes.
        size: u64 = "size",
        /// Created, with mode 0600, or overwritten.
        filename: String = "filename",
    }
}

fn pmemsave(vm: &Vm, arguments: Pmemsave) -> Result<Value, CommandError> {
    let Pmemsave { val, size, filename } = arguments;
    let mut open = OpenOptions::new();
    // Of a pipe nobody would know how long its reader lets us wait.
    open.write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .custom_flags(OFlags::NONBLOCK.bits().cast_signed());
    let file = open.open(&filename);
    let mut file = file.map_err(|error| {
        CommandError::generic(format!("Could not open '{filename}': {}", system_text(&error)))
    })?;
    copy(&*vm.host, val, size, &mut file)?;
    Ok(json!({}))
}

fn copy(host: &dyn Host, start: u64, size: u64, file: &mut impl Write) -> Result<(), CommandError> {
    let invalid = |address: u64, error: &dyn std::fmt::Display| {
        CommandError::generic(format!("Invalid addr {address:#018x}/size {size} specified: {error}"))
    };
    let end = start.checked_add(size).ok_or_else(|| invalid(start, &"it wraps around"))?;
    let mut buffer = Vec::new();
    let mut address = start;
    while address < end {
        let chunk = CHUNK.min(end - address);
        buffer.resize(usize::try_from(chunk).unwrap_or_default(), 0);
        host.read_physical(address, &mut buffer).map_err(|error| invalid(address, &error))?;
        file.write_all(&buffer).map_err(|error| CommandError::generic(system_text(&error)))?;
        address += chunk;
    }
    Ok(())
}

/// The system's text of an error, without Rust's number behind it.
fn system_text(error: &io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Memory(u64);

    impl Host for Memory {
        fn read_physical(&self, address: u64, buffer: &mut [u8]) -> io::Result<()> {
            if address + buffer.len() as u64 > self.0 {
                return Err(io::Error::other("no memory there"));
            }
            for (offset, byte) in buffer.iter_mut().enumerate() {
                *byte = ((address + offset as u64) / 4096) as u8;
            }
            Ok(())
        }
    }

    #[test]
    fn every_byte_of_the_range_is_written_whatever_its_size() {
        let host = Memory(4 << 20);
        for (start, size) in [(0, 0), (4096, 1), (5, CHUNK), (8192, 2 * CHUNK + 4097)] {
            let mut file = Vec::new();
            copy(&host, start, size, &mut file).unwrap();
            let expected: Vec<u8> = (start..start + size).map(|address| (address / 4096) as u8).collect();
            assert_eq!(file, expected);
        }
    }

    #[test]
    fn a_range_outside_memory_is_refused() {
        let host = Memory(1 << 20);
        for (start, size) in [(0, (1 << 20) + 1), (1 << 30, 1), (5, u64::MAX)] {
            assert!(
                copy(&host, start, size, &mut Vec::new()).unwrap_err().desc.starts_with("Invalid addr 0x")
            );
        }
    }
}
