//! The rules of a running relay: which place is where, once it is known.

use std::sync::Mutex;

use super::shared::lock;
use crate::rule::{Act, Place, Target};
use crate::scan::Mark;
use crate::{Direction, Rule};

/// What a rule did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fired {
    /// The rule's place.
    pub place: Place,
    /// What was done.
    pub act: Act,
    /// On which connection.
    pub connection: u16,
    /// Behind so many bytes of that direction.
    pub at: u64,
}

#[derive(Debug, Default)]
pub(super) struct Rules {
    all: Mutex<Vec<Armed>>,
}

#[derive(Debug)]
struct Armed {
    rule: Rule,
    /// Pieces that matched so far, by connection: what it counts differs from one to the next.
    matched: Vec<(u16, u32)>,
    /// Connection and offset, once they are known.
    found: Option<(u16, u64)>,
    fired: Option<Fired>,
}

/// What is to be done next on a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Next {
    index: usize,
    pub(super) act: Act,
    /// Behind so many bytes.
    pub(super) at: u64,
}

impl Rules {
    pub(super) fn new(rules: &[Rule]) -> Self {
        let all = Self::default();
        rules.iter().cloned().for_each(|rule| all.add(rule));
        all
    }

    pub(super) fn add(&self, rule: Rule) {
        lock(&self.all).push(Armed { rule, matched: Vec::new(), found: None, fired: None });
    }

    /// A boundary was found.
    pub(super) fn mark(&self, connection: u16, direction: Direction, mark: &Mark) {
        for armed in lock(&self.all).iter_mut() {
            let Target::Piece { nth, .. } = armed.rule.place.target else { continue };
            if armed.found.is_none()
                && armed.concerns(connection, direction)
                && armed.rule.place.target.meets(mark)
            {
                let seen = match armed.matched.iter_mut().find(|(number, _)| *number == connection) {
                    Some((_, seen)) => seen,
                    None => &mut armed.matched.push_mut((connection, 0)).1,
                };
                *seen = seen.saturating_add(1);
                if *seen == nth {
                    armed.found = Some((connection, mark.at.saturating_add(armed.rule.place.plus)));
                }
            }
        }
    }

    /// What comes next on a flow, as far as it is known; and whether something may come that is not known yet.
    pub(super) fn next(&self, connection: u16, direction: Direction) -> (Option<Next>, bool) {
        let mut next: Option<Next> = None;
        let mut unknown = false;
        for (index, armed) in lock(&self.all).iter().enumerate() {
            if armed.fired.is_some() || !armed.concerns(connection, direction) {
                continue;
            }
            let at = match (armed.found, &armed.rule.place.target) {
                (Some((found, at)), _) if found == connection => at,
                (Some(_), _) => continue,
                (None, Target::Byte(at)) => at.saturating_add(armed.rule.place.plus),
                (None, Target::Piece { .. }) => {
                    unknown = true;
                    continue;
                }
            };
            if next.is_none_or(|next| at < next.at) {
                next = Some(Next { index, act: armed.rule.act, at });
            }
        }
        (next, unknown)
    }

    /// Takes the rule for done; `None` if another flow was first.
    pub(super) fn fire(&self, next: Next, connection: u16, at: u64) -> Option<Fired> {
        let mut all = lock(&self.all);
        let armed = all.get_mut(next.index).filter(|armed| armed.fired.is_none())?;
        let Rule { act, place, .. } = &armed.rule;
        let fired = Fired { place: place.clone(), act: *act, connection, at };
        armed.fired = Some(fired.clone());
        Some(fired)
    }

    pub(super) fn fired(&self) -> Vec<Fired> {
        lock(&self.all).iter().filter_map(|armed| armed.fired.clone()).collect()
    }

    pub(super) fn unfired(&self) -> Vec<Rule> {
        let all = lock(&self.all);
        all.iter().filter(|armed| armed.fired.is_none()).map(|armed| armed.rule.clone()).collect()
    }
}

impl Armed {
    fn concerns(&self, connection: u16, direction: Direction) -> bool {
        self.rule.place.direction == direction && self.rule.connection.is_none_or(|only| only == connection)
    }
}
