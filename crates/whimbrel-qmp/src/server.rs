//! The monitor's socket: who may connect, how many, and until when.
//!
//! A whimbrel's monitor takes several clients at once (QEMU's takes one): each has its own negotiation and hears every event.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use thiserror::Error;
use whimbrel::Engine;

use crate::command::Table;
use crate::commands;
use crate::connection::Connection;
use crate::endpoint::{Endpoint, Listener};

/// Clients at one time.
const CLIENTS: usize = 16;

/// What commands need of the machine besides its engine.
pub trait Host: Send + Sync {
    /// Reads guest-physical memory, RAM and ROM, as a device would.
    ///
    /// # Errors
    /// If there is no memory at a part of the range; what `buffer` then holds is not used.
    fn read_physical(&self, address: u64, buffer: &mut [u8]) -> io::Result<()>;

    /// The system's numbers of the vCPUs' threads, in the vCPUs' order.
    fn vcpu_threads(&self) -> Vec<i32> {
        Vec::new()
    }
}

/// The machine that a monitor speaks for.
pub(crate) struct Vm {
    pub(crate) engine: Arc<Engine>,
    pub(crate) host: Arc<dyn Host>,
    /// The names of all commands, for `query-commands`.
    pub(crate) commands: Vec<&'static str>,
}

/// A monitor cannot be opened.
#[derive(Debug, Error)]
#[error("cannot open the monitor {endpoint}: {source}")]
pub struct ServerError {
    /// Where.
    pub endpoint: Endpoint,
    /// Why.
    pub source: io::Error,
}

/// An open monitor. Dropping it answers what has been asked, closes every connection and removes the socket.
pub struct Server {
    endpoint: Endpoint,
    shared: Arc<Shared>,
    acceptor: Option<JoinHandle<()>>,
}

struct Shared {
    listener: Listener,
    connections: Mutex<Vec<Connection>>,
}

impl Server {
    /// Listens at `endpoint` and serves whoever connects, from now on.
    ///
    /// # Errors
    /// If it cannot be listened there.
    pub fn start(endpoint: &Endpoint, engine: Arc<Engine>, host: Arc<dyn Host>) -> Result<Self, ServerError> {
        let table = Arc::new(commands::table());
        let vm = Arc::new(Vm { engine, host, commands: table.names().collect() });
        Self::start_with(endpoint, vm, table)
            .map_err(|source| ServerError { endpoint: endpoint.clone(), source })
    }

    pub(crate) fn start_with(endpoint: &Endpoint, vm: Arc<Vm>, table: Arc<Table>) -> io::Result<Self> {
        let listener = endpoint.listen()?;
        let endpoint = listener.endpoint()?;
        let shared = Arc::new(Shared { listener, connections: Mutex::new(Vec::new()) });
        let accepting = shared.clone();
        let acceptor = std::thread::Builder::new()
            .name("qmp-accept".into())
            .spawn(move || accepting.accept_all(&vm, &table))?;
        tracing::info!(%endpoint, "monitor open");
        Ok(Self { endpoint, shared, acceptor: Some(acceptor) })
    }

    /// Where it listens, with the port the kernel chose.
    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shared.listener.close();
        if let Some(acceptor) = self.acceptor.take() {
            let _panicked = acceptor.join();
        }
        // Each goes in turn; none holds us longer than its write timeout, and what the main loop is at for it.
        drop(std::mem::take(&mut *self.shared.connections()));
    }
}

impl Shared {
    fn connections(&self) -> std::sync::MutexGuard<'_, Vec<Connection>> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn accept_all(&self, vm: &Arc<Vm>, table: &Arc<Table>) {
        loop {
            let stream = match self.listener.accept() {
                Ok(stream) => stream,
                Err(error) if error.kind() == io::ErrorKind::InvalidInput => return,
                Err(error) => {
                    // Out of file descriptors, a client gone before it was accepted: neither ends the monitor.
                    tracing::warn!(%error, "a monitor client could not be accepted");
                    std::thread::sleep(std::time::Duration::from_millis(100));
                    continue;
                }
            };
            let mut connections = self.connections();
            connections.retain(|connection| !connection.is_over());
            if connections.len() >= CLIENTS {
                tracing::warn!("a monitor client is turned away: {CLIENTS} are connected");
                continue;
            }
            match Connection::start(stream, vm.clone(), table.clone()) {
                Ok(connection) => connections.push(connection),
                Err(error) => tracing::warn!(%error, "a monitor client could not be served"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::sync::mpsc::sync_channel;
    use std::time::Duration;

    use serde_json::json;
    use whimbrel::channel::Address;
    use whimbrel::proto::capabilities::Capability;

    use super::*;
    use crate::arguments::NoArguments;
    use crate::command::{Command, Runs};
    use crate::json::{Bounds, Framer};
    use crate::test_machine::{PATIENCE, Running, fresh_path};

    struct NoMemory;

    impl Host for NoMemory {
        fn read_physical(&self, _address: u64, _buffer: &mut [u8]) -> io::Result<()> {
            Err(io::Error::other("no memory there"))
        }
    }

    /// A monitor whose command `wait` runs (and may not be answered) until its command `release` was run.
    fn start() -> (Server, Running) {
        static GATE: (Mutex<bool>, std::sync::Condvar) = (Mutex::new(false), std::sync::Condvar::new());
        let wait = |_: &Vm, _: NoArguments| {
            let closed = GATE.0.lock().unwrap();
            let (_open, timeout) = GATE.1.wait_timeout_while(closed, PATIENCE, |open| !*open).unwrap();
            Ok(json!({"released": !timeout.timed_out()}))
        };
        let release = |_: &Vm, _: NoArguments| {
            *GATE.0.lock().unwrap() = true;
            GATE.1.notify_all();
            Ok(json!({}))
        };
        let table = Arc::new(Table::new([
            Command::new("wait", Runs::MainLoop, wait),
            Command::new("release", Runs::OutOfBand, release),
        ]));
        let running = Running::start(None);
        let vm = Vm { engine: running.engine.clone(), host: Arc::new(NoMemory), commands: vec![] };
        let endpoint = Endpoint::Unix(fresh_path("monitor"));
        (Server::start_with(&endpoint, Arc::new(vm), table).unwrap(), running)
    }

    /// The main loop is held by a command; what comes out of band is answered, and what happens is told.
    #[test]
    fn a_command_on_the_main_loop_holds_up_neither_what_is_out_of_band_nor_events() {
        let (server, running) = start();
        let peer = std::os::unix::net::UnixListener::bind(fresh_path("peer")).unwrap();
        let address = peer.local_addr().unwrap();
        let uri = format!("unix:{}", address.as_pathname().unwrap().display());
        let moving = move |engine: &Arc<Engine>| {
            engine.set_capabilities(&[(Capability::Events, true)])?;
            engine.migrate(Address::parse(&uri)?, false)
        };
        running.engine.on_main(moving).unwrap().unwrap();
        let stream = server.endpoint().connect().unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let request = r#"{"execute":"qmp_capabilities","arguments":{"enable":["oob"]}}"#;
        (&stream).write_all(request.as_bytes()).unwrap();
        let mut framer = Framer::new(Bounds::CLIENT);
        let mut message = || loop {
            if let Some(message) = framer.next_message() {
                return message.unwrap();
            }
            let mut buffer = [0; 4096];
            let count = (&stream).read(&mut buffer).unwrap();
            assert_ne!(count, 0, "closed");
            framer.feed(&buffer[..count]);
        };
        assert!(message().get("QMP").is_some());
        // The move's events may be ahead of the answer.
        while message() != json!({"return": {}}) {}
        let requests = br#"{"execute":"wait","id":1}{"execute":"release","id":2}"#;
        (&stream).write_all(requests).unwrap();
        // The peer goes away in the midst of it: the status turns to `failed` without the main loop.
        drop(peer.accept().unwrap());
        while message()["data"]["status"] != "failed" {}
        (&stream).write_all(br#"{"exec-oob":"release","id":3}"#).unwrap();
        // Once it is released the other may be the first to say so.
        let mut first = [message(), message()];
        first.sort_by_key(|answer| answer["id"].as_u64());
        assert_eq!(first[0], json!({"return": {"released": true}, "id": 1}));
        assert_eq!(first[1], json!({"return": {}, "id": 3}));
        assert_eq!(message(), json!({"return": {}, "id": 2}), "in band, in order");
    }

    #[test]
    fn a_server_that_goes_waits_for_no_client() {
        let running = Running::start(None);
        let endpoint = Endpoint::Unix(fresh_path("monitor"));
        let server = Server::start(&endpoint, running.engine.clone(), Arc::new(NoMemory)).unwrap();
        let clients: Vec<_> = (0..4).map(|_| endpoint.connect().unwrap()).collect();
        let (done, wait) = sync_channel(1);
        std::thread::spawn(move || {
            drop(server);
            done.send(()).unwrap();
        });
        wait.recv_timeout(Duration::from_secs(2)).expect("idle clients hold nobody up");
        for client in clients {
            client.set_read_timeout(Some(PATIENCE)).unwrap();
            let mut rest = Vec::new();
            (&client).read_to_end(&mut rest).unwrap();
        }
        assert!(endpoint.connect().is_err());
    }
}
