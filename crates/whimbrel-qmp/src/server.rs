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
        // Each goes in turn; none holds us longer than its write timeout.
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
