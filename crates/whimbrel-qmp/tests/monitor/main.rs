//! The monitor over a real engine and real sockets.

mod answers;
mod clients;
mod descriptors;
#[path = "../machine/mod.rs"]
mod machine;
#[path = "../misuse/mod.rs"]
mod misuse;
mod moves;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use machine::{PATIENCE, Quiet, Running, fresh_path};
use misuse::Raw;
use serde_json::{Value, json};
use whimbrel::engine::Incoming;
use whimbrel_qmp::{Client, Endpoint, Host, Server};

struct Memory(Arc<Quiet>);

impl Host for Memory {
    fn read_physical(&self, address: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.0.read_physical(address, buffer)
    }

    fn vcpu_threads(&self) -> Vec<i32> {
        vec![4711]
    }
}

/// A machine and its monitor; the monitor goes first.
struct Monitored {
    server: Option<Server>,
    path: PathBuf,
    running: Running,
}

impl Monitored {
    fn start(incoming: Option<Incoming>) -> Self {
        let running = Running::start(incoming);
        let path = fresh_path("monitor");
        let host = Arc::new(Memory(running.machine.clone()));
        let server = Server::start(&Endpoint::Unix(path.clone()), running.engine.clone(), host).unwrap();
        Self { server: Some(server), path, running }
    }

    fn raw(&self) -> Raw {
        Raw::connect(&self.path)
    }

    /// A raw client that has negotiated.
    fn ready(&self) -> Raw {
        let mut raw = self.raw();
        raw.message();
        assert_eq!(raw.ask(r#"{"execute":"qmp_capabilities"}"#), json!({"return": {}}));
        raw
    }

    fn client(&self) -> Client {
        Client::connect(&Endpoint::Unix(self.path.clone()), PATIENCE).unwrap()
    }
}

impl Drop for Monitored {
    fn drop(&mut self) {
        self.server.take();
    }
}

fn none() -> Value {
    Value::Null
}
