//! One client's conversation, without its socket: negotiation, envelopes, answers.
//!
//! | state | `qmp_capabilities` | other commands | events |
//! |---|---|---|---|
//! | negotiation | enables what is asked for; on to commands | CommandNotFound | not sent |
//! | commands | CommandNotFound | by the table | sent |

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError};

use serde_json::{Map, Value, json};
use whimbrel::error::{CommandError, ErrorClass};
use whimbrel::wire::qemu_texts;

use crate::arguments::{Arguments, FromArguments, FromValue, arguments, enumeration};
use crate::command::{Held, Runs, Table};
use crate::commands::query_version;
use crate::server::Vm;
use crate::texts;

/// Ends negotiation.
const NEGOTIATE: &str = "qmp_capabilities";

/// The state of one connection.
pub(crate) struct Session {
    vm: Arc<Vm>,
    table: Arc<Table>,
    negotiated: AtomicBool,
    out_of_band: AtomicBool,
    held: Held,
}

/// What a client sends: a message or why it is none, and the descriptor that came with it.
pub(crate) struct Message {
    pub(crate) value: Result<Value, String>,
    pub(crate) descriptor: Option<OwnedFd>,
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
        let [negotiated, out_of_band] = [false, false].map(AtomicBool::new);
        Self { vm, table, negotiated, out_of_band, held: Held::default() }
    }

    /// The first thing a client hears.
    pub(crate) fn greeting(&self) -> Value {
        json!({"QMP": {"version": query_version(&self.vm), "capabilities": ["oob"]}})
    }

    /// Commands may come, and events go.
    pub(crate) fn is_negotiated(&self) -> bool {
        self.negotiated.load(Ordering::SeqCst)
    }

    /// The message is to be answered ahead of those that wait.
    pub(crate) fn is_out_of_band(&self, message: &Message) -> bool {
        let asked = message.value.as_ref().is_ok_and(|message| message.get("exec-oob").is_some());
        asked && self.out_of_band.load(Ordering::SeqCst)
    }

    /// Answers one message, or what was none.
    pub(crate) fn answer(&self, message: Message) -> Value {
        if message.descriptor.is_some() {
            *self.held.lock().unwrap_or_else(PoisonError::into_inner) = message.descriptor;
        }
        let mut message = match message.value {
            Ok(Value::Object(members)) => members,
            Ok(_) => return refusal(None, CommandError::generic(qemu_texts::INPUT_NOT_AN_OBJECT)),
            Err(text) => return refusal(None, CommandError::generic(text)),
        };
        let id = message.shift_remove("id");
        match self.envelope(message).and_then(|envelope| self.execute(envelope)) {
            Ok(value) => success(id, value),
            Err(error) => refusal(id, error),
        }
    }

    fn envelope(&self, message: Map<String, Value>) -> Result<Envelope, CommandError> {
        let mut command = None;
        let mut arguments = Map::new();
        let both = message.contains_key("execute") && message.contains_key("exec-oob");
        for (member, value) in message {
            let out_of_band = member == "exec-oob" && self.out_of_band.load(Ordering::SeqCst);
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

    fn execute(&self, Envelope { command, out_of_band, arguments }: Envelope) -> Result<Value, CommandError> {
        let not_now = |desc: &str| CommandError { class: ErrorClass::CommandNotFound, desc: desc.into() };
        match (self.is_negotiated(), command == NEGOTIATE) {
            (false, true) => return self.negotiate(arguments),
            (false, false) => return Err(not_now(qemu_texts::EXPECTING_NEGOTIATION)),
            (true, true) => return Err(not_now(qemu_texts::NEGOTIATION_COMPLETE)),
            (true, false) => {}
        }
        let command = self.table.find(&command)?;
        if out_of_band && command.runs != Runs::OutOfBand {
            return Err(CommandError::generic(qemu_texts::no_out_of_band(command.name)));
        }
        command.execute(&self.vm, arguments, &self.held)
    }

    fn negotiate(&self, arguments: Map<String, Value>) -> Result<Value, CommandError> {
        let Negotiate { enable } = Negotiate::read_all(Arguments::new(arguments))?;
        let out_of_band = enable.unwrap_or_default().contains(&QmpCapability::Oob);
        self.out_of_band.store(out_of_band, Ordering::SeqCst);
        self.negotiated.store(true, Ordering::SeqCst);
        Ok(json!({}))
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
