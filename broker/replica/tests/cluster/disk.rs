//! A journal in memory, as the real one promises to behave: a crash keeps exactly the batches that were reported.
//! It also checks the rules that the journal demands of its caller.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use holdfast_journal::conformance::run_chore;
use holdfast_journal::{
    Batch, Checkpoint, CheckpointStored, Corruption, EntryReader, GroupKey, HardState, Journal, JournalConfig,
    Location, Op, ReadError, RealFileSystem, RecoveredEntry, RecoveredGroup, Upkeep, Written, WrittenRecord,
};
use tempfile::TempDir;

/// Payloads by location; those that were given up are gone at once.
#[derive(Clone, Default)]
pub struct Reader {
    payloads: Arc<Mutex<Vec<Option<Bytes>>>>,
}

impl Reader {
    fn give_up(&self, location: Location) {
        self.payloads.lock().unwrap()[location.offset as usize] = None;
    }
}

impl EntryReader for Reader {
    fn read(&self, location: Location) -> Result<Bytes, ReadError> {
        let payloads = self.payloads.lock().unwrap();
        payloads.get(location.offset as usize).cloned().flatten().ok_or(ReadError::Gone { location })
    }
}

#[derive(Clone, Default)]
struct Group {
    hard_state: Option<HardState>,
    checkpoint: Option<Checkpoint>,
    compacted: u64,
    log: BTreeMap<u64, (u64, Location)>,
    bodies: BTreeMap<u64, Location>,
}

/// One member's disk.
#[derive(Default)]
pub struct Disk {
    pub reader: Reader,
    groups: BTreeMap<GroupKey, Group>,
    queue: VecDeque<Batch>,
    mirror: Option<Mirror>,
    corruption: BTreeMap<GroupKey, Corruption>,
    /// Entries and bodies of the only group that cannot be read any more.
    lost: BTreeSet<u64>,
    /// Checkpoints beside the commits wait for [`Disk::store_checkpoints`].
    pub holds_checkpoints: bool,
    held: Vec<Op>,
}

/// A real journal that is given the same batches, and must find the same at each start.
struct Mirror {
    directory: TempDir,
    journal: Option<Journal<RealFileSystem>>,
}

impl Mirror {
    fn open(directory: TempDir) -> (Self, Vec<RecoveredGroup>) {
        let fs = RealFileSystem::new(directory.path()).unwrap();
        let config = JournalConfig { segment_bytes: 64 << 10, ..JournalConfig::default() };
        let (journal, recovered) = Journal::open(fs, config).unwrap();
        (Self { directory, journal: Some(journal) }, recovered.groups)
    }
}

impl Disk {
    /// From now on every batch also goes to a real journal.
    pub fn mirror(&mut self) {
        self.mirror = Some(Mirror::open(tempfile::tempdir().unwrap()).0);
    }

    /// Opens the real journal again and compares what it finds.
    pub fn check_mirror(&mut self) {
        let Some(mut mirror) = self.mirror.take() else { return };
        drop(mirror.journal.take());
        let (mirror, found) = Mirror::open(mirror.directory);
        let reader = mirror.journal.as_ref().unwrap().reader();
        let expected: Vec<_> = self.recovered().iter().map(|group| contents(group, &self.reader)).collect();
        let found: Vec<_> = found.iter().map(|group| contents(group, &reader)).collect();
        assert_eq!(found, expected);
        self.mirror = Some(mirror);
    }

    pub fn submit(&mut self, batch: Batch) {
        self.queue.push_back(batch);
    }

    pub fn is_idle(&self) -> bool {
        self.queue.is_empty()
    }

    pub fn queued(&self) -> u64 {
        self.queue.len() as u64
    }

    /// The oldest batch becomes durable.
    /// Checkpoints beside the commits are stored with their batch here; the simulator has them come later.
    pub fn complete_one(&mut self) -> Option<(Written, Upkeep)> {
        let batch = self.queue.pop_front()?;
        let mut upkeep = Upkeep::default();
        let mut written = Written { batch: batch.id, ..Written::default() };
        if let Some(journal) = self.mirror.as_mut().and_then(|mirror| mirror.journal.as_mut()) {
            let mirrored = journal.write(&batch).unwrap();
            assert_eq!(mirrored.batch, written.batch);
            // Asked twice without a batch in between, it writes what else it has to.
            for _ in 0..2 {
                while run_chore(journal) {}
                journal.upkeep().unwrap();
            }
        }
        for op in batch.ops {
            if let Op::CheckpointAside { key, id, .. } = op {
                if self.holds_checkpoints {
                    self.held.push(op);
                    continue;
                }
                upkeep.checkpoints.push(CheckpointStored { key, id, stored: true });
            }
            self.apply(op, &mut written);
        }
        Some((written, upkeep))
    }

    /// The checkpoints that were held are stored now.
    pub fn store_checkpoints(&mut self) -> Vec<CheckpointStored> {
        let mut stored = Vec::new();
        for op in std::mem::take(&mut self.held) {
            if let Op::CheckpointAside { key, id, .. } = op {
                stored.push(CheckpointStored { key, id, stored: true });
            }
            self.apply(op, &mut Written::default());
        }
        stored
    }

    /// Power loss: what was not reported is gone.
    pub fn crash(&mut self) {
        self.queue.clear();
    }

    fn store(&mut self, payload: Bytes) -> Location {
        let mut payloads = self.reader.payloads.lock().unwrap();
        let len = payload.len() as u32;
        payloads.push(Some(payload));
        Location { segment: 0, offset: payloads.len() as u32 - 1, len }
    }

    fn apply(&mut self, op: Op, written: &mut Written) {
        let Some(key) = op.key() else { return };
        if let Op::Destroy { .. } = op {
            self.groups.remove(&key);
            self.corruption.remove(&key);
            self.lost.clear();
            return;
        }
        match op {
            Op::Entry { index, term, payload, .. } => {
                let location = self.store(payload);
                self.lost.remove(&index);
                let group = self.groups.entry(key).or_default();
                let last = group.log.keys().next_back().copied().unwrap_or(group.compacted);
                assert!(index > group.compacted && index <= last + 1, "entry {index} leaves a gap after {last}");
                group.log.split_off(&index);
                group.log.insert(index, (term, location));
                written.records.push(WrittenRecord { key, index, term, body: false, location });
            }
            Op::Body { index, payload, .. } => {
                let location = self.store(payload);
                self.lost.remove(&index);
                self.groups.entry(key).or_default().bodies.insert(index, location);
                written.records.push(WrittenRecord { key, index, term: 0, body: true, location });
            }
            Op::Repaired { .. } => {
                let group = self.groups.entry(key).or_default();
                let needed = |index: &u64| group.log.contains_key(index) || group.bodies.contains_key(index);
                let missing: Vec<_> = self.lost.iter().copied().filter(needed).collect();
                assert!(missing.is_empty(), "{missing:?} is still missing");
                self.lost.clear();
                self.corruption.remove(&key);
            }
            other => {
                let group = self.groups.entry(key).or_default();
                let before = group.locations();
                group.control(other);
                let after = group.locations();
                before.difference(&after).for_each(|location| self.reader.give_up(*location));
            }
        }
    }

    /// Both copies of term and vote are damaged from here on, until the group is destroyed.
    pub fn lose_vote(&mut self) {
        for key in self.groups.keys() {
            let why = "term and vote in damaged blocks".to_owned();
            self.corruption.insert(*key, Corruption { hard_state: true, why, ..Corruption::default() });
        }
    }

    /// These entries, or bodies, of the only group lie in damaged blocks from here on.
    pub fn lose(&mut self, indexes: &[u64]) {
        let (key, group) = self.groups.iter().next().unwrap();
        for index in indexes {
            let location = group.log.get(index).map(|(_, location)| location).or(group.bodies.get(index));
            self.reader.give_up(*location.expect("it is there"));
        }
        self.lost.extend(indexes);
        let missing = self.lost.iter().map(|index| *index..=*index).collect();
        let why = "entries in damaged blocks".to_owned();
        self.corruption.insert(*key, Corruption { missing, why, ..Corruption::default() });
    }

    /// What a start finds.
    pub fn recovered(&self) -> Vec<RecoveredGroup> {
        let recover = |(key, group): (&GroupKey, &Group)| RecoveredGroup {
            key: *key,
            hard_state: group.hard_state,
            checkpoint: group.checkpoint.clone(),
            compacted: group.compacted,
            entries: group
                .log
                .iter()
                .filter(|(index, _)| !self.lost.contains(index))
                .map(|(index, (term, location))| RecoveredEntry { index: *index, term: *term, location: *location })
                .collect(),
            bodies: group
                .bodies
                .iter()
                .filter(|(index, _)| !self.lost.contains(index))
                .map(|(index, location)| (*index, *location))
                .collect(),
            corruption: self.corruption.get(key).cloned(),
        };
        self.groups.iter().map(recover).collect()
    }

    /// The durable log of the only group, as (index, term).
    pub fn log(&self) -> Vec<(u64, u64)> {
        let group = self.groups.values().next().cloned().unwrap_or_default();
        group.log.iter().map(|(index, (term, _))| (*index, *term)).collect()
    }

    /// The payload of a log entry of the only group cannot be read any more.
    pub fn damage(&self, index: u64) {
        let group = self.groups.values().next().unwrap();
        let location = group.bodies.get(&index).or(group.log.get(&index).map(|(_, location)| location));
        self.reader.give_up(*location.expect("it is there"));
    }

    pub fn hard_state(&self) -> Option<HardState> {
        self.groups.values().next()?.hard_state
    }

    pub fn bodies(&self) -> Vec<u64> {
        self.groups.values().next().map(|group| group.bodies.keys().copied().collect()).unwrap_or_default()
    }
}

/// What was found of a group, but for where it lies.
#[derive(Debug, PartialEq)]
struct Contents {
    key: GroupKey,
    hard_state: Option<HardState>,
    checkpoint: Option<Checkpoint>,
    compacted: u64,
    entries: Vec<(u64, u64, Bytes)>,
    bodies: Vec<(u64, Bytes)>,
}

fn contents(group: &RecoveredGroup, reader: &impl EntryReader) -> Contents {
    assert_eq!(group.corruption, None);
    let read = |location: Location| reader.read(location).unwrap();
    let entries = group.entries.iter().map(|entry| (entry.index, entry.term, read(entry.location)));
    Contents {
        key: group.key,
        hard_state: group.hard_state,
        checkpoint: group.checkpoint.clone(),
        compacted: group.compacted,
        entries: entries.collect(),
        bodies: group.bodies.iter().map(|(index, location)| (*index, read(*location))).collect(),
    }
}

impl Group {
    fn locations(&self) -> BTreeSet<Location> {
        self.log.values().map(|(_, location)| *location).chain(self.bodies.values().copied()).collect()
    }

    fn control(&mut self, op: Op) {
        match op {
            Op::HardState { term, vote, commit, .. } => {
                let before = self.hard_state.unwrap_or_default();
                assert!((term, commit) >= (before.term, 0) && commit >= before.commit, "a hard state goes back");
                assert!(term > before.term || before.vote == 0 || vote == before.vote, "a vote was changed");
                self.hard_state = Some(HardState { term, vote, commit });
            }
            Op::Checkpoint { index, term, conf, machine, .. }
            | Op::CheckpointAside { index, term, conf, machine, .. } => {
                let commit = self.hard_state.expect("a checkpoint follows a hard state").commit;
                assert!(commit >= index, "a checkpoint at {index} above the durable commit index {commit}");
                self.checkpoint = Some(Checkpoint { index, term, conf, machine });
            }
            Op::Compact { up_to, live, .. } => {
                let checkpoint = self.checkpoint.as_ref().expect("compaction follows a checkpoint").index;
                assert!(checkpoint >= up_to, "compacted to {up_to} with a checkpoint at {checkpoint}");
                self.bodies.retain(|index, _| live.contains(index));
                let above = self.log.split_off(&(up_to + 1));
                let below = std::mem::replace(&mut self.log, above);
                for index in live {
                    let moved = below.get(&index).map(|(_, location)| *location);
                    let body = self.bodies.get(&index).copied().or(moved);
                    self.bodies.insert(
                        index,
                        body.unwrap_or_else(|| {
                            panic!("live payload {index} is not here, compacting to {up_to} after {}", self.compacted)
                        }),
                    );
                }
                self.compacted = self.compacted.max(up_to);
            }
            Op::Dead { indexes, .. } => self.bodies.retain(|index, _| !indexes.contains(index)),
            Op::Reset { index, .. } => {
                for (entry, (_, location)) in std::mem::take(&mut self.log).range(..=index) {
                    self.bodies.entry(*entry).or_insert(*location);
                }
                self.compacted = index;
            }
            Op::Entry { .. }
            | Op::Body { .. }
            | Op::Repaired { .. }
            | Op::Destroy { .. }
            | Op::Identity(_)
            | Op::MovesTaken { .. } => unreachable!(),
        }
    }
}
