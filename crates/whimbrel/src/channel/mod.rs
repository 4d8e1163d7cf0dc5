//! Channels: where a migration's bytes go to and come from. Addresses, connecting and listening that can be cancelled,
//! and links that a stuck peer cannot hold.
//!
//! | address | link | answers come back | commit |
//! |---|---|---|---|
//! | `tcp:`, `unix:`, `vsock:`, `fd:` of a socket | socket | yes | EOF |
//! | `exec:`, `fd:` of a pipe | pipe | no | EOF: a live guest may stand behind it |
//! | `file:`, `fd:` of a regular file | file | no | fsync of the finished file |

mod address;
mod connect;
mod delivery;
mod exec;
mod gather;
mod inet;
mod link;
mod sockets;
mod vsock;

pub use crate::cancel::Cancel;
pub use address::Address;
pub(crate) use connect::{Listener, Target, connect, plain};
pub(crate) use delivery::Delivery;
pub(crate) use gather::Gather;
pub use inet::Inet;
pub use link::LinkReader;
pub(crate) use link::{Link, Patience};
pub use sockets::{SocketListener, connect as connect_socket};
