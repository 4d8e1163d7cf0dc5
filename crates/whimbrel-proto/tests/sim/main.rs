//! Both machines over a simulated link with a virtual clock: every loss at every step, every command in every status.
//!
//! | module | promises |
//! |---|---|
//! | `handover` | one runner, whatever is lost or killed, at every step; a failed attempt leaves no trace |
//! | `run_states` | the right side ends in the right run state |
//! | `convergence` | rounds, threshold, rate limit, the downtime limit, extra rounds |
//! | `observer` | what events, statuses and figures show |
//! | `source_rules`, `source_limits`, `destination_rules` | each machine alone: hostile peers, faulty engines, events that cross, exact limits |
//! | `teeth` | the assertions of this simulation fail when a rule is broken |
#![expect(unreachable_pub, reason = "a test binary has no outside; pub is what its modules share")]

mod destination_host;
mod guest;
mod link;
mod source_host;
mod world;

mod convergence;
mod destination_rules;
mod handover;
mod observer;
mod run_states;
mod source_limits;
mod source_rules;
mod teeth;
