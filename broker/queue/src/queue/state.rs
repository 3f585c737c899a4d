//! One queue: its ready messages and its consumers.

use super::command::{Outcome, QueueSettings, Span};
use super::consumer::Consumer;
use super::effect::{CancelReason, Delivery, QueueEffect, QueueStats};
use super::ready::{Held, ReadyLine};
use super::rotation::Rotation;
use crate::codec::{Codec, DecodeError, Reader, Writer};
use crate::ids::{ConsumerId, MessageRef, QueueId};
#[cfg(feature = "mutants")]
use crate::mutants::{Mutant, is_planted};
use std::collections::BTreeMap;
use std::ops::RangeInclusive;

#[derive(Clone, Debug)]
pub(super) struct Queue {
    id: QueueId,
    pub(super) vhost: String,
    pub(super) name: String,
    settings: QueueSettings,
    ready: ReadyLine,
    consumers: BTreeMap<ConsumerId, Consumer>,
    rotation: Rotation,
    /// A restore in place has filled it and ended: what still comes of that is a repeat.
    restored: bool,
    /// Derived: consumers that were not cancelled.
    active: usize,
    /// Derived: unsettled deliveries of all consumers, and their size in bytes.
    unacked: u64,
    unacked_bytes: u64,
}

/// Why a consumer was not made.
pub(super) struct ExclusiveUse;

impl Queue {
    pub(super) fn new(id: QueueId, vhost: String, name: String, settings: QueueSettings) -> Queue {
        Queue {
            id,
            vhost,
            name,
            settings,
            ready: ReadyLine::default(),
            consumers: BTreeMap::new(),
            rotation: Rotation::default(),
            restored: false,
            active: 0,
            unacked: 0,
            unacked_bytes: 0,
        }
    }

    pub(super) fn stats(&self) -> QueueStats {
        QueueStats {
            ready: self.ready.len() as u64,
            ready_bytes: self.ready.bytes(),
            unacked: self.unacked,
            unacked_bytes: self.unacked_bytes,
            consumers: self.active as u64,
        }
    }

    pub(super) fn push(&mut self, at: MessageRef, size: u32) {
        self.ready.push(at, size);
    }

    /// Adds a message of a backup, if it is the next one. Nobody can consume from the queue meanwhile, so as many messages
    /// were restored as are ready.
    pub(super) fn restore(&mut self, at: MessageRef, size: u32, position: u64, returns: u32) -> bool {
        let is_next = !self.restored && position == self.ready.len() as u64;
        if is_next {
            self.ready.put_back(Held { at, size, returns });
        }
        is_next
    }

    /// Takes no more messages of a backup, if so many are there. True if that is so now.
    pub(super) fn end_restore(&mut self, messages: u64) -> bool {
        self.restored |= self.ready.len() as u64 == messages;
        self.restored
    }

    /// Ready messages in order, and how often each came back.
    pub(super) fn waiting(&self) -> Vec<(MessageRef, u32)> {
        self.ready.iter().map(|message| (message.at, message.returns)).collect()
    }

    /// Adds a consumer; one that is there already stays as it is.
    pub(super) fn subscribe(&mut self, id: ConsumerId, consumer: Consumer) -> Result<(), ExclusiveUse> {
        if self.consumers.contains_key(&id) {
            return Ok(());
        }
        let occupied = self.consumers.values().any(|other| !other.cancelled && (other.exclusive || consumer.exclusive));
        if occupied {
            return Err(ExclusiveUse);
        }
        self.consumers.insert(id, consumer);
        self.active += 1;
        self.offer(id);
        Ok(())
    }

    /// Ends a consumer but leaves it what it has; the number of its last delivery, if it was one.
    pub(super) fn cancel(&mut self, id: &ConsumerId) -> Option<u64> {
        let consumer = self.consumers.get_mut(id).filter(|consumer| !consumer.cancelled)?;
        let last = consumer.last;
        consumer.cancelled = true;
        consumer.queued = false;
        self.active -= 1;
        self.rotation.remove(consumer.priority, id);
        self.forget_if_done(id);
        Some(last)
    }

    /// Ends deliveries; `gone` gets the entry index of each message that does not come back.
    pub(super) fn settle(&mut self, id: &ConsumerId, spans: &[Span], outcome: Outcome, gone: &mut Vec<u64>) {
        for span in spans {
            while let Some(message) = self.take_unacked(id, span) {
                match outcome {
                    #[cfg(feature = "mutants")]
                    Outcome::Ack if is_planted(Mutant::AckedReturns) && message.at.index % 64 == 0 => {
                        self.put_back(message);
                    }
                    Outcome::Ack | Outcome::Reject => gone.push(message.at.index),
                    Outcome::Requeue => self.put_back(message),
                }
            }
        }
        self.forget_if_done(id);
        self.offer(*id);
    }

    fn take_unacked(&mut self, id: &ConsumerId, span: &Span) -> Option<Held> {
        let consumer = self.consumers.get_mut(id)?;
        let number = if span.first >= span.last {
            span.first
        } else {
            consumer.unacked.from(span.first).next().map(|one| one.number).filter(|number| *number <= span.last)?
        };
        let message = consumer.unacked.remove(&number)?.message;
        self.unacked -= 1;
        self.unacked_bytes -= u64::from(message.size);
        Some(message)
    }

    fn put_back(&mut self, mut message: Held) {
        message.returns = message.returns.saturating_add(1);
        self.ready.put_back(message);
    }

    pub(super) fn set_prefetch(&mut self, id: &ConsumerId, prefetch: u32) {
        if let Some(consumer) = self.consumers.get_mut(id) {
            consumer.prefetch = prefetch;
        }
        self.offer(*id);
    }

    pub(super) fn credit(&mut self, id: &ConsumerId, up_to: u64) {
        if let Some(consumer) = self.consumers.get_mut(id) {
            consumer.credit_to = consumer.credit_to.max(up_to);
        }
        self.offer(*id);
    }

    /// Takes one message for a one-shot consumer; a repeat gives the same again.
    pub(super) fn get(&mut self, id: ConsumerId) -> Option<Delivery> {
        if let Some(consumer) = self.consumers.get(&id) {
            let first = consumer.unacked.first()?;
            return Some(self.delivery(id, first.number, &first.message));
        }
        let message = self.ready.pop()?;
        let mut consumer = Consumer { cancelled: true, ..Consumer::default() };
        let number = consumer.take(message);
        self.consumers.insert(id, consumer);
        self.count_unacked(&message);
        Some(self.delivery(id, number, &message))
    }

    /// Returns all that the consumers in `range` have not settled; they live on.
    pub(super) fn recover(&mut self, range: RangeInclusive<ConsumerId>) {
        for id in self.ids(range) {
            self.settle(&id, &[Span { first: 0, last: u64::MAX }], Outcome::Requeue, &mut Vec::new());
        }
    }

    /// Ends the consumers in `range` and returns what they have not settled. True if one of them was not cancelled
    /// before.
    pub(super) fn close(&mut self, range: RangeInclusive<ConsumerId>) -> bool {
        let mut ended = false;
        for id in self.ids(range.clone()) {
            ended |= self.cancel(&id).is_some();
            #[cfg(feature = "mutants")]
            if is_planted(Mutant::UnackedDropped) {
                let all = Span { first: 0, last: u64::MAX };
                while self.take_unacked(&id, &all).is_some() {}
            }
        }
        self.recover(range);
        ended
    }

    /// Ends all consumers without a word to anybody, and returns what they have not settled.
    pub(super) fn forget_consumers(&mut self) {
        for consumer in std::mem::take(&mut self.consumers).into_values() {
            for delivery in consumer.unacked.iter() {
                self.put_back(delivery.message);
            }
        }
        self.rotation = Rotation::default();
        (self.active, self.unacked, self.unacked_bytes) = (0, 0, 0);
    }

    /// Whether the queue must go now that a consumer ended (`auto_delete`).
    pub(super) fn is_abandoned(&self) -> bool {
        self.settings.auto_delete && self.active == 0
    }

    /// Drops all ready messages; `gone` gets the entry index of each. How many they were.
    pub(super) fn purge(&mut self, gone: &mut Vec<u64>) -> u64 {
        let messages = self.ready.len() as u64;
        gone.extend(self.ready.indexes());
        self.ready = ReadyLine::default();
        messages
    }

    /// Tells the consumers that the queue is gone; `gone` gets the entry index of every message.
    pub(super) fn dissolve(mut self, gone: &mut Vec<u64>, effects: &mut Vec<QueueEffect>) {
        self.purge(gone);
        for (id, consumer) in &self.consumers {
            gone.extend(consumer.unacked.iter().map(|one| one.message.at.index));
            if !consumer.cancelled {
                let reason = CancelReason::QueueDeleted;
                effects.push(QueueEffect::ConsumerCancelled { consumer: *id, queue: self.id, reason });
            }
        }
    }

    /// Hands ready messages to the consumers that have room, in turn.
    pub(super) fn dispatch(&mut self, effects: &mut Vec<QueueEffect>) {
        while !self.ready.is_empty() {
            let Some(id) = self.rotation.next() else { break };
            let Some(consumer) = self.consumers.get_mut(&id) else { continue };
            consumer.queued = false;
            if !consumer.has_room() {
                continue;
            }
            let Some(message) = self.ready.pop() else { break };
            let number = consumer.take(message);
            if consumer.has_room() {
                consumer.queued = true;
                self.rotation.push(consumer.priority, id);
            }
            self.count_unacked(&message);
            effects.push(QueueEffect::Deliver { delivery: self.delivery(id, number, &message) });
        }
        self.rotation.tidy();
    }

    /// All messages, ready and unsettled, in the order in which they were published.
    pub(super) fn messages(&self) -> Vec<(MessageRef, u32)> {
        let unsettled = self.consumers.values().flat_map(|consumer| consumer.unacked.iter().map(|one| one.message));
        let mut all: Vec<_> = self.ready.iter().chain(unsettled).map(|message| (message.at, message.size)).collect();
        all.sort_unstable();
        all
    }

    /// Every consumer and its highest delivery number.
    pub(super) fn positions(&self) -> impl Iterator<Item = (ConsumerId, u64)> {
        self.consumers.iter().map(|(id, consumer)| (*id, consumer.last))
    }

    /// What a consumer has not settled above a delivery number, at most `limit`, and the number up to which this is
    /// all.
    pub(super) fn unsettled_after(&self, id: ConsumerId, number: u64, limit: usize) -> Option<(u64, Vec<Delivery>)> {
        let consumer = self.consumers.get(&id)?;
        let Some(start) = number.checked_add(1) else { return Some((consumer.last, Vec::new())) };
        let mut rest = consumer.unacked.from(start);
        let deliveries: Vec<_> =
            rest.by_ref().take(limit).map(|one| self.delivery(id, one.number, &one.message)).collect();
        let through = match (rest.next(), deliveries.last()) {
            (Some(_), Some(last)) => last.number,
            (Some(_), None) => number,
            (None, _) => consumer.last,
        };
        Some((through, deliveries))
    }

    fn delivery(&self, consumer: ConsumerId, number: u64, message: &Held) -> Delivery {
        Delivery {
            queue: self.id,
            consumer,
            number,
            message: message.at,
            size: message.size,
            delivery_count: message.returns,
        }
    }

    fn count_unacked(&mut self, message: &Held) {
        self.unacked += 1;
        self.unacked_bytes += u64::from(message.size);
    }

    fn ids(&self, range: RangeInclusive<ConsumerId>) -> Vec<ConsumerId> {
        self.consumers.range(range).map(|(id, _)| *id).collect()
    }

    /// Puts a consumer into the rotation if it has room.
    fn offer(&mut self, id: ConsumerId) {
        if let Some(consumer) = self.consumers.get_mut(&id).filter(|consumer| !consumer.queued && consumer.has_room()) {
            consumer.queued = true;
            self.rotation.push(consumer.priority, id);
        }
    }

    fn forget_if_done(&mut self, id: &ConsumerId) {
        if self.consumers.get(id).is_some_and(|consumer| consumer.cancelled && consumer.unacked.is_empty()) {
            self.consumers.remove(id);
        }
    }
}

impl Codec for Queue {
    fn encode(&self, out: &mut Writer) {
        self.id.encode(out);
        self.vhost.encode(out);
        self.name.encode(out);
        self.settings.encode(out);
        self.ready.encode(out);
        self.consumers.encode(out);
        self.rotation.encode(out);
        self.restored.encode(out);
    }

    fn decode(input: &mut Reader) -> Result<Self, DecodeError> {
        let mut queue =
            Queue::new(Codec::decode(input)?, Codec::decode(input)?, Codec::decode(input)?, Codec::decode(input)?);
        queue.ready = Codec::decode(input)?;
        queue.consumers = Codec::decode(input)?;
        queue.rotation = Codec::decode(input)?;
        queue.restored = Codec::decode(input)?;
        for consumer in queue.consumers.values() {
            queue.active += usize::from(!consumer.cancelled);
            queue.unacked += consumer.unacked.len() as u64;
            queue.unacked_bytes += consumer.unacked.iter().map(|one| u64::from(one.message.size)).sum::<u64>();
        }
        Ok(queue)
    }
}
