//! Where a section ends whose layout isn't known: at the first footer of its id that is followed by what may follow a
//! section. It is a guess, and a good one: a device's state would have to hold the five bytes of its own footer and, behind
//! them, the header of an element.

use whimbrel_wire::element::{
    COMMAND, EOF, SECTION_END, SECTION_FOOTER, SECTION_FULL, SECTION_PART, SECTION_START, VM_DESCRIPTION,
};
use whimbrel_wire::{Input, SectionHeader, WireError};

use super::Live;
use crate::report::name;
use crate::{Fault, Stream};

/// Bytes searched at a time.
const WINDOW: usize = 1 << 16;

/// Bytes of a footer.
pub(super) const LENGTH: usize = 5;

/// Bytes of the longest header of an element that is looked at.
const HEADER: usize = 1 + 4 + 1 + 255;

/// Greatest command number, and its greatest payload.
const COMMANDS: (u16, u16) = (11, 512);

/// What becomes of the bytes on the way.
pub(super) enum Keep {
    Nothing,
    UpTo(u64),
}

/// Reads up to the footer of the section `header`. `live` are the sections that may go on behind it.
pub(super) fn find<S: Stream>(
    input: &mut Input<S>,
    header: &SectionHeader,
    live: &[Live],
    keep: Keep,
) -> Result<Vec<u8>, Fault> {
    let begins = input.offset();
    let [a, b, c, d] = header.section_id.to_be_bytes();
    let footer = [SECTION_FOOTER, a, b, c, d];
    let mut kept = Vec::new();
    loop {
        let window = input.reading("a section's state").peek(WINDOW)?;
        let is_last = window.len() < WINDOW;
        let searched = if is_last { window.len() } else { WINDOW.saturating_sub(LENGTH + HEADER) };
        let found = window.windows(LENGTH).take(searched).enumerate().position(|(at, five)| {
            five == footer && may_follow(window.get(at.saturating_add(LENGTH)..).unwrap_or_default(), live)
        });
        let length = found.unwrap_or(searched);
        match keep {
            Keep::Nothing => {}
            Keep::UpTo(limit) if (kept.len() as u64).saturating_add(length as u64) > limit => {
                let (what, length) = ("a device's state", limit.saturating_add(1));
                return Err(WireError::TooLong { offset: begins, what, length, limit }.into());
            }
            Keep::UpTo(_) => kept.extend_from_slice(window.get(..length).unwrap_or_default()),
        }
        input.skip(length as u64)?;
        if found.is_some() {
            return Ok(kept);
        }
        if is_last {
            let section = name(&header.idstr, header.instance_id);
            return Err(Fault::NoFooter { offset: begins, section, end: input.offset() });
        }
    }
}

/// Whether an element, or the end of a package, may begin like this.
fn may_follow(rest: &[u8], live: &[Live]) -> bool {
    let be32 = |at: usize| Some(u32::from_be_bytes(*rest.get(at..)?.first_chunk()?));
    let be16 = |at: usize| Some(u16::from_be_bytes(*rest.get(at..)?.first_chunk()?));
    match rest.first() {
        None => true,
        Some(&EOF) => matches!(rest.get(1), None | Some(&VM_DESCRIPTION)),
        Some(&(SECTION_START | SECTION_FULL)) => {
            let name = rest.get(5).and_then(|length| rest.get(6..)?.get(..usize::from(*length)));
            name.is_some_and(|name| !name.is_empty() && name.iter().all(u8::is_ascii_graphic))
        }
        Some(&(SECTION_PART | SECTION_END)) => {
            be32(1).is_some_and(|id| live.iter().any(|live| live.header.section_id == id))
        }
        Some(&COMMAND) => match (be16(1), be16(3)) {
            (Some(command), Some(length)) => (1..=COMMANDS.0).contains(&command) && length <= COMMANDS.1,
            _ => false,
        },
        Some(_) => false,
    }
}
