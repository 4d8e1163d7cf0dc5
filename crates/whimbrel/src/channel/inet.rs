//! The options of a `tcp:` address, and how its host becomes numbers: on a thread of its own, since a name server may take any time
//! and nobody can be made to wait for it.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs};
use std::sync::mpsc::sync_channel;

use rustix::event::PollFlags;
use whimbrel_wire::qemu_texts;

use super::connect::plain;
use super::sockets::{CONNECT_PATIENCE, wait};
use crate::cancel::Cancel;
use crate::error::CommandError;

/// How a host's name is resolved and a port chosen. QEMU's other options are what we do anyway (`keep-alive=on`), or refused.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Inet {
    /// IPv4 addresses; unsaid, unless only the other is asked for.
    pub ipv4: Option<bool>,
    /// IPv6 addresses, likewise.
    pub ipv6: Option<bool>,
    /// The host is a number: no name server is asked.
    pub numeric: bool,
    /// The highest port to listen on, if those from the first on are taken. For listening only.
    pub to: Option<u16>,
}

impl Inet {
    /// Reads what follows the first comma of a URI.
    ///
    /// # Errors
    /// QEMU's texts for a value that is none; an option that is not followed, by name.
    pub(super) fn parse(options: &str) -> Result<Self, CommandError> {
        let mut inet = Self::default();
        for option in options.split(',').filter(|option| !option.is_empty()) {
            let (name, value) =
                option.split_once('=').map_or((option, None), |(name, value)| (name, Some(value)));
            let flag = || match value {
                None | Some("on") => Ok(true),
                Some("off") => Ok(false),
                Some(other) => Err(CommandError::generic(qemu_texts::bad_flag(name, other))),
            };
            match name {
                "ipv4" => inet.ipv4 = Some(flag()?),
                "ipv6" => inet.ipv6 = Some(flag()?),
                "numeric" => inet.numeric = flag()?,
                "keep-alive" => Self::keep_alive(flag()?)?,
                "mptcp" => Self::mptcp(flag()?)?,
                "to" => {
                    let port = value.and_then(|value| value.parse().ok());
                    inet.to = Some(port.ok_or_else(|| CommandError::generic(qemu_texts::BAD_TO))?);
                }
                _ => return Err(CommandError::generic(format!("'{name}' is no option of a tcp address"))),
            }
        }
        Ok(inet)
    }

    /// Whether a connection is kept alive is not the user's to say: a peer whose host is gone must be noticed.
    ///
    /// # Errors
    /// If it is not to be.
    pub fn keep_alive(on: bool) -> Result<(), CommandError> {
        let text = "'keep-alive' cannot be switched off: connections are always kept alive";
        if on { Ok(()) } else { Err(CommandError::generic(text)) }
    }

    /// # Errors
    /// If it is asked for.
    pub fn mptcp(on: bool) -> Result<(), CommandError> {
        let text = "'mptcp' is not built into this whimbrel";
        if on { Err(CommandError::generic(text)) } else { Ok(()) }
    }

    fn takes(self, address: &SocketAddr) -> bool {
        let (asked, other) = if address.is_ipv4() { (self.ipv4, self.ipv6) } else { (self.ipv6, self.ipv4) };
        asked.unwrap_or(other != Some(true))
    }
}

/// The addresses of a host that is a number, or empty (every address); `None` for a name. Waits for nobody.
///
/// # Errors
/// QEMU's texts: no port, both families off, a name where it has to be a number.
pub(super) fn numbers(host: &str, port: &str, inet: Inet) -> io::Result<Option<Vec<SocketAddr>>> {
    if (inet.ipv4, inet.ipv6) == (Some(false), Some(false)) {
        return Err(invalid(qemu_texts::NO_FAMILY.into()));
    }
    let failed = |why: &str| invalid(qemu_texts::resolution_failed(host, port, why));
    let number = port.parse().map_err(|_| failed("Servname not supported for ai_socktype"))?;
    if host.is_empty() {
        let every: [IpAddr; 2] = [Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()];
        return allowed(every.map(|host| SocketAddr::new(host, number)).into(), host, port, inet).map(Some);
    }
    match host.parse() {
        Ok(address) => allowed(vec![SocketAddr::new(address, number)], host, port, inet).map(Some),
        Err(_) if inet.numeric => Err(failed("Name or service not known")),
        Err(_) => Ok(None),
    }
}

/// The addresses of a host, until `cancel` is raised.
///
/// # Errors
/// As of [`numbers`]; `address resolution failed for host:1: Name or service not known`; cancelled.
pub(super) fn resolve(host: &str, port: &str, inet: Inet, cancel: &Cancel) -> io::Result<Vec<SocketAddr>> {
    if let Some(numbers) = numbers(host, port, inet)? {
        return Ok(numbers);
    }
    look_up(host, port, inet, cancel, |name| name.to_socket_addrs().map(Iterator::collect))
}

/// Asks `ask` on a thread. It cannot be interrupted there: a cancelled question ends by itself, and nobody hears the answer.
fn look_up(
    host: &str,
    port: &str,
    inet: Inet,
    cancel: &Cancel,
    ask: impl FnOnce(&str) -> io::Result<Vec<SocketAddr>> + Send + 'static,
) -> io::Result<Vec<SocketAddr>> {
    let (done, answered) = io::pipe()?;
    let (answer, wait_for) = sync_channel(1);
    let name = format!("{host}:{port}");
    std::thread::Builder::new().name("resolve".into()).spawn(move || {
        let _cancelled = answer.send(ask(&name));
        drop(answered);
    })?;
    wait(&done.into(), PollFlags::IN, Some(std::time::Instant::now() + CONNECT_PATIENCE), cancel)?;
    let answer = wait_for.try_recv().unwrap_or_else(|_| Err(io::ErrorKind::NotFound.into()));
    let found = answer.map_err(|error| {
        let text = plain(&error);
        let why = text.strip_prefix("failed to lookup address information: ").unwrap_or(&text);
        io::Error::new(error.kind(), qemu_texts::resolution_failed(host, port, why))
    })?;
    allowed(found, host, port, inet)
}

fn allowed(mut found: Vec<SocketAddr>, host: &str, port: &str, inet: Inet) -> io::Result<Vec<SocketAddr>> {
    found.retain(|address| inet.takes(address));
    if found.is_empty() {
        let why = "it has no address of the family that 'ipv4' and 'ipv6' allow";
        return Err(invalid(qemu_texts::resolution_failed(host, port, why)));
    }
    Ok(found)
}

fn invalid(text: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, text)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;

    #[test]
    fn options_are_followed_or_refused_by_name() {
        let read = |text| Inet::parse(text).map_err(|error| error.desc);
        let none = Inet::default();
        assert_eq!(read(""), Ok(none));
        assert_eq!(read("ipv4"), Ok(Inet { ipv4: Some(true), ..none }));
        assert_eq!(read("ipv6=off,to=9"), Ok(Inet { ipv6: Some(false), to: Some(9), ..none }));
        assert_eq!(read("numeric,keep-alive=on,mptcp=off"), Ok(Inet { numeric: true, ..none }));
        for (text, error) in [
            ("to=x", "error parsing to= argument"),
            ("to", "error parsing to= argument"),
            ("to=70000", "error parsing to= argument"),
            ("ipv4=x", "error parsing 'ipv4' flag '=x'"),
            ("keep-alive=x", "error parsing 'keep-alive' flag '=x'"),
            ("keep-alive=off", "'keep-alive' cannot be switched off: connections are always kept alive"),
            ("mptcp", "'mptcp' is not built into this whimbrel"),
            ("ipv4,bogus=1", "'bogus' is no option of a tcp address"),
        ] {
            assert_eq!(read(text), Err(error.into()), "{text}");
        }
    }

    /// The texts were seen from QEMU 10.0.2, but for the one about families.
    #[test]
    fn numbers_need_no_name_server_and_keep_to_the_family() {
        let read = |host, port, options: &str| {
            numbers(host, port, Inet::parse(options).unwrap())
                .map(|found| {
                    found.map(|found| found.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "))
                })
                .map_err(|error| error.to_string())
        };
        let some = |text: &str| Ok(Some(text.to_owned()));
        assert_eq!(read("10.0.0.2", "5", ""), some("10.0.0.2:5"));
        assert_eq!(read("::1", "5", "ipv6"), some("[::1]:5"));
        assert_eq!(read("", "5", ""), some("0.0.0.0:5 [::]:5"));
        assert_eq!(read("", "5", "ipv4=off"), some("[::]:5"));
        assert_eq!(read("", "5", "ipv6"), some("[::]:5"));
        assert_eq!(read("", "5", "ipv4,ipv6"), some("0.0.0.0:5 [::]:5"));
        assert_eq!(read("somewhere", "5", ""), Ok(None));
        for (host, port, options, text) in [
            (
                "localhost",
                "0",
                "numeric",
                "address resolution failed for localhost:0: Name or service not known",
            ),
            ("h", "x", "", "address resolution failed for h:x: Servname not supported for ai_socktype"),
            ("::1", "1", "ipv4=off,ipv6=off", "Cannot disable IPv4 and IPv6 at same time"),
            (
                "::1",
                "1",
                "ipv4",
                "address resolution failed for ::1:1: it has no address of the family that 'ipv4' and 'ipv6' allow",
            ),
        ] {
            assert_eq!(read(host, port, options), Err(text.into()), "{host} {port} {options}");
        }
    }

    #[test]
    fn a_name_server_that_never_answers_holds_nobody() {
        let cancel = Arc::new(Cancel::new().unwrap());
        let raising = cancel.clone();
        let (release, never) = sync_channel::<()>(0);
        std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(50));
            raising.raise();
        });
        let stuck = move |_: &str| {
            let _released = never.recv();
            Ok(Vec::new())
        };
        let error = look_up("somewhere", "1", Inet::default(), &cancel, stuck).unwrap_err();
        assert_eq!(error.to_string(), Cancel::error().to_string());
        // Only now may the name server answer: whoever had waited for it would wait for ever.
        drop(release);
    }

    #[test]
    fn names_are_looked_up() {
        let cancel = Cancel::new().unwrap();
        let found = resolve("localhost", "7", Inet { ipv4: Some(true), ..Inet::default() }, &cancel).unwrap();
        assert_eq!(found[0].to_string(), "127.0.0.1:7");
        let fails = |_: &str| {
            Err(io::Error::other("failed to lookup address information: Name or service not known"))
        };
        let error = look_up("h", "1", Inet::default(), &cancel, fails).unwrap_err();
        assert_eq!(error.to_string(), "address resolution failed for h:1: Name or service not known");
    }
}
