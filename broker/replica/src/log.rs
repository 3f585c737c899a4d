//! A group's log as raft-rs reads it: an index in memory, payloads in the cache or on disk.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use holdfast_journal::{BatchId, EntryReader, Location, ReadError};
use raft::eraftpb::{ConfState, Entry, HardState, Snapshot};
use raft::{Error, GetEntriesContext, RaftState, Result, Storage, StorageError};

use crate::envelope::{entry, entry_payload};

/// One entry above the prefix.
struct Slot {
    term: u64,
    bytes: u64,
    /// The write that this entry is in; a report about an older write of the same index says nothing about it.
    write: BatchId,
    /// In memory until it is durable, and for as long as the cache's budget lasts.
    payload: Option<Bytes>,
    /// Where it is on disk, once it is durable.
    location: Option<Location>,
}

/// The log of one group, and the live payloads below its prefix.
pub(crate) struct GroupLog<R> {
    reader: R,
    initial: RaftState,
    /// Index and term of the last compacted entry.
    prefix: (u64, u64),
    slots: VecDeque<Slot>,
    bytes: u64,
    /// Payloads at or below the prefix in which messages are live. Also, above it, those of a snapshot that is not (or
    /// never was) installed: the log has precedence there, and the body when the prefix passes it, as in the journal.
    bodies: BTreeMap<u64, Location>,
    /// Followers for which raft-rs asked for a snapshot when there was none.
    snapshot_wanted: RefCell<BTreeSet<u64>>,
    /// The place of the snapshot that can be sent.
    snapshot: Option<Snapshot>,
}

impl<R: EntryReader> GroupLog<R> {
    /// An empty log that starts after `prefix`.
    pub fn new(reader: R, hard_state: HardState, conf: ConfState, prefix: (u64, u64)) -> Self {
        Self {
            reader,
            initial: RaftState::new(hard_state, conf),
            prefix,
            slots: VecDeque::new(),
            bytes: 0,
            bodies: BTreeMap::new(),
            snapshot_wanted: RefCell::default(),
            snapshot: None,
        }
    }

    /// Adds an entry that was found on disk.
    pub fn push_recovered(&mut self, term: u64, location: Location) {
        let bytes = u64::from(location.len);
        self.bytes += bytes;
        let location = Some(location);
        self.slots.push_back(Slot { term, bytes, write: BatchId::default(), payload: None, location });
    }

    /// Adds a payload that was written as a body: found at the start, or come by snapshot.
    pub fn push_body(&mut self, index: u64, location: Location) {
        self.bodies.insert(index, location);
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
            let bytes = payload.len() as u64;
            self.bytes += bytes;
            let payload = Some(payload);
            self.slots.push_back(Slot { term: entry.term, bytes, write, payload, location: None });
        }
    }

    fn truncate(&mut self, from: u64) {
        let keep = self.position(from).unwrap_or(0).min(self.slots.len());
        for slot in self.slots.drain(keep..) {
            self.bytes -= slot.bytes;
        }
    }

    /// The entry is durable at `location`, unless the report is about an entry that was truncated since. True if it is
    /// about the one here, whose payload may now leave memory.
    pub fn durable(&mut self, index: u64, write: BatchId, location: Location) -> bool {
        let Some(position) = self.position(index) else { return false };
        match self.slots.get_mut(position) {
            Some(slot) if slot.write == write => {
                slot.location = Some(location);
                true
            }
            _ => false,
        }
    }

    /// Drops a durable payload from memory.
    pub fn evict(&mut self, index: u64) {
        let Some(position) = self.position(index) else { return };
        if let Some(slot) = self.slots.get_mut(position)
            && slot.location.is_some()
        {
            slot.payload = None;
        }
    }

    /// True if everything up to `index` can be read from disk.
    pub fn is_durable_to(&self, index: u64) -> bool {
        let count = usize::try_from(index.saturating_sub(self.prefix.0)).unwrap_or(usize::MAX);
        index <= self.last() && self.slots.iter().take(count).all(|slot| slot.location.is_some())
    }

    /// Drops the log up to `index`, keeping the payloads of `live` (ascending, all groups of indexes ≤ `index`).
    pub fn compact(&mut self, index: u64, live: &[u64]) {
        let Ok(term) = self.term(index) else { return };
        let mut bodies = BTreeMap::new();
        for body in live {
            if let Some(location) = self.body_location(*body) {
                bodies.insert(*body, location);
            }
        }
        self.bodies = bodies;
        while self.prefix.0 < index {
            let Some(slot) = self.slots.pop_front() else { break };
            self.bytes -= slot.bytes;
            self.prefix.0 += 1;
        }
        self.prefix = (index, term);
    }

    /// Messages below the prefix are gone.
    pub fn forget(&mut self, indexes: &[u64]) {
        for index in indexes {
            self.bodies.remove(index);
        }
    }

    /// Empties the log: it starts after a snapshot, with the snapshot's live payloads.
    pub fn reset(&mut self, index: u64, term: u64, bodies: BTreeMap<u64, Location>) {
        self.slots.clear();
        self.bytes = 0;
        self.prefix = (index, term);
        self.bodies = bodies;
    }

    /// Where the payload is on disk, if it is.
    pub fn location(&self, index: u64) -> Option<Location> {
        if index <= self.prefix.0 {
            return self.bodies.get(&index).copied();
        }
        self.slot(index)?.location
    }

    /// Where the payload is once the prefix has passed it.
    pub fn body_location(&self, index: u64) -> Option<Location> {
        self.bodies.get(&index).copied().or_else(|| self.location(index))
    }

    /// The payload, from memory or from disk; none if it is not here.
    pub fn payload(&self, index: u64) -> Option<std::result::Result<Bytes, ReadError>> {
        if index <= self.prefix.0 {
            return self.bodies.get(&index).map(|location| self.reader.read(*location));
        }
        let slot = self.slot(index)?;
        match (&slot.payload, slot.location) {
            (Some(payload), _) => Some(Ok(payload.clone())),
            (None, Some(location)) => Some(self.reader.read(location)),
            (None, None) => None,
        }
    }

    /// True if [`GroupLog::payload`] finds something.
    pub fn has_payload(&self, index: u64) -> bool {
        if index <= self.prefix.0 { self.bodies.contains_key(&index) } else { self.slot(index).is_some() }
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
            // Room for the entry's own fields, about as raft-rs counts them.
            size = size.saturating_add(slot.bytes + 12);
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
            entries.push(entry(index, slot.term, payload));
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
        self.slot(index).map(|slot| slot.term).ok_or(Error::Store(StorageError::Unavailable))
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
        log.compact(13, &[11, 12]);
        assert_eq!((log.prefix(), log.first_index()), ((13, 3), Ok(14)));
        assert_eq!(log.location(11), Some(at(11)));
        // A body that was there already holds, as in the journal.
        assert_eq!(log.location(12), Some(at(99)));
        assert_eq!(log.location(13), None);
        assert_eq!(log.bytes(), 200);
        log.forget(&[11]);
        assert!(log.payload(11).is_none());
    }
}
