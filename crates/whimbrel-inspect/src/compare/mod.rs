//! What differs between two streams in files: configuration, sections, fields, and pages by their content at the end of each
//! stream. A page that a stream doesn't hold counts as zero, as it is in a machine that is about to load it.

use std::collections::BTreeMap;
use std::fs::File;
use std::ops::Range;

use crate::fields::{Field, Number, Value};
use crate::index::{Image, Index, merge};
use crate::report::{Body, Part, Report, Section};
use crate::{Block, Fault, FileStream, inspect, text};

/// Two streams, compared.
#[derive(Debug)]
pub struct Comparison {
    /// The streams themselves. If one of them stopped, what stands behind that place was not compared.
    pub reports: [Report; 2],
    /// What differs beside pages.
    pub differences: Vec<Difference>,
    /// The blocks of which pages differ.
    pub blocks: Vec<BlockDifference>,
}

/// Something that differs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// What: a section, or a field of one.
    pub place: String,
    /// What it is in each stream; `None` where it isn't there.
    pub values: [Option<String>; 2],
}

/// A block of which pages differ.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockDifference {
    /// The block.
    pub name: String,
    /// How many pages.
    pub pages: u64,
    /// Where, in bytes from the block's start.
    pub ranges: Vec<Range<u64>>,
}

impl Comparison {
    /// Whether nothing differs.
    pub fn is_same(&self) -> bool {
        self.differences.is_empty() && self.blocks.is_empty()
    }
}

/// Compares the streams that begin in each file at its offset. Pages are read a second time, so both must be regular files.
///
/// # Errors
/// A file can't be read.
pub fn compare(files: [(&File, u64); 2]) -> Result<Comparison, Fault> {
    let walk = |(file, offset): (&File, u64)| -> Result<_, Fault> {
        let mut index = Index::of(|_| true);
        let stream = file.try_clone().and_then(|file| FileStream::new(file, offset));
        let report = inspect(stream.map_err(Fault::io("opening a stream"))?, offset, &mut index);
        Ok((report, index))
    };
    let [a, b] = files;
    let ((left, left_index), (right, right_index)) = (walk(a)?, walk(b)?);
    let mut differences = Vec::new();
    compare_values(&mut differences, overview(&left), overview(&right));
    compare_sections(&mut differences, &left, &right);
    let mut blocks = Vec::new();
    for (number, block) in left.blocks.iter().enumerate() {
        let mut others = right.blocks.iter().enumerate();
        // What is in one stream only, or has pages of another size, is told with the overview.
        let same = |other: &Block| (&other.name, other.page_size) == (&block.name, block.page_size);
        let Some((other, _)) = others.find(|(_, other)| same(other)) else { continue };
        let left = Image::new(left_index.block(number), a.0, block.page_size);
        let right = Image::new(right_index.block(other), b.0, block.page_size);
        blocks.extend(compare_pages(block, &mut [left, right])?);
    }
    Ok(Comparison { reports: [left, right], differences, blocks })
}

type Values = BTreeMap<String, String>;

/// What a stream is beside its sections.
fn overview(report: &Report) -> Values {
    let mut values = Values::new();
    if let Some(configuration) = report.configuration() {
        values.insert("configuration".to_owned(), text::configuration(configuration));
    }
    values.insert("page size".to_owned(), report.page_size.to_string());
    for block in &report.blocks {
        values.insert(format!("RAM block {}", block.name), format!("{:#x} bytes", block.length));
    }
    values
}

fn compare_values(differences: &mut Vec<Difference>, left: Values, mut right: Values) {
    for (place, left) in left {
        let other = right.remove(&place);
        if other.as_ref() != Some(&left) {
            differences.push(Difference { place, values: [Some(left), other] });
        }
    }
    differences
        .extend(right.into_iter().map(|(place, value)| Difference { place, values: [None, Some(value)] }));
}

fn compare_sections(differences: &mut Vec<Difference>, left: &Report, right: &Report) {
    let devices = |report: &Report| -> Vec<(String, Values)> {
        let full = report.sections().map(|(_, section)| section).filter(|section| section.part == Part::Full);
        full.map(|section| (section.name(), section_values(section))).collect()
    };
    let mut others = devices(right);
    for (name, values) in devices(left) {
        let other = others.iter().position(|(other, _)| *other == name).map(|at| others.remove(at));
        match other {
            Some((_, other)) => compare_values(differences, values, other),
            None => differences.push(Difference { place: name, values: [Some("there".to_owned()), None] }),
        }
    }
    let missing = |(place, _)| Difference { place, values: [None, Some("there".to_owned())] };
    differences.extend(others.into_iter().map(missing));
}

/// A section's values, by path.
fn section_values(section: &Section) -> Values {
    let mut values = Values::new();
    let name = section.name();
    match &section.body {
        Body::Fields(fields) => add_fields(&mut values, &name, fields),
        Body::Bytes(bytes) => drop(values.insert(format!("{name} (bytes)"), text::hex(bytes))),
        Body::Ram | Body::Opaque(_) => {}
    }
    values.insert(format!("{name} (version)"), section.version.to_string());
    values
}

fn add_fields(values: &mut Values, path: &str, fields: &[Field]) {
    for field in fields {
        add_value(values, format!("{path}.{}", field.name), &field.value);
    }
}

fn add_value(values: &mut Values, path: String, value: &Value) {
    let number = |number: &Number| text::number(*number);
    match value {
        Value::Unused => {}
        Value::Number(one) => drop(values.insert(path, number(one))),
        Value::Numbers(numbers) => {
            for (i, one) in numbers.iter().enumerate() {
                values.insert(format!("{path}[{i}]"), number(one));
            }
        }
        Value::Bytes(bytes) => drop(values.insert(path, text::hex(bytes))),
        Value::Group { fields, .. } => add_fields(values, &path, fields),
        Value::Array(elements) => {
            for (i, element) in elements.iter().enumerate() {
                add_value(values, format!("{path}[{i}]"), &element.value);
            }
        }
    }
}

fn compare_pages(block: &Block, images: &mut [Image<'_>; 2]) -> Result<Option<BlockDifference>, Fault> {
    let [left, right] = images;
    let mut difference = BlockDifference { name: block.name.clone(), pages: 0, ranges: Vec::new() };
    for page in merge(left.pages(), right.pages()) {
        if left.page(page)? == right.page(page)? {
            continue;
        }
        difference.pages = difference.pages.saturating_add(1);
        let start = page.saturating_mul(block.page_size);
        let end = start.saturating_add(block.page_size);
        match difference.ranges.last_mut() {
            Some(last) if last.end == start => last.end = end,
            _ => difference.ranges.push(start..end),
        }
    }
    Ok((difference.pages > 0).then_some(difference))
}
