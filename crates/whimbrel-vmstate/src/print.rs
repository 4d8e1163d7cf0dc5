//! Printing: a state's values for people and scripts. What was not in the stream is not shown.

use serde_json::{Map, Value, json};

use crate::trail::{SectionName, Trail};
use crate::visitor::{Cells, Chain, ElementFields, Fields, Form, Intent, Present, Visitor, VmState, Vmsd};
use crate::{Level, Place, Result};

/// The values of `state`, by field name in stream order. Structs are objects, arrays are arrays, buffers hexadecimal strings, subsections
/// objects under their full name. A name that comes again gets `[k]`.
///
/// # Errors
/// As [`save`](crate::save).
pub fn print(section: &SectionName, state: &mut dyn VmState, level: Level) -> Result<Value> {
    let mut print = Print { trail: Trail::new(section, level), values: Map::new() };
    print.trail.enter("", state.vmsd().version);
    state.fields(&mut print)?;
    Ok(Value::Object(print.values))
}

/// Printed values as lines `path = value`, numbers in hexadecimal.
pub fn to_lines(values: &Value) -> String {
    let mut lines = String::new();
    add_lines(&mut lines, String::new(), values);
    lines
}

fn add_lines(lines: &mut String, path: String, value: &Value) {
    let text = match value {
        Value::Object(members) => {
            for (name, member) in members {
                let separator = if path.is_empty() { "" } else { "." };
                add_lines(lines, format!("{path}{separator}{name}"), member);
            }
            return;
        }
        Value::Array(elements) => {
            for (i, element) in elements.iter().enumerate() {
                add_lines(lines, format!("{path}[{i}]"), element);
            }
            return;
        }
        Value::Number(number) => number.as_u64().map_or_else(|| number.to_string(), |n| format!("{n:#x}")),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    lines.push_str(&format!("{path} = {text}\n"));
}

struct Print {
    trail: Trail,
    values: Map<String, Value>,
}

impl Print {
    fn put(&mut self, name: &str, value: Value) {
        let mut key = name.to_owned();
        let mut k = 1_usize;
        while self.values.contains_key(&key) {
            key = format!("{name}[{k}]");
            k = k.saturating_add(1);
        }
        self.values.insert(key, value);
    }

    fn part(
        &mut self,
        segment: String,
        version: u32,
        f: impl FnOnce(&mut dyn Visitor) -> Result<()>,
    ) -> Result<Value> {
        let outer = std::mem::take(&mut self.values);
        self.trail.enter(segment, version);
        f(self)?;
        self.trail.leave();
        Ok(Value::Object(std::mem::replace(&mut self.values, outer)))
    }
}

impl Visitor for Print {
    fn level(&self) -> Level {
        self.trail.level
    }

    fn version(&self) -> u32 {
        self.trail.version()
    }

    fn place(&self, field: Option<&str>) -> Place {
        self.trail.place(field, 0)
    }

    fn intent(&self) -> Intent {
        Intent::Save
    }

    fn cells(&mut self, name: &str, _ty: &'static str, form: Form, cells: Cells<'_>) -> Result<()> {
        let value = match (form, cells) {
            (Form::Whole, Cells::U8(bytes)) => {
                Value::String(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
            }
            (form, cells) => {
                let values = values(cells);
                match (form, <[Value; 1]>::try_from(values)) {
                    (Form::One, Ok([value])) => value,
                    (_, Ok(values)) => Value::Array(values.into()),
                    (_, Err(values)) => Value::Array(values),
                }
            }
        };
        self.put(name, value);
        Ok(())
    }

    fn unused(&mut self, _length: usize) -> Result<()> {
        Ok(())
    }

    fn since(&mut self, version: u32, f: Fields<'_>) -> Result<()> {
        if self.version() >= version { f(self) } else { Ok(()) }
    }

    fn when(&mut self, condition: bool, f: Fields<'_>) -> Result<()> {
        if condition { f(self) } else { Ok(()) }
    }

    fn structure(&mut self, name: &str, vmsd: Vmsd, f: Fields<'_>) -> Result<()> {
        let value = self.part(name.to_owned(), vmsd.version, |v| f(v))?;
        self.put(name, value);
        Ok(())
    }

    fn structures(&mut self, name: &str, vmsd: Vmsd, count: usize, f: ElementFields<'_>) -> Result<()> {
        let element = |i| self.part(format!("{name}[{i}]"), vmsd.version, |v| f(i, v));
        let elements = (0..count).map(element).collect::<Result<_>>()?;
        self.put(name, Value::Array(elements));
        Ok(())
    }

    fn pointers(&mut self, name: &str, vmsd: Vmsd, present: &[bool], f: ElementFields<'_>) -> Result<()> {
        let element = |(i, present): (usize, &bool)| match present {
            true => self.part(format!("{name}[{i}]"), vmsd.version, |v| f(i, v)),
            false => Ok(Value::Null),
        };
        let elements = present.iter().enumerate().map(element).collect::<Result<_>>()?;
        self.put(name, Value::Array(elements));
        Ok(())
    }

    fn chain(
        &mut self,
        name: &str,
        _chain: Chain,
        vmsd: Vmsd,
        count: usize,
        f: ElementFields<'_>,
    ) -> Result<usize> {
        self.structures(name, vmsd, count, f)?;
        Ok(count)
    }

    fn tmp(&mut self, name: &str, vmsd: Vmsd, f: Fields<'_>) -> Result<()> {
        self.structure(name, vmsd, f)
    }

    fn opaque(&mut self, name: &str, _ty: &'static str, f: Fields<'_>) -> Result<()> {
        let value = self.part(name.to_owned(), self.version(), |v| f(v))?;
        self.put(name, value);
        Ok(())
    }

    fn subsection(&mut self, vmsd: Vmsd, needed: bool, f: Fields<'_>) -> Result<Present> {
        self.trail.seal();
        if !needed {
            return Ok(Present::No);
        }
        let value = self.part(vmsd.name.to_owned(), vmsd.version, |v| f(v))?;
        self.put(vmsd.name, value);
        Ok(Present::Yes)
    }
}

fn values(cells: Cells<'_>) -> Vec<Value> {
    match cells {
        Cells::Bool(c) => c.iter().map(|v| json!(v)).collect(),
        Cells::U8(c) => c.iter().map(|v| json!(v)).collect(),
        Cells::U16(c) => c.iter().map(|v| json!(v)).collect(),
        Cells::U32(c) => c.iter().map(|v| json!(v)).collect(),
        Cells::U64(c) => c.iter().map(|v| json!(v)).collect(),
        Cells::I8(c) => c.iter().map(|v| json!(v)).collect(),
        Cells::I16(c) => c.iter().map(|v| json!(v)).collect(),
        Cells::I32(c) => c.iter().map(|v| json!(v)).collect(),
        Cells::I64(c) => c.iter().map(|v| json!(v)).collect(),
    }
}
