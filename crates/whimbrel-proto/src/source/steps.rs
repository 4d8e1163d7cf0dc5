//! The steps of a plan, one function each: what to ask for, and when the step is done.

use std::time::Duration;

use whimbrel_wire::command::Command;
use whimbrel_wire::qemu_texts;
use whimbrel_wire::return_path::SHUT_OK;

use super::info::Part;
use super::plan::Step;
use super::{Asked, CommitState, FENCE, Source};
use crate::action::{Action, Channel, NEVER, Sink};
use crate::capabilities::Capability;
use crate::outcome::Outcome;
use crate::status::MigrationStatus;
use crate::switchover::least_rest;

/// The PING right after OPEN_RETURN_PATH.
const FIRST_PING: u32 = 1;

/// What a step wants.
pub(super) enum Go {
    /// The engine's turn.
    Do(Action),
    /// The step is done.
    Next,
    /// Look again: something else is to be done first.
    Again,
}

impl Source {
    /// Runs steps until one asks for something.
    pub(super) fn advance(&mut self, now: Duration) -> Action {
        loop {
            let Some(&step) = self.plan.get(self.at) else {
                self.ending = Some(Outcome::Completed);
                return self.end(now);
            };
            let go = self.step(now, step);
            if self.ending.is_some() {
                return self.end(now);
            }
            match go {
                Go::Do(action) => return action,
                Go::Next => {
                    self.at = self.at.saturating_add(1);
                    self.within = 0;
                }
                Go::Again => {}
            }
        }
    }

    fn step(&mut self, now: Duration, step: Step) -> Go {
        match step {
            Step::Status(status) => self.show(now, status),
            Step::Connect => self.once(Asked::Connect, Action::Connect(Channel::Main)),
            Step::Announce => self.once(Asked::Write, Action::Announce),
            Step::OpenReturnPath => self.open_return_path(),
            Step::EarlyDevices if !self.config.has_early_devices => Go::Next,
            Step::EarlyDevices => {
                self.once(Asked::SaveDevices, Action::SaveDevices { early: true, into: Sink::Stream })
            }
            Step::Setup => self.set_up(),
            Step::FirstSync => self.first_sync(now),
            Step::Measure => self.once(Asked::Measure, Action::Measure),
            Step::Iterate => self.iterate(now),
            Step::Predict => self.publish_prediction(now),
            Step::Stop => self.stop(now),
            Step::PauseBeforeSwitchover => self.pause_before_switchover(now),
            Step::LastSync => self.last_sync(now),
            Step::SwitchoverStart => self.switchover_start(),
            Step::Drain => self.drain(now),
            Step::Complete => self.complete(now),
            Step::Device => self.device(now),
            Step::SaveDevices => {
                self.once(Asked::SaveDevices, Action::SaveDevices { early: false, into: Sink::Stream })
            }
            Step::Fence => self.fence(now),
            Step::Commit => self.commit(now),
            Step::AwaitShut => self.await_shut(now),
        }
    }

    /// A step of one action.
    fn once(&mut self, asked: Asked, action: Action) -> Go {
        if self.count() > 0 {
            return Go::Next;
        }
        self.asked = asked;
        Go::Do(action)
    }

    /// How often the step was entered before.
    fn count(&mut self) -> usize {
        let before = self.within;
        self.within = before.saturating_add(1);
        before
    }

    fn show(&mut self, now: Duration, status: MigrationStatus) -> Go {
        if self.count() > 0 {
            return Go::Next;
        }
        if status == MigrationStatus::Active {
            self.accounts.setup_time = now;
        }
        Go::Do(self.publish(status))
    }

    fn open_return_path(&mut self) -> Go {
        let command = match self.count() {
            _ if !self.return_path() => return Go::Next,
            0 => Command::OpenReturnPath,
            1 => Command::Ping(FIRST_PING),
            _ => return Go::Next,
        };
        self.asked = Asked::Write;
        Go::Do(Action::Command(command))
    }

    fn set_up(&mut self) -> Go {
        let turn = self.count();
        let Some(&handler) = self.config.handlers.get(turn) else { return Go::Next };
        self.asked = Asked::Write;
        Go::Do(Action::Setup(handler))
    }

    fn first_sync(&mut self, now: Duration) -> Go {
        if self.count() > 0 {
            self.accounts.begin_rate_period(now);
            return Go::Next;
        }
        self.newly = 0;
        self.asked = Asked::Pending { sync: true };
        Go::Do(Action::SyncDirty { last: false })
    }

    fn publish_prediction(&mut self, now: Duration) -> Go {
        if self.count() > 0 || !self.guest.is_live() {
            return Go::Next;
        }
        let predicted = self.predicted(now);
        self.accounts.predicted = Some(predicted);
        Go::Do(Action::Predict(predicted))
    }

    fn stop(&mut self, now: Duration) -> Go {
        if self.count() > 0 {
            return Go::Next;
        }
        self.accounts.stop_asked = Some(now);
        self.asked = Asked::Stop;
        Go::Do(Action::StopVm)
    }

    fn pause_before_switchover(&mut self, now: Duration) -> Go {
        if !self.pauses_for_user() {
            return Go::Next;
        }
        if self.count() == 0 {
            self.accounts.part(now, Some(Part::User));
            return Go::Do(self.publish(MigrationStatus::PreSwitchover));
        }
        if !self.continued {
            return Go::Do(Action::Await { until: None });
        }
        if self.accounts.status == MigrationStatus::PreSwitchover {
            self.accounts.part(now, Some(Part::Ram));
            return Go::Do(self.publish(MigrationStatus::Device));
        }
        Go::Next
    }

    fn pauses_for_user(&self) -> bool {
        self.config.capabilities.has(Capability::PauseBeforeSwitchover)
    }

    /// `migrate-continue` would be taken.
    pub(super) fn waits_for_user(&self) -> bool {
        self.accounts.status == MigrationStatus::PreSwitchover && !self.continued
    }

    fn last_sync(&mut self, now: Duration) -> Go {
        if self.count() > 0 {
            self.ram_until = self.rest_until(now);
            return Go::Next;
        }
        self.newly = 0;
        self.asked = Asked::Pending { sync: true };
        Go::Do(Action::SyncDirty { last: true })
    }

    fn switchover_start(&mut self) -> Go {
        if !self.config.send_switchover_start || self.switchover_start_sent {
            return Go::Next;
        }
        self.switchover_start_sent = true;
        self.asked = Asked::Write;
        Go::Do(Action::Command(Command::SwitchoverStart))
    }

    /// Several handlers: what is left of each goes as SECTION_PART first, so that no SECTION_END is written before all
    /// of them are empty.
    fn drain(&mut self, now: Duration) -> Go {
        let left = self.config.handlers.iter().zip(&self.pending).find(|(_, bytes)| **bytes > 0);
        let Some(handler) = left.map(|(&handler, _)| handler).filter(|_| self.config.handlers.len() > 1)
        else {
            return Go::Next;
        };
        if self.count() > 0 && now >= self.ram_until {
            return self.overrun(now);
        }
        self.asked = Asked::Progress(handler);
        Go::Do(Action::Iterate { handler, at_most: u64::MAX, until: self.ram_until })
    }

    fn complete(&mut self, now: Duration) -> Go {
        let mut turn = self.count();
        if let Some(before) = turn.checked_sub(1)
            && self.pending.get(before).is_some_and(|&left| left > 0)
        {
            if now >= self.ram_until {
                return self.overrun(now);
            }
            turn = before;
            self.within = turn.saturating_add(1);
        }
        let Some(&handler) = self.config.handlers.get(turn) else { return Go::Next };
        self.asked = Asked::Progress(handler);
        Go::Do(Action::Complete { handler, at_most: u64::MAX, until: self.ram_until })
    }

    /// The pause took too long: the guest goes on, and so do the rounds.
    fn overrun(&mut self, now: Duration) -> Go {
        let since = self.stopped_at;
        self.overrun_bandwidth = Some((self.paused_bandwidth(now, since), now));
        self.extra.start_over();
        self.accounts.overruns = self.accounts.overruns.saturating_add(1);
        self.accounts.part(now, None);
        self.accounts.stop_asked = None;
        self.at = self.plan.iter().position(|&step| step == Step::Iterate).unwrap_or(0);
        self.within = 0;
        self.asked = Asked::Resume;
        Go::Do(Action::ResumeVm)
    }

    /// When the rest of RAM must have left. The stop is one of the fixed costs, so the budget begins at its end, less
    /// what it took beyond all of them. A guest that stood still before, and one that waited for the user, has no limit.
    fn rest_until(&self, now: Duration) -> Duration {
        if !self.guest.is_live() || self.pauses_for_user() {
            return NEVER;
        }
        let budget = self.ram_budget().saturating_sub(self.stop_took.saturating_sub(self.fixed));
        let least = least_rest(self.config.parameters.downtime_limit());
        self.stopped_at.saturating_add(budget).max(now.saturating_add(least))
    }

    fn device(&mut self, now: Duration) -> Go {
        if self.count() > 0 || self.accounts.status == MigrationStatus::Device {
            self.accounts.part(now, Some(Part::Devices));
            return Go::Next;
        }
        Go::Do(self.publish(MigrationStatus::Device))
    }

    fn fence(&mut self, now: Duration) -> Go {
        if !self.return_path() {
            return Go::Next;
        }
        match self.count() {
            0 => {
                self.accounts.part(now, Some(Part::Confirm));
                self.fence_sent = true;
                self.asked = Asked::Write;
                Go::Do(Action::Command(Command::Ping(FENCE)))
            }
            1 => {
                let wait =
                    self.config.deadlines.pong.max(self.config.parameters.downtime_limit().saturating_mul(2));
                self.deadline = now.saturating_add(wait);
                self.asked = Asked::Barrier;
                Go::Do(Action::Barrier)
            }
            _ if self.fence_answered => Go::Next,
            _ if now >= self.deadline => {
                self.fail(
                    format!("{} did not confirm in time that it has applied everything", self.config.peer)
                        .into(),
                );
                Go::Again
            }
            _ => Go::Do(Action::Await { until: Some(self.deadline) }),
        }
    }

    fn commit(&mut self, now: Duration) -> Go {
        if self.count() > 0 {
            return Go::Next;
        }
        self.accounts.part(now, Some(Part::Commit));
        self.commit = CommitState::Asked;
        self.asked = Asked::Commit;
        Go::Do(Action::Commit)
    }

    fn await_shut(&mut self, now: Duration) -> Go {
        // Without a return path the commit is the end, unless the engine has told of trouble with it.
        let told = self.shut == Some(SHUT_OK) || (!self.return_path() && self.trouble.is_none());
        if told {
            return Go::Next;
        }
        let trouble = match (self.shut, &self.trouble) {
            (Some(value), _) => qemu_texts::sibling_indicated_error(value).into(),
            (None, Some(reason)) => reason.clone(),
            (None, None) if now >= self.deadline => "it did not say in time whether it runs".into(),
            (None, None) => return Go::Do(Action::Await { until: Some(self.deadline) }),
        };
        self.ending = Some(self.unknown(&trouble));
        Go::Again
    }
}
