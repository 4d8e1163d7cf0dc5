//! A section's bytes as fields, by its description; and whether both agree.
//!
//! | checked | rule |
//! |---|---|
//! | a struct's or helper's `size` | the sum of its fields and subsections |
//! | a number's `size` | its type's |
//! | a `bool`'s byte | 0 or 1 |
//! | elements with `index` | come in order from 0; only the last may lack it |
//! | a subsection | stands where it should: `05`, its name, its version |
//! | the whole | as long as the section's body |
//!
//! What a field means is not known here: that is for interpreters of sections that are known by name.

use whimbrel_wire::{Input, Subsection};

use crate::Fault;
use crate::description::{self, State};

/// Most fields that are shown of a stream. A q35 machine with default devices has about 3000.
pub const MAX_FIELDS: usize = 1 << 20;

/// A field with its value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Field {
    /// Its name; of a subsection, its full name.
    pub name: String,
    /// Where it begins in the stream; a subsection, at its header.
    pub offset: u64,
    /// Its bytes in the stream, a subsection's header included.
    pub size: u64,
    /// Its type, as QEMU calls it; of a subsection `subsection`.
    pub ty: String,
    /// What it holds.
    pub value: Value,
}

/// What a field holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// A number.
    Number(Number),
    /// Numbers of one type.
    Numbers(Vec<Number>),
    /// Bytes whose meaning only the device knows.
    Bytes(Vec<u8>),
    /// Bytes that mean nothing.
    Unused,
    /// A struct, a helper or a subsection: its fields, and then its subsections.
    Group {
        /// Version of its layout.
        version: Option<u32>,
        /// Its fields.
        fields: Vec<Field>,
    },
    /// An array of structs, or of elements that differ.
    Array(Vec<Field>),
}

/// A number of the stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Number {
    /// A truth value; anything but 0 is true.
    Bool(u8),
    /// Without sign.
    Unsigned(u64),
    /// With sign.
    Signed(i64),
}

/// The type of a number: bytes and kind.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Bool,
    Unsigned,
    Signed,
}

/// Turns sections into fields, within the bound on their number.
pub(crate) struct Decoder {
    left: usize,
}

impl Decoder {
    pub(crate) fn new() -> Self {
        Decoder { left: MAX_FIELDS }
    }

    /// The fields of the section `place`, whose body is `body` and begins at stream offset `offset`; and the first fault, at
    /// which the fields end.
    pub(crate) fn decode(
        &mut self,
        place: &str,
        state: &State,
        body: &[u8],
        offset: u64,
    ) -> (Vec<Field>, Option<Fault>) {
        let mut cursor = Cursor { rest: body, offset, place: vec![place.to_owned()], left: &mut self.left };
        let mut fields = Vec::new();
        let fault = cursor.state(state, &mut fields).and_then(|()| cursor.done(body.len() as u64)).err();
        (fields, fault)
    }
}

struct Cursor<'a> {
    rest: &'a [u8],
    offset: u64,
    place: Vec<String>,
    left: &'a mut usize,
}

impl Cursor<'_> {
    fn done(&self, length: u64) -> Result<(), Fault> {
        if self.rest.is_empty() {
            return Ok(());
        }
        let described = length.saturating_sub(self.rest.len() as u64);
        Err(self.disagreement(format!("{described} bytes of state"), format!("{length}")))
    }

    fn state(&mut self, state: &State, fields: &mut Vec<Field>) -> Result<(), Fault> {
        let mut described = state.fields.iter().peekable();
        while let Some(field) = described.next() {
            if field.index.is_none() {
                self.spend()?;
                let field = self.field(field)?;
                fields.push(field);
                continue;
            }
            let mut elements = vec![field];
            while let Some(next) = described.next_if(|next| next.name == field.name && next.index != Some(0))
            {
                elements.push(next);
                if next.index.is_none() {
                    break;
                }
            }
            self.spend()?;
            let array = self.elements(&elements)?;
            fields.push(array);
        }
        for subsection in &state.subsections {
            self.spend()?;
            let subsection = self.subsection(subsection)?;
            fields.push(subsection);
        }
        Ok(())
    }

    /// An array whose elements are described one by one.
    fn elements(&mut self, described: &[&description::Field]) -> Result<Field, Fault> {
        let offset = self.offset;
        let mut elements = Vec::new();
        for (i, element) in described.iter().enumerate() {
            let last = i.saturating_add(1) == described.len();
            if element.index.map_or(!last, |index| index != i as u64) {
                let found = element.index.map_or("none".to_owned(), |index| index.to_string());
                return Err(self.disagreement(format!("{}: index {i}", element.name), found));
            }
            self.spend()?;
            elements.push(self.field(element)?);
        }
        let (name, ty) = described.first().map_or_else(Default::default, |f| (f.name.clone(), f.ty.clone()));
        let size = self.offset.saturating_sub(offset);
        Ok(Field { name, offset, size, ty, value: Value::Array(elements) })
    }

    fn field(&mut self, field: &description::Field) -> Result<Field, Fault> {
        self.within(&field.name, |cursor| {
            let offset = cursor.offset;
            let value = cursor.value(field)?;
            let size = cursor.offset.saturating_sub(offset);
            Ok(Field { name: field.name.clone(), offset, size, ty: field.ty.clone(), value })
        })
    }

    fn value(&mut self, field: &description::Field) -> Result<Value, Fault> {
        let version = |state: &State| state.version;
        match (&field.structure, &field.helper, field.array_length) {
            (Some(inner), _, None) | (None, Some(inner), None) => {
                Ok(Value::Group { version: version(inner), fields: self.sized(field, inner)? })
            }
            (Some(inner), _, Some(count)) | (None, Some(inner), Some(count)) => {
                self.enough(field.length())?;
                let mut elements = Vec::new();
                for i in 0..count {
                    self.spend()?;
                    let element = self.within(&format!("[{i}]"), |cursor| {
                        let offset = cursor.offset;
                        let value =
                            Value::Group { version: version(inner), fields: cursor.sized(field, inner)? };
                        let size = cursor.offset.saturating_sub(offset);
                        Ok(Field { name: field.name.clone(), offset, size, ty: field.ty.clone(), value })
                    })?;
                    elements.push(element);
                }
                Ok(Value::Array(elements))
            }
            (None, None, count) => self.plain(field, count),
        }
    }

    fn plain(&mut self, field: &description::Field, count: Option<u64>) -> Result<Value, Fault> {
        if field.ty == "unused_buffer" {
            self.take(field.length())?;
            return Ok(Value::Unused);
        }
        let Some((kind, width)) = number_type(&field.ty) else {
            return self.take(field.length()).map(|bytes| Value::Bytes(bytes.to_vec()));
        };
        let is_vector = field.ty == IRQ_STATE;
        if field.size != width && !(is_vector && field.size.checked_rem(width) == Some(0)) {
            let expected = format!("{width} as the size of {}", field.ty);
            return Err(self.disagreement(expected, field.size.to_string()));
        }
        let (offset, bytes) = (self.offset, self.take(field.length())?);
        let width = usize::try_from(width).unwrap_or(1).max(1);
        let numbers: Vec<Number> = bytes.chunks_exact(width).map(|bytes| number(kind, bytes)).collect();
        if let Some(at) = numbers.iter().position(|number| matches!(number, Number::Bool(2..))) {
            let found = bytes.get(at).map_or_else(String::new, |byte| format!("{byte:#04x}"));
            let fault = self.disagreement("a bool of 0 or 1".to_owned(), found);
            return Err(at_offset(fault, offset.saturating_add(at as u64)));
        }
        match (numbers.as_slice(), count) {
            ([number], None) if !is_vector => Ok(Value::Number(*number)),
            _ => Ok(Value::Numbers(numbers)),
        }
    }

    /// The fields of a struct, which must have the size that is said of it.
    fn sized(&mut self, field: &description::Field, inner: &State) -> Result<Vec<Field>, Fault> {
        if inner.length() != field.size {
            let expected = format!("{} as the size, the sum of its fields,", inner.length());
            return Err(self.disagreement(expected, field.size.to_string()));
        }
        let mut fields = Vec::new();
        self.state(inner, &mut fields)?;
        Ok(fields)
    }

    fn subsection(&mut self, state: &State) -> Result<Field, Fault> {
        let offset = self.offset;
        let version = state.version.unwrap_or(0);
        let expected = format!("subsection '{}' version {version}", state.name);
        let mut input = Input::with_capacity(self.rest, 0);
        match Subsection::decode(&mut input) {
            Ok(found) if found.name == state.name && found.version_id == version => {}
            Ok(found) => {
                return Err(self.disagreement(expected, format!("'{}' {}", found.name, found.version_id)));
            }
            Err(_) => {
                let found = self.rest.first().map_or("the section's end".to_owned(), |b| format!("{b:#04x}"));
                return Err(self.disagreement(expected, found));
            }
        }
        self.take(input.offset())?;
        let mut fields = Vec::new();
        self.within(&state.name, |cursor| cursor.state(state, &mut fields))?;
        let size = self.offset.saturating_sub(offset);
        let (name, ty) = (state.name.clone(), "subsection".to_owned());
        Ok(Field { name, offset, size, ty, value: Value::Group { version: state.version, fields } })
    }

    fn within<T>(
        &mut self,
        name: &str,
        read: impl FnOnce(&mut Self) -> Result<T, Fault>,
    ) -> Result<T, Fault> {
        self.place.push(name.to_owned());
        let result = read(self);
        self.place.pop();
        result
    }

    fn enough(&self, length: u64) -> Result<(), Fault> {
        let left = self.rest.len() as u64;
        if length <= left {
            return Ok(());
        }
        Err(self.disagreement(format!("{length} bytes"), format!("the section's end after {left}")))
    }

    fn take(&mut self, length: u64) -> Result<&[u8], Fault> {
        self.enough(length)?;
        let (taken, rest) =
            self.rest.split_at_checked(usize::try_from(length).unwrap_or(usize::MAX)).unwrap_or_default();
        self.rest = rest;
        self.offset = self.offset.saturating_add(length);
        Ok(taken)
    }

    fn spend(&mut self) -> Result<(), Fault> {
        let (offset, limit) = (self.offset, MAX_FIELDS as u64);
        *self.left = self.left.checked_sub(1).ok_or(Fault::TooMany { offset, what: "fields", limit })?;
        Ok(())
    }

    fn disagreement(&self, expected: String, found: String) -> Fault {
        let place = self.place.join(".").replace(".[", "[");
        Fault::Disagreement { offset: self.offset, place, expected, found }
    }
}

fn at_offset(fault: Fault, at: u64) -> Fault {
    match fault {
        Fault::Disagreement { place, expected, found, .. } => {
            Fault::Disagreement { offset: at, place, expected, found }
        }
        other => other,
    }
}

/// Four numbers under one size.
const IRQ_STATE: &str = "pci irq state";

/// What a type's bytes mean, where they are a number. `equal` and `le` only tell the receiver to check it.
fn number_type(ty: &str) -> Option<(Kind, u64)> {
    let base = ty.strip_suffix(" equal").or(ty.strip_suffix(" le")).unwrap_or(ty);
    Some(match base {
        "bool" | "powered_off" => (Kind::Bool, 1),
        "int8" => (Kind::Signed, 1),
        "int16" => (Kind::Signed, 2),
        "int32" => (Kind::Signed, 4),
        "int64" | "timer" => (Kind::Signed, 8),
        "uint8" => (Kind::Unsigned, 1),
        "uint16" => (Kind::Unsigned, 2),
        "uint32" | "cpsr" | "fpscr" | IRQ_STATE => (Kind::Unsigned, 4),
        "uint64" => (Kind::Unsigned, 8),
        _ => return None,
    })
}

fn number(kind: Kind, bytes: &[u8]) -> Number {
    let unsigned = bytes.iter().fold(0_u64, |value, byte| value << 8 | u64::from(*byte));
    match kind {
        Kind::Bool => Number::Bool(bytes.first().copied().unwrap_or(0)),
        Kind::Unsigned => Number::Unsigned(unsigned),
        Kind::Signed => {
            let unused = 64_u32.saturating_sub(u32::try_from(bytes.len()).unwrap_or(8).saturating_mul(8));
            Number::Signed(unsigned.wrapping_shl(unused).cast_signed().wrapping_shr(unused))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(json: &str) -> State {
        let text = format!(
            r#"{{"devices": [{{"name": "d", "instance_id": 0, "vmsd_name": "d", "version": 1, {json}}}]}}"#
        );
        description::Description::parse(text.as_bytes(), 0).unwrap().devices.remove(0).state
    }

    fn decode(json: &str, body: &[u8]) -> (Vec<Field>, Option<String>) {
        let (fields, fault) = Decoder::new().decode("d", &state(json), body, 0x100);
        (fields, fault.map(|fault| fault.to_string()))
    }

    #[test]
    fn numbers_have_their_types_sign_and_width() {
        let fields = r#""fields": [
            {"name": "a", "type": "int32 equal", "size": 4}, {"name": "b", "array_len": 2, "type": "uint16", "size": 2},
            {"name": "t", "type": "timer", "size": 8}, {"name": "on", "type": "bool", "size": 1},
            {"name": "u", "type": "unused_buffer", "size": 2}, {"name": "m", "type": "msix state", "size": 2},
            {"name": "i", "type": "pci irq state", "size": 8}]"#;
        let body = [
            &[0xff, 0xff, 0xff, 0xfe, 0, 1, 0xff, 0xff][..],
            &[0xff; 8],
            &[1, 0, 0, 0xab, 0xcd],
            &[0, 0, 0, 5, 0, 0, 0, 6],
        ]
        .concat();
        let (fields, fault) = decode(fields, &body);
        assert_eq!(fault, None);
        let values: Vec<Value> = fields.iter().map(|field| field.value.clone()).collect();
        let unsigned =
            |numbers: &[u64]| Value::Numbers(numbers.iter().map(|n| Number::Unsigned(*n)).collect());
        assert_eq!(
            values,
            [
                Value::Number(Number::Signed(-2)),
                unsigned(&[1, 0xffff]),
                Value::Number(Number::Signed(-1)),
                Value::Number(Number::Bool(1)),
                Value::Unused,
                Value::Bytes(vec![0xab, 0xcd]),
                unsigned(&[5, 6]),
            ]
        );
        assert_eq!(fields[6].offset, 0x100 + 21);
    }

    #[test]
    fn elements_described_one_by_one_are_an_array_and_the_last_may_lack_its_index() {
        let element = |index: &str| format!(r#"{{"name": "cpu", {index} "type": "uint8", "size": 1}}"#);
        let list = |indexes: &[&str]| {
            let elements: Vec<String> = indexes.iter().map(|index| element(index)).collect();
            format!(r#""fields": [{}]"#, elements.join(","))
        };
        let (fields, fault) = decode(&list(&[r#""index": 0,"#, r#""index": 1,"#, ""]), &[7, 8, 9]);
        assert_eq!(fault, None);
        let [Field { value: Value::Array(elements), size: 3, .. }] = &fields[..] else {
            panic!("{fields:?}")
        };
        assert_eq!(elements[2].value, Value::Number(Number::Unsigned(9)));
        let (_, fault) = decode(&list(&[r#""index": 0,"#, r#""index": 2,"#]), &[7, 8]);
        assert_eq!(fault.unwrap(), "d: cpu: index 1 expected, 2 found (stream offset 0x101)");
    }

    #[test]
    fn every_disagreement_is_told_with_place_and_offset() {
        let inner = |size: u32| {
            format!(
                r#""fields": [{{"name": "s", "array_len": 2, "type": "struct", "struct": {{"vmsd_name": "i", "version": 1,
               "fields": [{{"name": "on", "type": "bool", "size": 1}}]}}, "size": {size}}}],
               "subsections": [{{"vmsd_name": "d/x", "version": 2, "fields": []}}]"#
            )
        };
        let good = b"\x01\x00\x05\x03d/x\x00\x00\x00\x02";
        assert_eq!(decode(&inner(1), good).1, None);
        for (size, body, expected) in [
            (
                2,
                &good[..],
                "d.s[0]: 1 as the size, the sum of its fields, expected, 2 found (stream offset 0x100)",
            ),
            (
                1,
                b"\x01\x02\x05\x03d/x\x00\x00\x00\x02",
                "d.s[1].on: a bool of 0 or 1 expected, 0x02 found (stream offset 0x101)",
            ),
            (
                1,
                b"\x01\x00\x05\x03d/y\x00\x00\x00\x02",
                "d: subsection 'd/x' version 2 expected, 'd/y' 2 found (stream offset 0x102)",
            ),
            (
                1,
                b"\x01\x00",
                "d: subsection 'd/x' version 2 expected, the section's end found (stream offset 0x102)",
            ),
            (1, b"\x01\x00\x05\x03d/x\x00\x00\x00\x02\x00", "d: 11 bytes of state"),
            (1, b"\x01", "d.s: 2 bytes expected, the section's end after 1 found (stream offset 0x100)"),
        ] {
            let fault = decode(&inner(size), body).1.unwrap();
            assert!(fault.starts_with(expected.trim_end_matches(" of state")), "{fault}");
        }
        let (_, fault) = decode(r#""fields": [{"name": "n", "type": "uint32", "size": 2}]"#, &[0, 0]);
        assert_eq!(fault.unwrap(), "d.n: 4 as the size of uint32 expected, 2 found (stream offset 0x100)");
    }

    #[test]
    fn a_description_of_endless_fields_is_not_followed() {
        let fields = r#""fields": [{"name": "s", "array_len": 18446744073709551615, "type": "struct",
            "struct": {"vmsd_name": "i", "version": 1, "fields": []}, "size": 0}]"#;
        let (_, fault) = decode(fields, &[]);
        assert!(fault.unwrap().starts_with("more than 1048576 fields"));
    }
}
