//! A group's log as raft-rs reads it: an index in memory, payloads in the cache or on disk.

use std::cell::RefCell;
use std::collections::{BTreeSet, VecDeque};
use std::iter::Peekable;

use bytes::Bytes;
use holdfast_journal::{BatchId, EntryReader, Location, ReadError};
use holdfast_queue::packed::{Packed, PackedMap, Record, difference, follow, put_varint};
use raft::eraftpb::{ConfState, Entry, HardState, Snapshot};
use raft::{Error, GetEntriesContext, RaftState, Result, Storage, StorageError};

use crate::envelope::{entry, entry_payload};

/// One entry above the prefix: 16 bytes, since there may be as many as a slow follower lacks.
struct Slot {
    /// Size of the payload; an entry is under 4 GiB.
    bytes: u32,
    /// Segment and offset of its record, once it is durable.
    place: Option<(u32, u32)>,
}

/// A payload below the prefix, and where it is on disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct PlacedBody {
    pub index: u64,
    pub location: Location,
}

/// Payloads below the prefix, some four bytes each.
pub(crate) type Bodies = PackedMap<PlacedBody>;

impl Record for PlacedBody {
    type Key = u64;

    fn key(&self) -> u64 {
        self.index
    }

    fn pack(&self, before: &Self, out: &mut Vec<u8>) {
        let (then, now) = (before.location, self.location);
        let other_segment = u64::from(then.segment != now.segment);
        put_varint(difference(before.index, self.index) << 1 | other_segment, out);
        if other_segment == 1 {
            put_varint(difference(u64::from(then.segment), u64::from(now.segment)), out);
        }
        put_varint(difference(u64::from(then.len), u64::from(now.len)), out);
        // Records lie one after the other, so the next one begins about where the last one ends.
        put_varint(difference(u64::from(then.offset) + u64::from(then.len), u64::from(now.offset)), out);
    }

    fn unpack(before: &Self, input: &mut Packed<'_>) -> Option<Self> {
        let head = input.varint()?;
        let then = before.location;
        let segment = if head & 1 == 1 { input.follow32(then.segment)? } else { then.segment };
        let len = input.follow32(then.len)?;
        let offset = u32::try_from(follow(u64::from(then.offset) + u64::from(then.len), input.varint()?)).ok()?;
        Some(PlacedBody { index: follow(before.index, head >> 1), location: Location { segment, offset, len } })
    }
}

/// The payload lies elsewhere now, unless it was replaced since.
pub(crate) fn move_body(bodies: &mut Bodies, index: u64, from: Location, to: Location) {
    if bodies.get(&index).is_some_and(|body| body.location == from) {
        bodies.insert(PlacedBody { index, location: to });
    }
}

/// Looks up many indexes in ascending order in one pass.
pub(crate) struct Seeker<I: Iterator<Item = PlacedBody>>(Peekable<I>);

impl<I: Iterator<Item = PlacedBody>> Seeker<I> {
    pub fn new(bodies: I) -> Self {
        Self(bodies.peekable())
    }

    /// The payload's place, if it is among them. `index` is above the one of the last call.
    pub fn seek(&mut self, index: u64) -> Option<Location> {
        while self.0.next_if(|body| body.index < index).is_some() {}
        self.0.next_if(|body| body.index == index).map(|body| body.location)
    }
}

/// The log of one group, and the live payloads below its prefix.
pub(crate) struct GroupLog<R> {
    reader: R,
    initial: RaftState,
    /// Index and term of the last compacted entry.
    prefix: (u64, u64),
    slots: VecDeque<Slot>,
    /// From each index on, up to the next one, entries have this term.
    terms: VecDeque<(u64, u64)>,
    /// Entries that are not durable yet, ascending, and the write that each is in: a report about an older write of the
    /// same index says nothing about it.
    writing: VecDeque<(u64, BatchId)>,
    /// The last entries' payloads, up to the log's end: in memory until they are durable, and for as long as the cache's
    /// budget lasts.
    payloads: VecDeque<Option<Bytes>>,
    bytes: u64,
    /// Payloads at or below the prefix in which messages are live. Also, above it, those of a snapshot that is not (or
    /// never was) installed: the log has precedence there, and the body when the prefix passes it, as in the journal.
    bodies: Bodies,
    /// Followers for which raft-rs asked for a snapshot when there was none.
    snapshot_wanted: RefCell<BTreeSet<u64>>,
    /// The place of the snapshot that can be sent.
    snapshot: Option<Snapshot>,
    /// What could not be read from disk.
    unreadable: RefCell<BTreeSet<u64>>,
}

impl<R: EntryReader> GroupLog<R> {
    /// An empty log that starts after `prefix`.
    pub fn new(reader: R, hard_state: HardState, conf: ConfState, prefix: (u64, u64)) -> Self {
        Self {
            reader,
            initial: RaftState::new(hard_state, conf),
            prefix,
            slots: VecDeque::new(),
            terms: VecDeque::new(),
            writing: VecDeque::new(),
            payloads: VecDeque::new(),
            bytes: 0,
            bodies: Bodies::default(),
            snapshot_wanted: RefCell::default(),
            snapshot: None,
            unreadable: RefCell::default(),
        }
    }

    /// Adds an entry that was found on disk.
    pub fn push_recovered(&mut self, term: u64, location: Location) {
        self.push_slot(term, location.len, Some((location.segment, location.offset)));
    }

    fn push_slot(&mut self, term: u64, bytes: u32, place: Option<(u32, u32)>) {
        self.bytes += u64::from(bytes);
        self.slots.push_back(Slot { bytes, place });
        if self.terms.back().is_none_or(|(_, last)| *last != term) {
            self.terms.push_back((self.last(), term));
        }
    }

    /// Adds a payload that was written as a body: found at the start, or come by snapshot.
    pub fn push_body(&mut self, index: u64, location: Location) {
        self.bodies.insert(PlacedBody { index, location });
    }

    /// A body lies elsewhere now, unless it was replaced since.
    pub fn body_moved(&mut self, index: u64, from: Location, to: Location) {
        move_body(&mut self.bodies, index, from, to);
    }

    pub fn prefix(&self) -> (u64, u64) {
        self.prefix
    }

    pub fn last(&self) -> u64 {
        self.prefix.0 + self.slots.len() as u64
    }

    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Entries above the prefix.
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    fn slot(&self, index: u64) -> Option<&Slot> {
        self.slots.get(self.position(index)?)
    }

    fn position(&self, index: u64) -> Option<usize> {
        let distance = index.checked_sub(self.prefix.0 + 1)?;
        usize::try_from(distance).ok()
    }

    /// Appends entries that are about to be written, after dropping what they replace (Raft §5.3).
    pub fn append(&mut self, entries: &[Entry], write: BatchId) {
        let Some(first) = entries.first() else { return };
        self.truncate(first.index);
        for entry in entries {
            let payload = entry_payload(entry).clone();
            self.push_slot(entry.term, u32::try_from(payload.len()).unwrap_or(u32::MAX), None);
            self.writing.push_back((self.last(), write));
            self.payloads.push_back(Some(payload));
        }
    }

    fn truncate(&mut self, from: u64) {
        let keep = self.position(from).unwrap_or(0).min(self.slots.len());
        let dropped = self.slots.len() - keep;
        for slot in self.slots.drain(keep..) {
            self.bytes -= u64::from(slot.bytes);
        }
        self.payloads.truncate(self.payloads.len().saturating_sub(dropped));
        let last = self.last();
        while self.writing.pop_back_if(|(index, _)| *index > last).is_some() {}
        while self.terms.pop_back_if(|(first, _)| *first > last).is_some() {}
    }

    /// The entry is durable at `location`, unless the report is about an entry that was truncated since. True if it is
    /// about the one here, whose payload may now leave memory.
    pub fn durable(&mut self, index: u64, write: BatchId, location: Location) -> bool {
        let Ok(at) = self.writing.binary_search_by_key(&index, |(index, _)| *index) else { return false };
        #[cfg(feature = "mutants")]
        let write = match holdfast_queue::mutants::is_planted(holdfast_queue::mutants::Mutant::LateReportAccepted) {
            true => self.writing[at].1,
            false => write,
        };
        if self.writing[at].1 != write {
            return false;
        }
        self.writing.remove(at);
        let slot = self.position(index).and_then(|position| self.slots.get_mut(position));
        if let Some(slot) = slot {
            slot.place = Some((location.segment, location.offset));
        }
        true
    }

    /// Drops a durable payload from memory.
    pub fn evict(&mut self, index: u64) {
        if self.slot(index).is_none_or(|slot| slot.place.is_none()) {
            return;
        }
        if let Some(at) = self.payload_position(index) {
            self.payloads[at] = None;
        }
        while self.payloads.pop_front_if(|payload| payload.is_none()).is_some() {}
        if self.payloads.is_empty() {
            self.payloads = VecDeque::new();
        }
    }

    fn payload_position(&self, index: u64) -> Option<usize> {
        let behind = usize::try_from(self.last().checked_sub(index)?).ok()?;
        self.payloads.len().checked_sub(behind.checked_add(1)?)
    }

    /// True if everything up to `index` can be read from disk.
    pub fn is_durable_to(&self, index: u64) -> bool {
        index <= self.last() && self.writing.front().is_none_or(|(first, _)| *first > index)
    }

    /// Drops the log up to `index`, keeping the payloads of `live` (ascending). Returns those of them that are kept:
    /// at or below `index`, and here.
    pub fn compact(&mut self, index: u64, mut live: Vec<u64>) -> Vec<u64> {
        let Ok(term) = self.term(index) else { return Vec::new() };
        let mut bodies = Bodies::default();
        let mut before = Seeker::new(self.bodies.iter());
        live.retain(|body| {
            let location =
                (*body <= index).then(|| before.seek(*body).or_else(|| self.location_above(*body))).flatten();
            bodies.extend(location.map(|location| PlacedBody { index: *body, location }));
            location.is_some()
        });
        drop(before);
        self.bodies = bodies;
        while self.prefix.0 < index {
            let Some(slot) = self.slots.pop_front() else { break };
            self.bytes -= u64::from(slot.bytes);
            self.prefix.0 += 1;
        }
        self.prefix = (index, term);
        let left = self.slots.len();
        self.payloads.drain(..self.payloads.len().saturating_sub(left));
        while self.terms.get(1).is_some_and(|(first, _)| *first <= index + 1) {
            self.terms.pop_front();
        }
        if left == 0 {
            self.terms.clear();
        }
        if self.slots.capacity() > 1024 && left < self.slots.capacity() / 4 {
            self.slots.shrink_to(left * 2);
        }
        live
    }

    /// Messages below the prefix are gone.
    pub fn forget(&mut self, indexes: &[u64]) {
        for index in indexes {
            self.bodies.remove(index);
        }
    }

    /// Empties the log: it starts after a snapshot, with the snapshot's live payloads.
    pub fn reset(&mut self, index: u64, term: u64, bodies: Bodies) {
        self.truncate(self.prefix.0 + 1);
        self.prefix = (index, term);
        self.bodies = bodies;
    }

    /// Where the payload is on disk, if it is above the prefix and on disk.
    fn location_above(&self, index: u64) -> Option<Location> {
        let slot = self.slot(index)?;
        let (segment, offset) = slot.place?;
        Some(Location { segment, offset, len: slot.bytes })
    }

    /// Where the payload is on disk, if it is.
    #[cfg(test)]
    pub fn location(&self, index: u64) -> Option<Location> {
        if index <= self.prefix.0 {
            return self.bodies.get(&index).map(|body| body.location);
        }
        self.location_above(index)
    }

    /// Where each of these payloads (ascending) is once the prefix has passed it.
    pub fn body_locations<'a>(&'a self, indexes: &'a [u64]) -> impl Iterator<Item = Option<Location>> + 'a {
        let mut bodies = Seeker::new(self.bodies.iter());
        indexes.iter().map(move |index| bodies.seek(*index).or_else(|| self.location_above(*index)))
    }

    /// The payload, from memory or from disk; none if it is not here.
    pub fn payload(&self, index: u64) -> Option<std::result::Result<Bytes, ReadError>> {
        if let Some(payload) = self.cached(index) {
            return Some(Ok(payload));
        }
        let read = self.read_from_disk(index);
        if let Some(Err(_)) = read {
            self.unreadable.borrow_mut().insert(index);
        }
        read
    }

    /// The payload of an entry above the prefix, if it is in memory.
    pub fn cached(&self, index: u64) -> Option<Bytes> {
        if index <= self.prefix.0 {
            return None;
        }
        self.payloads.get(self.payload_position(index)?)?.clone()
    }

    fn read_from_disk(&self, index: u64) -> Option<std::result::Result<Bytes, ReadError>> {
        let location = match index <= self.prefix.0 {
            true => self.bodies.get(&index).map(|body| body.location),
            false => self.location_above(index),
        };
        location.map(|location| self.reader.read(location))
    }

    /// True if the payload should be on disk and cannot be read there.
    pub fn is_lost(&self, index: u64) -> bool {
        matches!(self.read_from_disk(index), Some(Err(_)))
    }

    /// What could not be read since the last call.
    pub fn take_unreadable(&self) -> BTreeSet<u64> {
        self.unreadable.take()
    }

    pub fn reader(&self) -> R
    where
        R: Clone,
    {
        self.reader.clone()
    }

    /// raft-rs begins anew on this log, from this state.
    pub fn begin_again(&mut self, state: HardState, conf: ConfState) {
        self.initial = RaftState::new(state, conf);
        self.snapshot = None;
        self.snapshot_wanted.take();
        self.unreadable.take();
    }

    /// True if [`GroupLog::payload`] finds something for each of these (ascending).
    pub fn has_payloads(&self, indexes: &[u64]) -> bool {
        let mut bodies = Seeker::new(self.bodies.iter());
        indexes.iter().all(|index| {
            let below = bodies.seek(*index).is_some();
            if *index <= self.prefix.0 { below } else { self.slot(*index).is_some() }
        })
    }

    /// The followers for which raft-rs asked for a snapshot in vain since the last call.
    pub fn take_snapshot_wanted(&self) -> BTreeSet<u64> {
        self.snapshot_wanted.take()
    }

    /// Offers raft-rs the place of a snapshot to send, or withdraws it.
    pub fn set_snapshot(&mut self, snapshot: Option<Snapshot>) {
        self.snapshot = snapshot;
    }
}

impl<R: EntryReader> Storage for GroupLog<R> {
    fn initial_state(&self) -> Result<RaftState> {
        Ok(self.initial.clone())
    }

    fn entries(
        &self,
        low: u64,
        high: u64,
        max_size: impl Into<Option<u64>>,
        _context: GetEntriesContext,
    ) -> Result<Vec<Entry>> {
        if low <= self.prefix.0 {
            return Err(Error::Store(StorageError::Compacted));
        }
        if high > self.last() + 1 {
            return Err(Error::Store(StorageError::Unavailable));
        }
        let limit = max_size.into().unwrap_or(u64::MAX);
        let mut size = 0u64;
        let mut entries = Vec::new();
        for index in low..high {
            let Some(slot) = self.slot(index) else {
                return Err(Error::Store(StorageError::Unavailable));
            };
            let term = self.term(index)?;
            // Room for the entry's own fields, about as raft-rs counts them.
            size = size.saturating_add(u64::from(slot.bytes) + 12);
            if size > limit && !entries.is_empty() {
                break;
            }
            let payload = match self.payload(index) {
                Some(Ok(payload)) => payload,
                Some(Err(error)) => {
                    return Err(Error::Store(StorageError::Other(Box::new(error))));
                }
                None => return Err(Error::Store(StorageError::Unavailable)),
            };
            entries.push(entry(index, term, payload));
        }
        Ok(entries)
    }

    fn term(&self, index: u64) -> Result<u64> {
        if index == self.prefix.0 {
            return Ok(self.prefix.1);
        }
        if index < self.prefix.0 {
            return Err(Error::Store(StorageError::Compacted));
        }
        if index > self.last() {
            return Err(Error::Store(StorageError::Unavailable));
        }
        let runs = self.terms.partition_point(|(first, _)| *first <= index);
        let run = runs.checked_sub(1).and_then(|at| self.terms.get(at));
        run.map(|(_, term)| *term).ok_or(Error::Store(StorageError::Unavailable))
    }

    fn first_index(&self) -> Result<u64> {
        Ok(self.prefix.0 + 1)
    }

    fn last_index(&self) -> Result<u64> {
        Ok(self.last())
    }

    fn snapshot(&self, request_index: u64, to: u64) -> Result<Snapshot> {
        match &self.snapshot {
            Some(snapshot) if snapshot.get_metadata().index >= request_index => Ok(snapshot.clone()),
            _ => {
                self.snapshot_wanted.borrow_mut().insert(to);
                Err(Error::Store(StorageError::SnapshotTemporarilyUnavailable))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gives a location's own bytes.
    #[derive(Clone)]
    struct Echo;

    impl EntryReader for Echo {
        fn read(&self, location: Location) -> std::result::Result<Bytes, ReadError> {
            Ok(location.offset.to_le_bytes().to_vec().into())
        }
    }

    fn at(offset: u32) -> Location {
        Location { segment: 0, offset, len: 4 }
    }

    fn log() -> GroupLog<Echo> {
        GroupLog::new(Echo, HardState::default(), ConfState::default(), (10, 1))
    }

    fn entries(range: std::ops::Range<u64>, term: u64) -> Vec<Entry> {
        range.map(|index| entry(index, term, vec![term as u8; 100].into())).collect()
    }

    #[test]
    fn a_late_report_about_a_truncated_entry_changes_nothing() {
        let mut log = log();
        log.append(&entries(11..14, 1), BatchId(1));
        log.append(&entries(12..13, 2), BatchId(2));
        assert!(log.durable(11, BatchId(1), at(1)));
        assert!(!log.durable(12, BatchId(1), at(2)));
        assert!(!log.durable(13, BatchId(1), at(3)));
        log.evict(12);
        assert_eq!(log.payload(12).unwrap().unwrap(), vec![2; 100]);
        assert!(log.durable(12, BatchId(2), at(4)));
        assert_eq!((log.last(), log.term(12)), (12, Ok(2)));
        assert_eq!(log.bytes(), 200);
    }

    #[test]
    fn a_payload_leaves_memory_only_when_it_is_on_disk() {
        let mut log = log();
        log.append(&entries(11..12, 1), BatchId(1));
        log.evict(11);
        assert_eq!(log.payload(11).unwrap().unwrap(), vec![1; 100]);
        log.durable(11, BatchId(1), at(7));
        log.evict(11);
        assert_eq!(log.payload(11).unwrap().unwrap(), 7u32.to_le_bytes().to_vec());
    }

    #[test]
    fn a_range_is_cut_by_its_size_and_gives_at_least_one_entry() {
        let mut log = log();
        log.append(&entries(11..21, 1), BatchId(1));
        let get = |low, high, size| log.entries(low, high, size, GetEntriesContext::empty(false));
        assert_eq!(get(11, 21, None).unwrap().len(), 10);
        assert_eq!(get(11, 21, Some(0)).unwrap().len(), 1);
        assert_eq!(get(12, 21, Some(250)).unwrap().len(), 2);
        assert_eq!(get(10, 12, None), Err(Error::Store(StorageError::Compacted)));
        assert_eq!(get(20, 22, None), Err(Error::Store(StorageError::Unavailable)));
    }

    #[test]
    fn compaction_keeps_the_payloads_that_are_live_and_the_term_at_the_prefix() {
        let mut log = log();
        log.append(&entries(11..16, 3), BatchId(1));
        for index in 11..16 {
            log.durable(index, BatchId(1), at(index as u32));
        }
        log.push_body(12, at(99));
        assert_eq!(log.compact(13, vec![10, 11, 12, 14]), [11, 12], "10 is not here, 14 is above");
        assert_eq!((log.prefix(), log.first_index()), ((13, 3), Ok(14)));
        let offset = |index| log.location(index).map(|location| location.offset);
        assert_eq!(offset(11), Some(11));
        // A body that was there already holds, as in the journal.
        assert_eq!(offset(12), Some(99));
        assert_eq!(offset(13), None);
        assert_eq!(log.bytes(), 200);
        // A move counts for the place that it is about, and for nothing else.
        let [first, _, last] = [11, 12, 14].map(|index| log.location(index).unwrap());
        log.body_moved(11, first, at(200));
        log.body_moved(12, at(12), at(201));
        log.body_moved(14, last, at(202));
        assert_eq!([11, 12, 14].map(|index| log.location(index)), [Some(at(200)), Some(at(99)), Some(last)]);
        log.forget(&[11]);
        assert!(log.payload(11).is_none());
    }
}
