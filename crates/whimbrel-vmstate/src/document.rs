//! The whole description (vmdesc) that follows a stream: one JSON text in QEMU's exact spelling.
//!
//! ```text
//! {"configuration": {…}, "page_size": 4096, "devices": [{…}, …]}      `configuration` from 10.0 on
//! ```

use std::io;

use serde_json::ser::Formatter;
use serde_json::{Map, Serializer, Value, json};
use whimbrel_wire::Configuration;

use crate::Level;

/// The target page size every supported machine has, in bytes.
const PAGE_SIZE: u32 = 4096;

/// The text that stands in the VMDESCRIPTION element, as QEMU at `level` writes it. `devices` come from [`describe`](crate::describe), in
/// the order of their sections.
pub fn description(level: Level, configuration: &Configuration, devices: Vec<Value>) -> String {
    let mut document = Map::new();
    if level >= Level::V10_0 {
        document.insert("configuration".into(), describe_configuration(configuration));
    }
    document.insert("page_size".into(), json!(PAGE_SIZE));
    document.insert("devices".into(), Value::Array(devices));
    spell(&Value::Object(document))
}

/// The configuration element, which is no device's state, described like one.
fn describe_configuration(configuration: &Configuration) -> Value {
    let part = |name: &str, fields: Value| json!({"vmsd_name": name, "version": 1, "fields": fields});
    let mut subsections = Vec::new();
    if configuration.target_page_bits.is_some() {
        let fields = json!([{"name": "target_page_bits", "type": "uint32", "size": 4}]);
        subsections.push(part("configuration/target-page-bits", fields));
    }
    if let Some(first) = configuration.capabilities.first() {
        let mut names = Map::new();
        names.insert("name".into(), json!("capabilities"));
        if configuration.capabilities.len() > 1 {
            names.insert("array_len".into(), json!(configuration.capabilities.len()));
        }
        names.insert("type".into(), json!("capability"));
        names.insert("size".into(), json!(first.len().saturating_add(1)));
        let count = json!({"name": "caps_count", "type": "uint32", "size": 4});
        subsections.push(part("configuration/capabilities", json!([count, names])));
    }
    if configuration.uuid.is_some() {
        let fields = json!([{"name": "uuid.data", "array_len": 16, "type": "uint8", "size": 1}]);
        subsections.push(part("configuration/uuid", fields));
    }
    let mut object = part(
        "configuration",
        json!([
            {"name": "len", "type": "uint32", "size": 4},
            {"name": "name", "type": "buffer", "size": configuration.machine.len()},
        ]),
    );
    if let Some(object) = object.as_object_mut().filter(|_| !subsections.is_empty()) {
        object.insert("subsections".into(), Value::Array(subsections));
    }
    object
}

/// JSON on one line with QEMU's separators, `", "` and `": "`.
fn spell(value: &Value) -> String {
    let mut text = Vec::new();
    let mut serializer = Serializer::with_formatter(&mut text, Spaced);
    // A tree of plain values cannot fail to be written into memory; were it to, an empty description is what readers tolerate.
    match serde::Serialize::serialize(value, &mut serializer) {
        Ok(()) => String::from_utf8(text).unwrap_or_default(),
        Err(_) => String::new(),
    }
}

struct Spaced;

impl Formatter for Spaced {
    fn begin_array_value<W: ?Sized + io::Write>(&mut self, out: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { out.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + io::Write>(&mut self, out: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { out.write_all(b", ") }
    }

    fn begin_object_value<W: ?Sized + io::Write>(&mut self, out: &mut W) -> io::Result<()> {
        out.write_all(b": ")
    }
}
