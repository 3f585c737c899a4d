//! Transient queues: exclusive or not durable ones live in the memory of the member that declared them, without Raft
//! (design §3.3). They share one queue machine, which the rest of the member treats like a group that is always led
//! here: the same commands, numbers and effects, applied at once.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use holdfast_journal::EntryReader;
use holdfast_queue::codec::{Batch, EntryBuilder};
use holdfast_queue::ids::{BootId, GroupId, MemberId};
use holdfast_queue::meta::{Placement, queue_settings};
use holdfast_queue::queue::{QueueCommand, QueueEffect, QueueMachine};
use holdfast_queue::{ApplyMeta, Machine};

use crate::member::Member;
use crate::seam::Severity;

const TRANSIENT: u64 = 1 << 63;
const SWEEP_MIN: usize = 256;

/// The number under which members speak of the transient queues of a member's run; never that of a Raft group. The next
/// run of that member has other queues, and knows nothing of what this one was told: its group is another one.
pub(crate) fn transient_group_of(boot: BootId) -> GroupId {
    GroupId(TRANSIENT | boot.0)
}

/// This member's transient queues.
#[derive(Default)]
pub(crate) struct TransientHost {
    machine: QueueMachine,
    index: u64,
    /// Payloads that hold a message which is still needed, by index.
    payloads: BTreeMap<u64, Bytes>,
    held_bytes: usize,
    /// They hold more than the budget; it ends when a quarter of that is gone.
    full: bool,
    /// Look for payloads without a message when there are more than this.
    sweep_at: usize,
    /// What this round collected.
    entry: EntryBuilder,
}

impl TransientHost {
    pub(crate) fn machine(&self) -> &QueueMachine {
        &self.machine
    }

    /// Applies what was collected.
    fn apply(&mut self, time_ms: u64) -> Vec<QueueEffect> {
        let mut effects = Vec::new();
        if self.entry.is_empty() {
            return effects;
        }
        let payload = std::mem::take(&mut self.entry).finish(time_ms);
        self.index += 1;
        self.held_bytes += payload.len();
        self.payloads.insert(self.index, payload.clone());
        // Every batch was checked when it was taken in.
        let applied = self.machine.apply(&ApplyMeta { index: self.index, term: 1 }, &payload, &mut effects);
        debug_assert!(applied.is_ok());
        effects
    }

    /// Drops the payloads that nobody needs any more, once the effects of the round are out.
    fn release(&mut self, budget_bytes: usize) {
        for index in self.machine.take_dead() {
            self.held_bytes -= self.payloads.remove(&index).map_or(0, |payload| payload.len());
        }
        // Entries that never held a message are not reported dead, so look for them when they could be many.
        if self.payloads.len() > self.sweep_at {
            let live: BTreeSet<u64> = self.machine.live_indexes().into_iter().collect();
            self.payloads.retain(|index, _| live.contains(index));
            self.held_bytes = self.payloads.values().map(Bytes::len).sum();
            self.sweep_at = 2 * live.len() + SWEEP_MIN;
        }
        let enough = if self.full { budget_bytes / 4 * 3 } else { budget_bytes };
        self.full = self.held_bytes > enough;
    }

    /// Bytes of the payloads that hold messages.
    pub(crate) fn held_bytes(&self) -> usize {
        self.held_bytes
    }
}

impl<R: EntryReader> Member<R> {
    /// The number of this member's own transient queues.
    pub(crate) fn transient_group(&self) -> GroupId {
        transient_group_of(self.boot)
    }

    /// The member that holds these transient queues, while its run lasts.
    pub(crate) fn transient_owner(&self, group: GroupId) -> Option<MemberId> {
        if group.0 & TRANSIENT == 0 {
            return None;
        }
        let holds = |boot: Option<BootId>| boot.is_some_and(|boot| transient_group_of(boot) == group);
        self.metadata()?.members().find(|(_, info)| holds(info.boot)).map(|(member, _)| member)
    }

    /// Brings the transient queues in line with the metadata, which may have passed over changes.
    pub(crate) fn adopt_transient_queues(&mut self) {
        let Some(meta) = self.metadata() else { return };
        let owns =
            |placement: &Placement| matches!(placement, Placement::Transient { owner } if owner.boot == self.boot);
        let machine = self.transient.machine();
        let own = meta.queues().filter(|(queue, info)| owns(&info.placement) && machine.stats(*queue).is_none());
        let missing = own.map(|(queue, info)| QueueCommand::CreateQueue {
            queue,
            vhost: info.vhost.clone(),
            name: info.name.clone(),
            settings: queue_settings(info),
        });
        let gone = machine.queues().filter(|(queue, _)| meta.queue(*queue).is_none());
        let gone = gone.map(|(queue, _)| QueueCommand::DeleteQueue { queue, if_unused: false, if_empty: false });
        for command in missing.chain(gone).collect::<Vec<_>>() {
            self.transient_command(command);
        }
    }

    /// True while whoever publishes to this member's transient queues must wait.
    pub(crate) fn transient_full(&self) -> bool {
        self.transient.full
    }

    pub(crate) fn transient_batch(&mut self, batch: &Batch<QueueCommand>) {
        self.transient.entry.push(batch);
    }

    /// A command of this member itself to its transient queues.
    pub(crate) fn transient_command(&mut self, command: QueueCommand) {
        self.transient_batch(&Batch { origin: None, commands: vec![command] });
    }

    pub(crate) fn transient_encoded(&mut self, batch: &Bytes) {
        if let Err(error) = self.transient.entry.push_encoded::<QueueCommand>(batch) {
            self.event(Severity::Error, format!("a malformed batch for the transient queues: {error}"));
        }
    }

    pub(crate) fn transient_payload(&self, index: u64) -> Option<Bytes> {
        self.transient.payloads.get(&index).cloned()
    }

    pub(crate) fn transient_boot_ended(&mut self, boot: BootId) {
        if self.transient.machine.boots().contains(&boot) {
            self.transient_command(QueueCommand::BootEnded { boot });
        }
    }

    /// Applies this round's commands to the transient queues; true if there were any.
    pub(crate) fn run_transient(&mut self) -> bool {
        if self.transient.entry.is_empty() {
            return false;
        }
        let group = self.transient_group();
        let effects = self.transient.apply(self.wall_ms);
        for effect in effects {
            self.route_effect(group, 0, effect);
        }
        self.transient.release(self.config.budgets.transient_bytes);
        true
    }

    /// Ends all transient queues, since the run that they belong to has ended.
    pub(crate) fn drop_transient(&mut self) {
        self.transient = TransientHost::default();
        self.leaderships.forget_payload();
    }
}
