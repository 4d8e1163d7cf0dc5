//! Where the pieces of a stream begin and end, found while the stream passes, in whatever chunks it comes.
//!
//! | what | how its end is found |
//! |---|---|
//! | header, commands, RAM, EOF, vmdesc, the return path's messages | they tell their lengths |
//! | a device's section | nothing tells its length before the vmdesc, which comes last: its end is the first footer (`7e` and the section's id) that is followed by something valid |
//! | multifd, preempt, TLS, a recovery's connection | not looked into: [`Scanner::lost`] says so |
//!
//! What "something valid" is, [`whimbrel::wire::footer`] tells. The state of a device that happens to hold such bytes would be
//! cut in two. Nothing but reports and rules depends on it: what is carried is carried all the same. An EOF byte with no
//! vmdesc behind it is believed after a while: [`Scanner::idle`].
//!
//! It is a decoder over bytes that are given to it, with no I/O and no clock. Whatever comes, it does not panic, and keeps
//! no more than a header's length of it.

mod answers;
mod piece;
mod stream;

pub use answers::Answers;
pub use piece::{Edge, Kind, Mark, Piece};
pub use stream::Scanner;

/// Longest piece of header that is kept until it is whole. RAM's block list, the longest, has at most 1024 entries of
/// 272 bytes.
const LONGEST_HEADER: usize = 512 << 10;
