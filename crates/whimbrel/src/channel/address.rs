//! Migration addresses: QEMU's URIs.

use std::fmt;
use std::path::PathBuf;

use whimbrel_wire::qemu_texts;

use super::Inet;
use crate::error::CommandError;

/// Where a migration goes to, or is awaited.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Address {
    /// `tcp:host:port`; an IPv6 host in brackets. An empty host listens on every address.
    Tcp {
        /// Name or number.
        host: String,
        /// Number.
        port: String,
        /// `,ipv4=off` and the like. They say how the host is reached, not who it is, and aren't shown.
        inet: Inet,
    },
    /// `unix:path`
    Unix(PathBuf),
    /// A unix socket without a file; no URI says it.
    Abstract {
        /// Its name, without the leading zero byte.
        name: String,
        /// The name ends where it ends; else zeroes up to the longest name belong to it.
        tight: bool,
    },
    /// `vsock:cid:port`, where the host has it.
    Vsock {
        /// Number: 2 is the host, a guest's own is above it.
        cid: String,
        /// Number.
        port: String,
    },
    /// `fd:name-or-number`: given by `getfd`, or inherited.
    Fd(String),
    /// `exec:command`, one way: out to the command's input, in from its output. The program and its arguments.
    Exec(Vec<String>),
    /// `file:path[,offset=N]`
    File {
        /// Created with mode 0600 if it is not there.
        path: PathBuf,
        /// Where the stream starts, bytes; k, M, G and 0x are understood.
        offset: u64,
    },
}

/// What executes the command of an `exec:` URI.
const SHELL: [&str; 2] = ["/bin/sh", "-c"];

impl Address {
    /// Reads a URI.
    ///
    /// # Errors
    /// QEMU 10.0's texts: `unknown migration protocol: foo:bar`, `error parsing address '127.0.0.1'`.
    pub fn parse(uri: &str) -> Result<Self, CommandError> {
        if let Some(rest) = uri.strip_prefix("tcp:") {
            return Self::parse_tcp(rest);
        }
        if let Some(path) = uri.strip_prefix("unix:") {
            if path.is_empty() {
                return Err(CommandError::generic(qemu_texts::INVALID_UNIX_ADDRESS));
            }
            return Ok(Self::Unix(path.into()));
        }
        if let Some(rest) = uri.strip_prefix("vsock:") {
            let (cid, port) =
                rest.split_once(':').ok_or_else(|| CommandError::generic(qemu_texts::bad_address(rest)))?;
            return Ok(Self::Vsock { cid: cid.to_owned(), port: port.to_owned() });
        }
        if let Some(name) = uri.strip_prefix("fd:") {
            if name.is_empty() {
                return Err(CommandError::generic(qemu_texts::INVALID_DESCRIPTOR_ADDRESS));
            }
            return Ok(Self::Fd(name.to_owned()));
        }
        if let Some(command) = uri.strip_prefix("exec:") {
            return Ok(Self::Exec(SHELL.into_iter().chain([command]).map(str::to_owned).collect()));
        }
        if let Some(rest) = uri.strip_prefix("file:") {
            return Self::parse_file(rest);
        }
        Err(CommandError::generic(qemu_texts::unknown_protocol(uri)))
    }

    fn parse_tcp(text: &str) -> Result<Self, CommandError> {
        let bad = || CommandError::generic(qemu_texts::bad_address(text));
        let (text_only, options) = text.split_once(',').unwrap_or((text, ""));
        let (host, port) = match text_only.strip_prefix('[') {
            Some(rest) => rest.split_once("]:").ok_or_else(bad)?,
            None => text_only.rsplit_once(':').ok_or_else(bad)?,
        };
        if port.parse::<u16>().is_err() || (host.contains(':') && !text_only.starts_with('[')) {
            return Err(bad());
        }
        Ok(Self::Tcp { host: host.to_owned(), port: port.to_owned(), inet: Inet::parse(options)? })
    }

    fn parse_file(text: &str) -> Result<Self, CommandError> {
        let Some((path, offset)) = text.rsplit_once(",offset=") else {
            return Ok(Self::File { path: text.into(), offset: 0 });
        };
        let offset =
            parse_size(offset).ok_or_else(|| CommandError::generic(qemu_texts::bad_file_offset(offset)))?;
        Ok(Self::File { path: path.into(), offset })
    }

    /// The address without its scheme, as error texts name it.
    pub(crate) fn endpoint(&self) -> String {
        if let Self::Abstract { name, .. } = self {
            return name.clone();
        }
        let text = self.to_string();
        text.split_once(':').map_or(text.clone(), |(_, rest)| rest.to_owned())
    }
}

/// `4096`, `0x1000`, `64k`, `1M`, `2G`.
fn parse_size(text: &str) -> Option<u64> {
    if let Some(hex) = text.strip_prefix("0x") {
        return u64::from_str_radix(hex, 16).ok();
    }
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let scale = match text[digits.len()..].to_ascii_lowercase().as_str() {
        "" | "b" => 1_u64,
        "k" => 1 << 10,
        "m" => 1 << 20,
        "g" => 1 << 30,
        "t" => 1 << 40,
        _ => return None,
    };
    digits.parse::<u64>().ok()?.checked_mul(scale)
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { host, port, .. } if host.contains(':') => write!(f, "tcp:[{host}]:{port}"),
            Self::Tcp { host, port, .. } => write!(f, "tcp:{host}:{port}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Abstract { name, .. } => write!(f, "unix:@{name}"),
            Self::Vsock { cid, port } => write!(f, "vsock:{cid}:{port}"),
            Self::Fd(name) => write!(f, "fd:{name}"),
            Self::Exec(arguments) => match arguments.as_slice() {
                [shell, c, command] if [shell, c] == SHELL => write!(f, "exec:{command}"),
                arguments => write!(f, "exec:{}", arguments.join(" ")),
            },
            Self::File { path, offset: 0 } => write!(f, "file:{}", path.display()),
            Self::File { path, offset } => write!(f, "file:{},offset={offset:#x}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uris_read_back_as_they_are_written() {
        for uri in [
            "tcp:10.0.0.2:4444",
            "tcp:[::1]:4444",
            "tcp::0",
            "unix:/a b",
            "vsock:3:4444",
            "fd:name",
            "fd:7",
            "exec:cat > /x; true",
            "file:/x",
            "file:/x,offset=0x200000",
        ] {
            assert_eq!(Address::parse(uri).unwrap().to_string(), uri);
        }
        let file = Address::parse("file:/x,offset=1M").unwrap();
        assert_eq!(file, Address::File { path: "/x".into(), offset: 1 << 20 });
    }

    #[test]
    fn bad_uris_get_the_texts_clients_know() {
        for (uri, text) in [
            ("foo:bar", "unknown migration protocol: foo:bar"),
            ("tcp:127.0.0.1", "error parsing address '127.0.0.1'"),
            ("tcp:127.0.0.1:x", "error parsing address '127.0.0.1:x'"),
            ("tcp:::1:5", "error parsing address '::1:5'"),
            ("tcp:h:1,to=x", "error parsing to= argument"),
            ("tcp:h:1,bogus", "'bogus' is no option of a tcp address"),
            ("vsock:1", "error parsing address '1'"),
            ("fd:", "invalid file descriptor address"),
            ("unix:", "invalid Unix socket address"),
            ("file:/x,offset=12q", "file URI has bad offset 12q: Invalid argument"),
        ] {
            assert_eq!(Address::parse(uri).unwrap_err().desc, text);
        }
    }
}
