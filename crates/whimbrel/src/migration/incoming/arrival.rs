//! The guest takes over here: its devices are restored and their tables compared, the source is answered, the vCPUs start.
//! In which order, and what to say, `whimbrel_proto::destination` decides.

use std::time::{Duration, Instant};

use whimbrel_proto::action::Channel;
use whimbrel_proto::capabilities::Capability;
use whimbrel_proto::event::DestinationEvent;
use whimbrel_proto::outcome::Reason;
use whimbrel_proto::source::FENCE;
use whimbrel_wire::{Output, ReturnPathMessage};

use super::Driver;
use crate::channel::{Delivery, Gather};
use crate::error::StreamError;
use crate::faults::{CrashPoint, Fault};
use crate::machine::MachineError;
use crate::sections;

/// How long the source's host may take to have heard that the guest is here.
const HEAR: Duration = Duration::from_secs(10);

impl Driver<'_> {
    pub(super) fn apply(&mut self) -> DestinationEvent {
        if self.context.faults.once(Fault::ApplyFails) {
            return DestinationEvent::ApplyFailed(
                "a register is refused, as asked for by a fault switch".into(),
            );
        }
        if let Err(why) = sections::tell_absent(&self.context.registry, &self.arrived) {
            return DestinationEvent::ApplyFailed(Reason(why));
        }
        let begin = Instant::now();
        match self.context.machine.apply().and_then(|()| self.check_digests()) {
            Ok(()) => {
                tracing::debug!(took_us = begin.elapsed().as_micros() as u64, "applied");
                DestinationEvent::Applied
            }
            Err(error) => DestinationEvent::ApplyFailed(Reason(error.to_string())),
        }
    }

    /// Whether the tables that the devices have restored themselves from say what the source's did.
    fn check_digests(&self) -> Result<(), MachineError> {
        if !self.has(Capability::TableDigest) || self.context.faults.has(Fault::NoDigestCheck) {
            return Ok(());
        }
        self.context.registry.tables().try_for_each(|tables| tables.compare(self.digests.get(tables.name())))
    }

    pub(super) fn start_guest(&mut self, run: bool) -> DestinationEvent {
        if self.context.faults.once(Fault::StartFails) {
            return DestinationEvent::StartFailed(
                "the vCPUs do not start, as asked for by a fault switch".into(),
            );
        }
        match self.context.arbiter.arrive(self.destination.final_run_state(), run) {
            Ok(()) => {
                self.crash(CrashPoint::AfterStart);
                DestinationEvent::Started
            }
            Err(error) => DestinationEvent::StartFailed(Reason(error.to_string())),
        }
    }

    /// Says what lets the source's guest go for ever; it must have it before the guest starts here.
    pub(super) fn tell(&mut self, message: &ReturnPathMessage) -> DestinationEvent {
        let lost = |why: &str| {
            let text = format!("the source is gone before it could hear that the guest is here: {why}");
            DestinationEvent::ChannelLost(Channel::ReturnPath, Reason(text))
        };
        let Ok(stream) = self.stream() else { return lost("no stream") };
        if stream.link.peer_left() {
            return lost("it has closed the connection");
        }
        if let Some(failed) = self.reply(message) {
            return failed;
        }
        let Ok(stream) = self.stream() else { return lost("no stream") };
        match stream.link.delivered(HEAR) {
            Delivery::Done => DestinationEvent::Heard,
            Delivery::Refused => lost("it has reset the connection"),
            Delivery::Unknown => DestinationEvent::Unheard(Reason(format!(
                "outcome unknown: '{}' may have heard that the guest is here, and may have resumed it; it is stopped here: \
                 `cont` only if it does not run there",
                stream.link.peer()
            ))),
        }
    }

    pub(super) fn reply(&mut self, message: &ReturnPathMessage) -> Option<DestinationEvent> {
        let result = self.stream().and_then(|stream| {
            let mut out = Output::new();
            message.encode(&mut out)?;
            let mut gather = Gather::default();
            gather.bytes(out.as_slice());
            stream.link.send(&gather).map_err(|(sent, source)| StreamError::Link {
                context: format!("answering '{}'", stream.link.peer()),
                source,
                sent: sent > 0,
            })
        });
        if *message == ReturnPathMessage::Pong(FENCE) {
            self.crash(CrashPoint::AfterPong);
        }
        let error = result.err()?;
        Some(DestinationEvent::ChannelLost(Channel::ReturnPath, Reason(error.to_string())))
    }
}
