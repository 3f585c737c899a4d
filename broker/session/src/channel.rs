//! One channel: what it has open, what it waits for, and the order of its methods.

use std::collections::{BTreeMap, VecDeque};

use holdfast_wire::{Method, MethodId, Properties, ReplyCode, ShortStr};

use crate::assembly::{Assembly, Content, Input, PUBLISH};
use crate::confirms::Confirms;
use crate::outbox::Shared;
use crate::unacked::{Handle, Run, Unacked, settle_all};
use crate::{AmqpError, ChannelId, Delivery, Outcome, Publish, Request, Settle};

/// Where a channel is between open and closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    /// In use.
    Open,
    /// The client has closed it; the engine has not said yet that its publishes are durable.
    Closing,
    /// Closed by an error of ours: everything but `channel.close` and `close-ok` is ignored.
    Failed,
}

/// A call that the engine has not answered: how to tell the client.
#[derive(Debug)]
pub(crate) struct Waiting {
    pub method: MethodId,
    pub no_wait: bool,
    pub answer: Answer,
}

/// What a call's reply turns into.
#[derive(Debug)]
pub(crate) enum Answer {
    Close,
    Plain(Method),
    QueueDeclare,
    QueuePurge,
    QueueDelete,
    Consume { consumer: u32 },
    Cancel { consumer: u32, tag: ShortStr },
    Get { consumer: u32, no_ack: bool },
    SelectTx,
    CommitTx,
}

#[derive(Debug)]
pub(crate) struct Consumer {
    pub tag: ShortStr,
    pub no_ack: bool,
}

/// What a transaction has done so far.
#[derive(Debug, Default)]
pub(crate) struct Transaction {
    pub publishes: Vec<Publish>,
    pub settles: Vec<Settle>,
    /// The acknowledged deliveries, for a rollback.
    pub settled: Vec<(u64, Run)>,
    pub held_bytes: usize,
}

#[derive(Debug)]
pub(crate) struct Channel {
    pub id: ChannelId,
    pub stage: Stage,
    /// It failed, and the client has closed it as well; that close waits for its answer.
    pub is_closed_by_client: bool,
    /// It failed, and the client has answered our close.
    pub is_close_answered: bool,
    /// The error by which a publish failed it: that one and those after it are dropped.
    pub dropped: Option<AmqpError>,
    pub assembly: Assembly,
    pub waiting: Option<Waiting>,
    /// What came in while a call was waiting.
    pub backlog: VecDeque<Input>,
    pub last_queue: ShortStr,
    pub consumers: BTreeMap<u32, Consumer>,
    pub last_consumer: u32,
    /// `basic.qos` with global=false: for consumers to come.
    pub consumer_prefetch: u16,
    /// `basic.qos` with global=true: for all consumers of the channel together; 0 = no limit.
    pub channel_prefetch: u16,
    /// Deliveries over `channel_prefetch`.
    held: VecDeque<(u32, Delivery)>,
    pub unacked: Unacked,
    pub published: u64,
    pub confirms: Option<Confirms>,
    pub transaction: Option<Transaction>,
}

impl Channel {
    pub fn new(id: ChannelId) -> Channel {
        Channel {
            id,
            stage: Stage::Open,
            assembly: Assembly::default(),
            waiting: None,
            backlog: VecDeque::new(),
            last_queue: ShortStr::EMPTY,
            consumers: BTreeMap::new(),
            last_consumer: 0,
            consumer_prefetch: 0,
            channel_prefetch: 0,
            held: VecDeque::new(),
            is_closed_by_client: false,
            is_close_answered: false,
            dropped: None,
            unacked: Unacked::default(),
            published: 0,
            confirms: None,
            transaction: None,
        }
    }

    /// Executes `input`, or keeps it until the call before it is answered.
    pub fn accept(&mut self, input: Input, shared: &mut Shared) -> Result<(), AmqpError> {
        if self.stage != Stage::Open {
            return Ok(());
        }
        if self.waiting.is_some() {
            shared.held_bytes += input.size_bytes();
            self.backlog.push_back(input);
            return Ok(());
        }
        self.execute(input, shared)
    }

    /// Executes what was kept, up to the next call.
    pub fn resume(&mut self, shared: &mut Shared) -> Result<(), AmqpError> {
        while self.stage == Stage::Open && self.waiting.is_none() {
            let Some(input) = self.backlog.pop_front() else { break };
            shared.held_bytes -= input.size_bytes();
            self.execute(input, shared)?;
        }
        Ok(())
    }

    fn execute(&mut self, input: Input, shared: &mut Shared) -> Result<(), AmqpError> {
        match input {
            Input::Publish(content) => self.publish(content, shared),
            Input::Method(method) => self.method(method, shared),
        }
    }

    /// Forgets what it keeps; true if the client's `channel.close` was among it.
    pub fn abandon(&mut self, shared: &mut Shared) -> bool {
        let closing = self.backlog.iter().any(|input| matches!(input, Input::Method(Method::ChannelClose { .. })));
        let backlog_bytes: usize = self.backlog.drain(..).map(|input| input.size_bytes()).sum();
        let transaction_bytes = self.transaction.take().map_or(0, |transaction| transaction.held_bytes);
        shared.held_bytes -= backlog_bytes + transaction_bytes + self.assembly.held_bytes;
        self.assembly = Assembly::default();
        self.waiting = None;
        shared.held_delivery_bytes -= self.held.drain(..).map(|(_, delivery)| delivery.size_bytes()).sum::<usize>();
        self.consumers.clear();
        self.unacked = Unacked::default();
        closing
    }

    /// The client closes a channel that failed. Its close-ok says that what came before the failure is durable, so the engine is
    /// asked for that first.
    pub fn close_crossed(&mut self, shared: &mut Shared) {
        if !std::mem::replace(&mut self.is_closed_by_client, true) {
            shared.out.request(Request::CloseChannel { channel: self.id });
        }
    }

    fn publish(&mut self, content: Content, shared: &mut Shared) -> Result<(), AmqpError> {
        if content.immediate {
            return Err(AmqpError::new(ReplyCode::NotImplemented, "immediate=true", PUBLISH));
        }
        check_user_id(&content.properties, shared.client.user.as_ref())?;
        check_expiration(&content.properties)?;
        self.published += 1;
        if let Some(confirms) = &mut self.confirms {
            confirms.published(self.published);
        }
        let publish = Publish {
            channel: self.id,
            seq: self.published,
            confirm: self.confirms.is_some(),
            exchange: content.exchange,
            routing_key: content.routing_key,
            mandatory: content.mandatory,
            properties: content.properties,
            body: content.body,
        };
        match &mut self.transaction {
            None => shared.out.request(Request::Publish(publish)),
            Some(transaction) => {
                let size_bytes = publish.body.len() + 256;
                transaction.held_bytes += size_bytes;
                shared.held_bytes += size_bytes;
                transaction.publishes.push(publish);
            }
        }
        Ok(())
    }

    /// `basic.ack`, `nack` and `reject`.
    pub fn settle(
        &mut self,
        tag: u64,
        multiple: bool,
        outcome: Outcome,
        method: MethodId,
        shared: &mut Shared,
    ) -> Result<(), AmqpError> {
        let unknown = || AmqpError::new(ReplyCode::PreconditionFailed, format!("unknown delivery tag {tag}"), method);
        if !multiple {
            let handle = self.unacked.take(tag).ok_or_else(unknown)?;
            match &mut self.transaction {
                None => shared.out.settle(handle.settle(self.id, outcome)),
                Some(transaction) => {
                    transaction.settles.push(handle.settle(self.id, outcome));
                    transaction.settled.push((tag, Run::one(handle)));
                }
            }
        } else {
            let taken = self.unacked.take_up_to(tag).ok_or_else(unknown)?;
            match &mut self.transaction {
                None => settle_all(self.id, outcome, taken.into_values(), &mut shared.out),
                Some(transaction) => {
                    transaction.settles.extend(taken.values().map(|run| run.settle(self.id, outcome)));
                    transaction.settled.extend(taken);
                }
            }
        }
        self.release(shared);
        Ok(())
    }

    /// Gives all unacknowledged deliveries back to their queues.
    pub fn recover(&mut self, shared: &mut Shared) {
        let all = self.unacked.take_up_to(0).unwrap_or_default();
        settle_all(self.id, Outcome::Requeue, all.into_values(), &mut shared.out);
        self.release(shared);
    }

    pub fn deliver(&mut self, consumer: u32, delivery: Delivery, shared: &mut Shared) {
        let Some(known) = self.consumers.get(&consumer) else {
            let handle = Handle { consumer, queue: delivery.queue, number: delivery.number };
            shared.out.settle(handle.settle(self.id, Outcome::Requeue));
            return;
        };
        if !known.no_ack && (!self.held.is_empty() || self.is_full()) {
            shared.held_delivery_bytes += delivery.size_bytes();
            self.held.push_back((consumer, delivery));
            return;
        }
        self.send(consumer, delivery, shared);
    }

    /// What `channel_prefetch` leaves, less what is held back already.
    pub fn room(&self) -> Option<u64> {
        let taken = self.unacked.len() + self.held.len() as u64;
        (self.channel_prefetch > 0).then(|| u64::from(self.channel_prefetch).saturating_sub(taken))
    }

    fn is_full(&self) -> bool {
        self.channel_prefetch > 0 && self.unacked.len() >= u64::from(self.channel_prefetch)
    }

    /// Sends what the channel's prefetch held back, as far as there is room now.
    pub fn release(&mut self, shared: &mut Shared) {
        while !self.is_full() {
            let Some((consumer, delivery)) = self.held.pop_front() else { break };
            shared.held_delivery_bytes -= delivery.size_bytes();
            self.send(consumer, delivery, shared);
        }
    }

    fn send(&mut self, consumer: u32, delivery: Delivery, shared: &mut Shared) {
        let Some(known) = self.consumers.get(&consumer) else { return };
        let handle = Handle { consumer, queue: delivery.queue, number: delivery.number };
        let delivery_tag = self.unacked.deliver((!known.no_ack).then_some(handle));
        if known.no_ack {
            shared.out.settle_when_sent(handle.settle(self.id, Outcome::Ack));
        }
        let Delivery { redelivered, exchange, routing_key, properties, body, .. } = delivery;
        let consumer_tag = known.tag.clone();
        let method = Method::BasicDeliver { consumer_tag, delivery_tag, redelivered, exchange, routing_key };
        shared.out.content(self.id.number, &method, &properties, &body);
    }

    /// The answer to `basic.get`.
    pub fn send_got(&mut self, consumer: u32, no_ack: bool, delivery: Delivery, remaining: u32, shared: &mut Shared) {
        let handle = Handle { consumer, queue: delivery.queue, number: delivery.number };
        let delivery_tag = self.unacked.deliver((!no_ack).then_some(handle));
        if no_ack {
            shared.out.settle_when_sent(handle.settle(self.id, Outcome::Ack));
        }
        let Delivery { redelivered, exchange, routing_key, properties, body, .. } = delivery;
        let method = Method::BasicGetOk { delivery_tag, redelivered, exchange, routing_key, message_count: remaining };
        shared.out.content(self.id.number, &method, &properties, &body);
    }

    /// Forgets a consumer; what was held back for it goes back to its queue.
    pub fn remove_consumer(&mut self, consumer: u32, shared: &mut Shared) -> Option<Consumer> {
        let removed = self.consumers.remove(&consumer);
        let (of_it, others) = std::mem::take(&mut self.held).into_iter().partition(|(owner, _)| *owner == consumer);
        self.held = others;
        let of_it: VecDeque<(u32, Delivery)> = of_it;
        shared.held_delivery_bytes -= of_it.iter().map(|(_, delivery)| delivery.size_bytes()).sum::<usize>();
        let runs = of_it.into_iter().map(|(_, it)| Run::one(Handle { consumer, queue: it.queue, number: it.number }));
        settle_all(self.id, Outcome::Requeue, runs, &mut shared.out);
        removed
    }

    /// Notes the end of a publish for the next flush of confirms.
    pub fn resolve(&mut self, seq: u64, accepted: bool, shared: &mut Shared) {
        if let Some(confirms) = &mut self.confirms
            && confirms.resolve(seq, accepted)
        {
            shared.out.confirming.push(self.id.number);
        }
    }

    /// Sends the confirms that are due.
    pub fn flush_confirms(&mut self, shared: &mut Shared) {
        if let Some(confirms) = &mut self.confirms {
            confirms.flush(self.id.number, &mut shared.out);
        }
    }
}

/// RabbitMQ refuses a `user_id` that is not the publisher's.
fn check_user_id(properties: &Properties, user: Option<&ShortStr>) -> Result<(), AmqpError> {
    let Some(claimed) = properties.user_id() else { return Ok(()) };
    match user {
        Some(user) if *user == claimed => Ok(()),
        user => {
            let name = user.map(ShortStr::as_str).unwrap_or_default();
            let text = format!("user_id property set to '{claimed}' but authenticated user was '{name}'");
            Err(AmqpError::new(ReplyCode::PreconditionFailed, text, PUBLISH))
        }
    }
}

/// `expiration` is a number of milliseconds of at most 32 bits, in decimal. Messages do not expire yet, so one that should
/// is refused: kept for ever, it would not mean what its publisher asked for.
fn check_expiration(properties: &Properties) -> Result<(), AmqpError> {
    let Some(text) = properties.expiration() else { return Ok(()) };
    let digits = text.as_bytes();
    let is_number = !digits.is_empty() && digits.iter().all(u8::is_ascii_digit);
    let text = if !is_number {
        format!("invalid expiration '{text}': no_integer")
    } else if text.as_str().parse::<u32>().is_err() {
        format!("invalid expiration '{text}': value_too_large")
    } else {
        format!("expiration '{text}': this version does not support message TTL yet")
    };
    Err(AmqpError::new(ReplyCode::PreconditionFailed, text, PUBLISH))
}
