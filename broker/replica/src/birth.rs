//! How a replica comes to be: with its group, later as a joiner, or from disk; and how it ends.
//!
//! All founding replicas start at term 1 with their vote given to the chosen leader, at log index 1, which stands for the
//! birth itself. The chosen leader makes that durable *first*; only then does it become leader of term 1, without an
//! election. Whoever finds a birth record on disk starts as a follower and never leads term 1 again: it may have done so,
//! with a log that did not survive. Since no log begins at index 0, a replica that is added later always gets a Raft
//! snapshot and never has to guess the machine's first state.

use holdfast_journal::{Checkpoint, EntryReader, GroupKey, Op, RecoveredGroup};
use holdfast_queue::Machine;
use holdfast_queue::ids::{GroupId, MemberId, ReplicaId};
use raft::eraftpb::{ConfState, HardState};
use tracing::info;

use crate::api::{CreateError, GroupBirth, GroupStatus, HostOutput, Role};
use crate::conf::StoredConf;
use crate::group::{Group, Start};
use crate::host::{Host, Replica};
use crate::log::GroupLog;
use crate::writes::After;
use holdfast_queue::time::Instant;

/// The log position of a group's birth.
pub(crate) const BIRTH_INDEX: u64 = 1;
/// The term of a group's birth.
const BIRTH_TERM: u64 = 1;

/// A replica that waits for its birth record before it leads.
pub(crate) struct Forming<M> {
    birth: GroupBirth<M>,
}

impl<M> Forming<M> {
    pub fn key(&self) -> GroupKey {
        self.birth.key
    }

    pub fn machine(&self) -> &M {
        &self.birth.machine
    }

    pub fn status(&self) -> GroupStatus {
        let founders = |members: &[MemberId]| members.iter().copied().map(ReplicaId::founder).collect();
        GroupStatus {
            key: self.birth.key,
            generation: Some(0),
            role: Role::Forming,
            term: BIRTH_TERM,
            leader: self.birth.leader,
            me_leading: false,
            commit: BIRTH_INDEX,
            applied: BIRTH_INDEX,
            last: BIRTH_INDEX,
            compacted: BIRTH_INDEX,
            checkpoint: 0,
            log_bytes: 0,
            voters: founders(&self.birth.voters),
            learners: founders(&self.birth.learners),
            joint: false,
            changed_at: 0,
            change_durable: true,
            peers: Vec::new(),
            quiesced: false,
            quarantined: None,
        }
    }
}

fn hard_state(term: u64, vote: u64, commit: u64) -> HardState {
    HardState { term, vote, commit, ..HardState::default() }
}

/// The founders' membership. They are of generation 0.
fn conf_state(voters: &[MemberId], learners: &[MemberId]) -> ConfState {
    let ids = |members: &[MemberId]| members.iter().map(|member| ReplicaId::founder(*member).raft_id()).collect();
    ConfState { voters: ids(voters), learners: ids(learners), ..ConfState::default() }
}

impl<M: Machine, R: EntryReader> Host<M, R> {
    /// A founding replica of a new group. Only for a group that this disk knows nothing of.
    pub fn create_group(&mut self, birth: GroupBirth<M>, now: Instant) -> Result<(), CreateError> {
        self.cx.now = now;
        self.check_absent(birth.key)?;
        if birth.voters.is_empty() {
            return Err(CreateError::NoVoters);
        }
        if let Some(leader) = birth.leader.filter(|leader| !birth.voters.contains(leader)) {
            return Err(CreateError::LeaderNotAVoter { leader });
        }
        if !birth.voters.contains(&self.cx.me) && !birth.learners.contains(&self.cx.me) {
            return Err(CreateError::NotAMember);
        }
        let id = GroupId(birth.key.group);
        let key = birth.key;
        let conf = conf_state(&birth.voters, &birth.learners);
        let vote = birth.leader.map_or(0, |leader| leader.0);
        info!(group = %id, leader = vote, "a group is born");
        let stored = StoredConf { conf: conf.clone(), ..StoredConf::default() };
        self.write_birth(key, (BIRTH_TERM, vote, BIRTH_INDEX), &stored, &birth.machine);
        if birth.leader == Some(self.cx.me) {
            let batch = self.cx.writes.push(Op::Reset { key, index: BIRTH_INDEX, term: BIRTH_TERM });
            let _ = self.cx.writes.after(batch, After::Born { key });
            self.replicas.insert(id, Replica::Forming(Box::new(Forming { birth })));
            return Ok(());
        }
        self.cx.writes.push(Op::Reset { key, index: BIRTH_INDEX, term: BIRTH_TERM });
        let state = hard_state(BIRTH_TERM, vote, BIRTH_INDEX);
        let log = GroupLog::new(self.reader.clone(), state, conf, (BIRTH_INDEX, BIRTH_TERM));
        // The birth record is on its way; nothing that relies on it leaves before a later batch is durable.
        let start = Start {
            key,
            generation: 0,
            changed_at: 0,
            log,
            machine: birth.machine,
            applied: BIRTH_INDEX,
            vote: (BIRTH_TERM, vote),
            commit: BIRTH_INDEX,
        };
        self.start(start);
        self.unpark(key);
        Ok(())
    }

    /// A replica of a group that lives already: it knows nothing until the leader, which has been told to add it, sends a
    /// Raft snapshot. `machine` stands in until then. A generation is used once on a member, ever: a replica that was
    /// destroyed may have voted and acknowledged, and is never made again under the same one. (Generation 0 is for a
    /// founder that was away at the birth.)
    pub fn join_group(&mut self, key: GroupKey, generation: u32, machine: M, now: Instant) -> Result<(), CreateError> {
        self.cx.now = now;
        self.check_absent(key)?;
        info!(group = key.group, generation, "joining a group");
        self.write_birth(key, (0, 0, 0), &StoredConf { generation, ..StoredConf::default() }, &machine);
        let log = GroupLog::new(self.reader.clone(), HardState::default(), ConfState::default(), (0, 0));
        self.start(Start { key, generation, changed_at: 0, log, machine, applied: 0, vote: (0, 0), commit: 0 });
        self.unpark(key);
        Ok(())
    }

    fn check_absent(&self, key: GroupKey) -> Result<(), CreateError> {
        match self.replicas.get(&GroupId(key.group)) {
            Some(present) => Err(CreateError::Exists { present: present.key() }),
            None => Ok(()),
        }
    }

    fn write_birth(&mut self, key: GroupKey, state: (u64, u64, u64), conf: &StoredConf, machine: &M) {
        let (term, vote, index) = state;
        let (conf, machine) = (conf.encode(), machine.snapshot());
        self.cx.writes.push(Op::HardState { key, term, vote, commit: index });
        self.cx.writes.push(Op::Checkpoint { key, index, term, conf, machine });
    }

    /// The chosen leader's birth record is durable: it leads term 1.
    pub(crate) fn begin_to_lead(&mut self, id: GroupId) {
        let Some(Replica::Forming(forming)) = self.replicas.remove(&id) else { return };
        let birth = forming.birth;
        let conf = conf_state(&birth.voters, &birth.learners);
        // From term 0, so that becoming a candidate arrives at term 1.
        let state = hard_state(0, 0, BIRTH_INDEX);
        let log = GroupLog::new(self.reader.clone(), state, conf, (BIRTH_INDEX, BIRTH_TERM));
        self.start(Start {
            key: birth.key,
            generation: 0,
            changed_at: 0,
            log,
            machine: birth.machine,
            applied: BIRTH_INDEX,
            vote: (BIRTH_TERM, self.cx.me.0),
            commit: BIRTH_INDEX,
        });
        // What came in meanwhile waits: it may be of a later term, whose follower this replica is about to be.
        self.guarded(id, |group, _| {
            group.raw.raft.become_candidate();
            group.raw.raft.become_leader();
            group.raw.raft.bcast_append();
        });
        self.unpark(birth.key);
    }

    /// A replica that was found on disk. It starts as a follower; if it is damaged, when its peers have given back what was
    /// lost. Damage that they cannot mend puts it into quarantine.
    pub fn restore_group(&mut self, recovered: RecoveredGroup, now: Instant) -> Result<(), CreateError> {
        self.cx.now = now;
        self.check_absent(recovered.key)?;
        if recovered.corruption.is_none() {
            self.start_recovered(recovered);
        } else if let Err(recovered) = self.begin_mending(recovered) {
            self.start_recovered(*recovered);
        }
        Ok(())
    }

    /// As [`Host::restore_group`], without a way to mend it.
    pub(crate) fn start_recovered(&mut self, recovered: RecoveredGroup) {
        let key = recovered.key;
        let conf = recovered.checkpoint.as_ref().and_then(|checkpoint| StoredConf::decode(&checkpoint.conf).ok());
        let generation = conf.map(|conf| conf.generation);
        match self.restored_start(recovered) {
            Ok(start) => {
                self.start(start);
                self.unpark(key);
            }
            Err(why) => {
                let id = GroupId(key.group);
                self.replicas.insert(id, Replica::Quarantined { key, generation, why: why.clone() });
                self.cx.outbox.push_back(HostOutput::Quarantined { group: id, why });
            }
        }
    }

    fn restored_start(&mut self, recovered: RecoveredGroup) -> Result<Start<M, R>, String> {
        if let Some(corruption) = recovered.corruption {
            return Err(corruption.why);
        }
        let key = recovered.key;
        let (Some(state), Some(checkpoint)) = (recovered.hard_state, recovered.checkpoint) else {
            return Err("its hard state or its first checkpoint is not on disk".into());
        };
        let stored = StoredConf::decode(&checkpoint.conf).map_err(|_| "its membership cannot be read".to_owned())?;
        let machine =
            M::restore(&checkpoint.machine).map_err(|error| format!("its checkpoint cannot be read: {error}"))?;
        let commit = state.commit.max(checkpoint.index);
        let log_state = hard_state(state.term, state.vote, commit);
        let (prefix, skip) = first_known_term(&checkpoint, recovered.compacted, &recovered.entries)?;
        let mut log = GroupLog::new(self.reader.clone(), log_state, stored.conf, prefix);
        let live = machine.live_indexes();
        let mut dead = Vec::new();
        // Both lists ascend, so one pass is enough for ten million.
        let mut listed = live.iter().peekable();
        for (index, location) in recovered.bodies {
            while listed.next_if(|next| **next < index).is_some() {}
            match listed.next_if(|next| **next == index) {
                Some(_) => log.push_body(index, location),
                None => dead.push(index),
            }
        }
        for entry in &recovered.entries[..skip] {
            if live.binary_search(&entry.index).is_ok() {
                log.push_body(entry.index, entry.location);
            }
        }
        let mut term = prefix.1;
        for entry in &recovered.entries[skip..] {
            if entry.index != log.last() + 1 || entry.term < term {
                return Err(format!("its log is not whole at index {}", entry.index));
            }
            term = entry.term;
            log.push_recovered(entry.term, entry.location);
        }
        if state.term < term {
            return Err(format!("its term {} is older than its log's {term}", state.term));
        }
        if commit > log.last() {
            return Err(format!("its log ends at {} although {commit} was committed", log.last()));
        }
        if !dead.is_empty() {
            self.cx.writes.push_lazily(Op::Dead { key, indexes: dead }, self.cx.now);
        }
        let (applied, vote) = (checkpoint.index, (state.term, state.vote));
        let StoredConf { changed_at, generation, .. } = stored;
        Ok(Start { key, generation, changed_at, log, machine, applied, vote, commit })
    }

    fn start(&mut self, start: Start<M, R>) {
        let key = start.key;
        let generation = Some(start.generation);
        let id = GroupId(key.group);
        match Group::new(start, &self.cx, &self.logger) {
            Ok(group) => {
                self.replicas.insert(id, Replica::Running(Box::new(group)));
                self.cx.active.insert(id);
                self.cx.dirty.insert(id);
            }
            Err(error) => {
                let why = format!("raft refuses what is on disk: {error}");
                self.replicas.insert(id, Replica::Quarantined { key, generation, why: why.clone() });
                self.cx.outbox.push_back(HostOutput::Quarantined { group: id, why });
            }
        }
    }

    fn unpark(&mut self, key: GroupKey) {
        for (from, envelope) in self.parking.take(key) {
            let now = self.cx.now;
            self.handle_envelope(from, envelope, now);
        }
    }

    /// Forgets the group and all that is on disk of it. Nothing happens if another life of it is here.
    pub fn destroy_group(&mut self, key: GroupKey) {
        let id = GroupId(key.group);
        if self.replicas.get(&id).is_none_or(|replica| replica.key() != key) {
            return;
        }
        #[cfg(feature = "mutants")]
        if holdfast_queue::mutants::is_planted(holdfast_queue::mutants::Mutant::DeletedGroupKept) {
            return;
        }
        info!(group = %id, "destroyed");
        self.replicas.remove(&id);
        self.forget(id);
        self.cx.writes.forget(key);
        self.cx.writes.push(Op::Destroy { key });
    }
}

/// Where the log can begin, and how many entries are before that. raft-rs needs the term at the prefix. The journal keeps
/// none, so it is the checkpoint's if that is where the prefix is, and else the first entry's own.
pub(crate) fn first_known_term(
    checkpoint: &Checkpoint,
    compacted: u64,
    entries: &[holdfast_journal::RecoveredEntry],
) -> Result<((u64, u64), usize), String> {
    if compacted == checkpoint.index {
        return Ok(((checkpoint.index, checkpoint.term), 0));
    }
    match entries.first() {
        Some(first) if compacted < checkpoint.index && first.index == compacted + 1 => {
            Ok(((first.index, first.term), 1))
        }
        _ => Err(format!("its log does not reach its checkpoint at index {}", checkpoint.index)),
    }
}
