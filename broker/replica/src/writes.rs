//! What was handed to the journal, and what follows once it is durable.
//!
//! Batches finish in the order in which they were handed out, whatever order they are reported in: what follows a batch
//! may rely on everything before it (raft-rs' `on_persist_ready` does).

use std::collections::BTreeMap;
use std::time::Duration;

use holdfast_journal::{Batch, BatchId, GroupKey, Op, Written, WrittenRecord};
use holdfast_queue::ids::ReplicaId;
use holdfast_queue::time::Instant;
use raft::eraftpb::Message;

/// What follows once a batch is durable.
pub(crate) enum After {
    /// raft-rs may be told that this Ready is persisted, and its messages may leave.
    Ready {
        key: GroupKey,
        number: u64,
        /// Term and vote of the hard state in the batch.
        vote: Option<(u64, u64)>,
        /// The index of the snapshot that the Ready installed.
        snapshot: Option<u64>,
        messages: Vec<Message>,
    },
    /// The birth record of a group that this member leads.
    Born { key: GroupKey },
    /// The commit index of a membership change that was applied.
    Change { key: GroupKey, index: u64 },
    /// What a replica had lost.
    Mended { key: GroupKey },
    /// Payloads of a snapshot chunk.
    Bodies { key: GroupKey, from: ReplicaId, snapshot: u64, next: u64, last: bool },
}

impl After {
    pub fn key(&self) -> GroupKey {
        match self {
            After::Ready { key, .. }
            | After::Born { key }
            | After::Change { key, .. }
            | After::Mended { key }
            | After::Bodies { key, .. } => *key,
        }
    }
}

/// A batch that is finished: where its payloads are, and what follows, in order.
pub(crate) struct Finished {
    pub batch: BatchId,
    pub records: Vec<WrittenRecord>,
    pub after: Vec<After>,
}

#[derive(Default)]
struct Outstanding {
    after: Vec<After>,
    handed_out: Option<Instant>,
    written: Option<Vec<WrittenRecord>>,
}

/// The batch that is being filled, those at the journal, and operations that can wait for company.
pub(crate) struct Writes {
    pending: Batch,
    /// By batch, the pending one included.
    outstanding: BTreeMap<BatchId, Outstanding>,
    lazy: Vec<Op>,
    lazy_since: Option<Instant>,
}

impl Writes {
    pub fn new() -> Self {
        let pending = Batch { id: BatchId(1), ops: Vec::new() };
        Self { pending, outstanding: BTreeMap::new(), lazy: Vec::new(), lazy_since: None }
    }

    /// The first batch has this number.
    pub fn number_from(&mut self, first: BatchId) {
        debug_assert!(self.outstanding.is_empty());
        self.pending.id = first;
    }

    /// Adds an operation to the batch that leaves next.
    pub fn push(&mut self, op: Op) -> BatchId {
        self.push_lazy_ones();
        self.pending.ops.push(op);
        self.outstanding.entry(self.pending.id).or_default();
        self.pending.id
    }

    /// Adds an operation that leaves with the next batch, whenever that is; nothing waits for it.
    pub fn push_lazily(&mut self, op: Op, now: Instant) {
        self.lazy.push(op);
        self.lazy_since.get_or_insert(now);
    }

    /// Lazy operations that found no company for `patience` get a batch of their own.
    pub fn flush_lazy(&mut self, now: Instant, patience: Duration) {
        if self.lazy_since.is_some_and(|since| now.since(since) >= patience) {
            self.push_lazy_ones();
            self.outstanding.entry(self.pending.id).or_default();
        }
    }

    pub fn has_lazy(&self) -> bool {
        !self.lazy.is_empty()
    }

    fn push_lazy_ones(&mut self) {
        self.pending.ops.append(&mut self.lazy);
        self.lazy_since = None;
    }

    /// Says what follows `batch`. False if that batch is finished already.
    pub fn after(&mut self, batch: BatchId, after: After) -> Result<(), After> {
        match self.outstanding.get_mut(&batch) {
            Some(outstanding) => {
                outstanding.after.push(after);
                Ok(())
            }
            None => Err(after),
        }
    }

    /// Drops what is not at the journal yet of a group that is about to be destroyed.
    pub fn forget(&mut self, key: GroupKey) {
        self.pending.ops.retain(|op| op.key() != Some(key));
        self.lazy.retain(|op| op.key() != Some(key));
    }

    /// The batch for the journal, if there is anything to write.
    pub fn take_batch(&mut self, now: Instant) -> Option<Batch> {
        let outstanding = self.outstanding.get_mut(&self.pending.id)?;
        outstanding.handed_out = Some(now);
        let next = Batch { id: BatchId(self.pending.id.0 + 1), ops: Vec::new() };
        Some(std::mem::replace(&mut self.pending, next))
    }

    /// Takes in a report, and gives what is finished by it: nothing while an earlier batch is outstanding.
    pub fn written(&mut self, written: &Written) -> Vec<Finished> {
        if let Some(outstanding) = self.outstanding.get_mut(&written.batch)
            && outstanding.handed_out.is_some()
        {
            outstanding.written = Some(written.records.clone());
        }
        let mut finished = Vec::new();
        while let Some(entry) = self.outstanding.first_entry()
            && entry.get().written.is_some()
        {
            let (batch, outstanding) = entry.remove_entry();
            let records = outstanding.written.unwrap_or_default();
            finished.push(Finished { batch, records, after: outstanding.after });
        }
        finished
    }

    /// How long the oldest batch at the journal has been there.
    pub fn oldest_age(&self, now: Instant) -> Duration {
        let oldest = self.outstanding.values().find_map(|outstanding| outstanding.handed_out);
        oldest.map_or(Duration::ZERO, |since| now.since(since))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> GroupKey {
        GroupKey { group: 1, ..GroupKey::default() }
    }

    fn destroy() -> Op {
        Op::Destroy { key: key() }
    }

    fn written(batch: u64) -> Written {
        Written { batch: BatchId(batch), ..Written::default() }
    }

    #[test]
    fn a_batch_that_is_reported_early_waits_for_those_before_it() {
        let mut writes = Writes::new();
        let first = writes.push(destroy());
        assert!(writes.after(first, After::Born { key: key() }).is_ok());
        writes.take_batch(Instant(0)).unwrap();
        writes.push(destroy());
        writes.take_batch(Instant(0)).unwrap();
        assert!(writes.written(&written(2)).is_empty());
        let finished: Vec<_> = writes.written(&written(1)).iter().map(|one| one.batch.0).collect();
        assert_eq!(finished, [1, 2]);
        assert!(writes.after(first, After::Born { key: key() }).is_err());
    }

    #[test]
    fn a_report_about_a_batch_that_was_never_handed_out_is_ignored() {
        let mut writes = Writes::new();
        writes.push(destroy());
        assert!(writes.written(&written(1)).is_empty());
        assert!(writes.written(&written(7)).is_empty());
        assert!(writes.take_batch(Instant(0)).is_some());
    }

    #[test]
    fn lazy_operations_leave_before_what_is_pushed_later_and_alone_after_a_while() {
        let mut writes = Writes::new();
        writes.push_lazily(Op::Dead { key: key(), indexes: vec![1] }, Instant(0));
        assert!(writes.take_batch(Instant(0)).is_none());
        writes.push(destroy());
        let batch = writes.take_batch(Instant(0)).unwrap();
        assert!(matches!(batch.ops[..], [Op::Dead { .. }, Op::Destroy { .. }]));
        writes.push_lazily(Op::Dead { key: key(), indexes: vec![2] }, Instant(10));
        writes.flush_lazy(Instant(20), Duration::from_micros(20));
        assert!(writes.take_batch(Instant(20)).is_none());
        writes.flush_lazy(Instant(30), Duration::from_micros(20));
        assert_eq!(writes.take_batch(Instant(30)).unwrap().ops.len(), 1);
    }
}
