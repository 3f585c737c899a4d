//! Deliveries to clients, and what they settle.

use std::collections::{BTreeMap, BTreeSet};

use holdfast_journal::EntryReader;
use holdfast_queue::codec::Message;
use holdfast_queue::ids::{ChannelRef, ConsumerId, GroupId, QueueId};
use holdfast_queue::queue::{Delivery, Outcome, QueueCommand, QueueEffect, Span};
use holdfast_queue::time::{Duration, Instant};
use holdfast_session::{ChannelId, Settle};
use holdfast_wire::ShortStr;

use crate::member::Member;
use crate::peer_message::{HomeEffect, PeerMessage};
use crate::publishing::group_of;
use crate::requests::Tracked;
use crate::seam::ConnId;
use crate::stream::Attachment;

/// A prefetch up to this bounds what is under way by itself.
const SMALL_PREFETCH: u16 = 64;
/// The credit with which any other consumer begins; how much it gets after that depends on the size of its messages.
const FIRST_CREDIT: u64 = 64;
/// What may be under way to one consumer, in messages and in bytes.
const CREDIT_WINDOW: u64 = 1000;
const CREDIT_BYTES: u64 = 8 << 20;
/// Bytes that the client's socket may lag behind before its consumers get no more credit.
const BACKLOG_BYTES: u64 = 1 << 20;
/// Consumers of a client for which deliveries are read from the journal again at a time.
const FED_AT_ONCE: usize = 4;
/// A question about missed deliveries is repeated after this.
const ASK_AGAIN: Duration = Duration::from_millis(500);

/// One consumer of a channel.
#[derive(Debug)]
pub(crate) struct Consumer {
    pub(crate) queue: QueueId,
    pub(crate) group: GroupId,
    /// The number of the last delivery that reached the session.
    last: u64,
    /// The highest number that the group says it has sent.
    known_last: u64,
    /// Deliveries up to this number are allowed; `u64::MAX` where the prefetch bounds them.
    credit_to: u64,
    no_ack: bool,
    /// When missed deliveries were last asked for.
    asked: Option<Instant>,
    /// Running mean of the size of deliveries, bytes.
    mean_bytes: u64,
}

impl Consumer {
    pub(crate) fn new(queue: QueueId, group: GroupId, credit_to: u64, no_ack: bool) -> Self {
        Self { queue, group, last: 0, known_last: 0, credit_to, no_ack, asked: None, mean_bytes: 0 }
    }

    /// Deliveries that may be under way.
    fn window(&self) -> u64 {
        (CREDIT_BYTES / self.mean_bytes.max(1)).clamp(2, CREDIT_WINDOW)
    }

    /// The number up to which deliveries may go now, once half of the credit is used up. `room` is what the channel takes
    /// where its consumers share a prefetch (`basic.qos` with global=true): its queues must not send it more, or it would
    /// keep from other consumers what its own client may not see yet.
    fn next_credit(&self, room: Option<u64>) -> Option<u64> {
        if self.credit_to == u64::MAX {
            return None;
        }
        let window = match room {
            Some(room) if !self.no_ack => room.min(self.window()),
            _ => self.window(),
        };
        let (left, up_to) = (self.credit_to.saturating_sub(self.last), self.last + window);
        (left <= window / 2 && up_to > self.credit_to).then_some(up_to)
    }
}

/// The credit with which a consumer begins on a channel with so much `room`.
pub(crate) fn initial_credit(prefetch: u16, no_ack: bool, room: Option<u64>) -> u64 {
    let credit = if no_ack || prefetch == 0 || prefetch > SMALL_PREFETCH { FIRST_CREDIT } else { u64::MAX };
    room.filter(|_| !no_ack).map_or(credit, |room| credit.min(room))
}

/// Local consumers, by what ends them.
#[derive(Default)]
pub(crate) struct ConsumerIndex {
    by_queue: BTreeMap<QueueId, Vec<ConsumerId>>,
    in_group: BTreeMap<GroupId, usize>,
    /// Consumers that lack deliveries, which were asked for.
    behind: BTreeSet<ConsumerId>,
}

impl<R: EntryReader> Member<R> {
    pub(crate) fn add_consumer(&mut self, conn: ConnId, channel: ChannelId, number: u32, consumer: Consumer) {
        let (queue, group) = (consumer.queue, consumer.group);
        let Some(client) = self.clients.get_mut(&conn) else { return };
        let id = client.consumer_id(channel, number);
        let Some(open) = client.channels.get_mut(&channel) else { return };
        open.consumers.insert(number, consumer);
        open.queues.insert(queue, group);
        self.consumers.by_queue.entry(queue).or_default().push(id);
        *self.consumers.in_group.entry(group).or_default() += 1;
        self.metrics.consumers += 1;
    }

    /// Takes a consumer out of its channel.
    pub(crate) fn remove_consumer(&mut self, conn: ConnId, channel: ChannelId, number: u32) {
        let Some(client) = self.clients.get_mut(&conn) else { return };
        let id = client.consumer_id(channel, number);
        let removed = client.channels.get_mut(&channel).and_then(|open| open.consumers.remove(&number));
        if let Some(consumer) = removed {
            self.forget_consumer(id, &consumer);
        }
    }

    /// Takes a consumer that is no more out of the indexes.
    pub(crate) fn forget_consumer(&mut self, id: ConsumerId, consumer: &Consumer) {
        if let Some(ids) = self.consumers.by_queue.get_mut(&consumer.queue) {
            ids.retain(|other| *other != id);
            if ids.is_empty() {
                self.consumers.by_queue.remove(&consumer.queue);
            }
        }
        if let Some(count) = self.consumers.in_group.get_mut(&consumer.group) {
            *count -= 1;
            if *count == 0 {
                self.consumers.in_group.remove(&consumer.group);
            }
        }
        self.metrics.consumers = self.metrics.consumers.saturating_sub(1);
    }

    /// True when sessions here consume from the group.
    pub(crate) fn consumes_from(&self, group: GroupId) -> bool {
        self.consumers.in_group.contains_key(&group)
    }

    /// Queues that sessions here consume from.
    pub(crate) fn consumed_queues(&self) -> Vec<QueueId> {
        self.consumers.by_queue.keys().copied().collect()
    }

    /// The queue is gone: its consumers here are told.
    pub(crate) fn cancel_consumers_of(&mut self, queue: QueueId) {
        for id in self.consumers.by_queue.get(&queue).cloned().unwrap_or_default() {
            self.consumer_cancelled(id);
        }
    }

    /// A consumer ended by the broker's doing.
    pub(crate) fn consumer_cancelled(&mut self, id: ConsumerId) {
        let (conn, channel) = place_of(&id);
        let known = self.consumer_mut(&id).is_some();
        if known {
            self.remove_consumer(conn, channel, id.number);
            if let Some(client) = self.clients.get_mut(&conn) {
                client.session.cancel_consumer(channel, id.number);
                self.touch(conn);
            }
        }
    }

    fn consumer_mut(&mut self, id: &ConsumerId) -> Option<&mut Consumer> {
        if id.boot() != self.boot {
            return None;
        }
        let (conn, channel) = place_of(id);
        self.clients.get_mut(&conn)?.channels.get_mut(&channel)?.consumers.get_mut(&id.number)
    }

    /// A message for a consumer here. Those that were seen before are dropped; after a gap the missing ones are asked for.
    pub(crate) fn deliver(&mut self, group: GroupId, delivery: Delivery, content: Message) {
        let Some(consumer) = self.consumer_mut(&delivery.consumer) else { return };
        consumer.known_last = consumer.known_last.max(delivery.number);
        if delivery.number <= consumer.last {
            return;
        }
        if delivery.number != consumer.last + 1 {
            return self.ask_missed(group, delivery.queue, delivery.consumer);
        }
        if !self.lease_fresh() {
            // This process may have stood still for so long that its run was declared over: then the message went to
            // another consumer, and may be acknowledged there.
            self.consumers.behind.insert(delivery.consumer);
            return;
        }
        let (conn, _) = place_of(&delivery.consumer);
        if !self.wants_deliveries(conn) {
            return self.starve(conn);
        }
        self.hand_over(delivery, content);
    }

    /// Gives a delivery to its session.
    fn hand_over(&mut self, delivery: Delivery, content: Message) {
        let Some(consumer) = self.consumer_mut(&delivery.consumer) else { return };
        consumer.last = delivery.number;
        consumer.mean_bytes = (consumer.mean_bytes * 7 + u64::from(delivery.size)) / 8;
        let wants_credit = consumer.next_credit(None).is_some();
        let (conn, channel) = place_of(&delivery.consumer);
        self.flow.backlog_bytes += u64::from(delivery.size);
        let Some(client) = self.clients.get_mut(&conn) else { return };
        client.session.deliver(channel, delivery.consumer.number, session_delivery(&delivery, content));
        self.metrics.delivered += 1;
        self.touched.insert(conn);
        if wants_credit {
            client.wants_credit = true;
            self.raise_credits(conn);
        }
    }

    /// Lets the consumers of a client go on whose credit is used up, while its socket keeps up.
    pub(crate) fn raise_credits(&mut self, conn: ConnId) {
        if self.clients.get(&conn).is_some_and(|client| client.starved) {
            self.feed(conn);
        }
        let Some(client) = self.clients.get_mut(&conn) else { return };
        if !client.wants_credit || client.backlog() >= BACKLOG_BYTES {
            return;
        }
        client.wants_credit = false;
        let session = client.id;
        let mut credits = Vec::new();
        for (channel, open) in &mut client.channels {
            let room = client.session.channel_room(*channel);
            for (number, consumer) in &mut open.consumers {
                if let Some(credit_to) = consumer.next_credit(room) {
                    consumer.credit_to = credit_to;
                    let channel = ChannelRef { session, channel: channel.number, generation: channel.generation };
                    let id = ConsumerId { channel, number: *number };
                    credits.push((consumer.group, consumer.queue, id, consumer.credit_to));
                }
            }
        }
        for (group, queue, consumer, up_to) in credits {
            self.tell(group, QueueCommand::Credit { queue, consumer, up_to });
        }
    }

    /// Lets the consumers of a channel that share a prefetch go on, since there may be room again.
    pub(crate) fn raise_credits_of_limited(&mut self, conn: ConnId, channel: ChannelId) {
        let Some(client) = self.clients.get_mut(&conn) else { return };
        let Some(open) = client.channels.get(&channel) else { return };
        let room = client.session.channel_room(channel);
        if open.consumers.values().any(|consumer| consumer.next_credit(room).is_some()) {
            client.wants_credit = true;
            self.raise_credits(conn);
        }
    }

    /// A consumer was cancelled after its last delivery, which may not have reached this home (its leader died with it):
    /// what is missing goes back to the queue, since nobody will ever settle it.
    pub(crate) fn give_back_missed(&mut self, conn: ConnId, channel: ChannelId, number: u32, last: u64) {
        let Some(client) = self.clients.get(&conn) else { return };
        let id = client.consumer_id(channel, number);
        let Some(consumer) = client.channels.get(&channel).and_then(|open| open.consumers.get(&number)) else { return };
        if consumer.last < last {
            let (queue, group) = (consumer.queue, consumer.group);
            let spans = vec![Span { first: consumer.last + 1, last }];
            let outcome = Outcome::Requeue;
            self.tell(group, QueueCommand::Settle { queue, consumer: id, spans, outcome });
        }
    }

    /// Asks for deliveries that were left in the journal, once the client has taken most of what it had: for a few
    /// consumers at a time, since each answer may be a large one.
    fn feed(&mut self, conn: ConnId) {
        let wants = self.wants_deliveries(conn);
        let now = self.now;
        let Some(client) = self.clients.get_mut(&conn) else { return };
        if !wants || client.backlog() >= BACKLOG_BYTES {
            return;
        }
        let session = client.id;
        let mut behind = Vec::new();
        for (channel, open) in &client.channels {
            let behind_here = open.consumers.iter().filter(|(_, consumer)| consumer.last < consumer.known_last);
            behind.extend(behind_here.map(|(number, consumer)| {
                let channel = ChannelRef { session, channel: channel.number, generation: channel.generation };
                let asked = consumer.asked.is_some_and(|at| now.since(at) < ASK_AGAIN);
                (asked, consumer.group, consumer.queue, ConsumerId { channel, number: *number })
            }));
        }
        client.starved = !behind.is_empty();
        let under_way = behind.iter().filter(|(asked, ..)| *asked).count();
        let next: Vec<_> = behind.into_iter().filter(|(asked, ..)| !asked).collect();
        for (_, group, queue, consumer) in next.into_iter().take(FED_AT_ONCE.saturating_sub(under_way)) {
            self.ask_missed(group, queue, consumer);
        }
    }

    /// The leader says how far a consumer's deliveries went.
    pub(crate) fn consumer_at(&mut self, group: GroupId, id: ConsumerId, queue: QueueId, last: u64) {
        // While the stream is being attached this comes from a leader that may not have heard an earlier question.
        let attached = self.streams.get(group).is_some_and(|stream| stream.attachment() == Attachment::Attached);
        let Some(consumer) = self.consumer_mut(&id) else { return };
        consumer.known_last = consumer.known_last.max(last);
        if !attached {
            consumer.asked = None;
        }
        if consumer.last < last {
            self.ask_missed(group, queue, id);
        }
    }

    /// Asks for what a consumer has missed, unless that is under way or its client has no room.
    fn ask_missed(&mut self, group: GroupId, queue: QueueId, id: ConsumerId) {
        let now = self.now;
        let (conn, _) = place_of(&id);
        if !self.lease_fresh() {
            self.consumers.behind.insert(id);
            return;
        }
        if !self.wants_deliveries(conn) {
            return self.starve(conn);
        }
        let Some(consumer) = self.consumer_mut(&id) else { return };
        if consumer.asked.is_some_and(|at| now.since(at) < ASK_AGAIN) {
            return;
        }
        consumer.asked = Some(now);
        let after = consumer.last;
        self.consumers.behind.insert(id);
        let leader = self.streams.get(group).and_then(|stream| stream.leader());
        if let Some((leader, _)) = leader {
            self.send_or_take(leader, PeerMessage::DeliveriesAfter { group, queue, consumer: id, after });
        }
    }

    /// Asks again for deliveries that were asked for and did not come: with them, or with the answer, a link broke.
    pub(crate) fn tick_consumers(&mut self) {
        for id in self.consumers.behind.clone() {
            match self.consumer_mut(&id).filter(|consumer| consumer.last < consumer.known_last) {
                Some(consumer) => {
                    let (group, queue) = (consumer.group, consumer.queue);
                    self.ask_missed(group, queue, id);
                }
                None => {
                    self.consumers.behind.remove(&id);
                }
            }
        }
    }

    /// The deliveries that were asked for, complete up to `through`.
    pub(crate) fn outstanding(
        &mut self,
        group: GroupId,
        queue: QueueId,
        id: ConsumerId,
        through: u64,
        deliveries: Vec<HomeEffect>,
    ) {
        let (conn, _) = place_of(&id);
        if !self.lease_fresh() {
            if let Some(consumer) = self.consumer_mut(&id) {
                consumer.asked = None;
            }
            self.consumers.behind.insert(id);
            return;
        }
        let Some(before) = self.consumer_mut(&id).map(|consumer| consumer.last) else { return };
        for effect in deliveries {
            if let (QueueEffect::Deliver { delivery }, Some(content)) = (effect.effect, effect.content)
                && delivery.consumer == id
                && self.consumer_mut(&id).is_some_and(|consumer| delivery.number > consumer.last)
            {
                if !self.wants_deliveries(conn) {
                    if let Some(consumer) = self.consumer_mut(&id) {
                        consumer.asked = None;
                    }
                    return self.starve(conn);
                }
                self.hand_over(delivery, content);
            }
        }
        let Some(consumer) = self.consumer_mut(&id) else { return };
        consumer.last = consumer.last.max(through);
        if consumer.last == before {
            // Whoever answered knows less than was heard before: a leader that has been deposed and does not know it yet,
            // this member perhaps, which would answer itself for ever. It is asked for again in its time.
            return;
        }
        consumer.asked = None;
        if consumer.last < consumer.known_last {
            self.ask_missed(group, queue, id);
        }
    }

    /// Deliveries are acknowledged or given back.
    pub(crate) fn settle(&mut self, conn: ConnId, settle: Settle) {
        let channel = settle.channel;
        self.settle_in_group(conn, settle);
        self.raise_credits_of_limited(conn, channel);
    }

    fn settle_in_group(&mut self, conn: ConnId, settle: Settle) {
        let queue = QueueId(settle.queue);
        let known = match self.metadata() {
            Some(meta) => group_of(meta, queue),
            // While the metadata is damaged here, its queues serve on.
            None => self
                .clients
                .get(&conn)
                .and_then(|client| client.channels.get(&settle.channel)?.queues.get(&queue).copied()),
        };
        let Some(group) = known else { return };
        let Some(client) = self.clients.get_mut(&conn) else { return };
        let consumer = client.consumer_id(settle.channel, settle.consumer);
        let outcome = match settle.outcome {
            holdfast_session::Outcome::Ack => Outcome::Ack,
            holdfast_session::Outcome::Requeue => Outcome::Requeue,
            holdfast_session::Outcome::Reject => Outcome::Reject,
        };
        if outcome == Outcome::Ack {
            self.metrics.acknowledged += settle.last.saturating_sub(settle.first) + 1;
        }
        let span = Span { first: settle.first, last: settle.last };
        let merged = self
            .streams
            .get_mut(group)
            .is_some_and(|stream| stream.merge(|command| join_settles(command, queue, consumer, outcome, span)));
        if merged {
            return;
        }
        let Some(open) = client.channels.get_mut(&settle.channel) else { return };
        let number = open.settles.begin(1);
        let command = QueueCommand::Settle { queue, consumer, spans: vec![span], outcome };
        self.track(group, command, 64, Tracked::Settle { conn, channel: settle.channel, number }, 0);
    }
}

/// Adds a span to a settle command that has not left yet, if it is of the same kind.
fn join_settles(
    command: &mut QueueCommand,
    queue: QueueId,
    consumer: ConsumerId,
    outcome: Outcome,
    span: Span,
) -> bool {
    let QueueCommand::Settle { queue: in_queue, consumer: of, spans, outcome: so } = command else { return false };
    if *in_queue != queue || *of != consumer || *so != outcome || spans.len() >= 1024 {
        return false;
    }
    match spans.last_mut() {
        Some(last) if last.last + 1 == span.first => last.last = span.last,
        _ => spans.push(span),
    }
    true
}

/// Where a consumer of this run lives.
pub(crate) fn place_of(id: &ConsumerId) -> (ConnId, ChannelId) {
    let channel = ChannelId { number: id.channel.channel, generation: id.channel.generation };
    (ConnId(id.channel.session.conn), channel)
}

/// A delivery as the session takes it.
pub(crate) fn session_delivery(delivery: &Delivery, content: Message) -> holdfast_session::Delivery {
    holdfast_session::Delivery {
        queue: delivery.queue.0,
        number: delivery.number,
        redelivered: delivery.redelivered(),
        exchange: ShortStr::new(content.exchange).unwrap_or_default(),
        routing_key: ShortStr::new(content.routing_key).unwrap_or_default(),
        properties: content.properties,
        body: content.body,
    }
}
