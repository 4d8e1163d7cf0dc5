//! Where a section ends whose layout isn't known.
//!
//! Nothing in the stream tells a device's length before the VM description, which comes last. So the end is taken to be at
//! the first footer (`7e` and the section's id) that is followed by what may follow a section:
//!
//! | next byte | and |
//! |---|---|
//! | `00` end of stream | the bytes' end, or a VM description that begins an object |
//! | `01`, `04` start, full | a whole header, with a printable name |
//! | `02`, `03` part, end | the id of a live section |
//! | `08` command | a command that there is, with a payload that it may have |
//! | none | the bytes' end: that of a package, or of a stream that was cut |
//!
//! It is a guess, and a good one: a device's state would have to hold the five bytes of its own footer and, behind them,
//! the header of an element. Whoever can know better must not ask here.

use crate::element::{EOF, Element, SECTION_FOOTER, VM_DESCRIPTION};
use crate::error::WireError;
use crate::input::Input;
use crate::vmdescription;

/// Bytes of a footer.
pub const LENGTH: usize = 5;

/// The footer of the section numbered `section_id`.
pub fn bytes(section_id: u32) -> [u8; LENGTH] {
    let [a, b, c, d] = section_id.to_be_bytes();
    [SECTION_FOOTER, a, b, c, d]
}

/// What is known of the end of a section's body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BodyEnd {
    /// The body ends after so many bytes; there its footer stands.
    At(usize),
    /// So many bytes belong to the body. What stands behind them, a footer or the first bytes of one, can't be told from
    /// the body yet: it must be looked at again, together with more. Never, if there is no more.
    Beyond(usize),
}

/// Looks in `bytes` for the end of the body of the section numbered `section_id`. `is_live` tells of an id whether a
/// live section goes by it; `is_last`, that nothing follows `bytes`.
pub fn find(bytes: &[u8], section_id: u32, is_last: bool, is_live: impl Fn(u32) -> bool) -> BodyEnd {
    let footer = self::bytes(section_id);
    let places = bytes.windows(LENGTH).enumerate().filter(|(_, window)| *window == footer);
    for (place, _) in places {
        let rest = bytes.get(place.saturating_add(LENGTH)..).unwrap_or_default();
        match may_follow(rest, &is_live) {
            Some(true) => return BodyEnd::At(place),
            Some(false) => {}
            // What is valid as far as it goes is believed if there is no more of it.
            None if is_last => return BodyEnd::At(place),
            None => return BodyEnd::Beyond(place),
        }
    }
    match is_last {
        true => BodyEnd::Beyond(bytes.len()),
        false => BodyEnd::Beyond(bytes.len().saturating_sub(LENGTH.saturating_sub(1))),
    }
}

/// Whether these bytes may stand behind a section; `None` if there are too few to tell.
fn may_follow(bytes: &[u8], is_live: &impl Fn(u32) -> bool) -> Option<bool> {
    match bytes {
        [] | [EOF] => return None,
        [EOF, VM_DESCRIPTION, a, b, c, d, text @ ..] => {
            return match (u32::from_be_bytes([*a, *b, *c, *d]), text) {
                (0, _) => Some(true),
                (1..=vmdescription::MAX_LENGTH, []) => None,
                (1..=vmdescription::MAX_LENGTH, [first, ..]) => Some(*first == b'{'),
                _ => Some(false),
            };
        }
        [EOF, VM_DESCRIPTION, ..] => return None,
        [EOF, ..] => return Some(false),
        _ => {}
    }
    match Element::decode(&mut Input::with_capacity(bytes, 0)) {
        Ok(Element::SectionStart(header) | Element::SectionFull(header)) => {
            Some(!header.idstr.is_empty() && header.idstr.bytes().all(|byte| matches!(byte, b' '..=b'~')))
        }
        Ok(Element::SectionPart { section_id } | Element::SectionEnd { section_id }) => {
            Some(is_live(section_id))
        }
        Ok(Element::Command(_)) => Some(true),
        Ok(Element::Eof | Element::VmDescription { .. }) => Some(false),
        Err(WireError::Truncated { .. }) => None,
        Err(_) => Some(false),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::bytes as hex;

    /// Where the body of section 9 ends, while section 2 is live.
    fn end(stream: &str, is_last: bool) -> BodyEnd {
        find(&hex(stream), 9, is_last, |id| id == 2)
    }

    #[test]
    fn a_body_ends_at_a_footer_that_is_followed_by_an_element() {
        for next in [
            "04 00000102 04'apic' 00000001 00000003",
            "01 00000003 09'a section' 00000000 00000001",
            "02 00000002",
            "03 00000002",
            "08 0002 0004 00000001",
            "00 06 00000002 '{}'",
            "00 06 00000000",
        ] {
            for is_last in [false, true] {
                assert_eq!(end(&format!("010203 7e00000009 {next}"), is_last), BodyEnd::At(3), "{next}");
                assert_eq!(end(&format!("7e00000009 {next}"), is_last), BodyEnd::At(0), "{next}");
            }
        }
    }

    #[test]
    fn a_footer_that_no_element_follows_is_data() {
        let data = [
            "55",
            "02 00000003",
            "04 00000001 00 00000000 00000001",
            "04 00000001 01 0a 00000000 00000001",
            "08 004d 0000",
            "00 01",
            "00 06 00000009 'x'",
            "00 06 ffffffff",
            "06 00000002 '{}'",
            "7e 0000000a",
        ];
        for next in data {
            let decoy = format!("7e00000009 {next} 555555");
            let length = hex(&decoy).len();
            assert_eq!(end(&format!("{decoy} 7e00000009 03 00000002"), false), BodyEnd::At(length), "{next}");
            assert_eq!(end(&decoy, true), BodyEnd::Beyond(length), "{next}");
        }
    }

    #[test]
    fn what_is_not_whole_waits_for_more_and_is_believed_if_there_is_none() {
        for next in ["", "00", "00 06 0000", "00 06 00000002", "04 00000102 04'api'", "02 0000", "08 0002"] {
            let stream = format!("0102 7e00000009 {next}");
            assert_eq!(end(&stream, false), BodyEnd::Beyond(2), "{next}");
            assert_eq!(end(&stream, true), BodyEnd::At(2), "{next}");
        }
    }

    #[test]
    fn the_first_bytes_of_a_footer_are_kept_for_the_next_look() {
        assert_eq!(end("01 7e0000", false), BodyEnd::Beyond(0));
        assert_eq!(end("0102030405", false), BodyEnd::Beyond(1));
        assert_eq!(end("0102 7e000000", false), BodyEnd::Beyond(2));
        assert_eq!(end("0102 7e000000", true), BodyEnd::Beyond(6));
    }
}
