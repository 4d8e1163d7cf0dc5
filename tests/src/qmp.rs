//! A QMP client for tests: blocking, with a deadline on everything. It shares no code with the server under test, and
//! drives a real QEMU just the same.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use crate::now;

/// How long any reply may take.
const REPLY: Duration = Duration::from_secs(180);

/// An error reply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QmpError {
    /// `GenericError`, `CommandNotFound` …
    pub class: String,
    /// Its text.
    pub desc: String,
}

/// A connection to a monitor, negotiated.
#[derive(Debug)]
pub struct Qmp {
    stream: UnixStream,
    /// Received, not yet a whole line.
    partial: Vec<u8>,
    events: VecDeque<Value>,
    greeting: Value,
}

impl Qmp {
    /// Connects and negotiates; `None` if nobody listens yet.
    ///
    /// # Panics
    /// If somebody listens who does not speak QMP.
    pub fn connect(path: &Path) -> Option<Self> {
        let stream = UnixStream::connect(path).ok()?;
        let mut qmp = Self { stream, partial: Vec::new(), events: VecDeque::new(), greeting: Value::Null };
        qmp.greeting = qmp.object(now() + REPLY).expect("a greeting");
        assert!(qmp.greeting.get("QMP").is_some(), "not a QMP greeting: {}", qmp.greeting);
        qmp.ok("qmp_capabilities", json!({}));
        Some(qmp)
    }

    /// What the server said first.
    pub fn greeting(&self) -> &Value {
        &self.greeting
    }

    /// Executes a command. `arguments`: an object; an empty one is left out.
    ///
    /// # Errors
    /// The server's error reply.
    ///
    /// # Panics
    /// If no reply comes.
    #[track_caller]
    pub fn execute(&mut self, command: &str, arguments: Value) -> Result<Value, QmpError> {
        let start = now();
        self.try_execute(command, arguments).unwrap_or_else(|| {
            let why = if now() - start < REPLY { "the connection ended" } else { "none came in time" };
            panic!("no reply to {command}: {why}")
        })
    }

    /// Executes a command that must succeed.
    ///
    /// # Panics
    /// If it does not.
    #[track_caller]
    pub fn ok(&mut self, command: &str, arguments: Value) -> Value {
        self.execute(command, arguments)
            .unwrap_or_else(|error| panic!("{command}: {}: {}", error.class, error.desc))
    }

    /// Executes a command that must fail, and gives the error.
    ///
    /// # Panics
    /// If it succeeds.
    #[track_caller]
    pub fn refused(&mut self, command: &str, arguments: Value) -> QmpError {
        match self.execute(command, arguments) {
            Err(error) => error,
            Ok(value) => panic!("{command} should have been refused, returned {value}"),
        }
    }

    /// Executes a command; `None` if the connection ends first (a process that dies at it, or at `quit`).
    pub fn try_execute(&mut self, command: &str, arguments: Value) -> Option<Result<Value, QmpError>> {
        let mut request = json!({ "execute": command });
        if arguments.as_object().is_some_and(|members| !members.is_empty()) {
            request["arguments"] = arguments;
        }
        self.stream.write_all(format!("{request}\n").as_bytes()).ok()?;
        let deadline = now() + REPLY;
        loop {
            let object = self.object(deadline)?;
            if let Some(value) = object.get("return") {
                return Some(Ok(value.clone()));
            }
            if let Some(error) = object.get("error") {
                let text = |member: &str| error[member].as_str().unwrap_or_default().to_owned();
                return Some(Err(QmpError { class: text("class"), desc: text("desc") }));
            }
            self.events.push_back(object);
        }
    }

    /// The next event, whichever; `None` if none comes within `limit` or the connection ends.
    pub fn event(&mut self, limit: Duration) -> Option<Value> {
        self.events.pop_front().or_else(|| self.object(now() + limit))
    }

    /// Reads on until an event of that name; what comes before it is dropped.
    ///
    /// # Panics
    /// If it does not come within `limit`.
    #[track_caller]
    pub fn wait_event(&mut self, name: &str, limit: Duration) -> Value {
        let deadline = now() + limit;
        while let Some(event) = self.event(deadline.saturating_sub(now())) {
            if event["event"] == name {
                return event;
            }
        }
        panic!("no event {name} within {limit:?}");
    }

    /// All events that have come so far, in order, each as `NAME` or `NAME status` or `NAME pass`.
    pub fn event_names(&mut self) -> Vec<String> {
        while let Some(event) = self.object(now()) {
            self.events.push_back(event);
        }
        let name = |event: &Value| {
            let name = event["event"].as_str().unwrap_or_default();
            match (&event["data"]["status"], &event["data"]["pass"]) {
                (Value::String(status), _) => format!("{name} {status}"),
                (_, Value::Number(pass)) => format!("{name} {pass}"),
                _ => name.to_owned(),
            }
        };
        self.events.drain(..).map(|event| name(&event)).collect()
    }

    /// The next object; `None` at the deadline or the connection's end.
    fn object(&mut self, deadline: Duration) -> Option<Value> {
        loop {
            if let Some(end) = self.partial.iter().position(|&byte| byte == b'\n') {
                let line: Vec<u8> = self.partial.drain(..=end).collect();
                return Some(serde_json::from_slice(&line).unwrap_or_else(|error| {
                    panic!("not JSON ({error}): {}", String::from_utf8_lossy(&line))
                }));
            }
            let left = deadline.saturating_sub(now()).max(Duration::from_millis(1));
            self.stream.set_read_timeout(Some(left)).expect("a positive timeout");
            let mut chunk = [0; 4096];
            match self.stream.read(&mut chunk) {
                Ok(0) => return None,
                Ok(count) => self.partial.extend_from_slice(&chunk[..count]),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                // WouldBlock at the timeout; anything else is a lost connection.
                Err(_) => return None,
            }
        }
    }
}
