//! The destination, as far as its monitor was given: waits until it awaits a guest, lets it listen, finds where, and hears
//! at the end what became of it.

use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use serde_json::{Value, json};
use whimbrel_qmp::{Endpoint, QmpError};

use super::outcome::Side;
use crate::interrupt;
use crate::monitor::{AWAITS, Listening, Monitor, text};

const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// A destination that loads a guest may be slow to answer.
const ANSWER: Duration = Duration::from_secs(10);

/// A destination that can be asked.
#[derive(Debug)]
pub(super) struct Destination {
    monitor: Monitor,
    /// It was asked not to exit on failure, so that it can still say why.
    kept: bool,
}

impl Destination {
    /// Connects; one that isn't started yet is waited for.
    pub(super) fn connect(endpoint: &Endpoint, patience: Duration) -> anyhow::Result<Self> {
        let deadline = Instant::now() + patience;
        loop {
            match Monitor::connect(endpoint, LOOK_AGAIN) {
                Ok(mut monitor) => {
                    monitor.set_timeout(ANSWER);
                    return Ok(Self { monitor, kept: false });
                }
                Err(error) if Instant::now() >= deadline || interrupt::asked() > 0 => {
                    return Err(error).context("destination");
                }
                Err(_) => {}
            }
        }
    }

    /// Turns the return path on. A destination that listens already may refuse to change; it answers all the same, since
    /// the source's stream asks it to.
    pub(super) fn turn_return_path_on(&mut self) -> anyhow::Result<()> {
        match self.monitor.set_capability("return-path", true) {
            Err(QmpError::Refused { .. }) | Ok(()) => Ok(()),
            Err(error) => Err(error).context("destination"),
        }
    }

    /// Its monitor.
    pub(super) fn monitor(&mut self) -> &mut Monitor {
        &mut self.monitor
    }

    /// Where the source reaches it. `uri` is where it should listen if it waits to be told (`defer`), and the host to use.
    pub(super) fn address(&mut self, uri: Option<&str>, patience: Duration) -> anyhow::Result<String> {
        let deadline = Instant::now() + patience;
        let mut told = false;
        loop {
            let state = self.monitor.run_state().context("destination")?;
            if state != AWAITS {
                bail!(
                    "destination: it awaits no guest (its run state is '{state}'): start it with --incoming"
                );
            }
            let info = self.monitor.migration().context("destination")?;
            if let Some(listening) = Listening::of(&info) {
                return Ok(reach(uri, &listening, self.monitor.endpoint()));
            }
            if let Some(error) = text(&info["error-desc"]) {
                bail!("destination: {error}");
            }
            match uri {
                Some(uri) if !told => {
                    told = true;
                    if !self.listen(uri)? {
                        // It waits at what has no address to tell: a descriptor, a command, a file.
                        return Ok(uri.to_owned());
                    }
                }
                Some(uri) if !uri.starts_with("tcp:") => return Ok(uri.to_owned()),
                _ if interrupt::asked() > 0 => bail!("interrupted"),
                _ if Instant::now() < deadline => std::thread::sleep(LOOK_AGAIN),
                Some(_) => bail!("destination: it does not listen after {} s", patience.as_secs()),
                None => bail!(
                    "destination: it listens nowhere; if it was started with `defer`, give the URI that it is to listen at \
                     (tcp:HOST:0 takes a free port)"
                ),
            }
        }
    }

    /// What it is once it has left `inmigrate`, has ended, or has said why it failed; or what it is after `patience`.
    pub(super) fn settle(&mut self, patience: Duration) -> Side {
        let deadline = Instant::now() + patience;
        loop {
            let side = self.look();
            let settled = side.error.is_some() || side.run_state.as_deref() != Some(AWAITS);
            if settled || Instant::now() >= deadline {
                return side;
            }
            std::thread::sleep(LOOK_AGAIN);
        }
    }

    /// Ends a destination that failed and still stands only because it was asked to stay until it had said why.
    pub(super) fn dismiss(&mut self, side: &Side) {
        if self.kept && side.run_state.as_deref() == Some(AWAITS) && side.error.is_some() {
            // It may be gone before its answer is.
            let _going = self.monitor.execute("quit", Value::Null);
        }
    }

    /// Lets a deferred one listen; `false` if it was told where before.
    fn listen(&mut self, uri: &str) -> anyhow::Result<bool> {
        let staying = self.monitor.execute("migrate-incoming", json!({"uri": uri, "exit-on-error": false}));
        let answer = match staying {
            Ok(_) => {
                self.kept = true;
                return Ok(true);
            }
            // QEMU before 9.1 does not know it: the destination then ends with its error on its own standard error.
            Err(error) if error.refusal().is_some_and(|text| text.contains("exit-on-error")) => {
                self.monitor.execute("migrate-incoming", json!({ "uri": uri }))
            }
            Err(error) => Err(error),
        };
        match answer {
            Ok(_) => Ok(true),
            Err(error) if error.refusal().is_some_and(|text| text.contains("already been started")) => {
                Ok(false)
            }
            Err(error) => Err(error).context("destination"),
        }
    }

    fn look(&mut self) -> Side {
        let look = |monitor: &mut Monitor| -> Result<Side, QmpError> {
            let info = monitor.migration()?;
            Ok(Side { run_state: Some(monitor.run_state()?), error: text(&info["error-desc"]) })
        };
        look(&mut self.monitor).unwrap_or_else(|error| Side {
            run_state: None,
            error: Some(match error {
                QmpError::Closed { .. } | QmpError::Io { .. } => {
                    "it has ended; its own output says why".into()
                }
                error => error.to_string(),
            }),
        })
    }
}

/// The address the source connects to: the URI's own host and port where it names them, else what the destination tells;
/// and for a destination that listens everywhere, the host that its monitor is at.
fn reach(uri: Option<&str>, listening: &Listening, monitor: &Endpoint) -> String {
    let Listening::Tcp { host, port } = listening else {
        return uri.map_or_else(|| listening.to_string(), str::to_owned);
    };
    let asked = uri.and_then(|uri| uri.strip_prefix("tcp:")).unwrap_or_default();
    // Options are the listener's; with `to` it may have taken another port.
    let (asked, options) = asked.split_once(',').unwrap_or((asked, ""));
    let (asked_host, asked_port) = asked.rsplit_once(':').unwrap_or_default();
    let asked_host = asked_host.trim_matches(['[', ']']);
    let host = match [asked_host, host].into_iter().find(|host| !is_everywhere(host)) {
        Some(host) => host.to_owned(),
        None => match monitor {
            Endpoint::Tcp { host, .. } if !is_everywhere(host) => host.clone(),
            _ if host == "::" => "::1".into(),
            _ => "127.0.0.1".into(),
        },
    };
    let told = matches!(asked_port, "" | "0") || options.contains("to=");
    let port = if told { port } else { asked_port };
    Listening::Tcp { host, port: port.into() }.to_string()
}

fn is_everywhere(host: &str) -> bool {
    matches!(host, "" | "0.0.0.0" | "::")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_source_is_sent_to_a_host_and_a_port_that_it_can_reach() {
        let unix: Endpoint = "unix:/b.sock".parse().unwrap();
        let far: Endpoint = "tcp:10.0.0.2:4445".parse().unwrap();
        let tcp = |host: &str| Listening::Tcp { host: host.into(), port: "40000".into() };
        for (uri, listening, monitor, expected) in [
            (None, tcp("127.0.0.1"), &unix, "tcp:127.0.0.1:40000"),
            (None, tcp("0.0.0.0"), &unix, "tcp:127.0.0.1:40000"),
            (None, tcp("::"), &unix, "tcp:[::1]:40000"),
            (None, tcp("0.0.0.0"), &far, "tcp:10.0.0.2:40000"),
            (Some("tcp:0.0.0.0:0"), tcp("0.0.0.0"), &far, "tcp:10.0.0.2:40000"),
            (Some("tcp:host-b:0"), tcp("10.0.0.2"), &unix, "tcp:host-b:40000"),
            (Some("tcp:[fe80::1]:0"), tcp("fe80::1"), &unix, "tcp:[fe80::1]:40000"),
            (Some("tcp:gateway:4444"), tcp("0.0.0.0"), &unix, "tcp:gateway:4444"),
            (Some("tcp:host-b:0,ipv4"), tcp("host-b"), &unix, "tcp:host-b:40000"),
            (Some("tcp:[::]:39999,to=40005"), tcp("::"), &far, "tcp:10.0.0.2:40000"),
            (Some("tcp:gateway:4444,ipv6"), tcp("::"), &unix, "tcp:gateway:4444"),
            (Some("unix:/x"), Listening::Unix("/x".into()), &unix, "unix:/x"),
            (None, Listening::Unix("/y".into()), &unix, "unix:/y"),
        ] {
            assert_eq!(reach(uri, &listening, monitor), expected, "{uri:?} {listening:?}");
        }
    }
}
