//! Describing: a state's fields become the JSON object by which QEMU tells readers how a section was laid out (vmdesc).
//!
//! The rules, found by experiment:
//! - A field's name that occurs more than once in one description, in branches not taken too, gets `[k]`.
//! - Keys come in the order `name`, `array_len` or `index`, `type`, `struct`, `size`; a `tmp` has its description's keys inlined.
//! - An array of more than one element is written once with `array_len` when it has no existence predicate and, all the way down,
//!   its structs have neither predicates nor subsections. Otherwise every element is an object with `index`, which the last one
//!   lacks from 10.0 on. An array of one element looks like a single value; one of none is not shown.
//! - `size` is the number of bytes of one element.
//! - `subsections` stands only where one was sent.
//!
//! So a description is first gathered whole, branches not taken included, and only then written. Not seen in any capture, thus a guess
//! here: the type `nullptr` of an absent pointer; chains show their total size and nothing of their elements.

use serde_json::{Map, Value, json};

use crate::trail::{SectionName, Trail};
use crate::visitor::{Cells, Chain, ElementFields, Fields, Form, Intent, Present, Visitor, VmState, Vmsd};
use crate::{Level, Place, Result};

/// The object of `state`'s section in the `devices` of a description, as a peer at `level` would have written it.
///
/// # Errors
/// As [`save`](crate::save).
pub fn describe(section: &SectionName, state: &mut dyn VmState, level: Level) -> Result<Value> {
    let vmsd = state.vmsd();
    let shape = shape(section, state, level)?;
    let mut object = Map::new();
    object.insert("name".into(), json!(section.idstr));
    object.insert("instance_id".into(), json!(section.instance));
    if vmsd.is_described() {
        shape.write(level, &mut object);
    } else {
        let size = shape.size();
        object.insert("size".into(), json!(size));
        object.insert("fields".into(), json!([{"name": "data", "size": size, "type": "buffer"}]));
    }
    Ok(Value::Object(object))
}

/// Bytes of a subsection record's header beside the name: type, length of the name, be32 version.
const SUBSECTION_HEADER: usize = 6;

fn shape(section: &SectionName, state: &mut dyn VmState, level: Level) -> Result<Shape> {
    let vmsd = state.vmsd();
    let mut describe =
        Describe { trail: Trail::new(section, level), shape: Shape::new(vmsd), predicate: false, untaken: 0 };
    describe.trail.enter("", vmsd.version);
    state.fields(&mut describe)?;
    Ok(describe.shape)
}

/// A description as gathered.
struct Shape {
    vmsd: Vmsd,
    fields: Vec<Field>,
    /// Those sent.
    subsections: Vec<Shape>,
    /// Whether there could be any.
    has_subsections: bool,
}

/// A field as gathered.
struct Field {
    name: String,
    ty: &'static str,
    /// Has an existence predicate.
    predicate: bool,
    /// Is in the stream.
    taken: bool,
    count: usize,
    /// One for each element, or one that stands for all.
    elements: Vec<Element>,
}

enum Element {
    /// So many bytes.
    Plain(usize),
    Struct(Shape),
    Tmp(Shape),
    /// An absent pointer.
    Null,
}

impl Shape {
    fn new(vmsd: Vmsd) -> Self {
        Shape { vmsd, fields: Vec::new(), subsections: Vec::new(), has_subsections: false }
    }

    /// Bytes on the wire, subsections included.
    fn size(&self) -> usize {
        let fields = self.fields.iter().filter(|field| field.taken).map(Field::size);
        let subsections = self.subsections.iter().map(|subsection| {
            subsection.size().saturating_add(subsection.vmsd.name.len()).saturating_add(SUBSECTION_HEADER)
        });
        fields.chain(subsections).fold(0, usize::saturating_add)
    }

    fn compressible(&self) -> bool {
        !self.has_subsections && self.fields.iter().all(Field::compressible)
    }

    fn write(&self, level: Level, object: &mut Map<String, Value>) {
        object.insert("vmsd_name".into(), json!(self.vmsd.name));
        object.insert("version".into(), json!(self.vmsd.version));
        let mut fields = Vec::new();
        for (at, field) in self.fields.iter().enumerate() {
            if field.taken {
                field.write(level, &self.unique_name(at, &field.name), &mut fields);
            }
        }
        object.insert("fields".into(), Value::Array(fields));
        if !self.subsections.is_empty() {
            let subsections = self.subsections.iter().map(|subsection| subsection.to_value(level)).collect();
            object.insert("subsections".into(), Value::Array(subsections));
        }
    }

    fn to_value(&self, level: Level) -> Value {
        let mut object = Map::new();
        self.write(level, &mut object);
        Value::Object(object)
    }

    /// The name of field number `at`, told apart from others of that name.
    fn unique_name(&self, at: usize, name: &str) -> String {
        let mut same = self.fields.iter().enumerate().filter(|(_, field)| field.name == name);
        match same.clone().count() {
            0 | 1 => name.to_owned(),
            _ => format!("{name}[{}]", same.position(|(i, _)| i == at).unwrap_or(0)),
        }
    }
}

impl Field {
    fn compressible(&self) -> bool {
        !self.predicate
            && self.elements.iter().all(|element| match element {
                Element::Struct(shape) => shape.compressible(),
                Element::Plain(_) | Element::Tmp(_) | Element::Null => true,
            })
    }

    fn size(&self) -> usize {
        if self.elements.len() == self.count {
            self.elements.iter().map(Element::size).fold(0, usize::saturating_add)
        } else {
            self.elements.first().map_or(0, Element::size).saturating_mul(self.count)
        }
    }

    fn write(&self, level: Level, name: &str, fields: &mut Vec<Value>) {
        let Some(first) = self.elements.first() else { return };
        if self.compressible() {
            let array = (self.count > 1).then_some(("array_len", self.count));
            fields.push(self.object(level, name, array, first));
            return;
        }
        let last = self.count.saturating_sub(1);
        for i in 0..self.count {
            let shown = self.count > 1 && (i < last || level < Level::V10_0);
            let element = self.elements.get(i).unwrap_or(first);
            fields.push(self.object(level, name, shown.then_some(("index", i)), element));
        }
    }

    fn object(&self, level: Level, name: &str, array: Option<(&str, usize)>, element: &Element) -> Value {
        let mut object = Map::new();
        object.insert("name".into(), json!(name));
        if let Some((key, value)) = array {
            object.insert(key.into(), json!(value));
        }
        let ty = if matches!(element, Element::Null) { "nullptr" } else { self.ty };
        object.insert("type".into(), json!(ty));
        match element {
            Element::Struct(shape) => {
                object.insert("struct".into(), shape.to_value(level));
            }
            Element::Tmp(shape) => shape.write(level, &mut object),
            Element::Plain(_) | Element::Null => {}
        }
        object.insert("size".into(), json!(element.size()));
        Value::Object(object)
    }
}

impl Element {
    fn size(&self) -> usize {
        match self {
            Element::Plain(size) => *size,
            Element::Struct(shape) | Element::Tmp(shape) => shape.size(),
            Element::Null => 1,
        }
    }
}

struct Describe {
    trail: Trail,
    /// The description being gathered.
    shape: Shape,
    /// Fields are under an existence predicate.
    predicate: bool,
    /// How many branches not taken we are in.
    untaken: u32,
}

impl Describe {
    fn push(&mut self, name: &str, ty: &'static str, count: usize, elements: Vec<Element>) -> Result<()> {
        self.trail.field(name, 0)?;
        let (predicate, taken) = (self.predicate, self.untaken == 0);
        self.shape.fields.push(Field { name: name.to_owned(), ty, predicate, taken, count, elements });
        Ok(())
    }

    /// Gathers the description of a part.
    fn part(
        &mut self,
        segment: String,
        vmsd: Vmsd,
        f: impl FnOnce(&mut dyn Visitor) -> Result<()>,
    ) -> Result<Shape> {
        let outer = std::mem::replace(&mut self.shape, Shape::new(vmsd));
        let predicate = std::mem::take(&mut self.predicate);
        self.trail.enter(segment, vmsd.version);
        f(self)?;
        self.trail.leave();
        self.predicate = predicate;
        Ok(std::mem::replace(&mut self.shape, outer))
    }

    /// Visits a branch, which may not be taken.
    fn branch(&mut self, taken: bool, f: Fields<'_>) -> Result<()> {
        let untaken = self.untaken;
        self.untaken = untaken.saturating_add(u32::from(!taken));
        f(self)?;
        self.untaken = untaken;
        Ok(())
    }
}

impl Visitor for Describe {
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
        if self.untaken == 0 { Intent::Save } else { Intent::Shape }
    }

    fn cells(&mut self, name: &str, ty: &'static str, form: Form, cells: Cells<'_>) -> Result<()> {
        let (count, width) = (cells.len(), cells.width());
        match form {
            Form::One | Form::Array if count == 0 => self.push(name, ty, 0, Vec::new()),
            Form::One | Form::Array => self.push(name, ty, count, vec![Element::Plain(width)]),
            Form::Whole => self.push(name, ty, 1, vec![Element::Plain(count.saturating_mul(width))]),
        }
    }

    fn unused(&mut self, length: usize) -> Result<()> {
        self.push("unused", "unused_buffer", 1, vec![Element::Plain(length)])
    }

    fn since(&mut self, version: u32, f: Fields<'_>) -> Result<()> {
        self.branch(self.version() >= version, f)
    }

    fn when(&mut self, condition: bool, f: Fields<'_>) -> Result<()> {
        let predicate = std::mem::replace(&mut self.predicate, true);
        self.branch(condition, f)?;
        self.predicate = predicate;
        Ok(())
    }

    fn structure(&mut self, name: &str, vmsd: Vmsd, f: Fields<'_>) -> Result<()> {
        let shape = self.part(name.to_owned(), vmsd, |v| f(v))?;
        self.push(name, "struct", 1, vec![Element::Struct(shape)])
    }

    fn structures(&mut self, name: &str, vmsd: Vmsd, count: usize, f: ElementFields<'_>) -> Result<()> {
        let element = |i| self.part(format!("{name}[{i}]"), vmsd, |v| f(i, v)).map(Element::Struct);
        let elements = (0..count).map(element).collect::<Result<_>>()?;
        self.push(name, "struct", count, elements)
    }

    fn pointers(&mut self, name: &str, vmsd: Vmsd, present: &[bool], f: ElementFields<'_>) -> Result<()> {
        let element = |(i, present): (usize, &bool)| match present {
            true => self.part(format!("{name}[{i}]"), vmsd, |v| f(i, v)).map(Element::Struct),
            false => Ok(Element::Null),
        };
        let elements = present.iter().enumerate().map(element).collect::<Result<_>>()?;
        self.push(name, "struct", present.len(), elements)
    }

    fn chain(
        &mut self,
        name: &str,
        chain: Chain,
        vmsd: Vmsd,
        count: usize,
        f: ElementFields<'_>,
    ) -> Result<usize> {
        let mut size = if chain == Chain::Gtree { 5_usize } else { 1 };
        for i in 0..count {
            let element = self.part(format!("{name}[{i}]"), vmsd, |v| f(i, v))?;
            size = size.saturating_add(element.size()).saturating_add(1);
        }
        self.push(name, chain.ty(), 1, vec![Element::Plain(size)])?;
        Ok(count)
    }

    fn tmp(&mut self, name: &str, vmsd: Vmsd, f: Fields<'_>) -> Result<()> {
        let shape = self.part(name.to_owned(), vmsd, |v| f(v))?;
        self.push(name, "tmp", 1, vec![Element::Tmp(shape)])
    }

    fn opaque(&mut self, name: &str, ty: &'static str, f: Fields<'_>) -> Result<()> {
        let shape = self.part(name.to_owned(), Vmsd::new("", self.version()), |v| f(v))?;
        self.push(name, ty, 1, vec![Element::Plain(shape.size())])
    }

    fn subsection(&mut self, vmsd: Vmsd, needed: bool, f: Fields<'_>) -> Result<Present> {
        self.trail.seal();
        self.shape.has_subsections = true;
        if !needed || self.untaken > 0 {
            return Ok(Present::No);
        }
        let shape = self.part(vmsd.name.to_owned(), vmsd, |v| f(v))?;
        self.shape.subsections.push(shape);
        Ok(Present::Yes)
    }
}
