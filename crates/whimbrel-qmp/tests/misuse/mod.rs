//! What a client may say wrongly, and what it is answered: by QEMU 10.0.2, whose surface is ours, by QEMU 7.2.22, and by whimbrel
//! where it does not have the command yet. `tests/real_qemu.rs` holds the real ones to it, `tests/monitor` holds us.

#![allow(dead_code, reason = "each test uses its part")]

mod capabilities;
mod commands;
mod descriptors;
mod moments;
mod parameters;
mod raw;

use serde_json::{Value, json};

pub(crate) use capabilities::converse_about_capabilities;
pub(crate) use commands::{conversation, not_built};
pub(crate) use descriptors::converse_with_descriptors;
pub(crate) use moments::{converse_while_awaiting, converse_while_moving, together};
pub(crate) use parameters::converse_about_parameters;
pub(crate) use raw::Raw;

/// Who is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Asked {
    Whimbrel,
    Qemu7,
    Qemu10,
}

/// A request and its answer: a column for each of them.
pub(crate) struct Row {
    pub(crate) request: String,
    in_10: Value,
    in_7: Value,
    here: Value,
}

/// All three say the same.
fn same(request: impl Into<String>, answer: Value) -> Row {
    differs(request, answer.clone(), answer)
}

/// QEMU 7.2 says something else.
fn differs(request: impl Into<String>, in_10: Value, in_7: Value) -> Row {
    Row { request: request.into(), here: in_10.clone(), in_10, in_7 }
}

impl Row {
    /// Whimbrel says something else.
    fn here(self, here: Value) -> Self {
        Self { here, ..self }
    }

    pub(crate) fn answer(&self, asked: Asked) -> &Value {
        match asked {
            Asked::Whimbrel => &self.here,
            Asked::Qemu7 => &self.in_7,
            Asked::Qemu10 => &self.in_10,
        }
    }

    /// Asks, and compares.
    pub(crate) fn hold(&self, raw: &mut Raw, asked: Asked) {
        assert_eq!(raw.ask(&self.request), *self.answer(asked), "{asked:?}: {}", self.request);
    }
}

fn ok() -> Value {
    json!({"return": {}})
}

fn generic(desc: &str) -> Value {
    json!({"error": {"class": "GenericError", "desc": desc}})
}

fn not_found(desc: &str) -> Value {
    json!({"error": {"class": "CommandNotFound", "desc": desc}})
}

fn set_capabilities(names: &[&str], state: bool) -> String {
    let changes: Vec<_> = names.iter().map(|name| json!({"capability": name, "state": state})).collect();
    json!({"execute": "migrate-set-capabilities", "arguments": {"capabilities": changes}}).to_string()
}

fn set_parameter(name: &str, value: &Value) -> String {
    json!({"execute": "migrate-set-parameters", "arguments": {name: value}}).to_string()
}

fn migrate(uri: &str) -> String {
    json!({"execute": "migrate", "arguments": {"uri": uri}}).to_string()
}
