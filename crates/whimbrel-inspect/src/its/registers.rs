//! The registers of an interrupt translation service (Arm's GICv3 architecture, GITS_*), field by field.
//!
//! Where an ITS's tables are, how large, and how far its commands have been read says nothing to the eye as a number.

use super::IDSTR;
use crate::fields::{Field, Number, Value};

/// A register, taken apart.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Register {
    /// As the description names it; of an array with the place.
    pub(crate) name: String,
    /// Names and values.
    pub(crate) parts: Vec<(&'static str, u64)>,
}

/// What a register holds: name, highest and lowest bit, and how it is read.
type Layout = &'static [(&'static str, u32, u32, As)];

#[derive(Clone, Copy)]
enum As {
    Number,
    /// One less than what is meant.
    LessOne,
    /// Bits of an address or an offset, in their place.
    InPlace,
}

const CTLR: Layout = &[("enabled", 0, 0, As::Number), ("quiescent", 31, 31, As::Number)];

const CBASER: Layout = &[
    ("valid", 63, 63, As::Number),
    ("address", 51, 12, As::InPlace),
    ("pages-of-4k", 7, 0, As::LessOne),
    ("shareability", 11, 10, As::Number),
    ("inner-cache", 61, 59, As::Number),
    ("outer-cache", 55, 53, As::Number),
];

const CREADR: Layout = &[("offset", 19, 5, As::InPlace), ("stalled", 0, 0, As::Number)];
const CWRITER: Layout = &[("offset", 19, 5, As::InPlace), ("retry", 0, 0, As::Number)];

/// Type: 0 none, 1 devices, 2 vPEs, 4 collections. Page size: 0 is 4 KiB, 1 is 16, 2 is 64.
const BASER: Layout = &[
    ("valid", 63, 63, As::Number),
    ("type", 58, 56, As::Number),
    ("two-level", 62, 62, As::Number),
    ("address", 47, 12, As::InPlace),
    ("pages", 7, 0, As::LessOne),
    ("page-size", 9, 8, As::Number),
    ("entry-bytes", 52, 48, As::LessOne),
    ("shareability", 11, 10, As::Number),
    ("inner-cache", 61, 59, As::Number),
    ("outer-cache", 55, 53, As::Number),
];

/// The registers among the fields of the section `idstr`; none if it is no ITS's.
pub(crate) fn registers(idstr: &str, fields: &[Field]) -> Vec<Register> {
    let mut found = Vec::new();
    for field in fields.iter().filter(|_| idstr == IDSTR) {
        let layout = match field.name.as_str() {
            "ctlr" => CTLR,
            "cbaser" => CBASER,
            "creadr" => CREADR,
            "cwriter" => CWRITER,
            "baser" => BASER,
            _ => continue,
        };
        let mut put = |name: String, number: &Number| {
            if let Number::Unsigned(value) = number {
                found.push(Register { name, parts: apart(layout, *value) });
            }
        };
        match &field.value {
            Value::Number(number) => put(field.name.clone(), number),
            Value::Numbers(numbers) => {
                for (place, number) in numbers.iter().enumerate() {
                    put(format!("{}[{place}]", field.name), number);
                }
            }
            _ => {}
        }
    }
    found
}

fn apart(layout: Layout, value: u64) -> Vec<(&'static str, u64)> {
    let part = |&(name, high, low, read): &(&'static str, u32, u32, As)| {
        let below = u64::MAX.checked_shr(63_u32.saturating_sub(high)).unwrap_or(0);
        let in_place = value & below & u64::MAX.checked_shl(low).unwrap_or(0);
        let number = in_place.checked_shr(low).unwrap_or(0);
        let meant = match read {
            As::Number => number,
            As::LessOne => number.saturating_add(1),
            As::InPlace => in_place,
        };
        (name, meant)
    };
    layout.iter().map(part).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_register_is_taken_apart() {
        // Valid, two-level, devices, entries of 8 bytes, at 0x8_4567_0000, 16 pages of 64 KiB, inner shareable.
        let value = 1 << 63 | 1 << 62 | 1 << 56 | 7 << 48 | 0x8_4567_0000 | 1 << 10 | 2 << 8 | 15;
        assert_eq!(
            apart(BASER, value),
            [
                ("valid", 1),
                ("type", 1),
                ("two-level", 1),
                ("address", 0x8_4567_0000),
                ("pages", 16),
                ("page-size", 2),
                ("entry-bytes", 8),
                ("shareability", 1),
                ("inner-cache", 0),
                ("outer-cache", 0),
            ]
        );
        assert_eq!(apart(CREADR, 0xf_ffff), [("offset", 0xf_ffe0), ("stalled", 1)]);
        assert_eq!(apart(CTLR, 0x8000_0001), [("enabled", 1), ("quiescent", 1)]);
    }
}
