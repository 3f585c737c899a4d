//! The machine of a queue group.

use super::command::QueueCommand;
use super::consumer::Consumer;
use super::deleted::Deleted;
use super::effect::{Delivery, QueueEffect, QueueReply, QueueStats};
use super::live::LiveIndexes;
use super::state::Queue;
use crate::codec::{Batch, Codec, DecodeError, Entry, Message, Positioned, Reader, Writer};
use crate::ids::{BootId, ChannelRef, ConsumerId, MessageRef, QueueId, SessionId};
use crate::machine::{ApplyMeta, Machine};
use crate::snapshot;
use crate::streams::{Admission, Streams};
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;

const SNAPSHOT_VERSION: u8 = 4;

/// The state of a queue group: queues, where their messages' contents are, who consumes them, and what was already
/// taken in from whom.
#[derive(Clone, Debug, Default)]
pub struct QueueMachine {
    queues: BTreeMap<QueueId, Queue>,
    /// A late `CreateQueue` does not make one of these again, and what homes still say to them is as good as done.
    deleted: Deleted,
    streams: Streams<QueueReply>,
    time_ms: u64,
    live: LiveIndexes,
    /// Not state: what [`Machine::take_dead`] has not taken yet.
    dead: Vec<u64>,
    /// Not state: queues that may have something to dispatch at the end of the entry.
    touched: BTreeSet<QueueId>,
}

/// What a consumer has not settled: the answer to a home that may have missed deliveries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outstanding {
    /// The answer is complete up to this delivery number: numbers up to it that are not listed were settled or
    /// returned. Ask again from here if the consumer went further.
    pub through: u64,
    /// In order of their numbers.
    pub deliveries: Vec<Delivery>,
}

impl QueueMachine {
    /// A group without queues.
    pub fn new() -> QueueMachine {
        QueueMachine::default()
    }

    /// Group time of the last entry, in milliseconds since the Unix epoch.
    pub fn time_ms(&self) -> u64 {
        self.time_ms
    }

    /// The queues and their counts.
    pub fn queues(&self) -> impl Iterator<Item = (QueueId, QueueStats)> {
        self.queues.iter().map(|(id, queue)| (*id, queue.stats()))
    }

    /// Counts of a queue.
    pub fn stats(&self, queue: QueueId) -> Option<QueueStats> {
        self.queues.get(&queue).map(Queue::stats)
    }

    /// Where the contents of a queue's messages are, ready and unsettled ones, in the order in which they were published, and
    /// the size of each in bytes. `None` when there is no such queue.
    pub fn messages(&self, queue: QueueId) -> Option<Vec<(MessageRef, u32)>> {
        self.queues.get(&queue).map(Queue::messages)
    }

    /// The messages of a queue that wait for a consumer, in order, and how often each was delivered and came back.
    pub fn waiting(&self, queue: QueueId) -> Vec<(MessageRef, u32)> {
        self.queues.get(&queue).map(Queue::waiting).unwrap_or_default()
    }

    /// The lowest index of an entry that holds a message which is still needed.
    pub fn oldest_live(&self) -> Option<u64> {
        self.live.oldest()
    }

    /// Virtual host and name of a queue.
    pub fn queue_name(&self, queue: QueueId) -> Option<(&str, &str)> {
        self.queues.get(&queue).map(|queue| (queue.vhost.as_str(), queue.name.as_str()))
    }

    /// Runs of members that left something here (a stream or consumers): a new leader proposes
    /// [`QueueCommand::BootEnded`] for those that the metadata does not show as running.
    pub fn boots(&self) -> BTreeSet<BootId> {
        let consumers = self.queues.values().flat_map(Queue::positions).map(|(id, _)| id.boot());
        self.streams.boots().map(|(boot, _)| boot).chain(consumers).collect()
    }

    /// Forgets all homes, as a group does that goes on in another cluster: what their consumers have not settled is back in
    /// its place, redelivered. A queue that would go with its last consumer stays, since none of them has left it.
    pub fn forget_homes(&mut self) {
        self.streams = Streams::default();
        self.queues.values_mut().for_each(Queue::forget_consumers);
    }

    /// The highest command number applied from a home; 0 if none.
    pub fn last_seq(&self, boot: BootId) -> u64 {
        self.streams.last(boot)
    }

    /// The effects that a new leader owes, derived from state, once its own no-op is applied (design §3.3).
    pub fn state_enter(&self) -> Vec<QueueEffect> {
        let confirms = self.streams.boots().map(|(boot, seq)| QueueEffect::Confirm { boot, seq });
        let replies =
            self.streams.unanswered().map(|(boot, seq, reply)| QueueEffect::Reply { boot, seq, reply: reply.clone() });
        let positions = self.queues.iter().flat_map(|(id, queue)| {
            queue.positions().map(|(consumer, last)| QueueEffect::ConsumerAt { consumer, queue: *id, last })
        });
        let deleted = self.deleted.recent().map(|queue| QueueEffect::QueueDeleted { queue });
        confirms.chain(replies).chain(positions).chain(deleted).collect()
    }

    /// What a consumer was sent above a delivery number and has not settled, at most `limit` of it. `None` when there
    /// is no such consumer.
    pub fn deliveries_after(
        &self,
        queue: QueueId,
        consumer: ConsumerId,
        number: u64,
        limit: usize,
    ) -> Option<Outstanding> {
        let (through, deliveries) = self.queues.get(&queue)?.unsettled_after(consumer, number, limit)?;
        Some(Outstanding { through, deliveries })
    }

    fn apply_batch(&mut self, index: u64, batch: Batch<Positioned<QueueCommand>>, effects: &mut Vec<QueueEffect>) {
        let Some(origin) = batch.origin else {
            for one in batch.commands {
                self.apply_command(MessageRef { index, sub: one.sub }, one.command, effects);
            }
            return;
        };
        let boot = origin.boot;
        let skip = match self.streams.admit(&origin, batch.commands.len()) {
            Admission::Apply { skip } => skip,
            Admission::Gap { expected } => return effects.push(QueueEffect::SequenceGap { boot, expected }),
            Admission::Ended => return effects.push(QueueEffect::Ended { boot }),
        };
        for (seq, one) in (origin.first..).zip(batch.commands) {
            if seq - origin.first < skip as u64 {
                if let Some(reply) = self.streams.remembered(boot, seq).cloned() {
                    effects.push(QueueEffect::Reply { boot, seq, reply });
                }
                continue;
            }
            if let Some(queue) = one.command.queue().filter(|queue| self.is_to_come(*queue)) {
                // Its home knows more of the metadata than the leader did. Applied now, it would be confirmed and lost.
                self.streams.refuse_from(boot, seq);
                effects.push(QueueEffect::SequenceGap { boot, expected: seq });
                return effects.push(QueueEffect::QueueUnknown { queue });
            }
            if let Some(reply) = self.apply_command(MessageRef { index, sub: one.sub }, one.command, effects) {
                self.streams.remember(boot, seq, reply.clone());
                effects.push(QueueEffect::Reply { boot, seq, reply });
            }
        }
    }

    /// True for a queue that was neither made nor deleted here.
    fn is_to_come(&self, queue: QueueId) -> bool {
        !self.queues.contains_key(&queue) && !self.deleted.contains(queue)
    }

    /// Applies one command; the reply if it is a request.
    fn apply_command(
        &mut self,
        at: MessageRef,
        command: QueueCommand,
        effects: &mut Vec<QueueEffect>,
    ) -> Option<QueueReply> {
        match command {
            QueueCommand::Publish { queue, message } => self.publish(at, queue, &message),
            QueueCommand::Restore { queue, position, returns, message } => {
                if self
                    .queues
                    .get_mut(&queue)
                    .is_some_and(|queue| queue.restore(at, size_of(&message), position, returns))
                {
                    self.live.add(at.index);
                }
            }
            QueueCommand::Settle { queue, consumer, spans, outcome } => {
                let mut gone = Vec::new();
                if let Some(queue) = self.touch(queue) {
                    queue.settle(&consumer, &spans, outcome, &mut gone);
                }
                self.release(&gone);
            }
            QueueCommand::Credit { queue, consumer, up_to } => {
                if let Some(queue) = self.touch(queue) {
                    queue.credit(&consumer, up_to);
                }
            }
            QueueCommand::SetPrefetch { queue, consumer, prefetch } => {
                if let Some(queue) = self.touch(queue) {
                    queue.set_prefetch(&consumer, prefetch);
                }
            }
            QueueCommand::Recover { channel } => self.recover(consumers_of_channel(channel)),
            QueueCommand::ChannelClosed { channel } => self.close(consumers_of_channel(channel), effects),
            QueueCommand::SessionClosed { session } => self.close(consumers_of_session(session), effects),
            QueueCommand::BootEnded { boot } => {
                self.streams.end(boot);
                self.close(consumers_of_boot(boot), effects);
            }
            request => return Some(self.answer(request, effects)),
        }
        None
    }

    fn answer(&mut self, request: QueueCommand, effects: &mut Vec<QueueEffect>) -> QueueReply {
        match request {
            QueueCommand::CreateQueue { queue, vhost, name, settings } => {
                if !self.queues.contains_key(&queue) && self.deleted.contains(queue) {
                    return QueueReply::NoSuchQueue;
                }
                self.queues.entry(queue).or_insert_with(|| Queue::new(queue, vhost, name, settings));
                QueueReply::Created
            }
            QueueCommand::DeleteQueue { queue, if_unused, if_empty } => {
                self.delete(queue, if_unused, if_empty, effects)
            }
            QueueCommand::Subscribe { queue, consumer, tag, no_ack, exclusive, prefetch, credit_to, priority } => {
                let new = Consumer { tag, no_ack, exclusive, prefetch, credit_to, priority, ..Consumer::default() };
                match self.touch(queue).map(|queue| queue.subscribe(consumer, new)) {
                    Some(Ok(())) => QueueReply::Subscribed,
                    Some(Err(_)) => QueueReply::ExclusiveUse,
                    None => QueueReply::NoSuchQueue,
                }
            }
            QueueCommand::Cancel { queue, consumer } => {
                let last = self.touch(queue).and_then(|queue| queue.cancel(&consumer));
                if last.is_some() {
                    self.drop_if_abandoned(queue, effects);
                }
                QueueReply::Cancelled { last: last.unwrap_or_default() }
            }
            QueueCommand::Get { queue, consumer } => match self.queues.get_mut(&queue) {
                None => QueueReply::NoSuchQueue,
                Some(queue) => match queue.get(consumer) {
                    Some(delivery) => QueueReply::Got { delivery, remaining: queue.stats().ready },
                    None => QueueReply::Empty,
                },
            },
            QueueCommand::Purge { queue } => {
                let mut gone = Vec::new();
                let purged = self.queues.get_mut(&queue).map(|queue| queue.purge(&mut gone));
                self.release(&gone);
                purged.map_or(QueueReply::NoSuchQueue, |messages| QueueReply::Purged { messages })
            }
            QueueCommand::Stat { queue } => match self.stats(queue) {
                Some(stats) => QueueReply::Stats { stats },
                None if self.deleted.contains(queue) => QueueReply::Gone,
                None => QueueReply::NoSuchQueue,
            },
            QueueCommand::EndRestore { queue, messages } => match self.queues.get_mut(&queue) {
                None => QueueReply::NoSuchQueue,
                Some(queue) => match queue.end_restore(messages) {
                    true => QueueReply::RestoreEnded,
                    false => QueueReply::Stats { stats: queue.stats() },
                },
            },
            // The others are no requests: `apply_command` has taken them.
            _ => QueueReply::NoSuchQueue,
        }
    }

    fn publish(&mut self, at: MessageRef, queue: QueueId, message: &Message) {
        if let Some(queue) = self.touch(queue) {
            queue.push(at, size_of(message));
            self.live.add(at.index);
        }
    }

    fn recover(&mut self, range: RangeInclusive<ConsumerId>) {
        for (id, queue) in &mut self.queues {
            queue.recover(range.clone());
            self.touched.insert(*id);
        }
    }

    fn close(&mut self, range: RangeInclusive<ConsumerId>, effects: &mut Vec<QueueEffect>) {
        let mut ended = Vec::new();
        for (id, queue) in &mut self.queues {
            if queue.close(range.clone()) {
                ended.push(*id);
            }
            self.touched.insert(*id);
        }
        for id in ended {
            self.drop_if_abandoned(id, effects);
        }
    }

    fn drop_if_abandoned(&mut self, id: QueueId, effects: &mut Vec<QueueEffect>) {
        if self.queues.get(&id).is_some_and(Queue::is_abandoned) {
            self.remove(id, effects);
        }
    }

    fn delete(&mut self, id: QueueId, if_unused: bool, if_empty: bool, effects: &mut Vec<QueueEffect>) -> QueueReply {
        let Some(stats) = self.stats(id) else {
            // Said by the leader of a queue that it knows never to come: homes need not wait for it.
            self.deleted.insert(id);
            return QueueReply::NoSuchQueue;
        };
        if if_unused && stats.consumers > 0 {
            return QueueReply::InUse;
        }
        if if_empty && stats.ready > 0 {
            return QueueReply::NotEmpty;
        }
        self.remove(id, effects);
        QueueReply::Deleted { messages: stats.ready }
    }

    fn remove(&mut self, id: QueueId, effects: &mut Vec<QueueEffect>) {
        let Some(queue) = self.queues.remove(&id) else { return };
        let mut gone = Vec::new();
        queue.dissolve(&mut gone, effects);
        self.release(&gone);
        self.deleted.insert(id);
        effects.push(QueueEffect::QueueDeleted { queue: id });
    }

    /// The queue, which gets its turn to dispatch at the end of the entry.
    fn touch(&mut self, id: QueueId) -> Option<&mut Queue> {
        let queue = self.queues.get_mut(&id)?;
        self.touched.insert(id);
        Some(queue)
    }

    fn release(&mut self, indexes: &[u64]) {
        for index in indexes {
            if self.live.remove(*index) {
                self.dead.push(*index);
            }
        }
    }

    /// At the end of an entry: one whose own messages all went within it may have got others after that. `from` is
    /// where this entry's deaths begin.
    fn settle_own_death(&mut self, from: usize, index: u64) {
        let recent = self.dead.split_off(from);
        let died = recent.contains(&index) && !self.live.holds(index);
        self.dead.extend(recent.into_iter().filter(|other| *other != index).chain(died.then_some(index)));
    }
}

fn size_of(message: &Message) -> u32 {
    u32::try_from(message.properties.len() + message.body.len()).unwrap_or(u32::MAX)
}

fn consumers_of_channel(channel: ChannelRef) -> RangeInclusive<ConsumerId> {
    ConsumerId { channel, number: 0 }..=ConsumerId { channel, number: u32::MAX }
}

fn consumers_of_session(session: SessionId) -> RangeInclusive<ConsumerId> {
    let first = ChannelRef { session, channel: 0, generation: 0 };
    let last = ChannelRef { session, channel: u16::MAX, generation: u32::MAX };
    ConsumerId { channel: first, number: 0 }..=ConsumerId { channel: last, number: u32::MAX }
}

fn consumers_of_boot(boot: BootId) -> RangeInclusive<ConsumerId> {
    let first = consumers_of_session(SessionId { boot, conn: 0 });
    let last = consumers_of_session(SessionId { boot, conn: u64::MAX });
    *first.start()..=*last.end()
}

impl Machine for QueueMachine {
    type Effect = QueueEffect;

    fn apply(&mut self, meta: &ApplyMeta, payload: &Bytes, effects: &mut Vec<QueueEffect>) -> Result<(), DecodeError> {
        if payload.is_empty() {
            return Ok(());
        }
        let entry = Entry::<QueueCommand>::from_bytes(payload)?;
        self.time_ms = self.time_ms.max(entry.time_ms);
        let deaths = self.dead.len();
        let homes: BTreeSet<BootId> = entry.batches.iter().filter_map(|batch| Some(batch.origin?.boot)).collect();
        for batch in entry.batches {
            self.apply_batch(meta.index, batch, effects);
        }
        for (boot, seq) in homes.into_iter().map(|boot| (boot, self.streams.last(boot))).filter(|(_, seq)| *seq > 0) {
            effects.push(QueueEffect::Confirm { boot, seq });
        }
        for id in std::mem::take(&mut self.touched) {
            if let Some(queue) = self.queues.get_mut(&id) {
                queue.dispatch(effects);
            }
        }
        self.settle_own_death(deaths, meta.index);
        Ok(())
    }

    fn snapshot(&self) -> Bytes {
        snapshot::seal(SNAPSHOT_VERSION, |out| self.encode(out))
    }

    fn restore(bytes: &Bytes) -> Result<QueueMachine, DecodeError> {
        snapshot::open("queue snapshot", SNAPSHOT_VERSION, bytes, QueueMachine::decode)
    }

    fn live_indexes(&self) -> Vec<u64> {
        self.live.indexes().collect()
    }

    fn take_dead(&mut self) -> Vec<u64> {
        std::mem::take(&mut self.dead)
    }

    fn digest(&self) -> u64 {
        snapshot::digest(&self.snapshot())
    }
}

impl Codec for QueueMachine {
    fn encode(&self, out: &mut Writer) {
        self.time_ms.encode(out);
        self.queues.encode(out);
        self.deleted.encode(out);
        self.streams.encode(out);
        self.live.encode(out);
    }

    fn decode(input: &mut Reader) -> Result<Self, DecodeError> {
        Ok(QueueMachine {
            time_ms: Codec::decode(input)?,
            queues: Codec::decode(input)?,
            deleted: Codec::decode(input)?,
            streams: Codec::decode(input)?,
            live: Codec::decode(input)?,
            dead: Vec::new(),
            touched: BTreeSet::new(),
        })
    }
}
