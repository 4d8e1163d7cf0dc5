//! What each event means: answers are matched with what was asked, everything else is taken as it comes.

use std::time::Duration;

use whimbrel_wire::qemu_texts;
use whimbrel_wire::return_path::{ReturnPathMessage, SHUT_OK};

use super::info::{Part, Pause};
use super::{Asked, CommitState, FENCE, Source};
use crate::Violation;
use crate::action::{Channel, HandlerId};
use crate::bandwidth::per_second;
use crate::event::{Event, Pages};
use crate::outcome::{Outcome, Reason};

impl Source {
    pub(super) fn take(&mut self, now: Duration, event: Event) -> Result<(), Violation> {
        match event {
            Event::Tick => Ok(()),
            Event::Guest(state) => {
                self.guest = state;
                Ok(())
            }
            Event::Parameters(parameters) => {
                self.config.parameters = *parameters;
                Ok(())
            }
            Event::Cancel => self.cancel(),
            Event::Continue => self.go_on(),
            Event::Peer(message) => {
                self.hear(message);
                Ok(())
            }
            Event::ChannelLost(channel, reason) => {
                self.lose(channel, reason);
                Ok(())
            }
            Event::Broken(reason) => {
                self.break_off(reason);
                Ok(())
            }
            Event::SaveFailed(reason) => {
                if self.asked == Asked::SaveDevices {
                    self.asked = Asked::Nothing;
                }
                self.fail(reason);
                Ok(())
            }
            answer => self.answer(now, answer),
        }
    }

    fn cancel(&mut self) -> Result<(), Violation> {
        match self.commit {
            CommitState::Open => {
                self.ending.get_or_insert(Outcome::Cancelled);
                Ok(())
            }
            // Refused; but should the commit be taken back, the wish is granted.
            CommitState::Asked | CommitState::Done => {
                self.cancel_refused = true;
                Err(Violation::Committed)
            }
        }
    }

    fn go_on(&mut self) -> Result<(), Violation> {
        if self.waits_for_user() && self.ending.is_none() {
            self.continued = true;
            Ok(())
        } else {
            Err(Violation::NotWaiting)
        }
    }

    fn hear(&mut self, message: ReturnPathMessage) {
        match message {
            ReturnPathMessage::Pong(FENCE) if self.fence_sent => self.fence_answered = true,
            // QEMU ignores PONGs that it has no use for, and so does this side.
            ReturnPathMessage::Pong(_) => {}
            ReturnPathMessage::SwitchoverAck => self.acked = true,
            ReturnPathMessage::Shut(value) => self.hear_shut(value),
            other => self.fail(format!("unexpected message on the return path: {other:?}").into()),
        }
    }

    fn hear_shut(&mut self, value: u32) {
        match (self.commit, value) {
            (CommitState::Open, SHUT_OK) => self.fail("the destination finished before the commit".into()),
            (CommitState::Open, value) => self.fail(qemu_texts::sibling_indicated_error(value).into()),
            // It may come before the engine has told that the commit left. The first SHUT is the last message.
            (_, value) => {
                self.shut.get_or_insert(value);
            }
        }
    }

    fn lose(&mut self, channel: Channel, reason: Reason) {
        if channel == Channel::Main {
            match self.asked {
                Asked::Commit => return self.take_commit_back(reason),
                Asked::Connect | Asked::Write | Asked::Progress(_) | Asked::SaveDevices | Asked::Barrier => {
                    self.asked = Asked::Nothing;
                }
                // Not about the stream: their answer still comes.
                Asked::Nothing | Asked::Pending { .. } | Asked::Measure | Asked::Stop | Asked::Resume => {}
            }
        }
        self.fail(reason);
    }

    /// Not one byte of the commit left, so the guest is ours again. Unless the peer claims that it runs already, which
    /// it could not know: then nobody runs.
    fn take_commit_back(&mut self, reason: Reason) {
        self.asked = Asked::Nothing;
        if self.shut == Some(SHUT_OK) {
            self.commit = CommitState::Done;
            self.ending = Some(self.unknown(&"the destination finished before the commit".into()));
            return;
        }
        self.commit = CommitState::Open;
        if self.cancel_refused {
            self.ending = Some(Outcome::Cancelled);
            return;
        }
        let first =
            self.shut.map(|value| qemu_texts::sibling_indicated_error(value).into()).or(self.trouble.take());
        self.fail(first.unwrap_or(reason));
    }

    fn break_off(&mut self, reason: Reason) {
        match self.asked {
            // Stopped or StopFailed still comes, and with it whether the guest has to be resumed.
            Asked::Stop => {}
            // Whether the commit left is not known: as if it had.
            Asked::Commit => {
                self.asked = Asked::Nothing;
                self.commit = CommitState::Done;
                self.ending = Some(self.unknown(&reason));
                return;
            }
            Asked::Resume => {
                self.asked = Asked::Nothing;
                self.stopped = false;
            }
            _ => self.asked = Asked::Nothing,
        }
        self.fail(reason);
    }

    fn answer(&mut self, now: Duration, event: Event) -> Result<(), Violation> {
        let asked = std::mem::replace(&mut self.asked, Asked::Nothing);
        match (asked, event) {
            (Asked::Connect, Event::Connected { channel: Channel::Main, bidirectional }) => {
                self.bidirectional = bidirectional;
            }
            (Asked::Write, Event::Done) => {}
            (Asked::Pending { .. }, Event::Pending { handler, must, may_postcopy, newly, .. })
                if self.config.handlers.contains(&handler) =>
            {
                self.asked = asked;
                self.newly = self.newly.saturating_add(newly);
                self.set_pending(handler, must.saturating_add(may_postcopy));
            }
            (Asked::Pending { sync }, Event::Done) => {
                if sync {
                    let dirty = self.pending_total();
                    self.accounts.synced(now, dirty, self.newly, self.config.page_size);
                }
            }
            (Asked::Progress(of), Event::Progress { handler, bytes, pages, left }) if of == handler => {
                self.count_progress(handler, bytes, pages, left);
            }
            (Asked::Measure, Event::Measured { fixed, .. }) => self.fixed = fixed,
            (Asked::SaveDevices, Event::DevicesSaved { bytes }) => {
                self.accounts.transferred = self.accounts.transferred.saturating_add(bytes);
            }
            (Asked::Barrier, Event::Flushed { total }) => {
                self.accounts.transferred = self.accounts.transferred.max(total);
            }
            (Asked::Stop, Event::Stopped { took }) => {
                self.stopped = true;
                self.stopped_at = now;
                self.stop_took = took;
                self.paused_bytes = 0;
                self.accounts.pause = Some(Pause { stop: took, ..Pause::default() });
                self.accounts.part(now, Some(Part::Ram));
            }
            (Asked::Stop, Event::StopFailed(reason)) => self.fail(reason),
            (Asked::Resume, Event::Resumed) => self.stopped = false,
            (Asked::Resume, Event::ResumeFailed(reason)) => {
                self.stopped = false;
                self.resume_failed(reason);
            }
            (Asked::Commit, Event::Committed) => {
                self.commit = CommitState::Done;
                self.deadline = now.saturating_add(self.config.deadlines.shut);
                self.accounts.part(now, Some(Part::Shut));
            }
            (asked, event) => {
                self.asked = asked;
                // A late answer to an action that a lost channel has ended.
                if self.ending.is_none() {
                    return Err(Violation::Unexpected { event: name(&event), asked: asked.name() });
                }
            }
        }
        Ok(())
    }

    fn count_progress(&mut self, handler: HandlerId, bytes: u64, pages: Pages, left: u64) {
        self.set_pending(handler, left);
        let sent = pages.normal.saturating_add(pages.zero);
        if self.stopped {
            self.window.sent_urgent(bytes, sent);
            self.paused_bytes = self.paused_bytes.saturating_add(bytes);
        } else {
            self.window.sent(bytes, sent);
        }
        let runs = !self.stopped && self.guest.is_live();
        self.accounts.progress(bytes, pages, runs);
    }

    fn set_pending(&mut self, handler: HandlerId, bytes: u64) {
        let index = self.config.handlers.iter().position(|&known| known == handler);
        if let Some(pending) = index.and_then(|index| self.pending.get_mut(index)) {
            *pending = bytes;
        }
    }

    /// What the stream really carried a second in this pause.
    pub(super) fn paused_bandwidth(&self, now: Duration, since: Duration) -> u64 {
        per_second(self.paused_bytes, now.saturating_sub(since))
    }
}

impl Asked {
    fn name(self) -> &'static str {
        match self {
            Self::Nothing => "nothing",
            Self::Connect => "Connect",
            Self::Write => "a write",
            Self::Pending { sync: true } => "SyncDirty",
            Self::Pending { sync: false } => "Estimate",
            Self::Progress(_) => "Iterate or Complete",
            Self::Measure => "Measure",
            Self::SaveDevices => "SaveDevices",
            Self::Barrier => "Barrier",
            Self::Stop => "StopVm",
            Self::Resume => "ResumeVm",
            Self::Commit => "Commit",
        }
    }
}

/// The event's name, for a [`Violation`].
fn name(event: &Event) -> &'static str {
    match event {
        Event::Done => "Done",
        Event::Connected { .. } => "Connected",
        Event::Pending { .. } => "Pending",
        Event::Progress { .. } => "Progress",
        Event::Measured { .. } => "Measured",
        Event::DevicesSaved { .. } => "DevicesSaved",
        Event::SaveFailed(_) => "SaveFailed",
        Event::Flushed { .. } => "Flushed",
        Event::Stopped { .. } => "Stopped",
        Event::StopFailed(_) => "StopFailed",
        Event::Resumed => "Resumed",
        Event::ResumeFailed(_) => "ResumeFailed",
        Event::Committed => "Committed",
        Event::Guest(_) => "Guest",
        Event::Peer(_) => "Peer",
        Event::ChannelLost(..) => "ChannelLost",
        Event::Broken(_) => "Broken",
        Event::Cancel => "Cancel",
        Event::Continue => "Continue",
        Event::Parameters(_) => "Parameters",
        Event::Tick => "Tick",
    }
}
