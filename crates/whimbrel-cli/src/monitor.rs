//! One end of a move, by its monitor: what the subcommands ask of a machine, whichever QEMU or whimbrel it is.
//!
//! Members that only some versions have are never relied on: what isn't there is `None`.

use std::time::Duration;

use anyhow::anyhow;
use serde_json::{Value, json};
use whimbrel_qmp::{Client, Endpoint, QmpError};

/// How a monitor's address is explained in `--help`.
pub(crate) const ADDRESS: &str = "unix:PATH, a path, or tcp:HOST:PORT";
/// How long a machine that should be there may take to answer.
pub(crate) const PATIENCE: Duration = Duration::from_secs(2);
/// Run state of a machine that awaits a guest.
pub(crate) const AWAITS: &str = "inmigrate";

/// A connected monitor.
#[derive(Debug)]
pub(crate) struct Monitor(Client);

impl Monitor {
    /// Connects; a monitor that isn't there yet is waited for until `patience` is over.
    pub(crate) fn connect(endpoint: &Endpoint, patience: Duration) -> anyhow::Result<Self> {
        Client::connect(endpoint, patience).map(Self).map_err(not_connected)
    }

    /// How long answers are awaited.
    pub(crate) fn set_timeout(&mut self, timeout: Duration) {
        self.0.set_timeout(timeout);
    }

    /// Where it is.
    pub(crate) fn endpoint(&self) -> &Endpoint {
        self.0.endpoint()
    }

    /// Executes a command; `arguments` is an object, or null for none.
    pub(crate) fn execute(&mut self, command: &str, arguments: Value) -> Result<Value, QmpError> {
        self.0.execute(command, arguments)
    }

    /// Waits for the next event.
    pub(crate) fn next_event(&mut self, wait: Duration) -> Result<Option<whimbrel_qmp::Event>, QmpError> {
        self.0.next_event(wait)
    }

    /// `running`, `postmigrate` …
    pub(crate) fn run_state(&mut self) -> Result<String, QmpError> {
        let answer = self.execute("query-status", Value::Null)?;
        Ok(text(&answer["status"]).unwrap_or_default())
    }

    /// `query-migrate`, whole.
    pub(crate) fn migration(&mut self) -> Result<Value, QmpError> {
        self.execute("query-migrate", Value::Null)
    }

    /// Whether a migration capability is on; `None` if this machine has no such capability.
    pub(crate) fn capability(&mut self, name: &str) -> Result<Option<bool>, QmpError> {
        let all = self.execute("query-migrate-capabilities", Value::Null)?;
        let entry = all.as_array().and_then(|all| all.iter().find(|entry| entry["capability"] == name));
        Ok(entry.and_then(|entry| entry["state"].as_bool()))
    }

    /// Switches a migration capability, if it isn't so already: some machines refuse the command once they listen.
    pub(crate) fn set_capability(&mut self, name: &str, state: bool) -> Result<(), QmpError> {
        if self.capability(name)? == Some(state) {
            return Ok(());
        }
        let change = json!([{"capability": name, "state": state}]);
        self.execute("migrate-set-capabilities", json!({ "capabilities": change })).map(drop)
    }

    /// What it says it is: `QEMU 7.2.22`, `whimbrel 0.1.0`.
    pub(crate) fn version(&self) -> String {
        version(self.0.greeting())
    }
}

/// Where a machine listens for a guest, as its `query-migrate` tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Listening {
    /// A TCP port.
    Tcp { host: String, port: String },
    /// A unix socket.
    Unix(String),
}

impl Listening {
    /// Reads it from `query-migrate`; `None` if it listens on no socket.
    pub(crate) fn of(migration: &Value) -> Option<Self> {
        let address = &migration["socket-address"][0];
        match address["type"].as_str()? {
            "inet" => Some(Self::Tcp { host: text(&address["host"])?, port: text(&address["port"])? }),
            "unix" => Some(Self::Unix(text(&address["path"])?)),
            _ => None,
        }
    }
}

impl std::fmt::Display for Listening {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tcp { host, port } if host.contains(':') => write!(f, "tcp:[{host}]:{port}"),
            Self::Tcp { host, port } => write!(f, "tcp:{host}:{port}"),
            Self::Unix(path) => write!(f, "unix:{path}"),
        }
    }
}

/// Why a monitor was not reached, with what the usual reason for silence is.
pub(crate) fn not_connected(error: QmpError) -> anyhow::Error {
    match &error {
        QmpError::Timeout { .. } => {
            anyhow!("{error}; QEMU serves one client at a time: does another one hold it?")
        }
        _ => error.into(),
    }
}

/// A string, if it is one.
pub(crate) fn text(value: &Value) -> Option<String> {
    value.as_str().map(str::to_owned)
}

/// Both kinds of machine say the level of QEMU; only whimbrel's package begins with its own name.
fn version(greeting: &Value) -> String {
    let version = &greeting["version"];
    match version["package"].as_str() {
        Some(package) if package.starts_with("whimbrel ") => package.to_owned(),
        _ => {
            let qemu = &version["qemu"];
            format!("QEMU {}.{}.{}", qemu["major"], qemu["minor"], qemu["micro"])
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listening_address_is_read_as_either_machine_writes_it() {
        let of =
            |address: Value| Listening::of(&json!({ "socket-address": [address] })).map(|at| at.to_string());
        let inet = json!({"port": "4444", "ipv6": true, "host": "::1", "type": "inet"});
        assert_eq!(of(inet).as_deref(), Some("tcp:[::1]:4444"));
        assert_eq!(of(json!({"type": "unix", "path": "/x"})).as_deref(), Some("unix:/x"));
        assert_eq!(of(json!({"type": "fd", "str": "4"})), None);
        assert_eq!(Listening::of(&json!({"status": "setup"})), None);
    }

    #[test]
    fn a_machine_is_called_what_it_is() {
        let greeting = |package: &str| json!({"version": {"qemu": {"micro": 2, "minor": 0, "major": 10}, "package": package}});
        assert_eq!(version(&greeting("Debian 1:10.0.2+ds")), "QEMU 10.0.2");
        assert_eq!(version(&greeting("whimbrel 0.1.0")), "whimbrel 0.1.0");
    }
}
