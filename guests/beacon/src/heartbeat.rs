//! The heartbeat: one byte a beat, its sequence number modulo 256, timestamped by whoever reads the port's output.
//!
//! A guest that moves beats on one machine, then on the next: [`summarise`] takes the streams in that order and says
//! whether the sequence went on without a beat lost, repeated or out of order, whether two machines ever beat at once,
//! and how long the longest silence was. It reads no clock.

use std::time::Duration;

/// One beat.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Beat {
    /// When it was read, on any clock common to all streams.
    pub at: Duration,
    /// The byte.
    pub sequence: u8,
}

/// The beats of one machine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stream {
    beats: Vec<Beat>,
}

impl Stream {
    /// Adds bytes read at `at`.
    pub fn push(&mut self, at: Duration, bytes: &[u8]) {
        self.beats.extend(bytes.iter().map(|&sequence| Beat { at, sequence }));
    }

    /// All beats so far.
    pub fn beats(&self) -> &[Beat] {
        &self.beats
    }
}

/// A break of the sequence. `beat` counts from 0 through all streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Break {
    /// `missing` beats before `beat` were not seen (modulo 256).
    Lost {
        /// The beat that came.
        beat: u64,
        /// How many are missing.
        missing: u8,
    },
    /// `beat` has the number of the one before.
    Duplicated {
        /// The beat that came.
        beat: u64,
    },
    /// `beat` goes back by `by`.
    Reordered {
        /// The beat that came.
        beat: u64,
        /// How far back.
        by: u8,
    },
    /// A stream's first beat came before the last one of the stream before it: two machines ran at once.
    Overlap {
        /// The first beat of the later stream.
        beat: u64,
    },
}

/// A silence between two beats.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Gap {
    /// The beat that ended it, counted from 0 through all streams.
    pub beat: u64,
    /// How long it was.
    pub length: Duration,
}

/// What a sequence of streams amounts to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Beats in all.
    pub beats: u64,
    /// Every break of the sequence.
    pub breaks: Vec<Break>,
    /// The longest silence.
    pub largest_gap: Gap,
    /// The silence from each stream's last beat to the next one's first.
    pub hand_overs: Vec<Gap>,
}

impl Summary {
    /// Whether every beat came, once and in order.
    pub fn is_whole(&self) -> bool {
        self.breaks.is_empty()
    }
}

/// Follows the beats through the machines in the order the guest was on them. The first may be of any number.
pub fn summarise<'a>(streams: impl IntoIterator<Item = &'a Stream>) -> Summary {
    let mut summary = Summary::default();
    let mut last: Option<Beat> = None;
    for stream in streams {
        for (position, &beat) in stream.beats.iter().enumerate() {
            if let Some(last) = last {
                summary.follow(last, beat, position == 0);
            }
            last = Some(beat);
            summary.beats += 1;
        }
    }
    summary
}

impl Summary {
    /// One beat after another; `handed_over` if it came from another machine.
    fn follow(&mut self, last: Beat, beat: Beat, handed_over: bool) {
        let number = self.beats;
        match beat.sequence.wrapping_sub(last.sequence) {
            1 => {}
            0 => self.breaks.push(Break::Duplicated { beat: number }),
            ahead @ 2..=127 => self.breaks.push(Break::Lost { beat: number, missing: ahead - 1 }),
            behind => self.breaks.push(Break::Reordered { beat: number, by: behind.wrapping_neg() }),
        }
        let gap = Gap { beat: number, length: beat.at.saturating_sub(last.at) };
        if gap.length > self.largest_gap.length {
            self.largest_gap = gap;
        }
        if handed_over {
            self.hand_overs.push(gap);
            if beat.at < last.at {
                self.breaks.push(Break::Overlap { beat: number });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Beats at the given milliseconds.
    fn stream(beats: &[(u64, u8)]) -> Stream {
        let mut stream = Stream::default();
        for &(milliseconds, sequence) in beats {
            stream.push(Duration::from_millis(milliseconds), &[sequence]);
        }
        stream
    }

    #[test]
    fn a_sequence_that_goes_on_across_a_move_is_whole() {
        let summary = summarise([&stream(&[(0, 254), (1, 255)]), &stream(&[(41, 0), (42, 1)])]);
        assert!(summary.is_whole(), "{summary:?}");
        assert_eq!(summary.beats, 4);
        assert_eq!(summary.largest_gap, Gap { beat: 2, length: Duration::from_millis(40) });
        assert_eq!(summary.hand_overs, [summary.largest_gap]);
    }

    #[test]
    fn lost_duplicated_and_reordered_beats_are_told_apart() {
        let breaks = |beats: &[(u64, u8)]| summarise([&stream(beats)]).breaks;
        assert_eq!(breaks(&[(0, 9), (1, 12)]), [Break::Lost { beat: 1, missing: 2 }]);
        assert_eq!(breaks(&[(0, 9), (1, 9)]), [Break::Duplicated { beat: 1 }]);
        assert_eq!(breaks(&[(0, 9), (1, 6)]), [Break::Reordered { beat: 1, by: 3 }]);
    }

    #[test]
    fn two_machines_beating_at_once_is_an_overlap() {
        let summary = summarise([&stream(&[(0, 0), (5, 1)]), &stream(&[(4, 2)])]);
        assert_eq!(summary.breaks, [Break::Overlap { beat: 2 }]);
    }

    #[test]
    fn an_empty_stream_between_two_changes_nothing() {
        let summary = summarise([&stream(&[(0, 0)]), &Stream::default(), &stream(&[(7, 1)])]);
        assert!(summary.is_whole());
        assert_eq!(summary.hand_overs.len(), 1);
    }
}
