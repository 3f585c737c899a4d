//! Envelopes for groups that this member does not know yet: a peer may have applied the metadata a moment earlier.

use std::collections::BTreeMap;

use holdfast_journal::GroupKey;
use holdfast_queue::ids::{GroupId, MemberId};
use holdfast_queue::time::{Duration, Instant};

use crate::envelope::Envelope;

/// Waiting envelopes, bounded by number and time; what has no room is dropped, since Raft sends again.
pub(crate) struct Parking {
    groups: BTreeMap<GroupId, Vec<(Instant, MemberId, Envelope)>>,
    max_messages: usize,
    max_groups: usize,
    keep: Duration,
}

impl Parking {
    pub fn new(max_messages: usize, max_groups: usize, keep: Duration) -> Self {
        Self { groups: BTreeMap::new(), max_messages, max_groups, keep }
    }

    pub fn park(&mut self, from: MemberId, envelope: Envelope, now: Instant) {
        let group = envelope.group();
        if !self.groups.contains_key(&group) && self.groups.len() >= self.max_groups {
            return;
        }
        let waiting = self.groups.entry(group).or_default();
        if waiting.len() < self.max_messages {
            waiting.push((now, from, envelope));
        }
    }

    /// What waits for this life of the group, in order of arrival. What waits for another one goes.
    pub fn take(&mut self, key: GroupKey) -> Vec<(MemberId, Envelope)> {
        let waiting = self.groups.remove(&GroupId(key.group)).unwrap_or_default();
        waiting
            .into_iter()
            .filter(|(_, _, envelope)| envelope.key == key)
            .map(|(_, from, envelope)| (from, envelope))
            .collect()
    }

    /// Drops what waited too long.
    pub fn expire(&mut self, now: Instant) {
        self.groups.retain(|_, waiting| {
            waiting.retain(|(since, _, _)| now.since(*since) < self.keep);
            !waiting.is_empty()
        });
    }

    pub fn is_empty(&self) -> bool {
        self.groups.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::envelope::{Body, Generations};

    fn envelope(group: u64, counter: u32) -> Envelope {
        let mut key = GroupKey { group, ..GroupKey::default() };
        key.incarnation.counter = counter;
        let (sent_at, echo) = (Instant(0), Instant(0));
        let generations = Generations::default();
        Envelope { cluster: 0, key, generations, term: 1, sent_at, echo, floor: 0, body: Body::Wake }
    }

    #[test]
    fn parked_envelopes_are_bounded_and_run_out() {
        let mut parking = Parking::new(2, 1, Duration::from_micros(10));
        for _ in 0..3 {
            parking.park(MemberId(1), envelope(7, 0), Instant(0));
        }
        parking.park(MemberId(1), envelope(8, 0), Instant(0));
        assert!(parking.take(envelope(8, 0).key).is_empty());
        assert_eq!(parking.take(envelope(7, 0).key).len(), 2);
        parking.park(MemberId(1), envelope(7, 0), Instant(0));
        parking.expire(Instant(10));
        assert!(parking.is_empty());
    }

    #[test]
    fn envelopes_for_another_life_of_the_group_are_dropped() {
        let mut parking = Parking::new(2, 1, Duration::from_secs(1));
        parking.park(MemberId(1), envelope(7, 1), Instant(0));
        assert!(parking.take(envelope(7, 2).key).is_empty());
    }
}
