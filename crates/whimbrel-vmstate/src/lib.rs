//! Device state described once.
//!
//! A state type lists its fields in [`VmState::fields`]; saving, loading, the description at the end of a stream (vmdesc) and the
//! pretty-printer are four visitors over that one list. The types hold no device: converting to and from one is its owner's business.
#![forbid(unsafe_code)]
#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects,
        clippy::cast_possible_truncation
    )
)]

mod describe;
mod document;
mod error;
mod fields;
mod level;
mod load;
mod opaque;
mod print;
mod save;
mod source;
mod trail;
mod visitor;

pub use describe::describe;
pub use document::description;
pub use error::{Error, Place, Reason, Result};
pub use level::{Level, UnknownLevel};
pub use load::{load, load_body};
pub use opaque::OpaqueState;
pub use print::{print, to_lines};
pub use save::save;
pub use source::Source;
pub use trail::SectionName;
pub use visitor::{Cell, Cells, Chain, ElementFields, Fields, Form, Intent, Present, Visitor, VmState, Vmsd};
