//! Channels: where a migration's bytes go to and come from. Addresses, connecting and listening that can be cancelled,
//! and links that a stuck peer cannot hold.

mod address;
mod connect;
mod gather;
mod link;

pub use address::Address;
pub(crate) use connect::{Listener, connect};
pub(crate) use gather::Gather;
pub(crate) use link::{Link, LinkReader, Patience};
