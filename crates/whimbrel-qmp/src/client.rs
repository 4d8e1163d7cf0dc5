//! A QMP client: connects, negotiates, executes, collects events. It drives a whimbrel and a real QEMU alike.
//!
//! Everything has a deadline. Events that come while an answer is awaited are kept, in order.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use thiserror::Error;

use crate::endpoint::{Endpoint, Stream};
use crate::json::{Bounds, Framer, to_line};

/// How long an answer is awaited unless [`Client::set_timeout`] says otherwise.
pub const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// Events kept for a caller who doesn't ask for them; the oldest go first.
const EVENT_BACKLOG: usize = 4096;

/// What can go wrong with a monitor.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum QmpError {
    /// Nobody answers there.
    #[error("cannot connect to the monitor {endpoint}: {source}")]
    Connect {
        /// Where.
        endpoint: Endpoint,
        /// Why.
        source: io::Error,
    },
    /// The connection broke.
    #[error("the monitor {endpoint}: {source}")]
    Io {
        /// Whose.
        endpoint: Endpoint,
        /// Why.
        source: io::Error,
    },
    /// The machine closed the connection: it ended, as a rule.
    #[error("the monitor {endpoint} closed the connection while {awaited} was awaited")]
    Closed {
        /// Whose.
        endpoint: Endpoint,
        /// What was awaited.
        awaited: String,
    },
    /// No answer in time.
    #[error("the monitor {endpoint}: no {awaited} within {after:?}")]
    Timeout {
        /// Whose.
        endpoint: Endpoint,
        /// What was awaited.
        awaited: String,
        /// How long.
        after: Duration,
    },
    /// The command was refused.
    #[error("{command}: {desc}")]
    Refused {
        /// Which.
        command: String,
        /// QMP's class, `GenericError` as a rule.
        class: String,
        /// The machine's text.
        desc: String,
    },
    /// What came is no QMP.
    #[error("the monitor {endpoint} does not speak QMP: {text}")]
    NotQmp {
        /// Whose.
        endpoint: Endpoint,
        /// What came.
        text: String,
    },
}

impl QmpError {
    /// The machine's text, if it refused a command.
    pub fn refusal(&self) -> Option<&str> {
        match self {
            Self::Refused { desc, .. } => Some(desc),
            _ => None,
        }
    }
}

/// Something the machine told by itself.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    /// `STOP`, `MIGRATION` …
    pub name: String,
    /// Its members; null if it has none.
    pub data: Value,
    /// When, since the epoch, by the machine's clock.
    pub at: Duration,
}

enum Message {
    Answer(Value),
    Event(Event),
}

/// A connection to a monitor.
#[derive(Debug)]
pub struct Client {
    endpoint: Endpoint,
    stream: Stream,
    framer: Framer,
    greeting: Value,
    events: VecDeque<Event>,
    next_id: u64,
    timeout: Duration,
}

impl Client {
    /// Connects and negotiates. A monitor that isn't there yet is waited for until `patience` is over (zero tries once).
    ///
    /// # Errors
    /// Nobody there, or no QMP.
    pub fn connect(endpoint: &Endpoint, patience: Duration) -> Result<Self, QmpError> {
        Self::connect_with(endpoint, patience, &[])
    }

    /// The same with QMP capabilities enabled: `oob`.
    ///
    /// # Errors
    /// As [`connect`](Client::connect); a capability the machine doesn't offer is refused by it.
    pub fn connect_with(endpoint: &Endpoint, patience: Duration, enable: &[&str]) -> Result<Self, QmpError> {
        let stream = connect_patiently(endpoint, patience)?;
        let mut client = Self {
            endpoint: endpoint.clone(),
            stream,
            framer: Framer::new(Bounds::CLIENT),
            greeting: Value::Null,
            events: VecDeque::new(),
            next_id: 0,
            timeout: ANSWER_TIMEOUT,
        };
        let wait = patience.max(Duration::from_secs(1));
        let greeting =
            client.answer(Instant::now() + wait)?.ok_or_else(|| client.timed_out("greeting", wait))?;
        client.greeting = match greeting.get("QMP") {
            Some(greeting) => greeting.clone(),
            None => return Err(client.not_qmp(&greeting)),
        };
        let arguments = if enable.is_empty() { Value::Null } else { json!({ "enable": enable }) };
        client.execute("qmp_capabilities", arguments)?;
        Ok(client)
    }

    /// Where this monitor is.
    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// What the machine said of itself: `version`, `capabilities`.
    pub fn greeting(&self) -> &Value {
        &self.greeting
    }

    /// How long answers are awaited.
    pub fn set_timeout(&mut self, timeout: Duration) {
        self.timeout = timeout;
    }

    /// Executes a command; `arguments` is an object, or null for none.
    ///
    /// # Errors
    /// [`QmpError::Refused`] with the machine's text, or the connection's.
    pub fn execute(&mut self, command: &str, arguments: Value) -> Result<Value, QmpError> {
        self.run("execute", command, arguments)
    }

    /// Executes a command out of band (negotiate `oob` first).
    ///
    /// # Errors
    /// As [`execute`](Client::execute).
    pub fn execute_out_of_band(&mut self, command: &str, arguments: Value) -> Result<Value, QmpError> {
        self.run("exec-oob", command, arguments)
    }

    /// Sends a line as it is, one whole command, and gives its answer as it came, whether `return` or `error`. An id in it is the
    /// caller's own: nothing else may be awaited.
    ///
    /// # Errors
    /// The connection's.
    pub fn ask(&mut self, line: &str) -> Result<Value, QmpError> {
        self.send_bytes(format!("{line}\n").as_bytes())?;
        match self.answer(Instant::now() + self.timeout)? {
            Some(answer) => Ok(answer),
            None => Err(self.timed_out("answer", self.timeout)),
        }
    }

    /// The next event, if one comes within `wait`.
    ///
    /// # Errors
    /// The connection's.
    pub fn next_event(&mut self, wait: Duration) -> Result<Option<Event>, QmpError> {
        let deadline = Instant::now() + wait;
        if let Some(event) = self.events.pop_front() {
            return Ok(Some(event));
        }
        loop {
            match self.message(deadline)? {
                Some(Message::Event(event)) => return Ok(Some(event)),
                // The answer to a command whose wait was given up.
                Some(Message::Answer(_)) => {}
                None => return Ok(None),
            }
        }
    }

    /// The next event for which `wanted` holds; those before it are dropped.
    ///
    /// # Errors
    /// [`QmpError::Timeout`] if none comes within `wait`, or the connection's.
    pub fn wait_for(
        &mut self,
        wait: Duration,
        mut wanted: impl FnMut(&Event) -> bool,
    ) -> Result<Event, QmpError> {
        let deadline = Instant::now() + wait;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.next_event(left)? {
                Some(event) if wanted(&event) => return Ok(event),
                Some(_) => {}
                None => return Err(self.timed_out("event", wait)),
            }
        }
    }

    /// All events that have come, without waiting.
    ///
    /// # Errors
    /// The connection's.
    pub fn drain_events(&mut self) -> Result<Vec<Event>, QmpError> {
        while self.answer(Instant::now())?.is_some() {}
        Ok(self.events.drain(..).collect())
    }

    fn run(&mut self, how: &str, command: &str, arguments: Value) -> Result<Value, QmpError> {
        self.next_id += 1;
        let id = Value::from(self.next_id);
        let mut request = json!({ how: command });
        if !arguments.is_null() {
            request["arguments"] = arguments;
        }
        request["id"] = id.clone();
        self.send_bytes(&to_line(&request))?;
        let deadline = Instant::now() + self.timeout;
        loop {
            let mut answer = match self.answer(deadline) {
                Ok(Some(answer)) => answer,
                Ok(None) => return Err(self.timed_out(&format!("answer to {command}"), self.timeout)),
                Err(QmpError::Closed { endpoint, .. }) => {
                    return Err(QmpError::Closed { endpoint, awaited: format!("the answer to {command}") });
                }
                Err(error) => return Err(error),
            };
            if answer.get("id") != Some(&id) {
                continue;
            }
            if let Some(value) = answer.get_mut("return") {
                return Ok(value.take());
            }
            let Some(error) = answer.get("error") else { return Err(self.not_qmp(&answer)) };
            let text =
                |member: &str| error.get(member).and_then(Value::as_str).unwrap_or_default().to_owned();
            return Err(QmpError::Refused {
                command: command.into(),
                class: text("class"),
                desc: text("desc"),
            });
        }
    }

    fn send_bytes(&mut self, bytes: &[u8]) -> Result<(), QmpError> {
        let sent =
            self.stream.set_write_timeout(Some(self.timeout)).and_then(|()| (&self.stream).write_all(bytes));
        sent.map_err(|source| self.broken(source))
    }

    /// The next message that is no event, or `None` at the deadline. Events on the way are kept.
    fn answer(&mut self, deadline: Instant) -> Result<Option<Value>, QmpError> {
        loop {
            match self.message(deadline)? {
                Some(Message::Answer(answer)) => return Ok(Some(answer)),
                Some(Message::Event(event)) => self.keep(event),
                None => return Ok(None),
            }
        }
    }

    fn keep(&mut self, event: Event) {
        if self.events.len() == EVENT_BACKLOG {
            self.events.pop_front();
        }
        self.events.push_back(event);
    }

    /// The next message, or `None` at the deadline. What has come already is read even then.
    fn message(&mut self, deadline: Instant) -> Result<Option<Message>, QmpError> {
        loop {
            if let Some(message) = self.framer.next_message() {
                let message = message.map_err(|text| self.not_qmp(&Value::String(text)))?;
                return Ok(Some(event(&message).map_or(Message::Answer(message), Message::Event)));
            }
            // A timeout of zero would mean "for ever".
            let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
            self.stream.set_read_timeout(Some(left)).map_err(|source| self.broken(source))?;
            let mut buffer = [0; 16 << 10];
            match (&self.stream).read(&mut buffer) {
                Ok(0) => return Err(self.closed("something")),
                Ok(count) => self.framer.feed(buffer.get(..count).unwrap_or_default()),
                Err(error) => match error.kind() {
                    io::ErrorKind::Interrupted => {}
                    io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut if Instant::now() >= deadline => {
                        return Ok(None);
                    }
                    io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {}
                    io::ErrorKind::ConnectionReset => return Err(self.closed("something")),
                    _ => return Err(self.broken(error)),
                },
            }
        }
    }

    fn broken(&self, source: io::Error) -> QmpError {
        QmpError::Io { endpoint: self.endpoint.clone(), source }
    }

    fn closed(&self, awaited: &str) -> QmpError {
        QmpError::Closed { endpoint: self.endpoint.clone(), awaited: awaited.into() }
    }

    fn timed_out(&self, awaited: &str, after: Duration) -> QmpError {
        QmpError::Timeout { endpoint: self.endpoint.clone(), awaited: awaited.into(), after }
    }

    fn not_qmp(&self, message: &Value) -> QmpError {
        let text = message.to_string().chars().take(200).collect();
        QmpError::NotQmp { endpoint: self.endpoint.clone(), text }
    }
}

fn connect_patiently(endpoint: &Endpoint, patience: Duration) -> Result<Stream, QmpError> {
    let deadline = Instant::now() + patience;
    loop {
        match endpoint.connect() {
            Ok(stream) => return Ok(stream),
            Err(source) if Instant::now() >= deadline => {
                return Err(QmpError::Connect { endpoint: endpoint.clone(), source });
            }
            Err(_) => std::thread::sleep(Duration::from_millis(10)),
        }
    }
}

fn event(message: &Value) -> Option<Event> {
    let name = message.get("event")?.as_str()?.to_owned();
    let stamp = |member: &str| message.get("timestamp")?.get(member)?.as_u64();
    let at = Duration::from_secs(stamp("seconds").unwrap_or(0))
        + Duration::from_micros(stamp("microseconds").unwrap_or(0));
    Some(Event { name, data: message.get("data").cloned().unwrap_or(Value::Null), at })
}
