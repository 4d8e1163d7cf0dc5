//! What a connection costs: one thread, as long as it lasts. A process of its own, so that no other test's threads are counted.

mod machine;

use std::io;
use std::sync::Arc;
use std::time::Instant;

use machine::{PATIENCE, Running, fresh_path};
use serde_json::Value;
use whimbrel_qmp::{Client, Endpoint, Host, Server};

struct NoMemory;

impl Host for NoMemory {
    fn read_physical(&self, _address: u64, _buffer: &mut [u8]) -> io::Result<()> {
        Err(io::Error::other("no memory there"))
    }
}

/// Threads, and open descriptors, of this process.
fn held() -> [usize; 2] {
    ["/proc/self/task", "/proc/self/fd"].map(|path| std::fs::read_dir(path).unwrap().count())
}

#[test]
fn a_connection_costs_one_thread_and_leaves_nothing_behind() {
    let running = Running::start(None);
    let endpoint = Endpoint::Unix(fresh_path("monitor"));
    let server = Server::start(&endpoint, running.engine.clone(), Arc::new(NoMemory)).unwrap();
    let [threads, descriptors] = held();
    for _ in 0..10 {
        let mut clients: Vec<_> =
            (0..5).map(|_| Client::connect(server.endpoint(), PATIENCE).unwrap()).collect();
        for client in &mut clients {
            client.execute("query-status", Value::Null).unwrap();
        }
        assert_eq!(held()[0], threads + 5);
        drop(clients);
        let begin = Instant::now();
        while held() != [threads, descriptors] {
            assert!(begin.elapsed() < PATIENCE, "{:?} held, once {threads} and {descriptors}", held());
            std::thread::yield_now();
        }
    }
}
