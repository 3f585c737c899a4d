//! What several hosts of one member share out among themselves: numbers of batches, memory, the journal's upkeep, and how
//! long the disk has stood still.
//!
//! A member may spread its groups over several [`Host`]s, so that several threads can work on them. Hosts share nothing
//! that changes: each has its own groups and its own batches. Who owns them gives each group to one host for as long as
//! that runs, tells every host who is suspected, and sees to what follows.

use std::time::Duration;

use holdfast_journal::{BatchId, EntryReader, Op, Upkeep};
use holdfast_queue::Machine;
use holdfast_queue::time::Instant;

use crate::host::{Host, Replica};

impl<M: Machine, R: EntryReader> Host<M, R> {
    /// Numbers the batches from `first` on, so that batches of several hosts are told apart. Before anything is written.
    #[must_use]
    pub fn numbered_from(mut self, first: BatchId) -> Self {
        self.cx.writes.number_from(first);
        self
    }

    /// Roughly how much work the next [`Host::poll`] finds: groups whose Raft state may have something to hand out.
    pub fn groups_to_poll(&self) -> usize {
        self.cx.dirty.len()
    }

    /// Groups whose clock runs.
    pub fn awake_count(&self) -> usize {
        self.cx.active.len()
    }

    /// How long the oldest batch of any host of the member has been at the journal: they share one disk, and all leave it
    /// when it stands still.
    pub fn set_disk_age(&mut self, age: Duration) {
        self.cx.disk_age = age;
    }

    /// Durable payloads that are kept in memory, bytes.
    pub fn cached_bytes(&self) -> usize {
        self.cx.cache.bytes()
    }

    /// Sets how many of them may be kept; it counts from the next write on.
    pub fn set_cache_budget(&mut self, bytes: usize) {
        self.cx.cache.set_budget(bytes);
    }

    /// Takes in what [`holdfast_journal::Journal::upkeep`] gave. What it says of groups, or of lives of groups, that are
    /// not here changes nothing.
    pub fn handle_upkeep(&mut self, upkeep: &Upkeep, now: Instant) {
        self.take_upkeep(upkeep, now);
        self.answer_moves(upkeep, now);
    }

    /// Tells the journal that the new places of bodies are known: once *every* host of the member has taken the upkeep in.
    pub fn answer_moves(&mut self, upkeep: &Upkeep, now: Instant) {
        if let Some(moves) = &upkeep.moves {
            self.cx.writes.push_lazily(Op::MovesTaken { id: moves.id }, now);
        }
    }

    /// How many groups this member leads.
    pub fn leaderships(&self) -> usize {
        self.replicas.values().filter(|replica| matches!(replica, Replica::Running(group) if group.is_leader())).count()
    }
}
