//! A running replica that finds records of its log to be damaged: it stands still, its peers give back what it lost, and it
//! goes on where it stood.
//!
//! Why that is safe: while it stands still it does what a replica does that is off, which is nothing: it neither votes,
//! campaigns, acknowledges nor leads. It begins again as a follower, from the term, vote, log and machine that it had; all
//! of that is durable by then, since what it lost is written in a batch behind everything else of the group. What it takes
//! from a peer is provably what it had, as in [`crate::mending`]. What was never said to be persisted is forgotten, as by a
//! crash. So nobody sees a difference to a process that was ended and started, and nothing is applied twice: the machine
//! stays.
//!
//! What is at or below `applied` needs no place in the log: it is checkpointed and compacted away, and only the bodies that
//! the machine needs come back. What is above is written anew, to the end of the log.
//!
//! A payload that a peer has given up is dead by the log up to an index that is committed. Whoever leads later has applied
//! that before it serves (Raft §5.4), so nobody will ask this replica for it: it need not come back.
//!
//! An entry above `applied` that every peer has compacted comes back from nobody: the replica asks to be replaced at once.
//!
//! Group 0, a replica whose log is being replaced by a snapshot, and one without peers are not mended in this way.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use holdfast_journal::{EntryReader, Op};
use holdfast_queue::Machine;
use holdfast_queue::ids::{GroupId, ReplicaId};
use holdfast_queue::time::Instant;
use raft::Storage;
use raft::eraftpb::{ConfState, HardState};
use tracing::{info, warn};

use crate::api::HostOutput;
use crate::context::Context;
use crate::envelope::{Body, entry};
use crate::group::{Group, Start};
use crate::host::{Host, Replica};
use crate::log::GroupLog;
use crate::mending::{
    ASK_EVERY, Compacted, FoundEntry, MOST_ASKED, MOST_MISSING, MOST_REWRITTEN_BYTES, PATIENCE, Wanted,
};
use crate::writes::After;

/// A replica that stands still until it has back what it lost.
pub(crate) struct Healing<M: Machine, R: EntryReader> {
    /// As it stood. Its Raft state is not used any more.
    pub group: Group<M, R>,
    /// What happened to the disk, in words.
    pub why: String,
    since: Instant,
    ask_at: Instant,
    /// It took too long: it asks to be replaced.
    pub overdue: bool,
    /// All that is damaged.
    lost: BTreeSet<u64>,
    wanted: BTreeMap<u64, Wanted>,
    compacted: Compacted,
    /// Term and payload of what was found.
    found: BTreeMap<u64, (u64, Bytes)>,
    /// The repair is being written.
    writing: bool,
    /// Found to be damaged meanwhile.
    again: BTreeSet<u64>,
}

impl<M: Machine, R: EntryReader> Healing<M, R> {
    fn new(group: Group<M, R>, why: String, now: Instant) -> Self {
        Self {
            group,
            why,
            since: now,
            ask_at: now,
            overdue: false,
            lost: BTreeSet::new(),
            wanted: BTreeMap::new(),
            compacted: Compacted::default(),
            found: BTreeMap::new(),
            writing: false,
            again: BTreeSet::new(),
        }
    }

    /// These are damaged.
    fn add(&mut self, indexes: &BTreeSet<u64>) {
        if self.writing {
            self.again.extend(indexes);
            return;
        }
        let (log, applied) = (self.group.log(), self.group.applied);
        let live = self.group.machine.live_indexes();
        for index in indexes.iter().copied().filter(|index| !self.lost.contains(index)) {
            let is_body = index <= applied;
            if is_body && live.binary_search(&index).is_err() {
                continue;
            }
            #[cfg(feature = "mutants")]
            if is_body && holdfast_queue::mutants::is_planted(holdfast_queue::mutants::Mutant::MendedWithHoles) {
                continue;
            }
            let term = if is_body { 0 } else { log.term(index).unwrap_or(0) };
            match log.cached(index) {
                Some(payload) => drop(self.found.insert(index, (term, payload))),
                None => {
                    let committed = index <= applied.max(self.group.written_state.commit);
                    self.wanted.insert(index, Wanted { terms: term..=term, is_body, committed });
                }
            }
        }
        self.lost.extend(indexes);
    }

    /// As for a running group, without a compaction.
    pub fn checkpoint_stored(&mut self, id: u64, stored: bool) {
        let pending = self.group.checkpoint_pending.take_if(|(pending, _)| *pending == id);
        if let Some((_, index)) = pending.filter(|_| stored) {
            self.group.checkpoint = self.group.checkpoint.max(index);
        }
    }

    /// A peer answered. True if something of it was wanted.
    pub fn take(&mut self, peer: ReplicaId, entries: Vec<FoundEntry>, gone: &[u64]) -> bool {
        self.compacted.sort_out(peer, (entries, gone), &mut self.wanted, &mut self.found)
    }

    fn ask<E>(&self, to: ReplicaId, cx: &mut Context<E>) {
        let indexes = self.wanted.keys().copied().take(MOST_ASKED).collect();
        cx.send(self.group.header(to, cx), Body::Fetch { indexes });
    }

    /// What makes the log whole on disk, once everything is there; the log in memory follows. None when more is wanted, or
    /// when it has to wait.
    ///
    /// # Errors
    /// Why it cannot be done.
    fn repair<E>(&mut self, cx: &mut Context<E>) -> Result<bool, String> {
        let (key, applied, prefix) = (self.group.key, self.group.applied, self.group.log().prefix().0);
        let below = self.lost.range(prefix + 1..).take_while(|index| **index <= applied).last().copied();
        // A backup is about to hold the history that a compaction would drop. It does not take long.
        if self.writing || (below.is_some() && cx.keeps_history()) {
            return Ok(false);
        }
        let rewritten = match self.lost.range(applied + 1..).next().copied() {
            Some(first) => self.rewritten(first)?,
            None => Vec::new(),
        };
        if !self.wanted.is_empty() {
            return Ok(false);
        }
        let HardState { term, vote, commit, .. } = self.group.written_state;
        // Whoever gives payloads up writes down how far it had applied.
        self.group.written_state.commit = commit.max(applied);
        let batch = cx.writes.push(Op::HardState { key, term, vote, commit: commit.max(applied) });
        for (index, (_, payload)) in self.found.range(..=applied) {
            cx.writes.push(Op::Body { key, index: *index, payload: payload.clone() });
        }
        if let Some(last) = below {
            self.fold(last, cx)?;
        }
        if !self.compacted.dead.is_empty() {
            let indexes: Vec<u64> = self.compacted.dead.iter().copied().collect();
            self.group.log_mut().forget(&indexes);
            cx.writes.push(Op::Dead { key, indexes });
        }
        for (index, term, payload) in &rewritten {
            cx.writes.push(Op::Entry { key, index: *index, term: *term, payload: payload.clone() });
        }
        let entries: Vec<_> = rewritten.into_iter().map(|(index, term, payload)| entry(index, term, payload)).collect();
        self.group.log_mut().append(&entries, batch);
        // It is the batch that is being filled, so it is not finished.
        let _ = cx.writes.after(batch, After::Mended { key });
        self.writing = true;
        Ok(true)
    }

    /// An entry drops what the log has from its index on, so all that follows is written again.
    fn rewritten(&mut self, first: u64) -> Result<Vec<(u64, u64, Bytes)>, String> {
        let mut entries = Vec::new();
        let mut bytes = 0;
        for index in first..=self.group.log().last() {
            let term = self.group.log().term(index).map_err(|_| format!("its log is not whole at index {index}"))?;
            let payload = match self.found.get(&index) {
                Some((_, payload)) => payload.clone(),
                None => match self.group.log().payload(index) {
                    Some(Ok(payload)) => payload,
                    _ => {
                        self.lost.insert(index);
                        let committed = index <= self.group.written_state.commit;
                        self.wanted.insert(index, Wanted { terms: term..=term, is_body: false, committed });
                        continue;
                    }
                },
            };
            bytes += payload.len();
            entries.push((index, term, payload));
        }
        match bytes > MOST_REWRITTEN_BYTES {
            true => Err(format!("{bytes} bytes of the log would have to be written again")),
            false => Ok(entries),
        }
    }

    /// The log begins above what is damaged up to `last`.
    fn fold<E>(&mut self, last: u64, cx: &mut Context<E>) -> Result<(), String> {
        let group = &mut self.group;
        let key = group.key;
        if group.checkpoint < last {
            let index = group.applied;
            let term = group.log().term(index).map_err(|error| error.to_string())?;
            let (conf, machine) = (group.stored_conf().encode(), group.machine.snapshot());
            group.checkpoint_size = machine.len() as u64;
            cx.writes.push(Op::Checkpoint { key, index, term, conf, machine });
            (group.checkpoint, group.checkpoint_pending, group.applied_since) = (index, None, (0, 0));
        }
        let up_to = group.checkpoint;
        if !group.log().is_durable_to(up_to) {
            return Err(format!("its log is not durable up to index {up_to}"));
        }
        let live = group.machine.live_indexes();
        let live = group.log_mut().compact(up_to, live);
        group.pinning = 0;
        cx.writes.push(Op::Compact { key, up_to, live });
        Ok(())
    }

    /// The replica as it begins again: a follower, with the machine where it stood.
    ///
    /// # Errors
    /// Why it cannot.
    fn restarted<E>(self, cx: &Context<E>, logger: &slog::Logger) -> Result<Group<M, R>, String> {
        let mut before = self.group;
        let (state, conf) = (before.written_state.clone(), before.conf());
        if state.commit > before.log().last() {
            return Err(format!("its log ends at {} although {} was committed", before.log().last(), state.commit));
        }
        let reader = before.log().reader();
        let empty = GroupLog::new(reader, HardState::default(), ConfState::default(), (0, 0));
        let mut log = std::mem::replace(before.log_mut(), empty);
        log.begin_again(state.clone(), conf);
        let start = Start {
            key: before.key,
            generation: before.me.generation,
            changed_at: before.changed_at,
            log,
            machine: before.machine,
            applied: before.applied,
            vote: (state.term, state.vote),
            commit: state.commit,
        };
        let group = Group::new(start, cx, logger).map_err(|error| format!("raft refuses to go on: {error}"))?;
        Ok(Group {
            change_known: before.change_known,
            checkpoint: before.checkpoint,
            checkpoint_pending: before.checkpoint_pending,
            checkpoint_size: before.checkpoint_size,
            applied_since: before.applied_since,
            pinning: before.pinning,
            deferred_dead: before.deferred_dead,
            ..group
        })
    }
}

impl<M: Machine, R: EntryReader> Host<M, R> {
    /// Records of a replica here cannot be read: it gets them back from its peers, or is put into quarantine if that cannot
    /// be. `broken`: its Raft state is of no use any more, so it begins again in any case.
    pub(crate) fn heal(&mut self, id: GroupId, indexes: &BTreeSet<u64>, why: String, broken: bool) {
        let (can, lost) = match self.replicas.get(&id) {
            Some(Replica::Running(group)) => {
                let lost: BTreeSet<u64> = indexes.iter().copied().filter(|index| group.log().is_lost(*index)).collect();
                if lost.is_empty() && !broken {
                    return; // It lies elsewhere by now, or is not needed any more, or can be read after all.
                }
                let whole = !group.installing && group.install.is_none();
                let can = id != GroupId::META && whole && !group.peers().is_empty();
                (can && lost.len() as u64 <= MOST_MISSING, lost)
            }
            Some(Replica::Healing(healing)) => {
                let lost = indexes.iter().copied().filter(|index| healing.group.log().is_lost(*index)).collect();
                (true, lost)
            }
            _ => return,
        };
        if !can {
            return self.quarantine(id, format!("a payload cannot be read: {why}"));
        }
        if let Some(Replica::Running(_)) = self.replicas.get(&id) {
            self.stand_still(id, why);
        }
        if let Some(Replica::Healing(healing)) = self.replicas.get_mut(&id) {
            healing.add(&lost);
            self.tend_healing(id);
        }
    }

    /// The replica takes no part from here on, as if it were off.
    fn stand_still(&mut self, id: GroupId, why: String) {
        let Some(Replica::Running(mut group)) = self.replicas.remove(&id) else { return };
        warn!(group = %id, why, "damaged: it stands still and asks its peers for what it lost");
        let cx = &mut self.cx;
        if group.is_leader() {
            for peer in group.peers() {
                cx.send(group.header(peer, cx), Body::Resigned);
            }
        }
        group.release_as_follower(cx);
        group.stop_sending_snapshots();
        group.incoming = None;
        let leader_gone = HostOutput::LeaderChanged { group: id, leader: None, term: group.term(), me_leading: false };
        cx.outbox.push_back(leader_gone);
        cx.outbox.push_back(HostOutput::Mending { group: id, why: why.clone() });
        let healing = Healing::new(*group, why, cx.now);
        self.forget(id);
        self.replicas.insert(id, Replica::Healing(Box::new(healing)));
        self.mending.insert(id);
    }

    /// Asks again what was not answered, and writes the repair once everything is there.
    pub(crate) fn tend_healing(&mut self, id: GroupId) {
        let Some(Replica::Healing(healing)) = self.replicas.get_mut(&id) else { return };
        let cx = &mut self.cx;
        let now = cx.now;
        if healing.wanted.is_empty()
            && let Err(why) = healing.repair(cx)
        {
            return self.quarantine(id, why);
        }
        if now >= healing.ask_at && !healing.wanted.is_empty() {
            healing.ask_at = now + ASK_EVERY;
            for peer in healing.group.peers() {
                healing.ask(peer, cx);
            }
        }
        // What waits for the disk, or for the end of a barrier, is not waiting for peers.
        if now.since(healing.since) >= PATIENCE && !healing.wanted.is_empty() {
            self.give_up_healing(id, "no peer has what it lost");
        }
    }

    /// It asks to be replaced, and goes on looking meanwhile.
    fn give_up_healing(&mut self, id: GroupId, why: &str) {
        let Some(Replica::Healing(healing)) = self.replicas.get_mut(&id) else { return };
        if !std::mem::replace(&mut healing.overdue, true) {
            let why = format!("{why}: {}", healing.why);
            self.cx.outbox.push_back(HostOutput::Quarantined { group: id, why });
        }
    }

    /// A peer answered.
    pub(crate) fn take_found(&mut self, id: GroupId, peer: ReplicaId, entries: Vec<FoundEntry>, gone: &[u64]) {
        let Some(Replica::Healing(healing)) = self.replicas.get_mut(&id) else { return };
        let news = healing.take(peer, entries, gone);
        if healing.compacted.is_hopeless(&healing.wanted, healing.group.peers()) {
            self.give_up_healing(id, "its peers have compacted what it lost");
        }
        let Some(Replica::Healing(healing)) = self.replicas.get_mut(&id) else { return };
        if news && !healing.wanted.is_empty() {
            healing.ask(peer, &mut self.cx);
        } else if news {
            self.tend_healing(id);
        }
    }

    /// What was lost is durable again: the replica goes on.
    pub(crate) fn healed(&mut self, id: GroupId) {
        let Some(Replica::Healing(mut healing)) = self.replicas.remove(&id) else { return };
        self.mending.remove(&id);
        let (key, generation, entries) = (healing.group.key, healing.group.me.generation, healing.found.len());
        let again = std::mem::take(&mut healing.again);
        match healing.restarted(&self.cx, &self.logger) {
            Ok(group) => {
                info!(group = %id, entries, "mended: it takes part again");
                // A leader that sleeps would not be heard of.
                for peer in group.peers() {
                    self.cx.send(group.header(peer, &self.cx), Body::Wake);
                }
                self.replicas.insert(id, Replica::Running(Box::new(group)));
                self.cx.active.insert(id);
                self.cx.dirty.insert(id);
                self.cx.outbox.push_back(HostOutput::Mended { group: id, entries });
                self.heal(id, &again, "damage was found while other damage was mended".to_owned(), false);
            }
            Err(why) => {
                self.replicas.insert(id, Replica::Quarantined { key, generation: Some(generation), why: why.clone() });
                self.cx.outbox.push_back(HostOutput::Quarantined { group: id, why });
            }
        }
    }
}
