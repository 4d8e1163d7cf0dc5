//! What waits to be written to a client that may not read.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::json::to_line;

/// How long a client may take over one message. One that takes a byte now and then reads no more than one that takes none.
pub(crate) const WRITE_TIMEOUT: Duration = Duration::from_secs(5);
/// With so many bytes unwritten nothing more is asked for. What is under way may still be added: an answer, and the events
/// that came before it.
const ROOM: usize = 64 << 10;

/// Messages on their way out, in order.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    messages: VecDeque<Vec<u8>>,
    /// Bytes of all of them.
    bytes: usize,
    /// Bytes of the first that the kernel has taken.
    written: usize,
    /// When the first is to be gone.
    deadline: Option<Instant>,
}

impl Outbox {
    pub(crate) fn put(&mut self, message: &Value) {
        let line = to_line(message);
        self.bytes += line.len();
        self.messages.push_back(line);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    pub(crate) fn has_room(&self) -> bool {
        self.bytes < ROOM
    }

    /// When [`write`](Outbox::write) fails if nothing more can be written until then; `None` if nothing waits.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// Writes what can be written now, to something that does not wait.
    ///
    /// # Errors
    /// The client is gone, or took too long over a message.
    pub(crate) fn write(&mut self, mut to: impl Write) -> io::Result<()> {
        while let Some(first) = self.messages.front() {
            let deadline = *self.deadline.get_or_insert_with(|| Instant::now() + WRITE_TIMEOUT);
            match to.write(first.get(self.written..).unwrap_or_default()) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(taken) => self.written += taken,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() != io::ErrorKind::WouldBlock => return Err(error),
                Err(_) if Instant::now() >= deadline => return Err(io::ErrorKind::TimedOut.into()),
                Err(_) => return Ok(()),
            }
            if self.written >= first.len() {
                self.bytes -= first.len();
                self.messages.pop_front();
                self.written = 0;
                self.deadline = None;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// Takes so many bytes, and no more.
    struct Narrow(Vec<u8>, usize);

    impl Write for &mut Narrow {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let taken = bytes.len().min(self.1 - self.0.len()).min(3);
            match taken {
                0 => Err(io::ErrorKind::WouldBlock.into()),
                taken => {
                    self.0.extend_from_slice(&bytes[..taken]);
                    Ok(taken)
                }
            }
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn messages_go_whole_and_in_order_however_little_is_taken_at_a_time() {
        let (mut outbox, mut narrow) = (Outbox::default(), Narrow(Vec::new(), 0));
        let mut expected = Vec::new();
        for message in [json!({"return": {}}), json!([1, 2, 3]), json!("é")] {
            expected.extend(to_line(&message));
            outbox.put(&message);
        }
        for room in 0..=expected.len() {
            narrow.1 = room;
            outbox.write(&mut narrow).unwrap();
            assert_eq!(narrow.0, expected[..room]);
            assert_eq!(outbox.bytes == 0, room == expected.len() && outbox.is_empty());
        }
        assert!(outbox.deadline().is_none() && outbox.is_empty());
    }

    #[test]
    fn each_message_has_its_time_and_one_that_is_late_ends_it() {
        let (mut outbox, mut narrow) = (Outbox::default(), Narrow(Vec::new(), 4));
        outbox.put(&json!(1));
        outbox.put(&json!(2));
        outbox.write(&mut narrow).unwrap();
        let first = outbox.deadline().unwrap();
        narrow.1 += 1;
        outbox.write(&mut narrow).unwrap();
        assert!(outbox.deadline().unwrap() >= first, "1, CR, LF; 2, CR");
        outbox.deadline = Some(Instant::now());
        assert_eq!(outbox.write(&mut narrow).unwrap_err().kind(), io::ErrorKind::TimedOut);
    }

    #[test]
    fn one_that_is_full_asks_for_no_more_and_takes_what_is_under_way() {
        let mut outbox = Outbox::default();
        assert!(outbox.has_room());
        outbox.put(&json!("x".repeat(ROOM)));
        assert!(!outbox.has_room());
        outbox.put(&json!({}));
        assert_eq!(outbox.messages.len(), 2);
    }
}
