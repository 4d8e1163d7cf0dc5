//! The pieces that a stream and its return path consist of, as a person names them.

use std::fmt;

/// What a piece is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Kind {
    /// Magic, version and configuration.
    Header,
    /// First body of a live section.
    Start,
    /// Further body of a live section.
    Part,
    /// Last body of a live section.
    End,
    /// A device's section.
    Full,
    /// A command.
    Command,
    /// The byte that ends the stream.
    Eof,
    /// The description of the devices behind it.
    Vmdesc,
    /// A message of the return path.
    Message,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::Header,
        Self::Start,
        Self::Part,
        Self::End,
        Self::Full,
        Self::Command,
        Self::Eof,
        Self::Vmdesc,
        Self::Message,
    ];

    /// As rules and reports spell it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Header => "header",
            Self::Start => "start",
            Self::Part => "part",
            Self::End => "end",
            Self::Full => "full",
            Self::Command => "command",
            Self::Eof => "eof",
            Self::Vmdesc => "vmdesc",
            Self::Message => "message",
        }
    }

    /// It is a body of a section.
    pub fn is_section(self) -> bool {
        matches!(self, Self::Start | Self::Part | Self::End | Self::Full)
    }

    /// Pieces of the kind have names of their own.
    pub fn is_named(self) -> bool {
        self.is_section() || matches!(self, Self::Command | Self::Message)
    }
}

/// One piece.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Piece {
    /// What it is.
    pub kind: Kind,
    /// The section's idstr, or the command's or message's name; empty for kinds that have one piece only.
    pub name: String,
    /// A section's instance; the value of a PING, PONG or SHUT; else 0.
    pub instance: u32,
}

impl Piece {
    /// A piece of a kind that has no names.
    pub fn only(kind: Kind) -> Self {
        Self::named(kind, "", 0)
    }

    /// A piece with a name.
    pub fn named(kind: Kind, name: impl Into<String>, instance: u32) -> Self {
        Self { kind, name: name.into(), instance }
    }
}

/// `full=cpu:0`, `command=PING:1`, `eof`: what a rule takes, too.
impl fmt::Display for Piece {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.kind.name())?;
        if self.kind.is_named() {
            write!(f, "={}:{}", self.name, self.instance)?;
        }
        Ok(())
    }
}

/// A side of a piece.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Edge {
    /// Its first byte is the next.
    Begin,
    /// Its last byte was the one before.
    End,
}

/// A boundary in a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mark {
    /// Which side of the piece it is.
    pub edge: Edge,
    /// The piece.
    pub piece: Piece,
    /// How many bytes of the stream come before.
    pub at: u64,
}
