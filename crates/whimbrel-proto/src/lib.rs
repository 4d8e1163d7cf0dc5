//! The decisions of live migration, without any I/O: what to do next, given what has happened and the time.
//!
//! [`source::Source`] and [`destination::Destination`] take events and give actions. They own no thread, socket, file
//! or clock, so that every order of events, every loss and every crash can be made to happen in a test.
//!
//! | module | decides or holds |
//! |---|---|
//! | [`source`] | when to connect, iterate, stop the guest, commit, give up |
//! | [`destination`] | when to load, apply, answer, start |
//! | [`action`], [`event`], [`outcome`] | the words both speak with the engine |
//! | [`bandwidth`], [`switchover`] | the window, the rate limit; the threshold, the prediction, extra rounds |
//! | [`capabilities`], [`parameters`] | what the user may set |
//! | [`status`], [`run_state`] | QEMU's states and every transition between them |
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
pub mod bandwidth;
pub mod capabilities;
pub mod destination;
pub mod event;
pub mod outcome;
pub mod parameters;
pub mod run_state;
pub mod source;
pub mod status;
pub mod switchover;
mod violation;

pub use violation::Violation;
