//! Which segment still holds something that a replay needs.
//!
//! A segment counts the live records in it: log entries above a group's prefix, and live bodies below it. One with none
//! may go, if what its other records say is said again first: a [`Summary`] of each group that has records in it, a
//! tombstone of a destroyed group whose records lie in an older segment. Without the summary a truncation would be
//! forgotten with the segment that made it, and entries that it dropped would come back.

use crate::entry_run::EntryRun;
use crate::index_set::IndexSet;
use crate::live_set::{LiveSet, Piece, RecordSize};
use crate::record::{
    HardStatePayload, Kind, ListedGroup, Mark, Record, Summary, bare_record, corrupt_record, corruption_of, indexes_of,
    indexes_record,
};
use crate::runs::Runs;
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
    /// Segments with nothing live that must stay a while: somebody may still read what was moved out of them.
    held: BTreeSet<u32>,
}

#[derive(Debug, Default)]
struct SegmentAccount {
    /// Live entries above a prefix.
    entries: u64,
    /// Live payloads below a prefix.
    bodies: u64,
    /// What both take, about.
    live_bytes: u64,
    groups: BTreeSet<GroupKey>,
}

/// What a segment holds that is still needed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct SegmentUse {
    /// Log entries above their group's prefix. They cannot be moved.
    pub entries: u64,
    /// Payloads below it. They can.
    pub bodies: u64,
    pub live_bytes: u64,
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
    live: LiveSet,
    /// From each key on, up to the next one, indexes lie in this segment.
    runs: BTreeMap<u64, u32>,
}

impl Placed {
    fn segment_of(&self, index: u64) -> Option<u32> {
        self.runs.range(..=index).next_back().map(|(_, segment)| *segment)
    }

    fn put(&mut self, index: u64, segment: u32, size: RecordSize) {
        self.live.insert(index, size);
        // Nearly always the index lies where the last ones do.
        if self.runs.last_key_value().is_some_and(|(start, last)| *start <= index && *last == segment) {
            return;
        }
        let before = self.segment_of(index);
        if before == Some(segment) {
            return;
        }
        self.runs.insert(index, segment);
        // The run that this index was in goes on at the next live one, unless another begins before that.
        if let (Some(before), Some(next)) = (before, self.live.first_from(index + 1))
            && self.runs.range(index + 1..=next).next().is_none()
        {
            self.runs.insert(next, before);
        }
        if index > 0 && self.runs.range(..index).next_back().is_some_and(|(_, left)| *left == segment) {
            self.runs.remove(&index);
        }
    }

    /// Forgets runs that no live index is in.
    fn prune(&mut self) {
        match self.live.first() {
            None => self.runs.clear(),
            Some(first) => {
                let start = self.runs.range(..=first).next_back().map_or(first, |(start, _)| *start);
                self.runs = self.runs.split_off(&start);
            }
        }
    }
}

type SegmentAccounts = BTreeMap<u32, SegmentAccount>;

/// What a live payload is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Role {
    Entry,
    Body,
}

fn release(segments: &mut SegmentAccounts, segment: Option<u32>, role: Role, size: RecordSize) {
    release_all(segments, segment, role, (1, size.bytes()));
}

/// So many payloads, and the bytes of all of them.
fn release_all(segments: &mut SegmentAccounts, segment: Option<u32>, role: Role, (payloads, bytes): (u64, u64)) {
    if let Some(account) = segment.and_then(|segment| segments.get_mut(&segment)) {
        let count = if role == Role::Entry { &mut account.entries } else { &mut account.bodies };
        *count -= payloads;
        account.live_bytes -= bytes;
    }
}

fn occupy(segments: &mut SegmentAccounts, segment: u32, role: Role, size: RecordSize) {
    occupy_all(segments, segment, role, (1, size.bytes()));
}

fn occupy_all(segments: &mut SegmentAccounts, segment: u32, role: Role, (payloads, bytes): (u64, u64)) {
    let account = segments.entry(segment).or_default();
    let count = if role == Role::Entry { &mut account.entries } else { &mut account.bodies };
    *count += payloads;
    account.live_bytes += bytes;
}

fn count(sizes: impl Iterator<Item = (u64, RecordSize)>) -> (u64, u64) {
    sizes.fold((0, 0), |(payloads, bytes), (_, size)| (payloads + 1, bytes + size.bytes()))
}

impl GroupAccount {
    fn truncate(&mut self, from: u64, segments: &mut SegmentAccounts) {
        let dropped = self.log.live.split_off(from);
        for (index, size) in dropped.iter() {
            release(segments, self.log.segment_of(index), Role::Entry, size);
        }
        if self.log.runs.last_key_value().is_some_and(|(start, _)| *start >= from) {
            self.log.runs.split_off(&from);
        }
        self.last = from.saturating_sub(1);
    }

    fn entry(&mut self, index: u64, segment: u32, size: RecordSize, segments: &mut SegmentAccounts) {
        if index > self.compacted {
            self.truncate(index, segments);
            self.log.put(index, segment, size);
            self.last = index;
            occupy(segments, segment, Role::Entry, size);
        } else if self.bodies.live.contains(index) && !self.installed.contains(index) {
            // The last batch before a restart is replayed twice.
            self.place_body(index, segment, size, segments);
        }
    }

    /// As [`GroupAccount::entry`] for each of them.
    fn entries(&mut self, run: &EntryRun, segment: u32, segments: &mut SegmentAccounts) {
        let sizes = || run.iter().map(|(index, location)| (index, RecordSize::of_payload(location.len)));
        if run.first <= self.compacted {
            sizes().for_each(|(index, size)| self.entry(index, segment, size, segments));
            return;
        }
        self.truncate(run.first, segments);
        let Some((first, size)) = sizes().next() else { return };
        // What follows the first one is in its run of the segment, and above all that is live.
        self.log.put(first, segment, size);
        self.log.live.extend(sizes());
        self.last = first + run.locations.len() as u64 - 1;
        occupy_all(segments, segment, Role::Entry, count(sizes()));
    }

    fn body(&mut self, index: u64, segment: u32, size: RecordSize, segments: &mut SegmentAccounts) {
        self.place_body(index, segment, size, segments);
        self.installed.insert(index);
    }

    fn place_body(&mut self, index: u64, segment: u32, size: RecordSize, segments: &mut SegmentAccounts) {
        self.drop_body(index, segments);
        self.bodies.put(index, segment, size);
        occupy(segments, segment, Role::Body, size);
    }

    fn drop_body(&mut self, index: u64, segments: &mut SegmentAccounts) {
        self.installed.remove(index);
        if let Some(size) = self.bodies.live.remove(index) {
            release(segments, self.bodies.segment_of(index), Role::Body, size);
        }
    }

    fn compact(&mut self, up_to: u64, live: &Runs, segments: &mut SegmentAccounts) {
        self.keep_bodies(live, up_to, segments);
        let above = self.log.live.split_off(up_to.saturating_add(1));
        let below = std::mem::replace(&mut self.log.live, above);
        for piece in below.pieces() {
            if !self.compact_piece(&piece, live, segments) {
                self.compact_each(&piece, live, segments);
            }
        }
        self.log.prune();
        self.bodies.prune();
        self.compacted = self.compacted.max(up_to);
        self.last = self.last.max(up_to);
    }

    /// Neighbours that lie in one segment, are all live, and above every body: they become bodies together. False if they
    /// are not such.
    fn compact_piece(&mut self, piece: &Piece<'_>, live: &Runs, segments: &mut SegmentAccounts) -> bool {
        let (first, last) = (piece.first(), piece.last());
        // Runs of bodies that are gone may begin further on.
        let is_above = self.bodies.live.last().is_none_or(|body| body < first)
            && self.bodies.runs.last_key_value().is_none_or(|(start, _)| *start <= first);
        let in_one = self.log.runs.range(first + 1..=last.max(first + 1)).next().is_none();
        let segment = self.log.segment_of(first).filter(|_| is_above && in_one && self.installed.is_empty());
        let Some(segment) = segment.filter(|_| live.covers(first, last + 1)) else { return false };
        let counted = count(piece.iter());
        release_all(segments, Some(segment), Role::Entry, counted);
        for (index, size) in piece.iter().take(1) {
            self.bodies.put(index, segment, size);
        }
        self.bodies.live.insert_piece(piece);
        occupy_all(segments, segment, Role::Body, counted);
        true
    }

    fn compact_each(&mut self, piece: &Piece<'_>, live: &Runs, segments: &mut SegmentAccounts) {
        for (index, size) in piece.iter() {
            let segment = self.log.segment_of(index);
            release(segments, segment, Role::Entry, size);
            let has_body =
                self.bodies.live.last().is_some_and(|last| last >= index) && self.bodies.live.contains(index);
            if let Some(segment) = segment.filter(|_| live.contains(index) && !has_body) {
                self.bodies.put(index, segment, size);
                self.installed.remove(index);
                occupy(segments, segment, Role::Body, size);
            }
        }
    }

    /// Of the bodies at or below `up_to` only `live` is kept.
    fn keep_bodies(&mut self, live: &Runs, up_to: u64, segments: &mut SegmentAccounts) {
        let dead = self.bodies.live.unlisted(up_to, live);
        for index in dead {
            self.drop_body(index, segments);
        }
    }

    fn reset(&mut self, index: u64, segments: &mut SegmentAccounts) {
        self.truncate(index.saturating_add(1), segments);
        let here = self.bodies.live.iter().chain(self.log.live.iter());
        let mut kept: Vec<u64> = here.map(|(index, _)| index).collect();
        kept.sort_unstable();
        kept.dedup();
        let kept = kept.into_iter().collect();
        self.compact(index, &kept, segments);
        self.compacted = index;
        self.last = index;
        if let Some(corruption) = &mut self.corruption {
            *corruption = Corruption { hard_state: corruption.hard_state, ..Corruption::default() };
        }
        self.corruption.take_if(|corruption| !corruption.hard_state);
    }

    fn release_all(&self, segments: &mut SegmentAccounts) {
        for (placed, role) in [(&self.log, Role::Entry), (&self.bodies, Role::Body)] {
            for (index, size) in placed.live.iter() {
                release(segments, placed.segment_of(index), role, size);
            }
        }
    }

    fn summary(&self) -> Summary {
        Summary {
            hard_state: self.hard_state,
            mark: self.mark.clone(),
            compacted: self.compacted,
            last: self.last,
            live_bodies: self.bodies.live.indexes(),
        }
    }
}

impl Accounting {
    /// Notes entries that lie in `segment`.
    pub(crate) fn entries(&mut self, run: &EntryRun, segment: u32) {
        let Self { groups, segments, .. } = self;
        segments.entry(segment).or_default().groups.insert(run.key);
        groups.entry(run.key).or_default().entries(run, segment, segments);
    }

    /// Notes a record that lies, or will lie, in `segment`. Records come in the order of the log. `len` is that of the
    /// payload, which entries and bodies may come without.
    pub(crate) fn apply(&mut self, record: &Record, segment: u32, len: u32) {
        if record.key == JOURNAL_KEY {
            return;
        }
        let Self { groups, tombstones, segments, .. } = self;
        let size = RecordSize::of_payload(len);
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
            Kind::Entry => group.entry(record.index, segment, size, segments),
            Kind::Body => group.body(record.index, segment, size, segments),
            Kind::HardState => group.hard_state = HardStatePayload::decode(record).map(|payload| payload.0),
            Kind::Mark => group.mark = Mark::decode(record),
            Kind::Compact => {
                let live = indexes_of(record).unwrap_or_default();
                group.compact(record.index, &live, segments);
            }
            Kind::Dead => {
                for index in indexes_of(record).unwrap_or_default().iter() {
                    group.drop_body(index, segments);
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
            Kind::Corrupt => group.corruption = corruption_of(record).filter(|found| *found != Corruption::default()),
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
            .filter(|(number, segment)| segment.entries + segment.bodies == 0 && self.may_go(**number))
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
            self.apply(record, active, record.payload.len() as u32);
        }
        going
    }

    /// Not while somebody may read from it, and not while it separates two lives of a key, of which the older one is still
    /// on disk: a replica that leaves a member and comes back has the same key.
    fn may_go(&self, segment: u32) -> bool {
        let separates = self.tombstones.iter().any(|(key, own)| {
            *own == segment
                && self.groups.contains_key(key)
                && self.segments.range(..segment).any(|(_, older)| older.groups.contains(key))
        });
        !separates && !self.held.contains(&segment)
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
        self.held.remove(&segment);
    }

    /// Keeps the segment although nothing in it may be live, or no longer.
    pub(crate) fn hold(&mut self, segment: u32, hold: bool) {
        if hold {
            self.held.insert(segment);
        } else {
            self.held.remove(&segment);
        }
    }

    /// Whether a write into `active` would remove a segment.
    pub(crate) fn can_retire(&self, active: u32) -> bool {
        let mut older = self.segments.range(..active);
        older.any(|(number, segment)| segment.entries + segment.bodies == 0 && self.may_go(*number))
    }

    /// What is live in a segment.
    pub(crate) fn usage(&self, segment: u32) -> SegmentUse {
        self.segments.get(&segment).map_or(SegmentUse::default(), |account| SegmentUse {
            entries: account.entries,
            bodies: account.bodies,
            live_bytes: account.live_bytes,
        })
    }

    /// About what all live records take.
    pub(crate) fn live_bytes(&self) -> u64 {
        self.segments.values().map(|account| account.live_bytes).sum()
    }

    /// Whether this record, found in `segment`, is the one that a live payload below its group's prefix is read from,
    /// provided that it is the last one of its kind and index there.
    pub(crate) fn is_live_body(&self, kind: Kind, key: GroupKey, index: u64, segment: u32) -> bool {
        self.groups.get(&key).is_some_and(|group| {
            let as_body = group.installed.contains(index);
            index <= group.compacted
                && kind == if as_body { Kind::Body } else { Kind::Entry }
                && group.bodies.live.contains(index)
                && group.bodies.segment_of(index) == Some(segment)
        })
    }

    /// Whether the record is one that a group still needs, entries above the prefix included; see
    /// [`Accounting::is_live_body`].
    pub(crate) fn is_live(&self, kind: Kind, key: GroupKey, index: u64, segment: u32) -> bool {
        let in_log = self.groups.get(&key).is_some_and(|group| {
            kind == Kind::Entry && group.log.live.contains(index) && group.log.segment_of(index) == Some(segment)
        });
        in_log || self.is_live_body(kind, key, index, segment)
    }

    /// Groups whose log above the prefix has entries in the segment or in an older one.
    pub(crate) fn groups_pinning(&self, segment: u32) -> Vec<GroupKey> {
        let pins = |group: &GroupAccount| {
            let first = group.log.live.first().and_then(|first| group.log.segment_of(first));
            first.is_some_and(|first| first <= segment)
        };
        self.groups.iter().filter(|(_, group)| pins(group)).map(|(key, _)| *key).collect()
    }

    /// The checkpoint that counts of each group that has one.
    pub(crate) fn marks(&self) -> impl Iterator<Item = (GroupKey, &Mark)> {
        self.groups.iter().filter_map(|(key, group)| Some((*key, group.mark.as_ref()?)))
    }

    /// The checkpoint of the group that counts.
    pub(crate) fn mark(&self, key: GroupKey) -> Option<&Mark> {
        self.groups.get(&key)?.mark.as_ref()
    }
}
