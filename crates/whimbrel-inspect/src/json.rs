//! A report for programs: one JSON object.
//!
//! | member | holds |
//! |---|---|
//! | `configuration` | `machine`, `target-page-bits`, `capabilities`, `uuid`; null without |
//! | `page-size`, `end` | bytes (0 for a return path); offset behind the last byte accounted for |
//! | `described` | whether the stream has a description that could be read ahead |
//! | `elements` | `offset`, `size`, `element`, `time` in seconds if recorded, and what the element has; a package's `elements` |
//! | `ram` | the blocks, with counts of pages |
//! | `multifd-flushes` | barriers of multifd channels: if there are any, pages came on other connections |
//! | `its` | interrupt translation services: `section`, and the members of [`Tables`](crate::its::Tables) or `unread`: why not |
//! | `faults` | `offset` and `error` of each |
//! | `complete` | false if the walk stopped at the last of the faults |
//!
//! Values are numbers, booleans, lists, hexadecimal strings for bytes, objects for structs and subsections. An ITS's section
//! has `registers`, too: by name, each an object of its parts.

use serde_json::{Map, Value as Json, json};
use whimbrel_its::{Collection, Device, Mapping};
use whimbrel_wire::{Command, Configuration, ReturnPathMessage};

use crate::compare::Comparison;
use crate::fields::{Field, Number, Value};
use crate::its::registers::{self, Register};
use crate::its::{Its, Pending};
use crate::report::{Body, Entry, Part, Report, Section, What};
use crate::{Block, Fault, text};

/// The whole report.
pub fn report(report: &Report) -> Json {
    json!({
        "configuration": report.configuration().map(configuration),
        "page-size": report.page_size,
        "end": report.end,
        "described": report.described,
        "elements": report.entries.iter().map(entry).collect::<Vec<_>>(),
        "ram": report.blocks.iter().map(block).collect::<Vec<_>>(),
        "multifd-flushes": report.multifd_flushes,
        "its": report.its.iter().map(its).collect::<Vec<_>>(),
        "faults": report.faults().map(fault).collect::<Vec<_>>(),
        "complete": report.stopped.is_none(),
    })
}

/// What differs.
pub fn comparison(comparison: &Comparison) -> Json {
    let differences = comparison.differences.iter().map(|difference| {
        let [left, right] = &difference.values;
        json!({"place": difference.place, "left": left, "right": right})
    });
    let blocks = comparison.blocks.iter().map(|block| {
        let ranges = block.ranges.iter().map(|range| json!([range.start, range.end]));
        json!({"name": block.name, "pages": block.pages, "ranges": ranges.collect::<Vec<_>>()})
    });
    json!({
        "same": comparison.is_same(),
        "differences": differences.collect::<Vec<_>>(),
        "ram": blocks.collect::<Vec<_>>(),
    })
}

/// Fields by name. A name that comes again gets `[k]`.
pub fn fields(fields: &[Field]) -> Json {
    let mut object = Map::new();
    for field in fields {
        if field.value == Value::Unused {
            continue;
        }
        let mut key = field.name.clone();
        let mut k = 1_usize;
        while object.contains_key(&key) {
            key = format!("{}[{k}]", field.name);
            k = k.saturating_add(1);
        }
        object.insert(key, value(&field.value));
    }
    Json::Object(object)
}

fn value(value_here: &Value) -> Json {
    match value_here {
        Value::Number(one) => number(*one),
        Value::Numbers(numbers) => numbers.iter().copied().map(number).collect(),
        Value::Bytes(bytes) => json!(text::hex(bytes)),
        Value::Unused => Json::Null,
        Value::Group { fields: inner, .. } => fields(inner),
        Value::Array(elements) => elements.iter().map(|element| value(&element.value)).collect(),
    }
}

fn number(number: Number) -> Json {
    match number {
        Number::Bool(byte) => json!(byte != 0),
        Number::Unsigned(n) => json!(n),
        Number::Signed(n) => json!(n),
    }
}

fn fault(fault: &Fault) -> Json {
    json!({"offset": fault.offset(), "error": fault.to_string()})
}

fn configuration(configuration: &Configuration) -> Json {
    json!({
        "machine": configuration.machine,
        "target-page-bits": configuration.target_page_bits,
        "capabilities": configuration.capabilities,
        "uuid": configuration.uuid.map(|uuid| text::hex(&uuid)),
    })
}

fn block(block: &Block) -> Json {
    json!({
        "name": block.name,
        "length": block.length,
        "backing-page-size": block.backing_page_size,
        "guest-address": block.guest_address,
        "mapped-at": block.mapped_at,
        "pages": block.pages(),
        "normal": block.normal,
        "zero": block.zero,
        "xbzrle": block.xbzrle,
        "xbzrle-bytes": block.xbzrle_bytes,
        "duplicates": block.duplicates,
        "discarded": block.discarded,
        "unsent": block.unsent(),
    })
}

fn its(Its { section, tables }: &Its) -> Json {
    let tables = match tables {
        Ok(tables) => tables,
        Err(why) => return json!({"section": section, "unread": why.to_string()}),
    };
    let devices = tables.devices.iter().map(
        |Device { id, table, event_bits }| json!({"device": id, "table": table, "event-bits": event_bits}),
    );
    let collections = tables.collections.iter();
    let collections =
        collections.map(|Collection { id, target }| json!({"collection": id, "redistributor": target}));
    let mappings = tables.mappings.iter().map(|Mapping { device, event, intid, collection, target }| {
        json!({"device": device, "event": event, "lpi": intid, "collection": collection, "redistributor": target})
    });
    let pending = tables.pending.iter();
    let pending =
        pending.map(|Pending { redistributor, lpis }| json!({"redistributor": redistributor, "lpis": lpis}));
    json!({
        "section": section,
        "devices": devices.collect::<Vec<_>>(),
        "collections": collections.collect::<Vec<_>>(),
        "mappings": mappings.collect::<Vec<_>>(),
        "pending": pending.collect::<Vec<_>>(),
        "left-out": tables.left_out,
        "errors": tables.errors,
    })
}

fn entry(entry_here: &Entry) -> Json {
    let mut object = Map::new();
    object.insert("offset".to_owned(), json!(entry_here.offset));
    object.insert("size".to_owned(), json!(entry_here.size));
    if let Some(time) = entry_here.arrived {
        object.insert("time".to_owned(), json!(time.as_secs_f64()));
    }
    let mut put = |key: &str, value: Json| drop(object.insert(key.to_owned(), value));
    match &entry_here.what {
        What::Header => put("element", json!("header")),
        What::Configuration(_, inner) => {
            put("element", json!("configuration"));
            put("fields", fields(inner));
        }
        What::Command(command) => {
            put("element", json!("command"));
            put("command", json!(command.name()));
            command_members(command, put);
        }
        What::Package(inner) => {
            put("element", json!("package"));
            put("elements", inner.iter().map(entry).collect());
        }
        What::Section(section) => section_members(section, put),
        What::Message(message) => {
            put("element", json!("message"));
            put("message", json!(message.name()));
            message_members(message, put);
        }
        What::Eof => put("element", json!("eof")),
        What::Description => put("element", json!("vm-description")),
        What::Trailing => put("element", json!("trailing")),
    }
    Json::Object(object)
}

fn command_members(command: &Command, mut put: impl FnMut(&str, Json)) {
    match command {
        Command::Ping(value) => put("value", json!(value)),
        Command::PostcopyAdvise(Some(sizes)) => {
            put("page-sizes", json!(sizes.summary));
            put("target-page-size", json!(sizes.target));
        }
        Command::PostcopyRamDiscard { block, ranges } => {
            put("block", json!(block));
            put("ranges", ranges.iter().map(|range| json!([range.start, range.length])).collect());
        }
        Command::RecvBitmap { block } => put("block", json!(block)),
        _ => {}
    }
}

fn message_members(message: &ReturnPathMessage, mut put: impl FnMut(&str, Json)) {
    match message {
        ReturnPathMessage::Shut(value)
        | ReturnPathMessage::Pong(value)
        | ReturnPathMessage::ResumeAck(value) => put("value", json!(value)),
        ReturnPathMessage::RequestPages { block, start, length } => {
            put("block", json!(block));
            put("ranges", json!([[start, length]]));
        }
        ReturnPathMessage::RecvBitmap { block, bitmap } => {
            put("block", json!(block));
            put("bytes", json!(text::hex(bitmap)));
        }
        ReturnPathMessage::SwitchoverAck => {}
    }
}

fn section_members(section: &Section, mut put: impl FnMut(&str, Json)) {
    let (element, count) = match section.part {
        Part::Start => ("section-start", None),
        Part::Part(count) => ("section-part", Some(count)),
        Part::End => ("section-end", None),
        Part::Full => ("section-full", None),
    };
    put("element", json!(element));
    if let Some(count) = count {
        put("parts", json!(count));
    }
    put("id", json!(section.id));
    put("idstr", json!(section.idstr));
    put("instance", json!(section.instance));
    put("version", json!(section.version));
    match &section.body {
        Body::Ram => {}
        Body::Fields(inner) => {
            put("fields", fields(inner));
            let registers = registers::registers(&section.idstr, inner);
            if !registers.is_empty() {
                put("registers", registers.into_iter().map(register).collect::<Map<_, _>>().into());
            }
        }
        Body::Bytes(bytes) => put("bytes", json!(text::hex(bytes))),
        Body::Opaque(length) => put("opaque", json!(length)),
    }
}

fn register(register: Register) -> (String, Json) {
    let parts = register.parts.iter().map(|(part, value)| ((*part).to_owned(), json!(value)));
    (register.name, Json::Object(parts.collect()))
}
