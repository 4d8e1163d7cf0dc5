//! The stream's own description of its device state (vmdesc): parsed from the JSON that follows the end of the stream, and
//! found there ahead of time, because the sections that it describes come before it.
//!
//! ```text
//! { "configuration": state, "page_size": n, "devices": [ state with "name", "instance_id" … ] }
//! state: "vmsd_name", "version", "fields": [ field … ], "subsections": [ state … ]
//! field: "name", "array_len" or "index", "type", "size", and for a struct "struct": state, for a tmp a state's own keys
//! ```
//!
//! A section that its sender doesn't describe has one field `data` and no version.

use serde_json::{Map, Value};
use whimbrel_wire::element::{EOF, VM_DESCRIPTION};
use whimbrel_wire::vmdescription::MAX_LENGTH;

use crate::Fault;

/// A stream's description.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Description {
    /// Size of the pages on the wire, in bytes.
    pub page_size: Option<u64>,
    /// The configuration element, since 10.0.
    pub configuration: Option<State>,
    /// Every device's section, in the order of the stream.
    pub devices: Vec<Device>,
}

/// The description of one section.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// The section's idstr.
    pub name: String,
    /// Its instance.
    pub instance: u32,
    /// Its layout.
    pub state: State,
}

/// A layout: fields, then the subsections that were sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct State {
    /// Its name.
    pub name: String,
    /// Its version, where it has one.
    pub version: Option<u32>,
    /// Its fields, in stream order.
    pub fields: Vec<Field>,
    /// The subsections that were sent, in stream order.
    pub subsections: Vec<State>,
}

/// A field, or one element of an array whose elements differ.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Field {
    /// Its name.
    pub name: String,
    /// Its type, as QEMU calls it.
    pub ty: String,
    /// The number of elements of an array.
    pub array_length: Option<u64>,
    /// The element's number, of an array whose elements are described one by one. The last may lack it.
    pub index: Option<u64>,
    /// Bytes on the wire, of one element.
    pub size: u64,
    /// The fields of a `struct`.
    pub structure: Option<State>,
    /// The fields of a `tmp`: a helper whose fields take its place.
    pub helper: Option<State>,
}

impl Description {
    /// Reads the text of a description that stands at `offset` in its stream.
    pub fn parse(text: &[u8], offset: u64) -> Result<Self, Fault> {
        let value = serde_json::from_slice(text).map_err(|error: serde_json::Error| {
            // The text is one line: the column is the position.
            let column = if error.line() == 1 { error.column().saturating_sub(1) } else { 0 };
            Fault::Description { offset: offset.saturating_add(column as u64), why: error.to_string() }
        })?;
        Parser { path: Vec::new() }.description(&value).map_err(|why| Fault::Description { offset, why })
    }

    /// The description at the end of a stream of which `tail` is the last part: the last place with an end-of-stream byte,
    /// the element's type, a length that fits, and a text that is a description.
    pub fn find(tail: &[u8]) -> Option<Self> {
        let before_text = |at: usize| -> Option<&[u8]> {
            let [EOF, VM_DESCRIPTION, length @ .., b'{'] = tail.get(at..)?.first_chunk::<7>()? else {
                return None;
            };
            let length = u32::from_be_bytes(*length.first_chunk::<4>()?);
            let text = tail.get(at.checked_add(6)?..)?.get(..length as usize)?;
            (length <= MAX_LENGTH && text.last() == Some(&b'}')).then_some(text)
        };
        (0..tail.len()).rev().filter_map(before_text).find_map(|text| Self::parse(text, 0).ok())
    }
}

impl State {
    /// Bytes on the wire, subsections with their headers included.
    pub fn length(&self) -> u64 {
        let fields = self.fields.iter().map(Field::length);
        let subsections = self.subsections.iter().map(State::length_as_subsection);
        fields.chain(subsections).fold(0, u64::saturating_add)
    }

    /// Bytes on the wire as a subsection: with type, name and version before it.
    pub fn length_as_subsection(&self) -> u64 {
        self.length().saturating_add(self.name.len() as u64).saturating_add(6)
    }
}

impl Field {
    /// Bytes on the wire, of all its elements.
    pub fn length(&self) -> u64 {
        self.size.saturating_mul(self.array_length.unwrap_or(1))
    }
}

/// Reads JSON values; an error tells the path to what is wrong.
struct Parser {
    path: Vec<String>,
}

type Object = Map<String, Value>;

impl Parser {
    fn description(&mut self, value: &Value) -> Result<Description, String> {
        let object = self.object(value)?;
        let configuration = match object.get("configuration") {
            Some(value) => Some(self.within("configuration", |parser| parser.state(parser.object(value)?))?),
            None => None,
        };
        let page_size = object.get("page_size").and_then(Value::as_u64);
        let devices = self.list(object, "devices", |parser, device| {
            let name = parser.text(device, "name")?;
            let instance = parser.number32(device, "instance_id")?;
            let state = parser.state(device)?;
            Ok(Device { name, instance, state })
        })?;
        Ok(Description { page_size, configuration, devices })
    }

    fn state(&mut self, object: &Object) -> Result<State, String> {
        let name = match object.contains_key("vmsd_name") {
            true => self.text(object, "vmsd_name")?,
            false => String::new(),
        };
        let version = match object.contains_key("version") {
            true => Some(self.number32(object, "version")?),
            false => None,
        };
        let fields = self.list(object, "fields", Self::field)?;
        let subsections = match object.contains_key("subsections") {
            true => self.list(object, "subsections", Self::state)?,
            false => Vec::new(),
        };
        Ok(State { name, version, fields, subsections })
    }

    fn field(&mut self, object: &Object) -> Result<Field, String> {
        let name = self.text(object, "name")?;
        let ty = self.text(object, "type")?;
        let size = self.number(object, "size")?;
        let array_length = self.number_if_there(object, "array_len")?;
        let index = self.number_if_there(object, "index")?;
        let structure = match object.get("struct") {
            Some(value) => Some(self.within(&name, |parser| parser.state(parser.object(value)?))?),
            None => None,
        };
        let helper = match object.contains_key("fields") {
            true => Some(self.within(&name, |parser| parser.state(object))?),
            false => None,
        };
        Ok(Field { name, ty, array_length, index, size, structure, helper })
    }

    fn list<T>(
        &mut self,
        object: &Object,
        key: &str,
        mut read: impl FnMut(&mut Self, &Object) -> Result<T, String>,
    ) -> Result<Vec<T>, String> {
        let Some(Value::Array(values)) = object.get(key) else { return Err(self.wrong(key, "a list")) };
        let element = |(i, value): (usize, &Value)| {
            let name = value.get("name").or(value.get("vmsd_name")).and_then(Value::as_str);
            let place = name.map_or_else(|| format!("{key}[{i}]"), str::to_owned);
            self.within(&place, |parser| read(parser, parser.object(value)?))
        };
        values.iter().enumerate().map(element).collect()
    }

    fn within<T>(
        &mut self,
        place: &str,
        read: impl FnOnce(&mut Self) -> Result<T, String>,
    ) -> Result<T, String> {
        self.path.push(place.to_owned());
        let result = read(self);
        self.path.pop();
        result
    }

    fn object<'a>(&self, value: &'a Value) -> Result<&'a Object, String> {
        value.as_object().ok_or_else(|| format!("{}is no object", self.place("")))
    }

    fn text(&self, object: &Object, key: &str) -> Result<String, String> {
        object.get(key).and_then(Value::as_str).map(str::to_owned).ok_or_else(|| self.wrong(key, "a text"))
    }

    fn number(&self, object: &Object, key: &str) -> Result<u64, String> {
        object.get(key).and_then(Value::as_u64).ok_or_else(|| self.wrong(key, "a number"))
    }

    fn number_if_there(&self, object: &Object, key: &str) -> Result<Option<u64>, String> {
        if object.contains_key(key) { self.number(object, key).map(Some) } else { Ok(None) }
    }

    fn number32(&self, object: &Object, key: &str) -> Result<u32, String> {
        self.number(object, key)?.try_into().map_err(|_| self.wrong(key, "a number of 32 bits"))
    }

    fn wrong(&self, key: &str, expected: &str) -> String {
        format!("{}'{key}' should be {expected}", self.place(": "))
    }

    fn place(&self, separator: &str) -> String {
        if self.path.is_empty() { String::new() } else { self.path.join(".") + separator }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = r#"{"page_size": 4096, "devices": [{"name": "slirp", "instance_id": 0, "size": 3, "fields": [{"name": "data", "size": 3, "type": "buffer"}]}, {"name": "x/serial", "instance_id": 1, "vmsd_name": "serial", "version": 3, "fields": [{"name": "a", "array_len": 4, "type": "uint16", "size": 2}, {"name": "s", "type": "struct", "struct": {"vmsd_name": "inner", "version": 1, "fields": []}, "size": 0}], "subsections": [{"vmsd_name": "serial/fifo", "version": 1, "fields": [{"name": "n", "type": "uint8", "size": 1}]}]}]}"#;

    fn framed(text: &str) -> Vec<u8> {
        let mut bytes = vec![EOF, VM_DESCRIPTION];
        bytes.extend((text.len() as u32).to_be_bytes());
        bytes.extend(text.as_bytes());
        bytes
    }

    #[test]
    fn a_description_knows_the_length_of_every_section() {
        let description = Description::parse(TEXT.as_bytes(), 0).unwrap();
        assert_eq!(description.page_size, Some(4096));
        let [slirp, serial] = &description.devices[..] else { panic!("{description:?}") };
        assert_eq!((slirp.state.version, slirp.state.length()), (None, 3));
        assert_eq!((serial.name.as_str(), serial.instance, serial.state.version), ("x/serial", 1, Some(3)));
        assert_eq!(serial.state.length(), 8 + (1 + 1 + 11 + 4) + 1);
    }

    #[test]
    fn faults_are_told_with_their_place() {
        let fault = |text: &str| Description::parse(text.as_bytes(), 0x100).unwrap_err();
        let Fault::Description { offset, .. } = fault(r#"{"devices": [}"#) else { panic!() };
        assert_eq!(offset, 0x10d);
        let text = TEXT.replace(r#""name": "n", "type""#, r#""name": "n", "typ""#);
        let why = "x/serial.serial/fifo.n: 'type' should be a text".to_owned();
        assert_eq!(fault(&text), Fault::Description { offset: 0x100, why });
        let why = "'devices' should be a list".to_owned();
        assert_eq!(fault("{}"), Fault::Description { offset: 0x100, why });
    }

    #[test]
    fn the_last_description_of_the_tail_is_found_whatever_follows() {
        let mut tail = b"\x00\x06\x00\x00\x00\x02{}, and ".to_vec();
        assert_eq!(Description::find(&tail), None);
        tail.extend(framed(TEXT));
        assert_eq!(Description::find(&tail).unwrap().devices.len(), 2);
        tail.extend([0; 512]);
        assert_eq!(Description::find(&tail).unwrap().devices.len(), 2);
        let cut = framed(TEXT).len() - 1;
        assert_eq!(Description::find(&framed(TEXT)[..cut]), None);
    }
}
