//! Which segment still holds something that a replay needs.
//!
//! A segment counts the live records in it: log entries above a group's prefix, and live bodies below it. One with none
//! may go, if what its other records say is said again first: a [`Summary`] of each group that has records in it, a
//! tombstone of a destroyed group whose records lie in an older segment. Without the summary a truncation would be
//! forgotten with the segment that made it, and entries that it dropped would come back.

use crate::index_set::IndexSet;
use crate::record::{
    HardStatePayload, Kind, ListedGroup, Mark, Record, Summary, bare_record, corrupt_record, corruption_of, indexes_of,
    indexes_record,
};
use crate::types::{Corruption, GroupKey, HardState, Incarnation};
use std::collections::{BTreeMap, BTreeSet};

/// The key of records that are about the journal itself.
pub(crate) const JOURNAL_KEY: GroupKey =
    GroupKey { group: u64::MAX, incarnation: Incarnation { counter: 0, nonce: 0 } };

/// A removal writes a summary for each group of the segment; this bounds what one batch carries on top.
const MAX_REMOVALS_PER_BATCH: usize = 4;

#[derive(Debug, Default)]
pub(crate) struct Accounting {
    groups: BTreeMap<GroupKey, GroupAccount>,
    /// Destroyed groups of which some record may still be on disk, and the segment that says so.
    tombstones: BTreeMap<GroupKey, u32>,
    segments: BTreeMap<u32, SegmentAccount>,
}

#[derive(Debug, Default)]
struct SegmentAccount {
    live: u64,
    groups: BTreeSet<GroupKey>,
}

#[derive(Debug, Default)]
struct GroupAccount {
    hard_state: Option<HardState>,
    mark: Option<Mark>,
    compacted: u64,
    last: u64,
    log: Placed,
    bodies: Placed,
    /// Bodies that came as such, not as entries that the prefix passed.
    installed: IndexSet,
    corruption: Option<Corruption>,
    /// Nothing in older segments matters to this group.
    summary_in: Option<u32>,
}

/// Live indexes and the segments that hold them.
#[derive(Debug, Default)]
struct Placed {
    live: IndexSet,
    /// From each key on, up to the next one, indexes lie in this segment.
    runs: BTreeMap<u64, u32>,
}

impl Placed {
    fn segment_of(&self, index: u64) -> Option<u32> {
        self.runs.range(..=index).next_back().map(|(_, segment)| *segment)
    }

    fn put(&mut self, index: u64, segment: u32) {
        self.live.insert(index);
        let before = self.segment_of(index);
        if before == Some(segment) {
            return;
        }
        self.runs.insert(index, segment);
        if let Some(before) = before {
            self.runs.entry(index + 1).or_insert(before);
        }
        if index > 0 && self.runs.range(..index).next_back().is_some_and(|(_, left)| *left == segment) {
            self.runs.remove(&index);
        }
    }

    /// Forgets runs that no live index is in.
    fn prune(&mut self) {
        match self.live.iter().next() {
            None => self.runs.clear(),
            Some(first) => {
                let start = self.runs.range(..=first).next_back().map_or(first, |(start, _)| *start);
                self.runs = self.runs.split_off(&start);
            }
        }
    }
}

type SegmentAccounts = BTreeMap<u32, SegmentAccount>;

fn release(segments: &mut SegmentAccounts, segment: Option<u32>) {
    if let Some(account) = segment.and_then(|segment| segments.get_mut(&segment)) {
        account.live -= 1;
    }
}

fn occupy(segments: &mut SegmentAccounts, segment: u32) {
    segments.entry(segment).or_default().live += 1;
}

impl GroupAccount {
    fn truncate(&mut self, from: u64, segments: &mut SegmentAccounts) {
        let dropped = self.log.live.split_off(from);
        for index in dropped.iter() {
            release(segments, self.log.segment_of(index));
        }
        self.log.runs.split_off(&from);
        self.last = from.saturating_sub(1);
    }

    fn entry(&mut self, index: u64, segment: u32, segments: &mut SegmentAccounts) {
        if index > self.compacted {
            self.truncate(index, segments);
            self.log.put(index, segment);
            self.last = index;
            occupy(segments, segment);
        } else if self.bodies.live.contains(index) && !self.installed.contains(index) {
            // The last batch before a restart is replayed twice.
            release(segments, self.bodies.segment_of(index));
            self.bodies.put(index, segment);
            occupy(segments, segment);
        }
    }

    fn body(&mut self, index: u64, segment: u32, segments: &mut SegmentAccounts) {
        if self.bodies.live.contains(index) {
            release(segments, self.bodies.segment_of(index));
        }
        self.bodies.put(index, segment);
        self.installed.insert(index);
        occupy(segments, segment);
    }

    fn compact(&mut self, up_to: u64, live: &IndexSet, segments: &mut SegmentAccounts) {
        self.keep_bodies(live, up_to, segments);
        let above = self.log.live.split_off(up_to.saturating_add(1));
        let below = std::mem::replace(&mut self.log.live, above);
        for index in below.iter() {
            let segment = self.log.segment_of(index);
            match segment {
                Some(segment) if live.contains(index) && !self.bodies.live.contains(index) => {
                    self.bodies.put(index, segment);
                    self.installed.remove(index);
                }
                _ => release(segments, segment),
            }
        }
        self.log.prune();
        self.bodies.prune();
        self.compacted = self.compacted.max(up_to);
        self.last = self.last.max(up_to);
    }

    /// Of the bodies at or below `up_to` only `live` is kept.
    fn keep_bodies(&mut self, live: &IndexSet, up_to: u64, segments: &mut SegmentAccounts) {
        let dead: Vec<u64> = self.bodies.live.difference(live).take_while(|index| *index <= up_to).collect();
        for index in dead {
            self.bodies.live.remove(index);
            release(segments, self.bodies.segment_of(index));
        }
    }

    fn reset(&mut self, index: u64, segments: &mut SegmentAccounts) {
        self.truncate(index.saturating_add(1), segments);
        let mut kept = self.bodies.live.clone();
        for entry in self.log.live.iter() {
            kept.insert(entry);
        }
        self.compact(index, &kept, segments);
        self.compacted = index;
        self.last = index;
        if let Some(corruption) = &mut self.corruption {
            *corruption = Corruption { hard_state: corruption.hard_state, ..Corruption::default() };
        }
        self.corruption.take_if(|corruption| !corruption.hard_state);
    }

    fn release_all(&self, segments: &mut SegmentAccounts) {
        for placed in [&self.log, &self.bodies] {
            for index in placed.live.iter() {
                release(segments, placed.segment_of(index));
            }
        }
    }

    fn summary(&self) -> Summary {
        Summary {
            hard_state: self.hard_state,
            mark: self.mark,
            compacted: self.compacted,
            last: self.last,
            live_bodies: self.bodies.live.clone(),
        }
    }
}

impl Accounting {
    /// Notes a record that lies, or will lie, in `segment`. Records come in the order of the log.
    pub(crate) fn apply(&mut self, record: &Record, segment: u32) {
        if record.key == JOURNAL_KEY {
            return;
        }
        let Self { groups, tombstones, segments } = self;
        segments.entry(segment).or_default().groups.insert(record.key);
        if record.kind == Kind::Destroy {
            if let Some(group) = groups.remove(&record.key) {
                group.release_all(segments);
            }
            tombstones.insert(record.key, segment);
            return;
        }
        let group = groups.entry(record.key).or_default();
        match record.kind {
            Kind::Entry => group.entry(record.index, segment, segments),
            Kind::Body => group.body(record.index, segment, segments),
            Kind::HardState => group.hard_state = HardStatePayload::decode(record).map(|payload| payload.0),
            Kind::Mark => group.mark = Mark::decode(record),
            Kind::Compact => {
                let live = indexes_of(record).unwrap_or_default();
                group.compact(record.index, &live, segments);
            }
            Kind::Dead => {
                for index in indexes_of(record).unwrap_or_default().iter() {
                    if group.bodies.live.remove(index) {
                        release(segments, group.bodies.segment_of(index));
                    }
                }
            }
            Kind::Reset => group.reset(record.index, segments),
            Kind::Summary => {
                if let Some(summary) = Summary::decode(record) {
                    group.hard_state = summary.hard_state;
                    group.mark = summary.mark;
                    group.truncate(summary.last.saturating_add(1), segments);
                    group.keep_bodies(&summary.live_bodies, u64::MAX, segments);
                    group.compact(summary.compacted, &summary.live_bodies, segments);
                    group.last = summary.last;
                    group.summary_in = Some(segment);
                }
            }
            Kind::Corrupt => group.corruption = corruption_of(record),
            Kind::Destroy | Kind::Removed => {}
        }
    }

    /// Notes that a group's records in a batch are damaged.
    pub(crate) fn damaged(&mut self, listed: &ListedGroup, segment: u32) {
        let Self { groups, segments, .. } = self;
        segments.entry(segment).or_default().groups.insert(listed.key);
        let group = groups.entry(listed.key).or_default();
        if let Some((first, last)) = listed.entries {
            group.truncate(first, segments);
            group.last = last;
        }
        if listed.hard_state.is_some() {
            group.hard_state = listed.hard_state;
        }
    }

    /// Picks segments older than `active` with nothing live, and appends to `records` what must be written into
    /// `active` before they go. Those records are accounted for here.
    pub(crate) fn retire(&mut self, active: u32, records: &mut Vec<Record>) -> Vec<u32> {
        let going: Vec<u32> = self
            .segments
            .range(..active)
            .filter(|(number, segment)| segment.live == 0 && !self.is_pinned(**number))
            .map(|(number, _)| *number)
            .take(MAX_REMOVALS_PER_BATCH)
            .collect();
        if going.is_empty() {
            return going;
        }
        let from = records.len();
        let keys: BTreeSet<GroupKey> =
            going.iter().flat_map(|number| self.segments[number].groups.iter().copied()).collect();
        for key in keys {
            self.carry_forward(key, &going, records);
        }
        let numbers = going.iter().map(|number| u64::from(*number));
        records.push(indexes_record(Kind::Removed, JOURNAL_KEY, 0, numbers));
        for record in &records[from..] {
            self.apply(record, active);
        }
        going
    }

    /// Whether the segment separates two lives of a key, of which the older one is still on disk. A replica that leaves
    /// a member and comes back has the same key.
    fn is_pinned(&self, segment: u32) -> bool {
        self.tombstones.iter().any(|(key, own)| {
            *own == segment
                && self.groups.contains_key(key)
                && self.segments.range(..segment).any(|(_, older)| older.groups.contains(key))
        })
    }

    fn carry_forward(&self, key: GroupKey, going: &[u32], records: &mut Vec<Record>) {
        if let Some(group) = self.groups.get(&key) {
            let newest = going.iter().rev().find(|number| self.segments[number].groups.contains(&key));
            if group.summary_in <= newest.copied() {
                records.push(group.summary().record(key));
                records.extend(group.corruption.as_ref().map(|corruption| corrupt_record(key, corruption)));
            }
        } else if let Some(tombstone) = self.tombstones.get(&key)
            && going.contains(tombstone)
        {
            let older_remains = self
                .segments
                .range(..*tombstone)
                .any(|(number, segment)| !going.contains(number) && segment.groups.contains(&key));
            if older_remains {
                records.push(bare_record(Kind::Destroy, key, 0, 0));
            }
        }
    }

    /// The segment's file is gone, or about to be.
    pub(crate) fn removed(&mut self, segment: u32) {
        self.segments.remove(&segment);
        self.tombstones.retain(|_, own| *own != segment);
    }

    /// The checkpoint of the group that counts.
    pub(crate) fn mark(&self, key: GroupKey) -> Option<Mark> {
        self.groups.get(&key)?.mark
    }
}
