//! JSON as QEMU's monitor speaks it: read incrementally within fixed bounds, with its texts for what is wrong; written
//! with its spacing.
//!
//! ```text
//! bytes ─▶ lexer ─▶ tokens ─▶ framing (brackets closed?) ─▶ parser ─▶ Value
//! ```
//!
//! Two liberties over plain JSON are QEMU's: strings may stand in single quotes, and any white space (or none) separates
//! objects.

mod framing;
mod lexer;
mod output;
mod parser;

pub(crate) use framing::{Bounds, Framer};
pub(crate) use output::to_line;
