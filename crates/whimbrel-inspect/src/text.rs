//! A report for people.

use std::fmt::Write;

use whimbrel_its::{Collection, Device, Mapping};
use whimbrel_wire::{Command, Configuration, ReturnPathMessage};

use crate::Block;
use crate::compare::{Comparison, Difference};
use crate::fields::{Field, Number, Value};
use crate::its::registers::{self, Register};
use crate::its::{Its, Pending};
use crate::report::{Body, Entry, Part, Report, Section, What};

/// How much of a report is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Detail {
    /// Elements and RAM.
    Elements,
    /// The fields of device state too.
    Fields,
}

/// Columns that what is inside stands further to the right.
const INDENT: usize = 2;

/// Bytes of a buffer that are shown.
const BYTES_SHOWN: usize = 32;

/// Ranges of differing pages that are shown of a block.
const RANGES_SHOWN: usize = 16;

/// Columns that the times take, where they were recorded.
const TIME: usize = 11;

/// The whole report: elements with offset and size, when they arrived if that was recorded, fields, and RAM.
pub fn report(report: &Report, detail: Detail) -> String {
    let mut out = String::new();
    let timed = report.entries.iter().any(|entry| entry.arrived.is_some());
    let (time, margin) = if timed { ("seconds ", TIME) } else { ("", 0) };
    let _ = writeln!(out, "{:>12} {:>12} {time:>margin$} element", "offset", "bytes");
    entries(&mut out, &report.entries, 0, margin, detail);
    if !report.blocks.is_empty() {
        ram(&mut out, report);
    }
    if detail == Detail::Fields {
        report.its.iter().for_each(|its| its_tables(&mut out, its));
    }
    out
}

/// What differs, as lines.
pub fn comparison(comparison: &Comparison) -> String {
    let mut out = String::new();
    for Difference { place, values: [left, right] } in &comparison.differences {
        let shown = |value: &Option<String>| value.clone().unwrap_or_else(|| "not there".to_owned());
        let _ = writeln!(out, "{place}: {} | {}", shown(left), shown(right));
    }
    for block in &comparison.blocks {
        let _ = write!(out, "RAM block {}: {} pages differ:", block.name, block.pages);
        for range in block.ranges.iter().take(RANGES_SHOWN) {
            let _ = write!(out, " {:#x}–{:#x}", range.start, range.end.saturating_sub(1));
        }
        match block.ranges.len().saturating_sub(RANGES_SHOWN) {
            0 => out.push('\n'),
            more => drop(writeln!(out, " and {more} more ranges")),
        }
    }
    out
}

/// A configuration in one line.
pub fn configuration(configuration: &Configuration) -> String {
    let mut out = format!("machine {}", configuration.machine);
    if let Some(bits) = configuration.target_page_bits {
        let _ = write!(out, ", pages of 2^{bits} bytes");
    }
    if !configuration.capabilities.is_empty() {
        let _ = write!(out, ", capabilities {}", configuration.capabilities.join(" "));
    }
    if let Some(uuid) = &configuration.uuid {
        let _ = write!(out, ", uuid {}", hex(uuid));
    }
    out
}

/// A number in hexadecimal and, where that looks different, in decimal.
pub fn number(number: Number) -> String {
    match number {
        Number::Bool(0) => "false".to_owned(),
        Number::Bool(_) => "true".to_owned(),
        Number::Unsigned(n @ 0..10) => n.to_string(),
        Number::Unsigned(n) => format!("{n:#x} ({n})"),
        Number::Signed(n @ -9..10) => n.to_string(),
        Number::Signed(n) if n < 0 => format!("-{:#x} ({n})", n.unsigned_abs()),
        Number::Signed(n) => format!("{n:#x} ({n})"),
    }
}

/// Bytes in hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Elements, indented by so many columns; what stands before them in a line takes `margin` more if there are times.
fn entries(out: &mut String, entries_here: &[Entry], indent: usize, margin: usize, detail: Detail) {
    for entry in entries_here {
        let time = entry.arrived.map(|time| format!("{:.6} ", time.as_secs_f64())).unwrap_or_default();
        let _ = write!(out, "{:>#12x} {:>12} {time:>margin$}", entry.offset, entry.size);
        let _ = writeln!(out, "{:indent$} {}", "", title(&entry.what));
        let below = indent.saturating_add(INDENT);
        let fields_below = below.saturating_add(margin);
        match &entry.what {
            What::Package(inner) => entries(out, inner, below, margin, detail),
            _ if detail == Detail::Elements => {}
            What::Configuration(_, fields_here) => fields(out, fields_here, fields_below),
            What::Section(Section { body: Body::Fields(fields_here), idstr, .. }) => {
                fields(out, fields_here, fields_below);
                for Register { name, parts } in registers::registers(idstr, fields_here) {
                    let parts: Vec<String> = parts
                        .iter()
                        .map(|(part, value)| format!("{part} {}", number(Number::Unsigned(*value))))
                        .collect();
                    let _ = writeln!(
                        out,
                        "{:>12} {:>12} {:fields_below$}  {name}: {}",
                        "",
                        "",
                        "",
                        parts.join(", ")
                    );
                }
            }
            _ => {}
        }
    }
}

fn title(what: &What) -> String {
    match what {
        What::Header => "header: migration stream, version 3".to_owned(),
        What::Configuration(found, _) => format!("configuration: {}", configuration(found)),
        What::Command(command) => format!("command {}", command_text(command)),
        What::Package(inner) => format!("command PACKAGED, {} elements", inner.len()),
        What::Section(section) => section_title(section),
        What::Message(message) => format!("message {}", message_text(message)),
        What::Eof => "end of stream".to_owned(),
        What::Description => "VM description".to_owned(),
        What::Trailing => "bytes that do not belong to the stream".to_owned(),
    }
}

fn section_title(section: &Section) -> String {
    let part = match section.part {
        Part::Start => "start".to_owned(),
        Part::Part(1) => "part".to_owned(),
        Part::Part(count) => format!("{count} parts"),
        Part::End => "end".to_owned(),
        Part::Full => "full".to_owned(),
    };
    let Section { id, idstr, instance, version, body, .. } = section;
    let mut out = format!("section {idstr} instance {instance} version {version} (id {id}): {part}");
    match body {
        Body::Ram | Body::Fields(_) => {}
        Body::Bytes(bytes) => {
            let _ = write!(out, ", not described, {} bytes up to its footer", bytes.len());
        }
        Body::Opaque(length) => {
            let _ = write!(out, ", only its device can read these {length} bytes, up to the footer");
        }
    }
    out
}

fn command_text(command: &Command) -> String {
    let name = command.name();
    match command {
        Command::Ping(value) => format!("{name} {value:#x}"),
        Command::PostcopyAdvise(Some(sizes)) => {
            format!("{name}, page sizes {:#x}, target page size {:#x}", sizes.summary, sizes.target)
        }
        Command::PostcopyRamDiscard { block, ranges } => {
            let ranges: Vec<String> =
                ranges.iter().map(|range| format!("{:#x}+{:#x}", range.start, range.length)).collect();
            format!("{name} {block} {}", ranges.join(" "))
        }
        Command::RecvBitmap { block } => format!("{name} {block}"),
        _ => name.to_owned(),
    }
}

fn message_text(message: &ReturnPathMessage) -> String {
    let name = message.name();
    match message {
        ReturnPathMessage::Shut(value)
        | ReturnPathMessage::Pong(value)
        | ReturnPathMessage::ResumeAck(value) => format!("{name} {value:#x}"),
        ReturnPathMessage::RequestPages { block, start, length } => {
            let block = block.as_deref().unwrap_or("of the same block");
            format!("{name} {block} {start:#x}+{length:#x}")
        }
        ReturnPathMessage::RecvBitmap { block, bitmap } => {
            let received: u64 = bitmap.iter().map(|byte| u64::from(byte.count_ones())).sum();
            format!("{name} {block}, {received} pages received")
        }
        ReturnPathMessage::SwitchoverAck => name.to_owned(),
    }
}

fn fields(out: &mut String, fields_here: &[Field], indent: usize) {
    for field in fields_here {
        line(out, field, &field.name, indent);
    }
}

fn line(out: &mut String, field: &Field, name: &str, indent: usize) {
    let _ = write!(out, "{:>#12x} {:>12} {:indent$}  {name}", field.offset, field.size, "");
    let below = indent.saturating_add(INDENT);
    match &field.value {
        Value::Unused => out.push_str(": unused\n"),
        Value::Number(one) => drop(writeln!(out, ": {}", number(*one))),
        Value::Numbers(numbers) => drop(writeln!(out, ": {}", list(numbers))),
        Value::Bytes(bytes) => drop(writeln!(out, ": {}", buffer(bytes))),
        Value::Group { fields: inner, .. } => {
            out.push('\n');
            fields(out, inner, below);
        }
        Value::Array(elements) => {
            let _ = writeln!(out, ": {} elements", elements.len());
            for (i, element) in elements.iter().enumerate() {
                line(out, element, &format!("[{i}]"), below);
            }
        }
    }
}

/// Numbers in hexadecimal; equal ones that follow one another only once.
fn list(numbers: &[Number]) -> String {
    let runs = numbers.chunk_by(|a, b| a == b).map(|run| {
        let one = match run.first() {
            Some(Number::Unsigned(n)) => format!("{n:#x}"),
            Some(other) => number(*other),
            None => String::new(),
        };
        if run.len() > 1 { format!("{one} ×{}", run.len()) } else { one }
    });
    format!("[{}]", runs.collect::<Vec<_>>().join(", "))
}

fn buffer(bytes: &[u8]) -> String {
    let mut out = hex(bytes.get(..BYTES_SHOWN).unwrap_or(bytes));
    if bytes.len() > BYTES_SHOWN {
        out.push('…');
    }
    let text = bytes.split(|byte| *byte == 0).next().unwrap_or_default();
    let zeros = bytes.get(text.len()..).unwrap_or_default();
    if text.len() > 2 && text.iter().all(|byte| (b' '..=b'~').contains(byte)) && zeros.iter().all(|b| *b == 0)
    {
        let _ = write!(out, " \"{}\"", String::from_utf8_lossy(text));
    }
    out
}

fn ram(out: &mut String, report: &Report) {
    let _ = writeln!(
        out,
        "\n{:<32} {:>10} {:>10} {:>10} {:>10} {:>10} {:>10} {:>10}",
        "RAM block", "pages", "normal", "zero", "xbzrle", "duplicate", "discarded", "unsent"
    );
    for block in &report.blocks {
        let Block { normal, zero, xbzrle, duplicates, discarded, .. } = block;
        let (pages, unsent) = (block.pages(), block.unsent());
        let _ = writeln!(
            out,
            "{:<32} {pages:>10} {normal:>10} {zero:>10} {xbzrle:>10} {duplicates:>10} {discarded:>10} {unsent:>10}",
            block.name
        );
    }
    let _ = writeln!(out, "pages of {} bytes", report.page_size);
    if report.multifd_flushes > 0 {
        let _ = writeln!(out, "{} multifd barriers: pages came on other connections", report.multifd_flushes);
    }
}

fn its_tables(out: &mut String, Its { section, tables }: &Its) {
    let _ = write!(out, "\nITS tables of {section}: ");
    let tables = match tables {
        Ok(tables) => tables,
        Err(why) => {
            let _ = writeln!(out, "not read: {why}");
            return;
        }
    };
    let (devices, events) = (tables.devices.len(), tables.mappings.len());
    let _ = writeln!(out, "{devices} devices, {events} events, {} collections", tables.collections.len());
    for Device { id, table, event_bits } in &tables.devices {
        let _ =
            writeln!(out, "device {id:#x}: event ids of {event_bits} bits, translation table at {table:#x}");
    }
    for Collection { id, target } in &tables.collections {
        let _ = writeln!(out, "collection {id}: redistributor {}", number_or_none(*target));
    }
    for Pending { redistributor, lpis } in &tables.pending {
        let _ = writeln!(out, "pending at redistributor {redistributor}: LPIs {}", runs(lpis));
    }
    for error in &tables.errors {
        let _ = writeln!(out, "not read: {error}");
    }
    if tables.left_out > 0 {
        let _ = writeln!(out, "left out: {} more events, pending LPIs and errors", tables.left_out);
    }
    let _ = writeln!(
        out,
        "{:>12} {:>12} {:>12} {:>12} {:>14}",
        "device", "event", "LPI", "collection", "redistributor"
    );
    for Mapping { device, event, intid, collection, target } in &tables.mappings {
        let target = number_or_none(*target);
        let _ = writeln!(out, "{device:>#12x} {event:>12} {intid:>12} {collection:>12} {target:>14}");
    }
}

fn number_or_none(number: Option<u64>) -> String {
    number.map_or("none".to_owned(), |number| number.to_string())
}

/// Ascending numbers; those that follow one another as a range.
fn runs(numbers: &[u32]) -> String {
    let runs = numbers.chunk_by(|a, b| a.checked_add(1) == Some(*b)).map(|run| match run {
        [first, .., last] => format!("{first}–{last}"),
        _ => run.iter().map(u32::to_string).collect(),
    });
    runs.collect::<Vec<_>>().join(", ")
}
