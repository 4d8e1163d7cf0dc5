//! The commands about migrations: starting, steering and ending them, and what is set for them.

use std::sync::Arc;

use whimbrel_proto::capabilities::{Capabilities, Capability, CapabilityContext};
use whimbrel_proto::event::Event;
use whimbrel_proto::outcome::Outcome;
use whimbrel_proto::parameters::{MultifdCompression, ParametersPatch};
use whimbrel_proto::run_state::RunState;
use whimbrel_proto::status::MigrationStatus;
use whimbrel_wire::qemu_texts;

use super::{Config, Control, Engine, Exit};
use crate::channel::{Address, Target};
use crate::descriptors::Access;
use crate::error::CommandError;
use crate::lock;
use crate::migration::{Context, Identity, incoming, outgoing};

/// On the main loop, as every command.
impl Engine {
    /// `migrate`: starts to move the guest to `address`; how it goes is told by [`migration_info`](Engine::migration_info).
    ///
    /// # Errors
    /// QEMU's texts: a migration is under way, the guest is awaited or gone, something blocks.
    pub fn migrate(self: &Arc<Self>, address: Address, resume: bool) -> Result<(), CommandError> {
        let mut control = lock(&self.control);
        if control.outgoing.as_ref().is_some_and(|outgoing| !outgoing.is_over()) {
            return Err(CommandError::generic(qemu_texts::MIGRATION_IN_PROGRESS));
        }
        if resume {
            return Err(CommandError::generic(qemu_texts::NOTHING_TO_RESUME));
        }
        match self.arbiter.state() {
            RunState::Inmigrate => return Err(CommandError::generic(qemu_texts::WAITING_FOR_INCOMING)),
            RunState::Postmigrate => return Err(CommandError::generic(qemu_texts::ALREADY_POSTMIGRATE)),
            _ => {}
        }
        if let Some(blocker) = self.machine.blockers().into_iter().next() {
            return Err(CommandError::generic(blocker));
        }
        let target = Target::resolve(address, &self.descriptors, Access::Write)?;
        let engine = Arc::downgrade(self);
        let done = move || {
            if let Some(engine) = engine.upgrade() {
                engine.post(|engine| engine.serve_guest());
            }
        };
        let started =
            outgoing::Handle::start(self.context(&control), control.parameters.clone(), target, done);
        control.outgoing = Some(
            started.map_err(|error| CommandError::generic(format!("cannot start a migration: {error}")))?,
        );
        Ok(())
    }

    /// `migrate_cancel`: at once, whatever the peer does. Without a migration nothing happens.
    ///
    /// # Errors
    /// After the commit: the guest is the destination's.
    pub fn migrate_cancel(&self) -> Result<(), CommandError> {
        let outgoing = lock(&self.control).outgoing.clone();
        match outgoing {
            Some(outgoing) if !outgoing.is_over() && !outgoing.cancel() => Err(CommandError::generic(
                "The migration is committed: the guest is the destination's and cannot be cancelled back",
            )),
            _ => Ok(()),
        }
    }

    /// `migrate-continue` from the state the caller believes it is in.
    ///
    /// # Errors
    /// QEMU's text if it is in another.
    pub fn migrate_continue(&self, state: MigrationStatus) -> Result<(), CommandError> {
        let outgoing = lock(&self.control).outgoing.clone();
        let now = outgoing.as_ref().map_or(MigrationStatus::None, |outgoing| outgoing.info().status);
        match outgoing {
            Some(outgoing) if now == state && now == MigrationStatus::PreSwitchover => {
                outgoing.tell(Event::Continue);
                Ok(())
            }
            _ => Err(CommandError::generic(qemu_texts::not_in_expected_state(now.name()))),
        }
    }

    /// `migrate-incoming`: listens on `address` for the one guest this machine awaits. If the guest doesn't arrive, the machine
    /// ends, or with `exit_on_error` off stays as it is, for the error to be asked for; it awaits nobody any more.
    ///
    /// # Errors
    /// QEMU's texts: not awaiting, or already; or why it cannot be listened there.
    pub fn migrate_incoming(
        self: &Arc<Self>,
        address: Address,
        exit_on_error: bool,
    ) -> Result<(), CommandError> {
        let mut control = lock(&self.control);
        if self.config.incoming.is_none() {
            return Err(CommandError::generic(qemu_texts::NOT_AN_INCOMING_VM));
        }
        if control.incoming.is_some() {
            return Err(CommandError::generic(qemu_texts::INCOMING_ALREADY_STARTED));
        }
        let engine = Arc::downgrade(self);
        let done = move |outcome: &Outcome| {
            let (Some(engine), Outcome::Failed { phase, reason }) = (engine.upgrade(), outcome) else {
                return;
            };
            if !exit_on_error {
                return;
            }
            let text = format!("{phase}: {reason}");
            engine.post(move |engine| engine.end(Exit::IncomingFailed(text)));
        };
        let target = Target::resolve(address, &self.descriptors, Access::Read)?;
        let started = incoming::Handle::start(self.context(&control), control.autostart, target, done);
        control.incoming = Some(started.map_err(|error| CommandError::generic(error.to_string()))?);
        Ok(())
    }

    /// `migrate-set-capabilities`: all of them or none.
    ///
    /// # Errors
    /// QEMU's texts: a conflict, an unbuilt capability, a migration under way.
    pub fn set_capabilities(&self, changes: &[(Capability, bool)]) -> Result<(), CommandError> {
        let mut control = lock(&self.control);
        let mut new = control.capabilities;
        for (capability, on) in changes {
            new.set(*capability, *on);
        }
        let context = CapabilityContext {
            migrating: control.is_migrating(),
            incoming_started: control.incoming.is_some(),
            tls: !control.parameters.tls_creds.is_empty(),
            compression: control.parameters.multifd_compression != MultifdCompression::None,
            ..CapabilityContext::default()
        };
        Capabilities::check(new, control.capabilities, context).map_err(CommandError::generic)?;
        control.capabilities = new;
        if let Some(incoming) = &control.incoming {
            incoming.capabilities(new);
        }
        Ok(())
    }

    /// `migrate-set-parameters`: all of them or none; a running migration takes them in.
    ///
    /// # Errors
    /// QEMU's texts: out of range.
    pub fn set_parameters(&self, patch: ParametersPatch) -> Result<(), CommandError> {
        let mut control = lock(&self.control);
        control.parameters = control.parameters.apply(patch).map_err(CommandError::generic)?;
        if let Some(outgoing) = &control.outgoing {
            outgoing.tell(Event::Parameters(Box::new(control.parameters.clone())));
        }
        Ok(())
    }

    fn context(&self, control: &Control) -> Context {
        let Config { machine_name, target_page_bits, uuid, level, .. } = &self.config;
        Context {
            machine: self.machine.clone(),
            registry: self.registry.clone(),
            arbiter: self.arbiter.clone(),
            events: self.events.clone(),
            faults: self.config.faults.clone(),
            identity: Identity {
                machine: machine_name.clone(),
                target_page_bits: *target_page_bits,
                uuid: *uuid,
                level: *level,
            },
            capabilities: control.capabilities,
        }
    }
}

impl Control {
    fn is_migrating(&self) -> bool {
        let out = self.outgoing.as_ref().is_some_and(|outgoing| !outgoing.is_over());
        let in_status = self.incoming.as_ref().map(|incoming| incoming.info().status);
        out || matches!(in_status, Some(MigrationStatus::Active))
    }
}
