//! What is to happen at a place of a stream, and how a command line says it.
//!
//! ```text
//! EDGE:WHAT[+BYTES][,direction=back][,connection=N]
//! ```
//!
//! | `EDGE` | the place is |
//! |---|---|
//! | `before`, `at` | right before the piece's first byte |
//! | `after` | right behind its last byte |
//!
//! | `WHAT` | the piece |
//! |---|---|
//! | `byte=N` | the byte with N bytes before it |
//! | `section=NAME[:INSTANCE][#K]` | the K-th (1) body of a section: `cpu:0`, `ram#3` |
//! | `start=…`, `part=…`, `end=…`, `full=…` | the same, but only bodies of that kind |
//! | `command=NAME[:VALUE][#K]` | a command of the stream: `PING`, `SWITCHOVER_START` |
//! | `message=NAME[:VALUE][#K]` | a message of the return path: `SHUT`, `PONG:1` |
//! | `header`, `eof`, `vmdesc` | what there is one of |
//!
//! `+BYTES` moves the place on. Without `connection=`, the first connection where the place is reached counts. A message comes
//! back, all else goes forward, but for bytes, of which `direction=back` says it.

use std::fmt;

use crate::scan::{Edge, Kind, Mark};
use crate::{Direction, RelayError};

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Act {
    /// Close all connections: both ends see it.
    Cut,
    /// From here on take everything that comes, both ways, and pass nothing on.
    Swallow,
    /// From here on take and pass nothing, until released.
    Hold,
    /// Invert the bits of the next byte.
    Corrupt,
}

impl Act {
    /// In a report.
    pub fn past(self) -> &'static str {
        match self {
            Self::Cut => "cut",
            Self::Swallow => "swallowed",
            Self::Hold => "held",
            Self::Corrupt => "corrupted",
        }
    }
}

/// One thing to do at one place, once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// What to do.
    pub act: Act,
    /// Where.
    pub place: Place,
    /// On which connection, in the order they were opened; `None`: wherever it is reached first.
    pub connection: Option<u16>,
}

/// A place in a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Which way.
    pub direction: Direction,
    /// What is there.
    pub target: Target,
    /// Bytes on from there.
    pub plus: u64,
}

/// What is at a place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// So many bytes come before it.
    Byte(u64),
    /// A piece.
    Piece {
        /// Its side.
        edge: Edge,
        /// What it is; empty: any body of a section.
        kind: Option<Kind>,
        /// Its name; empty for kinds that have none.
        name: String,
        /// Instance, or value; `None`: any.
        instance: Option<u32>,
        /// Which of those that match, from 1.
        nth: u32,
    },
}

impl Rule {
    /// Reads a place as the module describes it.
    ///
    /// # Errors
    /// [`RelayError::Rule`] says what is wrong with it.
    pub fn parse(act: Act, text: &str) -> Result<Self, RelayError> {
        parse(act, text).map_err(|why| RelayError::Rule { text: text.to_owned(), why })
    }

    /// Right behind so many bytes of a connection's stream.
    pub fn after_bytes(act: Act, bytes: u64) -> Self {
        let place = Place { direction: Direction::Forward, target: Target::Byte(bytes), plus: 0 };
        Self { act, place, connection: None }
    }

    /// Right behind, or before, the `nth` piece (from 1) of exactly that kind, name and instance.
    pub fn at_piece(act: Act, edge: Edge, piece: &crate::scan::Piece, nth: u32) -> Self {
        let direction = direction_of(Some(piece.kind));
        let instance = piece.kind.is_named().then_some(piece.instance);
        let (kind, name) = (Some(piece.kind), piece.name.clone());
        let target = Target::Piece { edge, kind, name, instance, nth };
        Self { act, place: Place { direction, target, plus: 0 }, connection: None }
    }
}

impl Target {
    /// Whether the boundary is of such a piece, whichever of them.
    pub(crate) fn meets(&self, mark: &Mark) -> bool {
        let Self::Piece { edge, kind, name, instance, .. } = self else { return false };
        let piece = &mark.piece;
        mark.edge == *edge
            && kind.map_or(piece.kind.is_section(), |kind| kind == piece.kind)
            && *name == piece.name
            && instance.is_none_or(|instance| instance == piece.instance)
    }
}

fn direction_of(kind: Option<Kind>) -> Direction {
    if kind == Some(Kind::Message) { Direction::Back } else { Direction::Forward }
}

fn parse(act: Act, text: &str) -> Result<Rule, &'static str> {
    let mut parts = text.split(',');
    let place = parts.next().unwrap_or_default();
    let (edge, what) = place.split_once(':').ok_or("a place is before:…, after:… or at:…")?;
    let edge = match edge {
        "before" | "at" => Edge::Begin,
        "after" => Edge::End,
        _ => return Err("a place is before:…, after:… or at:…"),
    };
    let (what, plus) = match what.rsplit_once('+').map(|(what, plus)| (what, plus.parse())) {
        Some((what, Ok(plus))) => (what, plus),
        _ => (what, 0),
    };
    let (target, mut direction) = target(edge, what)?;
    let mut connection = None;
    for option in parts {
        match option.split_once('=') {
            Some(("direction", "back")) if matches!(target, Target::Byte(_)) => direction = Direction::Back,
            Some(("direction", given)) if given == direction.to_string() => {}
            Some(("direction", _)) => return Err("that does not go this direction (forward, back)"),
            Some(("connection", number)) => {
                connection = Some(number.parse().map_err(|_| "a connection's number is 0 to 65535")?);
            }
            _ => return Err("behind a place may stand direction=back and connection=N"),
        }
    }
    Ok(Rule { act, place: Place { direction, target, plus }, connection })
}

fn target(edge: Edge, what: &str) -> Result<(Target, Direction), &'static str> {
    const UNKNOWN: &str = "what is there is byte=N, section=NAME, start=, part=, end=, full=, command=, message=, header, eof or vmdesc";
    let (kind, name) = what.split_once('=').unwrap_or((what, ""));
    if kind == "byte" {
        let byte: u64 = name.parse().map_err(|_| "a byte's number is decimal")?;
        let before = if edge == Edge::End { byte.saturating_add(1) } else { byte };
        return Ok((Target::Byte(before), Direction::Forward));
    }
    let kind = match Kind::ALL.into_iter().find(|known| known.name() == kind) {
        None if kind != "section" => return Err(UNKNOWN),
        known => known,
    };
    let named = kind.is_none_or(Kind::is_named);
    if named == name.is_empty() {
        return Err(if named { "a name is missing: section=cpu:0, command=PING" } else { UNKNOWN });
    }
    let (name, nth) = match name.split_once('#') {
        Some((name, nth)) => {
            let nth = nth.parse().ok().filter(|nth| *nth > 0).ok_or("#K counts from 1")?;
            (name, nth)
        }
        None => (name, 1),
    };
    // A name may hold colons itself; an instance is a number.
    let (name, instance) = match name.rsplit_once(':').map(|(name, number)| (name, number.parse())) {
        Some((name, Ok(instance))) => (name, Some(instance)),
        _ => (name, None),
    };
    let target = Target::Piece { edge, kind, name: name.to_owned(), instance, nth };
    Ok((target, direction_of(kind)))
}

/// `after:full=cpu:0`, `before:eof`, `at:byte=100,direction=back`.
impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.target {
            Target::Byte(before) => write!(f, "at:byte={before}")?,
            Target::Piece { edge, kind, name, instance, nth } => {
                f.write_str(if *edge == Edge::Begin { "before:" } else { "after:" })?;
                f.write_str(kind.map_or("section", Kind::name))?;
                if !name.is_empty() {
                    write!(f, "={name}")?;
                }
                if let Some(instance) = instance {
                    write!(f, ":{instance}")?;
                }
                if *nth > 1 {
                    write!(f, "#{nth}")?;
                }
            }
        }
        if self.plus > 0 {
            write!(f, "+{}", self.plus)?;
        }
        match (&self.target, self.direction) {
            (Target::Byte(_), Direction::Back) => write!(f, ",direction=back"),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(text: &str) -> String {
        let rule = Rule::parse(Act::Cut, text).unwrap();
        let connection = rule.connection.map_or(String::new(), |number| format!(",connection={number}"));
        format!("{}{connection}", rule.place)
    }

    #[test]
    fn places_read_back_as_they_are_shown() {
        for text in [
            "after:section=cpu:0",
            "before:section=ram#3",
            "after:full=0000:00:1f.3/ich9_smb:2",
            "before:command=PING:1#2",
            "after:message=SHUT",
            "before:eof",
            "after:header",
            "before:section=cpu:0+40",
            "at:byte=1000,connection=2",
            "at:byte=7,direction=back",
        ] {
            assert_eq!(shown(text), text);
        }
        assert_eq!(shown("at:eof"), "before:eof");
        assert_eq!(shown("after:byte=9"), "at:byte=10", "behind a byte is before the next");
        assert_eq!(shown("before:section=0000:00:1f.3/ich9_smb"), "before:section=0000:00:1f.3/ich9_smb");
    }

    #[test]
    fn what_is_no_place_is_refused_with_what_is_one() {
        for (text, why) in [
            ("eof", "before:…"),
            ("within:eof", "before:…"),
            ("before:sektion=cpu", "byte=N"),
            ("before:section", "name is missing"),
            ("before:eof=1", "byte=N"),
            ("at:byte=x", "decimal"),
            ("before:section=ram#0", "from 1"),
            ("before:eof,direction=back", "direction"),
            ("before:message=SHUT,direction=forward", "direction"),
            ("before:eof,connection=x", "0 to 65535"),
            ("before:eof,colour=red", "connection=N"),
        ] {
            let error = Rule::parse(Act::Cut, text).unwrap_err().to_string();
            assert!(error.contains(why) && error.contains(text), "{error}");
        }
    }
}
