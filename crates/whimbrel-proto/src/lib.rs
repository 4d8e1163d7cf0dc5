//! The decisions of live migration, without any I/O: what to do next, given what has happened and the time.
//!
//! [`source::Source`] and [`destination::Destination`] take events and give actions. They own no thread, socket, file
//! or clock, so that every order of events, every loss and every crash can be made to happen in a test.
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

pub mod action;
pub mod event;
pub mod outcome;
pub mod parameters;
pub mod run_state;
pub mod status;
