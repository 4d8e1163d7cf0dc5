//! The threads that drive `whimbrel_proto`'s machines: [`outgoing`] the source's, [`incoming`] the destination's.
//!
//! A driver asks its machine for an action, does it, reports the answer, and before each of these takes in what came from
//! outside (its mailbox). It decides nothing.

pub(crate) mod incoming;
mod live_destinations;
mod live_sources;
pub(crate) mod outgoing;

use std::sync::Arc;

use whimbrel_proto::capabilities::{Capabilities, Capability};
use whimbrel_vmstate::Level;
use whimbrel_wire::Configuration;
use whimbrel_wire::configuration::VALIDATED_CAPABILITIES;

use crate::events::Events;
use crate::faults::Faults;
use crate::handlers::Registry;
use crate::machine::Machine;
use crate::run_state::Arbiter;

/// What the engine lends to a migration, out or in.
pub(crate) struct Context {
    pub(crate) machine: Arc<dyn Machine>,
    pub(crate) registry: Arc<Registry>,
    pub(crate) arbiter: Arc<Arbiter>,
    pub(crate) events: Arc<Events>,
    pub(crate) faults: Faults,
    pub(crate) identity: Identity,
    pub(crate) capabilities: Capabilities,
}

/// What a machine is, as far as its stream says so.
#[derive(Debug, Clone)]
pub(crate) struct Identity {
    /// Machine type: `microvm`.
    pub(crate) machine: String,
    pub(crate) target_page_bits: Option<u32>,
    pub(crate) uuid: Option<[u8; 16]>,
    /// The peer's compatibility level.
    pub(crate) level: Level,
}

impl Identity {
    /// The configuration section with these capabilities on; the uuid is in it with validate-uuid.
    fn configuration(&self, capabilities: Capabilities) -> Configuration {
        let named = capabilities.iter().map(Capability::name);
        Configuration {
            machine: self.machine.clone(),
            target_page_bits: self.target_page_bits,
            capabilities: named
                .filter(|name| VALIDATED_CAPABILITIES.contains(name))
                .map(str::to_owned)
                .collect(),
            uuid: self.uuid.filter(|_| capabilities.has(Capability::ValidateUuid)),
        }
    }
}
