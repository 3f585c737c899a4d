//! One attempt at a consistent cut, as its coordinator sees it: pure state, `now` is an argument.
//!
//! Members are asked in rounds. An answer lists the groups that its member leads, where each stands, and for which a
//! majority proved the leadership. Before the gate is closed anywhere, rounds go on until every group has been proven once:
//! a sleeping group wakes, a group without a quorum shows, and nobody has been held up for either. Then the gate closes
//! with the next round, and a place is taken for each group: its leader's commit index.
//!
//! The cut is good once *two* rounds give the same proven places. Whoever answered the second one has let nothing out since
//! it took its places, and was the group's leader, by a majority that answered in its term, after all places had been
//! taken: so nobody else can have let anything out of the group in between either. No clock of another member matters, and
//! no leader that comes later needs to know of the barrier.

use std::collections::{BTreeMap, BTreeSet};

use holdfast_queue::ids::{GroupId, MemberId};
use holdfast_queue::time::{Duration, Instant};

use super::message::{Led, Place};

/// Every group must have shown a proven leader within this time; longer than an election takes.
const PREPARE_WITHIN: Duration = Duration::from_secs(5);
/// Members that answer are waited for this long before the gate closes, although all groups are proven: what they hold is
/// more useful when they were asked to keep their history in time.
const PATIENCE: Duration = Duration::from_millis(300);
/// The places must be taken and confirmed within this time of closing the gate, or the attempt is given up. It is the bound
/// that the design gives to the pause (§3.6, 3 s at 10,000 queues).
const HOLD_WITHIN: Duration = Duration::from_secs(3);
/// Members are asked again this often.
const ASK_EVERY: Duration = Duration::from_millis(100);

/// What the coordinator is to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Nothing, until an answer or more time has come.
    Wait,
    /// Ask all members.
    Ask { round: u32, gate: bool },
    /// The cut: a place for each group, ascending. The gate was closed for so long.
    Cut { places: Vec<Place>, pause: Duration },
    /// It is given up, and may be tried again.
    GiveUp { why: String, groups: Vec<GroupId> },
}

/// What the coordinator knows of the cluster.
pub(crate) struct View<'a> {
    /// Groups that its metadata show, without group 0, and up to which index of group 0 they do.
    pub groups: &'a BTreeSet<GroupId>,
    pub applied: u64,
    /// Members that are not suspected, itself included.
    pub live: &'a BTreeSet<MemberId>,
}

#[derive(Default)]
pub(crate) struct Attempt {
    pub barrier: u64,
    began: Instant,
    asked: Option<Instant>,
    round: u32,
    /// When the gate closed.
    gated: Option<Instant>,
    /// Groups without a leader that is proven: they are left out, since the caller allows it.
    pub missing: BTreeSet<GroupId>,
    allow_partial: bool,
    /// Members that have answered at all.
    answered: BTreeSet<MemberId>,
    /// Before the gate: groups that were proven once.
    seen: BTreeSet<GroupId>,
    /// The best answer for each group in this round.
    led: BTreeMap<GroupId, (MemberId, Led)>,
    /// What the metadata show at the place of group 0.
    listed: Option<BTreeSet<GroupId>>,
    /// All places of an earlier round.
    candidate: Option<BTreeMap<GroupId, (MemberId, Place)>>,
}

impl Attempt {
    pub fn new(barrier: u64, allow_partial: bool, now: Instant) -> Self {
        Self { barrier, allow_partial, began: now, ..Self::default() }
    }

    /// A member's answer to a round.
    pub fn answered(&mut self, from: MemberId, round: u32, led: Vec<Led>, groups: Vec<GroupId>) {
        self.answered.insert(from);
        if round != self.round {
            return;
        }
        for one in led {
            let group = one.place.group;
            if one.proven {
                self.seen.insert(group);
            }
            let worse =
                |(_, before): &(MemberId, Led)| (before.place.term, before.proven) < (one.place.term, one.proven);
            if self.led.get(&group).is_none_or(worse) {
                if group == GroupId::META && self.gated.is_some() && one.proven {
                    self.listed = Some(groups.iter().copied().collect());
                }
                self.led.insert(group, (from, one));
            }
        }
    }

    /// What is to be done now.
    pub fn next(&mut self, now: Instant, view: &View<'_>) -> Step {
        match self.gated {
            None => self.prepare(now, view),
            Some(at) => self.hold(at, now, view),
        }
    }

    fn ask(&mut self, now: Instant) -> Step {
        self.round += 1;
        self.asked = Some(now);
        self.led.clear();
        self.listed = None;
        Step::Ask { round: self.round, gate: self.gated.is_some() }
    }

    fn is_due(&self, now: Instant) -> bool {
        self.asked.is_none_or(|at| now.since(at) >= ASK_EVERY)
    }

    fn prepare(&mut self, now: Instant, view: &View<'_>) -> Step {
        let waited = now.since(self.began);
        let all = std::iter::once(GroupId::META).chain(view.groups.iter().copied());
        let unproven: BTreeSet<GroupId> = all.filter(|group| !self.seen.contains(group)).collect();
        let late = waited >= PREPARE_WITHIN;
        let is_whole = unproven.is_empty() && (waited >= PATIENCE || view.live.is_subset(&self.answered));
        let is_partial = late && self.allow_partial && !unproven.contains(&GroupId::META);
        if is_whole || is_partial {
            self.missing = unproven;
            self.gated = Some(now);
            return self.ask(now);
        }
        if late {
            let why = "no leader of it has a majority that answers".to_owned();
            return Step::GiveUp { why, groups: unproven.into_iter().collect() };
        }
        if self.is_due(now) { self.ask(now) } else { Step::Wait }
    }

    fn hold(&mut self, gated: Instant, now: Instant, view: &View<'_>) -> Step {
        let open = self.without_place(view);
        if open.is_empty() {
            let wanted = self.wanted(view);
            let places: BTreeMap<GroupId, (MemberId, Place)> = wanted
                .into_iter()
                .filter_map(|group| self.led.get(&group).map(|(at, led)| (group, (*at, led.place))))
                .collect();
            if self.candidate.as_ref() == Some(&places) {
                let places = places.into_values().map(|(_, place)| place).collect();
                return Step::Cut { places, pause: now.since(gated) };
            }
            self.candidate = Some(places);
        }
        if now.since(gated) >= HOLD_WITHIN {
            let why = "its leader changed or did not answer within the time that a pause may take".to_owned();
            return Step::GiveUp { why, groups: open.into_iter().collect() };
        }
        if open.is_empty() || self.is_due(now) { self.ask(now) } else { Step::Wait }
    }

    /// The groups that the cut must have: what the metadata show at its own place, apart from those that were left out, and
    /// those that have been deleted since.
    fn wanted(&self, view: &View<'_>) -> BTreeSet<GroupId> {
        let mut wanted = BTreeSet::from([GroupId::META]);
        let meta = self.led.get(&GroupId::META).map(|(_, led)| led.place.index);
        if let (Some(listed), Some(meta)) = (&self.listed, meta) {
            let is_deleted = |group: &GroupId| view.applied >= meta && !view.groups.contains(group);
            let counts = |group: &&GroupId| !self.missing.contains(group) && !is_deleted(group);
            wanted.extend(listed.iter().filter(counts));
        }
        wanted
    }

    fn without_place(&self, view: &View<'_>) -> BTreeSet<GroupId> {
        let has = |group: &GroupId| self.led.get(group).is_some_and(|(_, led)| led.proven);
        self.wanted(view).into_iter().filter(|group| !has(group)).collect()
    }
}

#[cfg(test)]
#[path = "attempt_tests.rs"]
mod tests;
