//! The engine from end to end, without KVM: the example's machine moves between engines of this process, between processes, and
//! to scripted peers that are stuck, lost, killed or hostile. Guests write to their memory all the while, and what arrives is
//! recomputed page by page.

mod cancel;
mod child;
mod commands;
mod disk;
mod failures;
mod guest;
mod hostile;
mod live;
mod losses;
mod moves;
mod network;
mod order;
mod peer;
mod stops;
mod tables;
mod teeth;
mod transports;
mod unfenced;

#[path = "../../examples/minimal.rs"]
#[expect(unreachable_pub, reason = "the example is a program of its own")]
#[allow(dead_code, reason = "its demo is not run here")]
mod minimal;
