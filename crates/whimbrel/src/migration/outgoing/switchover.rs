//! The pause, as the source's driver makes it: the guest is stopped, what is left of its RAM and its devices are sent, and the
//! commit hands it over; or it goes on here.
//!
//! ```text
//! stop ─▶ complete ─▶ save_devices ─▶ barrier ─▶ commit
//!   └─────────┴────────────┴────────────┴──────────┴─▶ resume    any failure, until a byte of the commit has left
//! ```
//!
//! In which order, and whether to resume, `whimbrel_proto::source` decides.

use std::time::{Duration, Instant};

use whimbrel_proto::action::{Channel, HandlerId};
use whimbrel_proto::capabilities::Capability;
use whimbrel_proto::event::Event;
use whimbrel_proto::outcome::Reason;
use whimbrel_wire::element::Element;
use whimbrel_wire::{Output, vmdescription};

use super::{Driver, reason};
use crate::error::StreamError;
use crate::faults::Fault;
use crate::global_state::GlobalState;
use crate::machine::MachineError;
use crate::migration::Context;
use crate::outgoing::Outgoing;

/// What is written while the guest is stopped must be taken in so long, or in twice the downtime limit if that is more; then
/// the attempt has failed and the guest goes on. The same as the wait for the destination's PONG.
const STOPPED_PATIENCE: Duration = Duration::from_secs(10);

impl Driver {
    pub(super) fn stop(&mut self) -> Event {
        if self.context.faults.has(Fault::LastSync) {
            // Else there is often nothing to be missed: the guest stops within microseconds of the sync before.
            std::thread::sleep(Duration::from_millis(20));
        }
        match self.context.arbiter.stop_for_switchover() {
            Ok(took) => {
                self.limit_writes();
                Event::Stopped { took }
            }
            Err(error) => Event::StopFailed(Reason(format!("the guest could not be stopped: {error}"))),
        }
    }

    /// The rest of a live state, its SECTION_END included.
    pub(super) fn complete(
        &mut self,
        id: HandlerId,
        at_most: u64,
        until: Duration,
    ) -> Result<Vec<Event>, StreamError> {
        if let Err(error) = self.check_tables() {
            return Ok(vec![Event::Broken(Reason(error.to_string()))]);
        }
        let until = self.shared.start + until;
        let Some(out) = &mut self.out else { return Ok(vec![]) };
        Ok(vec![self.live.complete(id, at_most, until, out)?])
    }

    /// No live state may end before all tables in guest RAM are those of this stop.
    fn check_tables(&self) -> Result<(), MachineError> {
        let checked = self.context.arbiter.check_tables();
        if self.context.faults.has(Fault::NoStampCheck) { Ok(()) } else { checked }
    }

    /// From now on the guest stands still for what is written.
    pub(super) fn limit_writes(&self) {
        let patience = STOPPED_PATIENCE.max(self.downtime_limit * 2);
        if let Some(out) = &self.out {
            out.link().set_write_deadline(Some(Instant::now() + patience));
        }
    }

    pub(super) fn resume(&mut self) -> Event {
        if let Some(out) = &self.out {
            out.link().set_write_deadline(None);
        }
        match self.context.arbiter.resume_from_switchover() {
            Ok(()) => Event::Resumed,
            Err(error) => {
                tracing::error!(%error, "the guest is here, and does not go on");
                Event::ResumeFailed(Reason(format!("the guest, which is here, does not go on: {error}")))
            }
        }
    }

    pub(super) fn save_devices(&mut self, early: bool) -> Result<u64, StreamError> {
        let Some(out) = &mut self.out else { return Ok(0) };
        let Context { registry, faults, arbiter, capabilities, .. } = &self.context;
        let mut bytes = self.saved.save(registry, early, faults, out)?;
        if !early {
            if capabilities.has(Capability::TableDigest) {
                bytes += self.saved.save_digests(registry, out)?;
            }
            bytes += self.saved.save_global_state(GlobalState::new(arbiter.guest_state()), out)?;
        }
        Ok(bytes)
    }

    pub(super) fn barrier(&mut self) -> Result<Vec<Event>, StreamError> {
        self.write(Outgoing::flush)?;
        let total = self.out.as_ref().map_or(0, Outgoing::position);
        if self.source.has_stopped_guest() {
            self.prepare_trailer()?;
        }
        Ok(vec![Event::Flushed { total }])
    }

    /// EOF and vmdesc. Encoded after the barrier, so that it costs no pause where the destination confirms.
    fn prepare_trailer(&mut self) -> Result<(), StreamError> {
        if self.trailer.is_none() {
            let description = self.saved.describe(&self.configuration)?;
            let mut out = Output::new();
            Element::Eof.encode(&mut out)?;
            vmdescription::encode(&mut out, &description)?;
            self.trailer = Some(out.into_vec());
        }
        Ok(())
    }

    /// The commit, as one send of a socket. Nothing before its first byte is one; anything after it may be.
    pub(super) fn commit(&mut self) -> Vec<Event> {
        // Whatever fails here, not a byte of the commit has left.
        let not_left = |reason| vec![Event::ChannelLost(Channel::Main, reason)];
        if let Err(error) = self.write(Outgoing::flush).and_then(|()| self.prepare_trailer()) {
            return not_left(reason(&error));
        }
        let (Some(out), Some(trailer)) = (&mut self.out, &self.trailer) else {
            return not_left("no channel to commit on".into());
        };
        if !self.shared.gate.commit() {
            // The cancel is in the mailbox.
            return not_left("cancelled".into());
        }
        let is_file = out.link().is_file();
        out.bytes(trailer);
        let result = out.flush().and_then(|()| {
            out.link().sync().map_err(|source| StreamError::Link {
                context: format!("writing '{}' to disk", out.link().peer()),
                source,
                sent: true,
            })
        });
        match result {
            Ok(()) => vec![Event::Committed],
            Err(error) if is_file || matches!(error, StreamError::Link { sent: false, .. }) => {
                self.shared.gate.reopen();
                not_left(reason(&error))
            }
            Err(error) => vec![Event::Committed, Event::ChannelLost(Channel::Main, reason(&error))],
        }
    }
}
