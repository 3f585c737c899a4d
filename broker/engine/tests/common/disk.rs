//! A disk in memory: every batch is durable at once, and what was written can be recovered.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use holdfast_engine::Input;
use holdfast_journal::{
    Batch, Checkpoint, CheckpointStored, EntryReader, GroupKey, HardState, Location, Op, ReadError, Recovered,
    RecoveredEntry, RecoveredGroup, Upkeep, Written, WrittenRecord,
};

/// Payloads and what is recorded of them; a location's offset is the place in the list.
#[derive(Clone, Default)]
pub struct MemoryDisk(Arc<Mutex<Contents>>);

#[derive(Default)]
struct Contents {
    payloads: Vec<Bytes>,
    /// Places of those that cannot be read any more.
    rotten: BTreeSet<u32>,
    identity: Option<Bytes>,
    groups: BTreeMap<GroupKey, RecoveredGroup>,
    /// Batches that wait while the disk stands still.
    stalled: Option<Vec<Batch>>,
}

impl MemoryDisk {
    pub fn stall(&self) {
        self.0.lock().expect("no panic holds it").stalled.get_or_insert_default();
    }

    pub fn is_stalled(&self) -> bool {
        self.0.lock().expect("no panic holds it").stalled.is_some()
    }

    pub fn hold(&self, batch: Batch) {
        self.0.lock().expect("no panic holds it").stalled.get_or_insert_default().push(batch);
    }

    /// The disk goes on, with these.
    pub fn resume(&self) -> Vec<Batch> {
        self.0.lock().expect("no panic holds it").stalled.take().unwrap_or_default()
    }

    /// Nothing that was written so far with this in it can be read any more; what of it the disk counts on.
    pub fn rot(&self, text: &str) -> Vec<(GroupKey, u64)> {
        let mut contents = self.0.lock().expect("no panic holds it");
        let contents = &mut *contents;
        let holds_it = |payload: &Bytes| payload.windows(text.len()).any(|part| part == text.as_bytes());
        let rotten = contents.payloads.iter().enumerate().filter(|(_, payload)| holds_it(payload));
        let rotten: BTreeSet<u32> = rotten.map(|(at, _)| at as u32).collect();
        let mut found = Vec::new();
        for group in contents.groups.values() {
            let entries = group.entries.iter().map(|entry| (entry.index, entry.location));
            let all = group.bodies.iter().copied().chain(entries);
            found.extend(all.filter(|(_, at)| rotten.contains(&at.offset)).map(|(index, _)| (group.key, index)));
        }
        contents.rotten.extend(rotten);
        found
    }

    /// What the member hears of it.
    pub fn write(&self, batch: Batch) -> [Input; 2] {
        let mut contents = self.0.lock().expect("no panic holds it");
        let mut written = Written { batch: batch.id, ..Written::default() };
        let mut upkeep = Upkeep::default();
        for op in batch.ops {
            if let Op::CheckpointAside { key, id, .. } = op {
                upkeep.checkpoints.push(CheckpointStored { key, id, stored: true });
            }
            contents.carry_out(op, &mut written);
        }
        [Input::Written(written), Input::Upkeep(upkeep)]
    }

    /// What a start finds.
    pub fn recover(&self) -> Recovered {
        let contents = self.0.lock().expect("no panic holds it");
        Recovered {
            forgetful: false,
            identity: contents.identity.clone(),
            groups: contents.groups.values().cloned().collect(),
            findings: Vec::new(),
        }
    }
}

impl Contents {
    fn store(&mut self, payload: Bytes) -> Location {
        let location = Location { segment: 0, offset: self.payloads.len() as u32, len: payload.len() as u32 };
        self.payloads.push(payload);
        location
    }

    fn group(&mut self, key: GroupKey) -> &mut RecoveredGroup {
        self.groups.entry(key).or_insert_with(|| RecoveredGroup { key, ..RecoveredGroup::default() })
    }

    fn carry_out(&mut self, op: Op, written: &mut Written) {
        match op {
            Op::Entry { key, index, term, payload } => {
                let location = self.store(payload);
                let group = self.group(key);
                group.entries.retain(|entry| entry.index < index);
                group.entries.push(RecoveredEntry { index, term, location });
                written.records.push(WrittenRecord { key, index, term, body: false, location });
            }
            Op::Body { key, index, payload } => {
                let location = self.store(payload);
                self.group(key).bodies.retain(|(other, _)| *other != index);
                keep_body(self.group(key), index, location);
                written.records.push(WrittenRecord { key, index, term: 0, body: true, location });
            }
            Op::HardState { key, term, vote, commit } => {
                self.group(key).hard_state = Some(HardState { term, vote, commit });
            }
            Op::CheckpointAside { key, index, term, conf, machine, .. } => {
                self.group(key).checkpoint = Some(Checkpoint { index, term, conf, machine });
            }
            Op::Checkpoint { key, index, term, conf, machine } => {
                self.group(key).checkpoint = Some(Checkpoint { index, term, conf, machine });
                written.checkpoints.push((key, index));
            }
            Op::Compact { key, up_to, live } => {
                let group = self.group(key);
                leave_bodies(group, up_to);
                group.bodies.retain(|(index, _)| *index > up_to || live.contains(index));
            }
            Op::Dead { key, indexes } => self.group(key).bodies.retain(|(index, _)| !indexes.contains(index)),
            Op::Reset { key, index, .. } => {
                let group = self.group(key);
                leave_bodies(group, index);
                group.entries.clear();
            }
            Op::Destroy { key } => {
                self.groups.remove(&key);
            }
            Op::Identity(bytes) => self.identity = Some(bytes),
            Op::Repaired { key } => self.group(key).corruption = None,
            Op::MovesTaken { .. } => {}
        }
    }
}

fn keep_body(group: &mut RecoveredGroup, index: u64, location: Location) {
    if let Err(at) = group.bodies.binary_search_by_key(&index, |(index, _)| *index) {
        group.bodies.insert(at, (index, location));
    }
}

/// Log entries up to `up_to` are bodies from now on.
fn leave_bodies(group: &mut RecoveredGroup, up_to: u64) {
    group.compacted = group.compacted.max(up_to);
    let entries = std::mem::take(&mut group.entries);
    let (below, above): (Vec<_>, Vec<_>) = entries.into_iter().partition(|entry| entry.index <= up_to);
    group.entries = above;
    for entry in below {
        keep_body(group, entry.index, entry.location);
    }
}

impl EntryReader for MemoryDisk {
    fn read(&self, location: Location) -> Result<Bytes, ReadError> {
        let contents = self.0.lock().expect("no panic holds it");
        if contents.rotten.contains(&location.offset) {
            return Err(ReadError::Damaged { location });
        }
        contents.payloads.get(location.offset as usize).cloned().ok_or(ReadError::Gone { location })
    }
}
