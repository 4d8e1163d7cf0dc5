//! Where a migration goes or comes from: `uri`, or `channels` in its place.

use serde_json::Value;
use whimbrel::channel::{Address, Inet};
use whimbrel::error::CommandError;
use whimbrel::wire::qemu_texts;

use crate::arguments::{Arguments, FromArguments, FromValue, arguments, enumeration};

arguments! {
    /// One channel.
    struct Channel {
        kind: Kind = "channel-type",
        address: ChannelAddress = "addr",
    }

    struct InetAddress {
        host: String = "host",
        port: String = "port",
        numeric: Option<bool> = "numeric",
        to: Option<u16> = "to",
        ipv4: Option<bool> = "ipv4",
        ipv6: Option<bool> = "ipv6",
        keep_alive: Option<bool> = "keep-alive",
        mptcp: Option<bool> = "mptcp",
    }

    struct Unix {
        path: String = "path",
        is_abstract: Option<bool> = "abstract",
        /// Of abstract sockets only.
        tight: Option<bool> = "tight",
    }

    struct Vsock {
        cid: String = "cid",
        port: String = "port",
    }

    struct Fd {
        str: String = "str",
    }

    struct Exec {
        args: Vec<String> = "args",
    }

    struct File {
        filename: String = "filename",
        offset: u64 = "offset",
    }
}

/// What a channel carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Main,
    Cpr,
}

impl FromValue for Kind {
    fn from_value(value: Value, path: &str) -> Result<Self, CommandError> {
        enumeration(value, path, |name| match name {
            "main" => Some(Self::Main),
            "cpr" => Some(Self::Cpr),
            _ => None,
        })
    }
}

/// A `MigrationAddress`.
#[derive(Debug)]
pub(super) struct ChannelAddress(Address);

impl FromValue for ChannelAddress {
    fn from_value(value: Value, path: &str) -> Result<Self, CommandError> {
        let mut arguments = Arguments::nested(value, path)?;
        let transport: Transport = arguments.take("transport")?;
        let address = match transport {
            Transport::Socket => socket(arguments)?,
            Transport::File => {
                let File { filename, offset } = File::read_all(arguments)?;
                Address::File { path: filename.into(), offset }
            }
            Transport::Exec => Address::Exec(Exec::read_all(arguments)?.args),
            Transport::Rdma => return Err(not_built("rdma")),
        };
        Ok(Self(address))
    }
}

fn socket(mut arguments: Arguments) -> Result<Address, CommandError> {
    Ok(match arguments.take("type")? {
        SocketType::Inet => {
            let InetAddress { host, port, numeric, to, ipv4, ipv6, keep_alive, mptcp } =
                InetAddress::read_all(arguments)?;
            keep_alive.map_or(Ok(()), Inet::keep_alive)?;
            mptcp.map_or(Ok(()), Inet::mptcp)?;
            Address::Tcp { host, port, inet: Inet { ipv4, ipv6, numeric: numeric.unwrap_or(false), to } }
        }
        SocketType::Unix => match Unix::read_all(arguments)? {
            Unix { path, is_abstract: Some(true), tight } => {
                Address::Abstract { name: path, tight: tight.unwrap_or(true) }
            }
            Unix { path, .. } => Address::Unix(path.into()),
        },
        SocketType::Vsock => {
            let Vsock { cid, port } = Vsock::read_all(arguments)?;
            Address::Vsock { cid, port }
        }
        SocketType::Fd => Address::Fd(Fd::read_all(arguments)?.str),
    })
}

macro_rules! names {
    ($type:ident { $($variant:ident = $name:literal),* }) => {
        enum $type { $($variant),* }

        impl FromValue for $type {
            fn from_value(value: Value, path: &str) -> Result<Self, CommandError> {
                enumeration(value, path, |name| match name {
                    $($name => Some(Self::$variant),)*
                    _ => None,
                })
            }
        }
    };
}

names!(Transport { Socket = "socket", Exec = "exec", Rdma = "rdma", File = "file" });
names!(SocketType { Inet = "inet", Unix = "unix", Vsock = "vsock", Fd = "fd" });

fn not_built(transport: &str) -> CommandError {
    CommandError::generic(format!("Transport '{transport}' is not built into this whimbrel yet"))
}

/// The address of `migrate`: one of the two, and of the channels exactly one main one.
pub(super) fn outgoing(uri: Option<String>, channels: Option<Vec<Channel>>) -> Result<Address, CommandError> {
    let channels = match (uri, channels.unwrap_or_default()) {
        (Some(uri), channels) if channels.is_empty() => return Address::parse(&uri),
        (None, channels) if !channels.is_empty() => channels,
        _ => return Err(CommandError::generic(qemu_texts::NEED_URI_OR_CHANNELS)),
    };
    let mut main = None;
    for channel in channels {
        if channel.kind == Kind::Cpr {
            return Err(not_built("cpr channel"));
        }
        if main.replace(channel.address.0).is_some() {
            return Err(CommandError::generic(qemu_texts::MORE_THAN_ONE_MAIN_CHANNEL));
        }
    }
    main.ok_or_else(|| CommandError::generic(qemu_texts::NEED_URI_OR_CHANNELS))
}

/// The address of `migrate-incoming`: one main channel, nothing else.
pub(super) fn incoming(uri: Option<String>, channels: Option<Vec<Channel>>) -> Result<Address, CommandError> {
    if channels.as_ref().is_some_and(|channels| channels.len() > 1) {
        return Err(CommandError::generic(qemu_texts::ONLY_ONE_CHANNEL));
    }
    outgoing(uri, channels)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(channels: Value) -> Result<String, String> {
        let channels = FromValue::from_value(channels, "channels").map_err(|error| error.desc)?;
        outgoing(None, Some(channels)).map(|address| address.to_string()).map_err(|error| error.desc)
    }

    #[test]
    fn channels_say_what_uris_say() {
        for (address, uri) in [
            (
                json!({"transport": "socket", "type": "inet", "host": "10.0.0.2", "port": "4444"}),
                "tcp:10.0.0.2:4444",
            ),
            (
                json!({"transport": "socket", "type": "inet", "host": "::1", "port": "1", "ipv6": true}),
                "tcp:[::1]:1",
            ),
            (json!({"transport": "socket", "type": "unix", "path": "/x"}), "unix:/x"),
            (json!({"transport": "socket", "type": "unix", "path": "x", "abstract": true}), "unix:@x"),
            (json!({"transport": "socket", "type": "vsock", "cid": "3", "port": "5"}), "vsock:3:5"),
            (json!({"transport": "socket", "type": "fd", "str": "name"}), "fd:name"),
            (json!({"transport": "exec", "args": ["/bin/sh", "-c", "cat > /x"]}), "exec:cat > /x"),
            (json!({"transport": "exec", "args": ["/bin/cat", "/x"]}), "exec:/bin/cat /x"),
            (json!({"transport": "file", "filename": "/x", "offset": 4096}), "file:/x,offset=0x1000"),
        ] {
            assert_eq!(read(json!([{"channel-type": "main", "addr": address}])), Ok(uri.into()));
        }
    }

    /// Those without "not built" were seen from QEMU 10.0.2.
    #[test]
    fn wrong_channels_get_qemus_text() {
        let inet = json!({"transport": "socket", "type": "inet", "host": "h", "port": "1"});
        let main = json!({"channel-type": "main", "addr": inet});
        let with = |name: &str, value: Value| {
            let mut main = main.clone();
            main["addr"][name] = value;
            json!([main])
        };
        for (channels, text) in [
            (json!([]), "need either 'uri' or 'channels' argument"),
            (json!([{"channel-type": "main"}]), "Parameter 'channels[0].addr' is missing"),
            (json!([{"addr": {}}]), "Parameter 'channels[0].channel-type' is missing"),
            (
                json!([{"channel-type": "main", "addr": {"transport": "foo"}}]),
                "Parameter 'transport' does not accept value 'foo'",
            ),
            (
                json!([{"channel-type": "main", "addr": {"transport": "socket", "type": "foo", "host": "h"}}]),
                "Parameter 'type' does not accept value 'foo'",
            ),
            (
                json!([{"channel-type": "main", "addr": {"transport": "socket", "type": "inet", "host": "h"}}]),
                "Parameter 'channels[0].addr.port' is missing",
            ),
            (
                json!([{"channel-type": "main", "addr": {"transport": "file", "filename": "/x"}}]),
                "Parameter 'channels[0].addr.offset' is missing",
            ),
            (with("to", json!(70_000)), "Parameter 'to' expects uint16_t"),
            (
                with("keep-alive", json!(false)),
                "'keep-alive' cannot be switched off: connections are always kept alive",
            ),
            (with("mptcp", json!(true)), "'mptcp' is not built into this whimbrel"),
            (json!([main, main]), "Channel list has more than one main entry"),
            (
                json!([{"channel-type": "main", "addr": {"transport": "rdma", "host": "h", "port": "1"}}]),
                "Transport 'rdma' is not built into this whimbrel yet",
            ),
            (
                json!([{"channel-type": "main", "addr": {"transport": "exec"}}]),
                "Parameter 'channels[0].addr.args' is missing",
            ),
            (
                json!([{"channel-type": "main", "addr": {"transport": "exec", "args": ["cat", 5]}}]),
                "Invalid parameter type for 'channels[0].addr.args[1]', expected: string",
            ),
            (
                json!([{"channel-type": "main", "addr": {"transport": "socket", "type": "fd"}}]),
                "Parameter 'channels[0].addr.str' is missing",
            ),
            (
                json!([{"channel-type": "main", "addr": {"transport": "socket", "type": "vsock", "cid": 3}}]),
                "Invalid parameter type for 'channels[0].addr.cid', expected: string",
            ),
        ] {
            assert_eq!(read(channels.clone()), Err(text.into()), "{channels}");
        }
    }

    #[test]
    fn either_of_uri_and_channels_and_not_both() {
        let channel = || json!([{"channel-type": "main", "addr": {"transport": "socket", "type": "unix", "path": "/x"}}]);
        let channels = || Some(FromValue::from_value(channel(), "channels").unwrap());
        let both = outgoing(Some("tcp:h:1".into()), channels()).unwrap_err();
        assert_eq!(both.desc, "need either 'uri' or 'channels' argument");
        assert_eq!(outgoing(None, None).unwrap_err(), both);
        assert!(
            outgoing(Some("tcp:h:1".into()), Some(Vec::new())).is_ok(),
            "QEMU takes an empty list for none"
        );
        assert!(incoming(None, channels()).is_ok());
        let two = channels().into_iter().chain(channels()).flatten().collect();
        assert_eq!(
            incoming(None, Some(two)).unwrap_err().desc,
            "Channel list must have only one entry, for type 'main'"
        );
    }
}
