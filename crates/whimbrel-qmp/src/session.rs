//! One client's conversation, without its socket: negotiation, envelopes, answers. It never waits: what the main loop has to
//! do is given back, for the connection to post.
//!
//! | state | `qmp_capabilities` | other commands | events |
//! |---|---|---|---|
//! | negotiation | enables what is asked for; on to commands | CommandNotFound | not sent |
//! | commands | CommandNotFound | by the table | sent |

use std::os::fd::OwnedFd;
use std::sync::Arc;

use serde_json::{Map, Value, json};
use whimbrel::error::{CommandError, ErrorClass};
use whimbrel::wire::qemu_texts;

use crate::arguments::{Arguments, FromArguments, FromValue, arguments, enumeration};
use crate::command::{Held, Job, Runs, Table};
use crate::commands::query_version;
use crate::server::Vm;
use crate::texts;

/// Ends negotiation.
const NEGOTIATE: &str = "qmp_capabilities";

/// The state of one connection.
pub(crate) struct Session {
    vm: Arc<Vm>,
    table: Arc<Table>,
    negotiated: bool,
    out_of_band: bool,
    held: Held,
}

/// What a client sends: a message or why it is none, and the descriptor that came with it.
pub(crate) struct Message {
    pub(crate) value: Result<Value, String>,
    pub(crate) descriptor: Option<OwnedFd>,
}

/// What becomes of a message.
pub(crate) enum Next {
    /// It is answered.
    Answer(Value),
    /// The main loop is to do this; [`answer`] makes an answer of what it gives.
    MainLoop { id: Option<Value>, job: Job },
}

/// The answer to a command, under the id that the client gave it.
pub(crate) fn answer(id: Option<Value>, result: Result<Value, CommandError>) -> Value {
    match result {
        Ok(value) => success(id, value),
        Err(error) => refusal(id, error),
    }
}

/// What a message asks for.
struct Envelope {
    command: String,
    out_of_band: bool,
    arguments: Map<String, Value>,
}

arguments! {
    /// Of `qmp_capabilities`.
    struct Negotiate {
        enable: Option<Vec<QmpCapability>> = "enable",
    }
}

/// What a client may enable.
#[derive(Debug, PartialEq)]
pub(crate) enum QmpCapability {
    Oob,
}

impl FromValue for QmpCapability {
    fn from_value(value: Value, path: &str) -> Result<Self, CommandError> {
        enumeration(value, path, |name| (name == "oob").then_some(Self::Oob))
    }
}

impl Session {
    pub(crate) fn new(vm: Arc<Vm>, table: Arc<Table>) -> Self {
        Self { vm, table, negotiated: false, out_of_band: false, held: None }
    }

    /// The first thing a client hears.
    pub(crate) fn greeting(&self) -> Value {
        json!({"QMP": {"version": query_version(&self.vm), "capabilities": ["oob"]}})
    }

    /// Commands may come, and events go.
    pub(crate) fn is_negotiated(&self) -> bool {
        self.negotiated
    }

    /// The message is to be answered ahead of those that wait.
    pub(crate) fn is_out_of_band(&self, message: &Message) -> bool {
        let asked = message.value.as_ref().is_ok_and(|message| message.get("exec-oob").is_some());
        asked && self.out_of_band
    }

    /// Takes one message, or what was none.
    pub(crate) fn take(&mut self, message: Message) -> Next {
        if message.descriptor.is_some() {
            self.held = message.descriptor;
        }
        let mut message = match message.value {
            Ok(Value::Object(members)) => members,
            Ok(_) => {
                return Next::Answer(refusal(None, CommandError::generic(qemu_texts::INPUT_NOT_AN_OBJECT)));
            }
            Err(text) => return Next::Answer(refusal(None, CommandError::generic(text))),
        };
        let id = message.shift_remove("id");
        let job = match self.envelope(message).and_then(|envelope| self.prepare(envelope)) {
            Ok((Runs::MainLoop, job)) => return Next::MainLoop { id, job },
            Ok((Runs::ReadOnly | Runs::OutOfBand, job)) => job,
            Err(error) => return Next::Answer(refusal(id, error)),
        };
        Next::Answer(answer(id, job(&self.vm)))
    }

    fn envelope(&self, message: Map<String, Value>) -> Result<Envelope, CommandError> {
        let mut command = None;
        let mut arguments = Map::new();
        let both = message.contains_key("execute") && message.contains_key("exec-oob");
        for (member, value) in message {
            let out_of_band = member == "exec-oob" && self.out_of_band;
            match (member.as_str(), value) {
                ("execute", Value::String(name)) => command = Some((name, false)),
                ("exec-oob", Value::String(name)) if out_of_band => command = Some((name, true)),
                ("arguments", Value::Object(members)) => arguments = members,
                ("arguments", _) => return Err(CommandError::generic(texts::ARGUMENTS_NOT_AN_OBJECT)),
                (name, _) if name == "execute" || out_of_band => {
                    return Err(CommandError::generic(texts::command_not_a_string(name)));
                }
                (other, _) => return Err(CommandError::generic(qemu_texts::unexpected_member(other))),
            }
        }
        if both {
            return Err(CommandError::generic(texts::EXECUTE_CLASHES));
        }
        let (command, out_of_band) = command.ok_or_else(|| CommandError::generic(texts::LACKS_EXECUTE))?;
        Ok(Envelope { command, out_of_band, arguments })
    }

    fn prepare(&mut self, envelope: Envelope) -> Result<(Runs, Job), CommandError> {
        let Envelope { command, out_of_band, arguments } = envelope;
        let not_now = |desc: &str| CommandError { class: ErrorClass::CommandNotFound, desc: desc.into() };
        match (self.negotiated, command == NEGOTIATE) {
            (false, true) => return self.negotiate(arguments),
            (false, false) => return Err(not_now(qemu_texts::EXPECTING_NEGOTIATION)),
            (true, true) => return Err(not_now(qemu_texts::NEGOTIATION_COMPLETE)),
            (true, false) => {}
        }
        let command = self.table.find(&command)?;
        if out_of_band && command.runs != Runs::OutOfBand {
            return Err(CommandError::generic(qemu_texts::no_out_of_band(command.name)));
        }
        Ok((command.runs, command.prepare(arguments, &mut self.held)?))
    }

    fn negotiate(&mut self, arguments: Map<String, Value>) -> Result<(Runs, Job), CommandError> {
        let Negotiate { enable } = Negotiate::read_all(Arguments::new(arguments))?;
        self.out_of_band = enable.unwrap_or_default().contains(&QmpCapability::Oob);
        self.negotiated = true;
        Ok((Runs::ReadOnly, Box::new(|_| Ok(json!({})))))
    }
}

fn success(id: Option<Value>, value: Value) -> Value {
    match id {
        Some(id) => json!({"return": value, "id": id}),
        None => json!({"return": value}),
    }
}

fn refusal(id: Option<Value>, error: CommandError) -> Value {
    let error = json!({"class": class(error.class), "desc": error.desc});
    match id {
        Some(id) => json!({"id": id, "error": error}),
        None => json!({"error": error}),
    }
}

fn class(class: ErrorClass) -> &'static str {
    match class {
        ErrorClass::CommandNotFound => "CommandNotFound",
        ErrorClass::DeviceNotActive => "DeviceNotActive",
        ErrorClass::DeviceNotFound => "DeviceNotFound",
        ErrorClass::KvmMissingCap => "KVMMissingCap",
        _ => "GenericError",
    }
}
