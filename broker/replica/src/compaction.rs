//! Checkpoints, and dropping the part of the log that they cover (design §3.2).

use holdfast_journal::{EntryReader, Op};
use holdfast_queue::Machine;
use raft::Storage;
use raft::eraftpb::HardState;
use tracing::debug;

use crate::context::Context;
use crate::group::Group;

/// What an entry costs beside its payload, on disk and (less) in memory.
const ENTRY_OVERHEAD_BYTES: u64 = 64;

impl<M: Machine, R: EntryReader> Group<M, R> {
    /// Takes a checkpoint when enough was applied since the last one.
    pub fn maybe_checkpoint(&mut self, cx: &mut Context<M::Effect>) {
        let (entries, bytes) = self.applied_since;
        let due = entries >= cx.config.checkpoint_entries || bytes >= cx.config.checkpoint_bytes;
        // A long queue's state is large: it is written down again when as much was written in entries.
        let worthwhile = bytes + entries * ENTRY_OVERHEAD_BYTES >= self.checkpoint_size;
        let forced = self.pinning > 0 && self.applied > self.checkpoint;
        if cx.keeps_history() || !(forced || due && worthwhile) || self.checkpoint_pending.is_some() || self.installing
        {
            return;
        }
        let index = self.applied;
        let Ok(term) = self.log().term(index) else { return };
        // raft-rs panics at a start whose applied index is above the durable commit index.
        if self.written_state.commit < index {
            self.push_hard_state(cx);
        }
        let (conf, machine) = (self.stored_conf().encode(), self.machine.snapshot());
        debug!(group = %self.id, index, bytes = machine.len(), "checkpoint");
        self.checkpoint_size = machine.len() as u64;
        let key = self.key;
        cx.last_checkpoint_id += 1;
        let id = cx.last_checkpoint_id;
        self.last_write = Some(cx.writes.push(Op::CheckpointAside { key, id, index, term, conf, machine }));
        self.checkpoint_pending = Some((id, index));
        self.applied_since = (0, 0);
    }

    /// The journal has stored the checkpoint of this id, or had no room for it. One that is not waited for any more says
    /// nothing: it may be of an earlier life of the group under the same key.
    pub fn checkpoint_stored(&mut self, id: u64, stored: bool, cx: &mut Context<M::Effect>) {
        let Some((_, index)) = self.checkpoint_pending.take_if(|(pending, _)| *pending == id) else { return };
        if stored {
            self.checkpoint = self.checkpoint.max(index);
            self.maybe_compact(cx);
        }
    }

    /// Compacts the log up to what a durable checkpoint covers and every live replica holds; or, when the log is over its
    /// limit or keeps old segments of the journal for long, up to the checkpoint.
    pub fn maybe_compact(&mut self, cx: &mut Context<M::Effect>) {
        let prefix = self.log().prefix().0;
        // The journal drops at a compaction every body that is not listed, so also those that just came in.
        let receiving = self.incoming.is_some() || self.install.is_some() || self.installing;
        if self.checkpoint <= prefix || self.is_sending() || receiving || cx.keeps_history() {
            return;
        }
        let floor = if self.is_leader() { self.matched_by_live(cx) } else { self.floor };
        let log_bytes = self.log().bytes() + self.log().len() as u64 * ENTRY_OVERHEAD_BYTES;
        let too_large = log_bytes > cx.config.max_log_bytes || self.pinning > 1;
        let up_to = if too_large { self.checkpoint } else { self.checkpoint.min(floor) };
        // A step of some size, or all there is: each one asks the machine for everything that is live.
        let worthwhile = self.pinning > 0 || up_to == self.checkpoint || up_to >= prefix + cx.config.checkpoint_entries;
        if up_to <= prefix || !worthwhile || !self.log().is_durable_to(up_to) {
            return;
        }
        // A machine that was restored from a checkpoint may list payloads that it is about to see die again, and that
        // were given up before the restart.
        let live = self.machine.live_indexes();
        let live = self.log_mut().compact(up_to, live);
        self.pinning = 0;
        debug!(group = %self.id, up_to, live = live.len(), too_large, "compacted");
        self.push_applied_lazily(cx);
        cx.writes.push_lazily(Op::Compact { key: self.key, up_to, live }, cx.now);
    }

    /// Tells the journal which payloads below the prefix are needed no more.
    pub fn note_dead(&mut self, cx: &mut Context<M::Effect>) {
        let mut dead = self.machine.take_dead();
        // Above the prefix the log itself still needs them; compaction drops them later.
        let prefix = self.log().prefix().0;
        dead.retain(|index| *index <= prefix);
        if self.is_sending() || cx.keeps_history() {
            self.deferred_dead.append(&mut dead);
            return;
        }
        dead.append(&mut self.deferred_dead);
        if dead.is_empty() {
            return;
        }
        self.log_mut().forget(&dead);
        self.push_applied_lazily(cx);
        cx.writes.push_lazily(Op::Dead { key: self.key, indexes: dead }, cx.now);
    }

    /// Whoever gives payloads up also writes down how far it had applied: after a restart the machine is there again
    /// before anything else happens, and never asks for what is gone.
    fn push_applied_lazily(&mut self, cx: &mut Context<M::Effect>) {
        if self.written_state.commit < self.applied {
            self.written_state.commit = self.applied;
            let HardState { term, vote, commit, .. } = self.written_state;
            cx.writes.push_lazily(Op::HardState { key: self.key, term, vote, commit }, cx.now);
        }
    }
}
