//! Passing over a section whose layout isn't known, up to its footer.

use whimbrel_wire::footer::{self, BodyEnd};
use whimbrel_wire::{Input, SectionHeader, WireError};

use super::Live;
use crate::report::name;
use crate::{Fault, Stream};

/// Bytes searched at a time.
const WINDOW: usize = 1 << 16;

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
    let is_live = |id| live.iter().any(|live| live.header.section_id == id);
    let mut kept = Vec::new();
    loop {
        let window = input.reading("a section's state").peek(WINDOW)?;
        let is_last = window.len() < WINDOW;
        let end = footer::find(window, header.section_id, is_last, is_live);
        let (BodyEnd::At(length) | BodyEnd::Beyond(length)) = end;
        match keep {
            Keep::Nothing => {}
            Keep::UpTo(limit) if (kept.len() as u64).saturating_add(length as u64) > limit => {
                let (what, length) = ("a device's state", limit.saturating_add(1));
                return Err(WireError::TooLong { offset: begins, what, length, limit }.into());
            }
            Keep::UpTo(_) => kept.extend_from_slice(window.get(..length).unwrap_or_default()),
        }
        input.skip(length as u64)?;
        match end {
            BodyEnd::At(_) => return Ok(kept),
            // What is not certain begins within a window and is shorter than one: it can't take more than one to tell.
            BodyEnd::Beyond(_) if is_last || length == 0 => {
                let section = name(&header.idstr, header.instance_id);
                return Err(Fault::NoFooter { offset: begins, section, end: input.offset() });
            }
            BodyEnd::Beyond(_) => {}
        }
    }
}
