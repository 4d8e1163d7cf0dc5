//! The walk over a return path: the messages by which a destination answered its source.

use whimbrel_wire::{Input, ReturnPathMessage};

use crate::report::{Entry, MAX_ENTRIES, Report, What};
use crate::{Fault, Stream};

/// Most bytes of received bitmaps that are kept of one return path.
const MAX_BITMAPS: u64 = 1 << 30;

/// Walks the messages of `stream`, which is what a destination sent, from its first byte to its last. Whatever is wrong
/// stands in the report.
pub fn return_path<S: Stream>(stream: S) -> Report {
    let mut input = Input::new(stream);
    let mut report = Report::default();
    report.stopped = messages(&mut input, &mut report.entries).err();
    report.end = input.offset();
    report
}

fn messages<S: Stream>(input: &mut Input<S>, entries: &mut Vec<Entry>) -> Result<(), Fault> {
    let mut room = MAX_BITMAPS;
    while !input.at_end()? {
        let offset = input.offset();
        if entries.len() >= MAX_ENTRIES {
            return Err(Fault::TooMany { offset, what: "messages", limit: MAX_ENTRIES as u64 });
        }
        let message = ReturnPathMessage::decode(input, room)?;
        if let ReturnPathMessage::RecvBitmap { bitmap, .. } = &message {
            room = room.saturating_sub(bitmap.len() as u64);
        }
        let arrived = input.get_mut().arrived(offset);
        let size = input.offset().saturating_sub(offset);
        entries.push(Entry { offset, size, arrived, what: What::Message(message) });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_message_is_listed_and_what_is_none_ends_the_walk_where_it_stands() {
        let bytes = [0, 7, 0, 0, 0, 2, 0, 4, 0, 0, 0, 9, 0, 1, 0, 4, 0, 0, 0, 0, 0x55, 0x55, 0, 0];
        let report = return_path(&bytes[..20]);
        assert!(report.is_clean(), "{:?}", report.stopped);
        let found: Vec<_> = report.entries.iter().map(|entry| (entry.offset, entry.size)).collect();
        assert_eq!((found, report.end), (vec![(0, 4), (4, 8), (12, 8)], 20));
        assert!(matches!(report.entries[1].what, What::Message(ReturnPathMessage::Pong(9))));
        for (length, offset) in [(24, 20), (18, 18)] {
            let stopped = return_path(&bytes[..length]).stopped.unwrap();
            assert_eq!(stopped.offset(), Some(offset), "{stopped}");
        }
    }
}
