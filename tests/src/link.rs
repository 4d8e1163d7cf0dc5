//! A link between two machines that a test holds in its hand: the relay, on loopback, with the panics of a test.

use std::time::Duration;

use whimbrel_relay::relay::{Observer, Seen};
use whimbrel_relay::rule::Act;
use whimbrel_relay::{Config, Direction, Relay, Rule};

use crate::wait_for;

/// A relay towards one listening machine.
#[derive(Debug)]
pub struct Link {
    relay: Relay,
}

impl Link {
    /// A link to `uri`.
    ///
    /// # Panics
    /// If it cannot listen.
    pub fn to(uri: &str) -> Self {
        Self::with(uri, Vec::new(), |_| ())
    }

    /// A link with rules, and somebody who is told what happens.
    ///
    /// # Panics
    /// If it cannot listen.
    pub fn with(uri: &str, rules: Vec<Rule>, observer: impl Fn(&Seen) + Send + Sync + 'static) -> Self {
        let address = |uri| whimbrel_relay::address(uri).unwrap_or_else(|error| panic!("{uri}: {error}"));
        let mut config = Config::new(address("tcp:127.0.0.1:0"), address(uri));
        config.rules = rules;
        let observer: Observer = Box::new(observer);
        config.observer = Some(observer);
        Self { relay: Relay::start(config).unwrap_or_else(|error| panic!("a relay to {uri}: {error}")) }
    }

    /// The address to give to the source.
    pub fn uri(&self) -> String {
        self.relay.address().to_string()
    }

    /// Bytes that went from the source to the destination.
    pub fn carried(&self) -> u64 {
        self.relay.carried(Direction::Forward)
    }

    /// Cuts it now: both ends see their connection closed.
    pub fn cut(&self) {
        self.relay.cut();
    }

    /// Cuts it right after that byte of the source's stream.
    pub fn cut_after(&self, bytes: u64) {
        self.relay.add(Rule::after_bytes(Act::Cut, bytes));
    }

    /// Carries nothing more, without closing: a stuck network.
    pub fn hold(&self) {
        self.relay.hold();
    }

    /// Carries on.
    pub fn release(&self) {
        self.relay.release();
    }

    /// The relay, for all that it can do beyond.
    pub fn relay(&self) -> &Relay {
        &self.relay
    }

    /// Waits until so many bytes went from the source to the destination.
    #[track_caller]
    pub fn wait_carried(&self, bytes: u64, limit: Duration) {
        wait_for(&format!("{bytes} bytes on the link"), limit, || (self.carried() >= bytes).then_some(()));
    }
}
