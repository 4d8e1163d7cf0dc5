//! Words of the command line that name sizes and character devices.

use std::path::PathBuf;

use whimbrel_vmm::{CharBackend, Debugcon};

/// `512M`, `4G`, `0x1000`, or a plain number of MiB, as QEMU's `-m`.
pub(crate) fn memory(text: &str) -> Result<u64, String> {
    let bad = || format!("'{text}' is no memory size: 512M, 4G, or a number of MiB");
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let scale: u64 = match text[digits.len()..].to_ascii_lowercase().as_str() {
        "" | "m" | "mib" => 1 << 20,
        "g" | "gib" => 1 << 30,
        "k" | "kib" => 1 << 10,
        _ => return Err(bad()),
    };
    let bytes = digits.parse::<u64>().ok().and_then(|n| n.checked_mul(scale)).ok_or_else(bad)?;
    if bytes == 0 || !bytes.is_multiple_of(1 << 20) { Err(bad()) } else { Ok(bytes) }
}

/// Bytes per second: `100M`, `1G`, or a plain number; 0 for no limit.
pub(crate) fn rate(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let scale: Option<u64> = match text[digits.len()..].to_ascii_lowercase().as_str() {
        "" => Some(1),
        "k" | "kib" => Some(1 << 10),
        "m" | "mib" => Some(1 << 20),
        "g" | "gib" => Some(1 << 30),
        _ => None,
    };
    digits
        .parse::<u64>()
        .ok()
        .and_then(|n| n.checked_mul(scale?))
        .ok_or_else(|| format!("'{text}' is no rate: 100M, 1G, or a number of bytes per second"))
}

/// `stdio`, `null`, `file:PATH`, `unix:PATH[,server]`, `tcp:HOST:PORT[,server]`.
pub(crate) fn char_backend(text: &str) -> Result<CharBackend, String> {
    let (name, server) = match text.strip_suffix(",server") {
        Some(name) => (name, true),
        None => (text, false),
    };
    match name.split_once(':') {
        None if name == "stdio" => Ok(CharBackend::Stdio),
        None if name == "null" => Ok(CharBackend::Null),
        Some(("file", path)) => Ok(CharBackend::File(path.into())),
        Some(("unix", path)) => Ok(CharBackend::Unix { path: path.into(), server }),
        Some(("tcp", address)) => Ok(CharBackend::Tcp { address: address.into(), server }),
        _ => Err(format!(
            "'{text}' is no character device: stdio, null, file:PATH, unix:PATH[,server] or tcp:HOST:PORT[,server]"
        )),
    }
}

/// A character device, at a port if one is named: `0xe9,unix:PATH`.
pub(crate) fn debugcon(text: &str) -> Result<Debugcon, String> {
    let at = |port: &str| port.strip_prefix("0x").and_then(|hex| u16::from_str_radix(hex, 16).ok());
    match text.split_once(',').and_then(|(port, rest)| Some((at(port)?, rest))) {
        Some((port, rest)) => Ok(Debugcon { port, backend: char_backend(rest)? }),
        None => Ok(Debugcon { port: 0xe9, backend: char_backend(text)? }),
    }
}

/// Where a kernel comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Kernel {
    /// The beacon guest in this binary.
    Beacon,
    /// A file.
    File(PathBuf),
}

/// `@beacon`, or a path.
pub(crate) fn kernel(text: &str) -> Result<Kernel, String> {
    match text {
        "@beacon" => Ok(Kernel::Beacon),
        _ if text.starts_with('@') => Err(format!("no guest '{text}' in this binary; there is @beacon")),
        path => Ok(Kernel::File(path.into())),
    }
}

/// A uuid in its usual spelling.
pub(crate) fn uuid(text: &str) -> Result<[u8; 16], String> {
    let digits: String = text.chars().filter(|c| *c != '-').collect();
    let value = u128::from_str_radix(&digits, 16).ok().filter(|_| digits.len() == 32);
    value.map(u128::to_be_bytes).ok_or_else(|| format!("'{text}' is no uuid"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_mib_unless_they_say_otherwise() {
        assert_eq!(memory("128"), Ok(128 << 20));
        assert_eq!(memory("4G"), Ok(4 << 30));
        assert!(memory("0").is_err() && memory("5k").is_err() && memory("x").is_err());
    }

    #[test]
    fn rates_are_bytes_unless_they_say_otherwise() {
        assert_eq!((rate("0"), rate("5000"), rate("100M")), (Ok(0), Ok(5000), Ok(100 << 20)));
        assert!(rate("fast").is_err() && rate("1T").is_err());
    }

    #[test]
    fn a_debug_console_may_name_its_port() {
        let named = debugcon("0x402,file:/x").unwrap();
        assert_eq!((named.port, named.backend), (0x402, CharBackend::File("/x".into())));
        assert_eq!(debugcon("unix:/s,server").unwrap().port, 0xe9);
    }

    #[test]
    fn a_uuid_is_sixteen_bytes_in_textual_order() {
        let uuid = uuid("00112233-4455-6677-8899-aabbccddeeff").unwrap();
        assert_eq!(uuid[..4], [0x00, 0x11, 0x22, 0x33]);
        assert!(super::uuid("0011").is_err());
    }
}
