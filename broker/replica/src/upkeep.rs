//! What the journal did for itself, as far as it concerns replicas: bodies that lie elsewhere now, logs that keep old
//! segments, and payloads that the disk lost.

use std::collections::{BTreeMap, BTreeSet};

use holdfast_journal::{CheckpointStored, EntryReader, GroupKey, MovedBody, Upkeep};
use holdfast_queue::Machine;
use holdfast_queue::ids::GroupId;
use holdfast_queue::time::Instant;

use crate::context::Context;
use crate::group::Group;
use crate::host::{Host, Replica};
use crate::log::move_body;

impl<M: Machine, R: EntryReader> Host<M, R> {
    /// As [`Host::handle_upkeep`], without an answer to the journal.
    pub fn take_upkeep(&mut self, upkeep: &Upkeep, now: Instant) {
        self.set_time(now);
        if let Some(moves) = &upkeep.moves {
            for moved in &moves.bodies {
                if let Some(Replica::Running(group)) = self.replicas.get_mut(&GroupId(moved.key.group))
                    && group.key == moved.key
                {
                    group.body_moved(moved);
                } else if let Some(Replica::Mending(mending)) = self.replicas.get_mut(&GroupId(moved.key.group))
                    && mending.key() == moved.key
                {
                    mending.body_moved(moved);
                } else if let Some(Replica::Healing(healing)) = self.replicas.get_mut(&GroupId(moved.key.group))
                    && healing.group.key == moved.key
                {
                    healing.group.body_moved(moved);
                }
            }
        }
        for key in upkeep.pinning.iter().filter(|key| self.is_here(**key)).copied().collect::<Vec<_>>() {
            self.guarded(GroupId(key.group), |group, cx| group.compact_by_force(cx));
        }
        for stored in &upkeep.checkpoints {
            if let Some(Replica::Healing(healing)) = self.replicas.get_mut(&GroupId(stored.key.group))
                && healing.group.key == stored.key
            {
                healing.checkpoint_stored(stored.id, stored.stored);
            }
        }
        for stored in upkeep.checkpoints.iter().filter(|one| self.is_here(one.key)).copied().collect::<Vec<_>>() {
            let CheckpointStored { key, id, stored } = stored;
            self.guarded(GroupId(key.group), |group, cx| group.checkpoint_stored(id, stored, cx));
        }
        let mut damaged: BTreeMap<GroupKey, (BTreeSet<u64>, &str)> = BTreeMap::new();
        for damage in &upkeep.damaged {
            damaged.entry(damage.key).or_insert((BTreeSet::new(), &damage.why)).0.insert(damage.index);
        }
        for (key, (indexes, why)) in damaged {
            let id = GroupId(key.group);
            if self.key(id) == Some(key) {
                self.heal(id, &indexes, why.to_owned(), false);
            }
        }
    }

    /// Takes no checkpoint, compacts no log and gives no payload up until then, for a backup that is about to hold the
    /// journal's files. A time that has passed ends it.
    pub fn keep_history(&mut self, until: Instant, now: Instant) {
        self.set_time(now);
        self.cx.history_until = until;
        if !self.cx.keeps_history() {
            // Each looks at what it has put off.
            self.cx.dirty.extend(self.running_groups());
        }
    }

    fn is_here(&self, key: GroupKey) -> bool {
        self.running(GroupId(key.group)).is_some_and(|group| group.key == key)
    }

    /// The payload at `index`, which this replica needs, cannot be read: others take over what it led, and it takes no part
    /// until its peers have given the payload back.
    pub fn payload_lost(&mut self, group: GroupId, index: u64, why: &str) {
        self.heal(group, &BTreeSet::from([index]), why.to_owned(), false);
    }
}

impl<M: Machine, R: EntryReader> Group<M, R> {
    fn body_moved(&mut self, moved: &MovedBody) {
        self.log_mut().body_moved(moved.index, moved.from, moved.to);
        let staged = self.incoming.iter_mut().map(|incoming| &mut incoming.bodies);
        for bodies in staged.chain(self.install.iter_mut().map(|install| &mut install.bodies)) {
            move_body(bodies, moved.index, moved.from, moved.to);
        }
    }

    /// The log keeps segments of the journal that hold little else: it is checkpointed and compacted now. The first time
    /// live followers are waited for as always; when that had no effect, they get a Raft snapshot if they need one.
    fn compact_by_force(&mut self, cx: &mut Context<M::Effect>) {
        self.pinning += 1;
        if self.applied > self.checkpoint {
            self.maybe_checkpoint(cx);
        }
        self.maybe_compact(cx);
    }
}
