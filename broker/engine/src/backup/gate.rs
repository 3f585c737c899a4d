//! A member's part in a barrier: the gate behind which its groups wait, and what it says of them.

use std::collections::{BTreeMap, VecDeque};

use holdfast_journal::EntryReader;
use holdfast_queue::ids::{GroupId, Incarnation, MemberId};
use holdfast_queue::queue::QueueEffect;
use holdfast_queue::time::{Duration, Instant};

use super::message::{BarrierMessage, Led, Place};
use crate::member::Member;
use crate::peer_message::PeerMessage;

/// The gate opens by itself after this, whatever becomes of the coordinator: a little more than that waits for answers.
const GATE_FOR: Duration = Duration::from_secs(4);
/// Another barrier is refused until a coordinator has been silent for so long.
const ENGAGED_FOR: Duration = Duration::from_secs(10);
/// What groups went through stays on disk until the barrier's files are held, and for so long at most.
const HISTORY_FOR: Duration = Duration::from_secs(30);
/// Attempts that are remembered as over: a late question about one is not answered.
const OVER: usize = 16;

/// A gate that was closed for a barrier.
struct Closed {
    until: Instant,
    /// Where each group stood when it was first proven behind the gate.
    places: BTreeMap<GroupId, Place>,
    /// What the metadata showed at their place.
    groups: Vec<GroupId>,
}

/// What a member does for barriers that any member coordinates.
#[derive(Default)]
pub(crate) struct Gate {
    /// The attempt that this member takes part in, whose it is, and until when it counts.
    engaged: Option<(MemberId, u64, Instant)>,
    closed: Option<Closed>,
    over: VecDeque<u64>,
    /// Effects of groups led here that wait behind the gate, with the index of their entries, in order.
    held: BTreeMap<GroupId, VecDeque<(u64, QueueEffect)>>,
}

impl Gate {
    /// True while nothing may leave the groups.
    pub fn is_closed(&self, now: Instant) -> bool {
        self.closed.as_ref().is_some_and(|closed| now < closed.until)
    }

    /// Whether an effect of this group has to wait: for the gate, or behind what waits already.
    pub fn holds_back(&self, group: GroupId, now: Instant) -> bool {
        self.is_closed(now) || (!self.held.is_empty() && self.held.contains_key(&group))
    }

    pub fn hold_back(&mut self, group: GroupId, index: u64, effect: QueueEffect) {
        self.held.entry(group).or_default().push_back((index, effect));
    }

    /// The group's leader is another, or this one anew: what is owed is derived from state.
    pub fn forget(&mut self, group: GroupId) {
        self.held.remove(&group);
    }

    /// Takes part in the attempt, if it is not over and nobody else's is under way. A coordinator has one at a time.
    fn engage(&mut self, from: MemberId, barrier: u64, now: Instant) -> Engagement {
        if self.over.contains(&barrier) {
            return Engagement::Over;
        }
        if self.engaged.is_some_and(|(other, _, until)| other != from && now < until) {
            return Engagement::Busy;
        }
        if self.engaged.is_none_or(|(_, other, _)| other != barrier) {
            self.closed = None;
        }
        self.engaged = Some((from, barrier, now + ENGAGED_FOR));
        Engagement::Taken
    }

    /// Closes it for an attempt, once: false when its time has run out.
    fn close(&mut self, now: Instant) -> bool {
        let closed = self.closed.get_or_insert_with(|| Closed {
            until: now + GATE_FOR,
            places: BTreeMap::new(),
            groups: Vec::new(),
        });
        now < closed.until
    }

    /// The attempt is over, and this member has taken part in it.
    pub fn end(&mut self, barrier: u64) -> bool {
        if !self.over.contains(&barrier) {
            self.over.push_back(barrier);
            if self.over.len() > OVER {
                self.over.pop_front();
            }
        }
        let engaged = self.engaged.is_some_and(|(_, engaged, _)| engaged == barrier);
        if engaged {
            (self.engaged, self.closed) = (None, None);
        }
        engaged
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Engagement {
    Taken,
    /// Another barrier is under way.
    Busy,
    Over,
}

impl<R: EntryReader> Member<R> {
    /// True while a barrier keeps effects of groups that are led here from leaving.
    pub(crate) fn gate_is_closed(&self) -> bool {
        self.backup.gate.is_closed(self.now)
    }

    /// A coordinator asks where the groups stand that are led here.
    pub(super) fn barrier_asked(&mut self, from: MemberId, barrier: u64, round: u32, gate: bool) {
        let now = self.now;
        let answer = match self.backup.gate.engage(from, barrier, now) {
            Engagement::Over => return,
            Engagement::Busy => {
                BarrierMessage::Answer { barrier, round, busy: true, led: Vec::new(), groups: Vec::new() }
            }
            Engagement::Taken => {
                if let Some(host) = self.host.as_mut() {
                    host.keep_history(now + HISTORY_FOR, now);
                }
                if gate && !self.backup.gate.close(now) {
                    return self.barrier_ended(barrier);
                }
                let (led, groups) = if gate { self.places_behind_gate() } else { (self.places_now(), Vec::new()) };
                BarrierMessage::Answer { barrier, round, busy: false, led, groups }
            }
        };
        self.send_or_take(from, PeerMessage::Barrier(answer));
    }

    /// Where each group that is led here stands now.
    fn places_now(&self) -> Vec<Led> {
        let Some(host) = self.host.as_ref() else { return Vec::new() };
        let led = self.leaderships.led.iter().filter_map(|(group, leading)| {
            let key = host.key(*group)?;
            let (counter, nonce) = (key.incarnation.counter, key.incarnation.nonce);
            let incarnation = Incarnation { counter, nonce };
            let place = Place { group: *group, incarnation, term: leading.term, index: host.commit(*group) };
            // A member that did not lead the metadata up to its commit index could not list their groups.
            let is_whole = *group != GroupId::META || host.applied(*group) == place.index;
            Some(Led { place, proven: is_whole && host.may_emit(*group, self.now) })
        });
        led.collect()
    }

    /// The same behind the gate, where a group that was proven once in a term keeps its place.
    fn places_behind_gate(&mut self) -> (Vec<Led>, Vec<GroupId>) {
        let mut led = self.places_now();
        let shown: Vec<GroupId> = match self.metadata() {
            Some(meta) => meta.groups().map(|(group, _)| group).filter(|group| *group != GroupId::META).collect(),
            None => Vec::new(),
        };
        let Some(closed) = self.backup.gate.closed.as_mut() else { return (led, Vec::new()) };
        for one in &mut led {
            let group = one.place.group;
            match closed.places.get(&group) {
                Some(kept) if kept.term == one.place.term && kept.incarnation == one.place.incarnation => {
                    one.place = *kept;
                    // It was whole when it was kept; whether the machine is ahead of it by now does not matter.
                    let host = self.host.as_ref();
                    one.proven = host.is_some_and(|host| host.may_emit(group, self.now));
                }
                _ if one.proven => {
                    closed.places.insert(group, one.place);
                    if group == GroupId::META {
                        closed.groups.clone_from(&shown);
                    }
                }
                _ => {}
            }
        }
        let leads_metadata = led.iter().any(|one| one.place.group == GroupId::META);
        let groups = if leads_metadata { closed.groups.clone() } else { Vec::new() };
        (led, groups)
    }

    /// An attempt is over without a cut: what waited leaves.
    pub(super) fn barrier_ended(&mut self, barrier: u64) {
        if self.backup.gate.end(barrier) {
            self.forget_history();
        }
    }

    /// Checkpoints and compaction go on.
    pub(super) fn forget_history(&mut self) {
        let now = self.now;
        if let Some(host) = self.host.as_mut() {
            host.keep_history(now, now);
        }
    }

    /// Lets out what waited behind the gate, once it is open and as far as the leadership is proven; true if there was any.
    pub(crate) fn release_held_back(&mut self) -> bool {
        if self.backup.gate.held.is_empty() || self.gate_is_closed() {
            return false;
        }
        let mut any = false;
        for group in self.backup.gate.held.keys().copied().collect::<Vec<_>>() {
            if !self.leaderships.led.contains_key(&group) {
                self.backup.gate.forget(group);
                continue;
            }
            if !self.host.as_ref().is_some_and(|host| host.may_emit(group, self.now)) {
                continue;
            }
            for (index, effect) in self.backup.gate.held.remove(&group).unwrap_or_default() {
                self.route_effect(group, index, effect);
                any = true;
            }
        }
        any
    }
}
