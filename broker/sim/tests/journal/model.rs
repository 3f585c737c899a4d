//! What a journal means, without a disk.

use std::collections::BTreeMap;

use bytes::Bytes;
use holdfast_journal::conformance::test_key;
use holdfast_journal::{Batch, BatchId, Checkpoint, EntryReader, GroupKey, HardState, Op, Recovered, RecoveredGroup};
use holdfast_sim::rng::Rng;

/// The state of every group.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Model {
    pub groups: BTreeMap<GroupKey, ModelGroup>,
    pub identity: Option<Bytes>,
}

/// The state of one group.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ModelGroup {
    pub hard_state: Option<HardState>,
    pub checkpoint: Option<Checkpoint>,
    /// The one that is stored beside the commits, and its id.
    pub aside: Option<(u64, Checkpoint)>,
    pub compacted: u64,
    pub log: BTreeMap<u64, (u64, Bytes)>,
    pub bodies: BTreeMap<u64, Bytes>,
}

impl ModelGroup {
    fn last(&self) -> u64 {
        self.log.last_key_value().map_or(self.compacted, |(index, _)| *index)
    }
}

impl Model {
    /// Applies one operation as its documentation says.
    pub fn apply(&mut self, op: &Op) {
        let Some(key) = op.key() else {
            if let Op::Identity(bytes) = op {
                self.identity = Some(bytes.clone());
            }
            return;
        };
        if matches!(op, Op::Destroy { .. }) {
            self.groups.remove(&key);
            return;
        }
        let group = self.groups.entry(key).or_default();
        match op {
            Op::Entry { index, term, payload, .. } => {
                group.log.split_off(index);
                group.log.insert(*index, (*term, payload.clone()));
            }
            Op::HardState { term, vote, commit, .. } => {
                group.hard_state = Some(HardState { term: *term, vote: *vote, commit: *commit });
            }
            Op::Body { index, payload, .. } => {
                group.bodies.insert(*index, payload.clone());
            }
            Op::Checkpoint { index, term, conf, machine, .. } => {
                let (conf, machine) = (conf.clone(), machine.clone());
                group.checkpoint = Some(Checkpoint { index: *index, term: *term, conf, machine });
            }
            Op::Compact { up_to, live, .. } => {
                let above = group.log.split_off(&(up_to + 1));
                for (index, (_, payload)) in std::mem::replace(&mut group.log, above) {
                    group.bodies.entry(index).or_insert(payload);
                }
                group.bodies.retain(|index, _| index > up_to || live.contains(index));
                group.compacted = *up_to;
            }
            Op::Dead { indexes, .. } => group.bodies.retain(|index, _| !indexes.contains(index)),
            Op::Reset { index, .. } => {
                for (entry, (_, payload)) in std::mem::take(&mut group.log) {
                    if entry <= *index {
                        group.bodies.entry(entry).or_insert(payload);
                    }
                }
                group.compacted = *index;
            }
            Op::CheckpointAside { id, index, term, conf, machine, .. } => {
                let (conf, machine) = (conf.clone(), machine.clone());
                group.aside = Some((*id, Checkpoint { index: *index, term: *term, conf, machine }));
            }
            Op::Repaired { .. } | Op::Destroy { .. } | Op::Identity(_) | Op::MovesTaken { .. } => {}
        }
        if matches!(op, Op::Checkpoint { .. } | Op::Reset { .. }) {
            group.aside = None;
        }
    }

    /// The journal says that this checkpoint beside the commits counts from now on.
    pub fn stored(&mut self, key: GroupKey, id: u64) {
        let Some(group) = self.groups.get_mut(&key) else { return };
        if let Some((_, checkpoint)) = group.aside.take_if(|(pending, _)| *pending == id) {
            group.checkpoint = Some(checkpoint);
        }
    }

    /// The states that a crash may leave: each checkpoint on its way may count already, or never will.
    pub fn with_asides(&self) -> Vec<Model> {
        let mut all = vec![self.clone()];
        for (key, group) in &self.groups {
            let Some((id, _)) = &group.aside else { continue };
            let mut more = all.clone();
            more.iter_mut().for_each(|model| model.stored(*key, *id));
            all.extend(more);
        }
        all.iter_mut().flat_map(|model| model.groups.values_mut()).for_each(|group| group.aside = None);
        all
    }
}

/// Makes operations that a replica could ask for.
pub struct Workload {
    rng: Rng,
    next_batch: u64,
}

impl Workload {
    pub fn new(rng: Rng) -> Self {
        Self { rng, next_batch: 0 }
    }

    /// The next batch; `model` has it applied.
    pub fn batch(&mut self, model: &mut Model) -> Batch {
        self.next_batch += 1;
        let mut ops = Vec::new();
        for _ in 0..self.rng.range(1, 6) {
            let key = test_key(self.rng.range(0, 4));
            let group = model.groups.get(&key).cloned().unwrap_or_default();
            for op in self.ops(key, &group) {
                model.apply(&op);
                ops.push(op);
            }
        }
        Batch { id: BatchId(self.next_batch), ops }
    }

    fn payload(&mut self) -> Bytes {
        let len = if self.rng.chance(5) { self.rng.range(2_000, 20_000) } else { self.rng.range(0, 300) };
        let fill = self.rng.draw();
        (0..len).map(|position| (fill >> (position % 8 * 8)) as u8).collect()
    }

    fn ops(&mut self, key: GroupKey, group: &ModelGroup) -> Vec<Op> {
        let term = group.hard_state.map_or(1, |state| state.term);
        match self.rng.range(0, 100) {
            0..55 => self.append(key, group, term),
            55..70 => vec![self.hard_state(key, group, term + self.rng.clone().range(0, 2))],
            70..80 if group.last() > group.compacted => self.compact(key, group, term),
            80..92 if !group.bodies.is_empty() => {
                let below = group.bodies.range(..=group.compacted).map(|(index, _)| *index);
                let indexes = below.filter(|_| self.rng.chance(60)).collect();
                vec![Op::Dead { key, indexes }]
            }
            94..96 => self.install(key, group, term),
            92..94 if group.last() > group.checkpoint.as_ref().map_or(0, |checkpoint| checkpoint.index) => {
                self.checkpoint_aside(key, group, term)
            }
            96 => vec![Op::Body { key, index: group.last() + 5, payload: self.payload() }],
            97 => vec![Op::Destroy { key }],
            98 => vec![Op::Identity(self.payload())],
            _ => self.append(key, group, term),
        }
    }

    fn append(&mut self, key: GroupKey, group: &ModelGroup, term: u64) -> Vec<Op> {
        let mut index = group.last() + 1;
        if self.rng.chance(15) && group.last() > group.compacted {
            index = self.rng.range(group.compacted + 1, group.last() + 1);
        }
        (0..self.rng.range(1, 8))
            .map(|step| Op::Entry { key, index: index + step, term, payload: self.payload() })
            .collect()
    }

    fn hard_state(&mut self, key: GroupKey, group: &ModelGroup, term: u64) -> Op {
        Op::HardState { key, term, vote: self.rng.range(0, 4), commit: group.last() }
    }

    fn checkpoint(&mut self, key: GroupKey, index: u64, term: u64) -> Op {
        Op::Checkpoint { key, index, term, conf: self.payload(), machine: self.payload() }
    }

    fn checkpoint_aside(&mut self, key: GroupKey, group: &ModelGroup, term: u64) -> Vec<Op> {
        let (id, index, conf, machine) = (self.rng.draw(), group.last(), self.payload(), self.payload());
        let hard_state = self.hard_state(key, group, term);
        vec![hard_state, Op::CheckpointAside { key, id, index, term, conf, machine }]
    }

    fn compact(&mut self, key: GroupKey, group: &ModelGroup, term: u64) -> Vec<Op> {
        let up_to = self.rng.range(group.compacted + 1, group.last() + 1);
        let kept = self.rng.range(0, 60);
        let known = group.bodies.keys().chain(group.log.keys().take_while(|index| **index <= up_to));
        let mut live: Vec<u64> = known.copied().filter(|_| self.rng.chance(kept)).collect();
        live.sort_unstable();
        live.dedup();
        let mut ops = vec![self.hard_state(key, group, term)];
        ops.push(self.checkpoint(key, up_to, term));
        ops.push(Op::Compact { key, up_to, live });
        ops
    }

    /// A Raft snapshot from elsewhere.
    fn install(&mut self, key: GroupKey, group: &ModelGroup, term: u64) -> Vec<Op> {
        let index = group.last() + self.rng.range(1, 20);
        let mut live: Vec<u64> = (index.saturating_sub(10).max(1)..=index).filter(|_| self.rng.chance(30)).collect();
        let mut ops: Vec<Op> =
            live.iter().map(|index| Op::Body { key, index: *index, payload: self.payload() }).collect();
        live.extend(group.bodies.keys().chain(group.log.keys()).copied().filter(|_| self.rng.chance(20)));
        live.sort_unstable();
        live.dedup();
        ops.push(Op::HardState { key, term, vote: 0, commit: index });
        ops.push(self.checkpoint(key, index, term));
        ops.push(Op::Reset { key, index, term });
        ops.push(Op::Compact { key, up_to: index, live });
        ops
    }
}

/// Whether a recovery found this state. Bodies may be more than the live ones, never fewer or others.
pub fn recovered_equals(recovered: &Recovered, model: &Model, reader: &impl EntryReader) -> Result<(), String> {
    let found: BTreeMap<GroupKey, &RecoveredGroup> = recovered.groups.iter().map(|group| (group.key, group)).collect();
    if recovered.identity != model.identity {
        return Err("another identity".into());
    }
    if found.keys().ne(model.groups.keys()) {
        return Err(format!("groups {:?} instead of {:?}", found.keys(), model.groups.keys()));
    }
    for (key, group) in &model.groups {
        group_equals(found[key], group, reader).map_err(|why| format!("{key}: {why}"))?;
    }
    Ok(())
}

fn group_equals(found: &RecoveredGroup, group: &ModelGroup, reader: &impl EntryReader) -> Result<(), String> {
    if let Some(corruption) = &found.corruption {
        return Err(format!("taken as corrupt: {corruption:?}"));
    }
    let expected = group.hard_state.map(|state| HardState {
        commit: state.commit.max(group.checkpoint.as_ref().map_or(0, |checkpoint| checkpoint.index)),
        ..state
    });
    if (found.hard_state, &found.checkpoint, found.compacted) != (expected, &group.checkpoint, group.compacted) {
        return Err(format!("{:?} {} instead of {expected:?} {}", found.hard_state, found.compacted, group.compacted));
    }
    let log: Vec<(u64, u64)> = found.entries.iter().map(|entry| (entry.index, entry.term)).collect();
    let expected: Vec<(u64, u64)> = group.log.iter().map(|(index, (term, _))| (*index, *term)).collect();
    if log != expected {
        return Err(format!("log {log:?} instead of {expected:?}"));
    }
    for entry in &found.entries {
        let payload = reader.read(entry.location).map_err(|error| error.to_string())?;
        if payload != group.log[&entry.index].1 {
            return Err(format!("entry {} has another payload", entry.index));
        }
    }
    let bodies: BTreeMap<u64, _> = found.bodies.iter().copied().collect();
    for (index, payload) in &group.bodies {
        let location = bodies.get(index).ok_or(format!("body {index} is missing"))?;
        if reader.read(*location).map_err(|error| error.to_string())? != *payload {
            return Err(format!("body {index} has another payload"));
        }
    }
    Ok(())
}
