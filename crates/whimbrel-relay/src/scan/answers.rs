//! The messages of a return path.

use whimbrel::wire::return_path::ReturnPathMessage;
use whimbrel::wire::{Input, WireError};

use super::{Edge, Kind, LONGEST_HEADER, Mark, Piece};

/// Finds them, in whatever chunks they come.
#[derive(Debug, Default)]
pub struct Answers {
    /// Received, not yet a whole message.
    carry: Vec<u8>,
    /// The offset of its first byte.
    at: u64,
    lost: Option<String>,
}

impl Answers {
    /// Takes the next bytes, and tells `mark` each boundary in them.
    pub fn push(&mut self, bytes: &[u8], mark: &mut dyn FnMut(Mark)) {
        if self.lost.is_some() {
            return;
        }
        self.carry.extend_from_slice(bytes);
        let mut input = Input::with_capacity(&self.carry[..], 0).starting_at(self.at);
        let mut whole = self.at;
        loop {
            match ReturnPathMessage::decode(&mut input, LONGEST_HEADER as u64) {
                Ok(message) => {
                    let piece = piece(&message);
                    mark(Mark { edge: Edge::Begin, piece: piece.clone(), at: whole });
                    whole = input.offset();
                    mark(Mark { edge: Edge::End, piece, at: whole });
                }
                Err(WireError::Truncated { .. }) if self.carry.len() <= LONGEST_HEADER => break,
                Err(error) => {
                    self.lost = Some(error.to_string());
                    break;
                }
            }
        }
        let done = usize::try_from(whole.saturating_sub(self.at)).unwrap_or(usize::MAX);
        self.carry.drain(..done.min(self.carry.len()));
        self.at = whole;
    }

    /// How many bytes may pass on before it is known what comes behind them.
    pub fn settled(&self) -> u64 {
        if self.lost.is_some() { u64::MAX } else { self.at }
    }

    /// Why it follows the return path no more.
    pub fn lost(&self) -> Option<&str> {
        self.lost.as_deref()
    }
}

fn piece(message: &ReturnPathMessage) -> Piece {
    let value = match message {
        ReturnPathMessage::Shut(value)
        | ReturnPathMessage::Pong(value)
        | ReturnPathMessage::ResumeAck(value) => *value,
        _ => 0,
    };
    Piece::named(Kind::Message, message.name(), value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_found_however_they_are_cut() {
        let bytes = [0, 7, 0, 0, 0, 2, 0, 4, 0, 0, 0, 9, 0, 1, 0, 4, 0, 0, 0, 0];
        for step in 1..=bytes.len() {
            let (mut answers, mut found) = (Answers::default(), Vec::new());
            for chunk in bytes.chunks(step) {
                answers.push(chunk, &mut |mark| found.push((mark.edge, mark.piece.to_string(), mark.at)));
            }
            assert_eq!(
                found,
                [
                    (Edge::Begin, "message=SWITCHOVER_ACK:0".into(), 0),
                    (Edge::End, "message=SWITCHOVER_ACK:0".into(), 4),
                    (Edge::Begin, "message=PONG:9".into(), 4),
                    (Edge::End, "message=PONG:9".into(), 12),
                    (Edge::Begin, "message=SHUT:0".into(), 12),
                    (Edge::End, "message=SHUT:0".into(), 20),
                ]
            );
            assert_eq!((answers.settled(), answers.lost()), (20, None));
        }
    }

    #[test]
    fn what_is_no_message_is_carried_unread() {
        let mut answers = Answers::default();
        answers.push(&[0x16, 3, 1, 2, 0, 1], &mut |mark| panic!("{mark:?}"));
        assert!(answers.lost().is_some_and(|why| why.contains("invalid message")), "{:?}", answers.lost());
        assert_eq!(answers.settled(), u64::MAX);
    }
}
