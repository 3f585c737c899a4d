//! The methods of a channel, and the engine's replies to those that it answers.

use holdfast_wire::{Method, MethodId, ReplyCode, ShortStr};

use crate::channel::{Answer, Channel, Consumer, Stage, Transaction, Waiting};
use crate::confirms::Confirms;
use crate::outbox::Shared;
use crate::{AmqpError, Call, Outcome, Refusal, Reply, Request};

impl Channel {
    pub(crate) fn method(&mut self, method: Method, shared: &mut Shared) -> Result<(), AmqpError> {
        let id = method.id();
        match id.class {
            40 => self.exchange_method(method, shared),
            50 => self.queue_method(method, shared),
            60 => self.basic_method(method, shared),
            90 => self.tx_method(method, shared),
            _ => self.other_method(method, shared),
        }
    }

    fn other_method(&mut self, method: Method, shared: &mut Shared) -> Result<(), AmqpError> {
        let id = method.id();
        match method {
            Method::ChannelOpen {} => {
                return Err(AmqpError::new(ReplyCode::ChannelError, "second 'channel.open' seen", id));
            }
            Method::ChannelClose { .. } => {
                self.stage = Stage::Closing;
                self.waiting = Some(Waiting { method: id, no_wait: false, answer: Answer::Close });
                shared.out.request(Request::CloseChannel { channel: self.id });
            }
            Method::ChannelFlow { active: true } => self.tell(&Method::ChannelFlowOk { active: true }, shared),
            Method::ChannelFlow { active: false } => return Err(not_implemented("active=false", id)),
            // Answers to what this server never asks, or that changes nothing.
            Method::ChannelFlowOk { .. } | Method::ChannelCloseOk {} => {}
            Method::AccessRequest { .. } => self.tell(&Method::AccessRequestOk { ticket: 1 }, shared),
            Method::ConfirmSelect { no_wait } => self.select_confirms(no_wait, id, shared)?,
            _ => return Err(unimplemented_method(id)),
        }
        Ok(())
    }

    fn select_confirms(&mut self, no_wait: bool, id: MethodId, shared: &mut Shared) -> Result<(), AmqpError> {
        if self.transaction.is_some() {
            let text = "cannot switch from tx to confirm mode";
            return Err(AmqpError::new(ReplyCode::PreconditionFailed, text, id));
        }
        if self.confirms.is_none() {
            self.confirms = Some(Confirms::new(self.published));
        }
        if !no_wait {
            self.call(Call::Sync, Answer::Plain(Method::ConfirmSelectOk {}), false, id, shared);
        }
        Ok(())
    }

    fn exchange_method(&mut self, method: Method, shared: &mut Shared) -> Result<(), AmqpError> {
        let id = method.id();
        let (call, ok, no_wait) = match method {
            Method::ExchangeDeclare { exchange, kind, passive, durable, auto_delete, internal, no_wait, arguments } => {
                let name = one_line(exchange);
                let call = Call::DeclareExchange { name, kind, passive, durable, auto_delete, internal, arguments };
                (call, Method::ExchangeDeclareOk {}, no_wait)
            }
            Method::ExchangeDelete { exchange, if_unused, no_wait } => {
                let call = Call::DeleteExchange { name: one_line(exchange), if_unused };
                (call, Method::ExchangeDeleteOk {}, no_wait)
            }
            Method::ExchangeBind { destination, source, routing_key, no_wait, arguments } => {
                let (destination, source) = (one_line(destination), one_line(source));
                let call = Call::BindExchange { destination, source, routing_key, arguments };
                (call, Method::ExchangeBindOk {}, no_wait)
            }
            Method::ExchangeUnbind { destination, source, routing_key, no_wait, arguments } => {
                let (destination, source) = (one_line(destination), one_line(source));
                let call = Call::UnbindExchange { destination, source, routing_key, arguments };
                (call, Method::ExchangeUnbindOk {}, no_wait)
            }
            _ => return Err(unimplemented_method(id)),
        };
        self.call(call, Answer::Plain(ok), no_wait, id, shared);
        Ok(())
    }

    fn queue_method(&mut self, method: Method, shared: &mut Shared) -> Result<(), AmqpError> {
        let id = method.id();
        match method {
            Method::QueueDeclare { queue, passive, durable, exclusive, auto_delete, no_wait, arguments } => {
                let name = one_line(queue);
                let call = Call::DeclareQueue { name, passive, durable, exclusive, auto_delete, arguments };
                self.call(call, Answer::QueueDeclare, no_wait, id, shared);
            }
            Method::QueueBind { queue, exchange, routing_key, no_wait, arguments } => {
                let (queue, routing_key) = self.queue_and_key(queue, routing_key, id)?;
                let call = Call::BindQueue { queue, exchange: one_line(exchange), routing_key, arguments };
                self.call(call, Answer::Plain(Method::QueueBindOk {}), no_wait, id, shared);
            }
            Method::QueueUnbind { queue, exchange, routing_key, arguments } => {
                let (queue, routing_key) = self.queue_and_key(queue, routing_key, id)?;
                let call = Call::UnbindQueue { queue, exchange: one_line(exchange), routing_key, arguments };
                self.call(call, Answer::Plain(Method::QueueUnbindOk {}), false, id, shared);
            }
            Method::QueuePurge { queue, no_wait } => {
                let queue = self.queue_name(queue, id)?;
                self.call(Call::PurgeQueue { queue }, Answer::QueuePurge, no_wait, id, shared);
            }
            Method::QueueDelete { queue, if_unused, if_empty, no_wait } => {
                let queue = self.queue_name(queue, id)?;
                let call = Call::DeleteQueue { queue, if_unused, if_empty };
                self.call(call, Answer::QueueDelete, no_wait, id, shared);
            }
            _ => return Err(unimplemented_method(id)),
        }
        Ok(())
    }

    fn basic_method(&mut self, method: Method, shared: &mut Shared) -> Result<(), AmqpError> {
        let id = method.id();
        match method {
            Method::BasicAck { delivery_tag, multiple } => {
                self.settle(delivery_tag, multiple, Outcome::Ack, id, shared)?;
            }
            Method::BasicNack { delivery_tag, multiple, requeue } => {
                self.settle(delivery_tag, multiple, refused(requeue), id, shared)?;
            }
            Method::BasicReject { delivery_tag, requeue } => {
                self.settle(delivery_tag, false, refused(requeue), id, shared)?;
            }
            Method::BasicQos { prefetch_size, prefetch_count, global } => {
                if prefetch_size != 0 {
                    return Err(not_implemented(&format!("prefetch_size!=0 ({prefetch_size})"), id));
                }
                self.prefetch(prefetch_count, global, shared);
                self.call(Call::Sync, Answer::Plain(Method::BasicQosOk {}), false, id, shared);
            }
            Method::BasicConsume { queue, consumer_tag, no_local, no_ack, exclusive, no_wait, arguments } => {
                let queue = self.queue_name(queue, id)?;
                let (consumer, tag) = self.add_consumer(consumer_tag, no_ack, id, shared)?;
                let prefetch = self.consumer_prefetch;
                let call = Call::Consume { queue, consumer, tag, no_local, no_ack, exclusive, prefetch, arguments };
                self.call(call, Answer::Consume { consumer }, no_wait, id, shared);
            }
            Method::BasicCancel { consumer_tag, no_wait } => self.cancel(consumer_tag, no_wait, id, shared),
            Method::BasicGet { queue, no_ack } => {
                let queue = self.queue_name(queue, id)?;
                self.last_consumer += 1;
                let consumer = self.last_consumer;
                self.call(Call::Get { queue, consumer, no_ack }, Answer::Get { consumer, no_ack }, false, id, shared);
            }
            Method::BasicRecover { requeue: true } => {
                self.recover(shared);
                self.call(Call::Sync, Answer::Plain(Method::BasicRecoverOk {}), false, id, shared);
            }
            Method::BasicRecoverAsync { requeue: true } => self.recover(shared),
            Method::BasicRecover { requeue: false } | Method::BasicRecoverAsync { requeue: false } => {
                return Err(not_implemented("requeue=false", id));
            }
            // Some clients answer the server's basic.cancel although it says no-wait.
            Method::BasicCancelOk { .. } => {}
            _ => return Err(unimplemented_method(id)),
        }
        Ok(())
    }

    fn prefetch(&mut self, count: u16, global: bool, shared: &mut Shared) {
        if global {
            self.channel_prefetch = count;
            self.release(shared);
        } else {
            self.consumer_prefetch = count;
        }
    }

    /// Enters a consumer under the client's tag, or one made here: `amq.ctag-` and what no other consumer has.
    fn add_consumer(
        &mut self,
        tag: ShortStr,
        no_ack: bool,
        id: MethodId,
        shared: &Shared,
    ) -> Result<(u32, ShortStr), AmqpError> {
        if !tag.is_empty() && self.consumers.values().any(|consumer| consumer.tag == tag) {
            let text = format!("attempt to reuse consumer tag '{tag}'");
            return Err(AmqpError::new(ReplyCode::NotAllowed, text, id));
        }
        self.last_consumer += 1;
        let number = self.last_consumer;
        let tag = if tag.is_empty() {
            let (seed, generation) = (shared.config.tag_seed, self.id.generation);
            ShortStr::truncated(&format!("amq.ctag-{seed:016x}-{generation:x}-{number:x}"))
        } else {
            tag.detached()
        };
        self.consumers.insert(number, Consumer { tag: tag.clone(), no_ack });
        Ok((number, tag))
    }

    fn cancel(&mut self, tag: ShortStr, no_wait: bool, id: MethodId, shared: &mut Shared) {
        let consumer = self.consumers.iter().find(|(_, consumer)| consumer.tag == tag).map(|(number, _)| *number);
        match consumer {
            Some(consumer) => {
                let call = Call::Cancel { consumer, tag: tag.clone() };
                self.call(call, Answer::Cancel { consumer, tag }, no_wait, id, shared);
            }
            // As RabbitMQ: a tag that is not there (any more) is cancelled.
            None if !no_wait => self.tell(&Method::BasicCancelOk { consumer_tag: tag }, shared),
            None => {}
        }
    }

    fn tx_method(&mut self, method: Method, shared: &mut Shared) -> Result<(), AmqpError> {
        let id = method.id();
        let precondition = |text: &str| AmqpError::new(ReplyCode::PreconditionFailed, text, id);
        match method {
            Method::TxSelect {} if self.confirms.is_some() => {
                return Err(precondition("cannot switch from confirm to tx mode"));
            }
            Method::TxSelect {} if self.transaction.is_some() => self.tell(&Method::TxSelectOk {}, shared),
            Method::TxSelect {} => self.call(Call::SelectTx, Answer::SelectTx, false, id, shared),
            Method::TxCommit {} | Method::TxRollback {} => {
                let Some(transaction) = &mut self.transaction else {
                    return Err(precondition("channel is not transactional"));
                };
                let ended = std::mem::take(transaction);
                shared.held_bytes -= ended.held_bytes;
                if method == (Method::TxCommit {}) {
                    let call = Call::CommitTx { publishes: ended.publishes, settles: ended.settles };
                    self.call(call, Answer::CommitTx, false, id, shared);
                } else {
                    self.unacked.restore(ended.settled);
                    self.tell(&Method::TxRollbackOk {}, shared);
                }
            }
            _ => return Err(unimplemented_method(id)),
        }
        Ok(())
    }

    fn call(&mut self, call: Call, answer: Answer, no_wait: bool, method: MethodId, shared: &mut Shared) {
        self.waiting = Some(Waiting { method, no_wait, answer });
        shared.out.request(Request::Call { channel: self.id, call });
    }

    fn tell(&self, method: &Method, shared: &mut Shared) {
        shared.out.method(self.id.number, method);
    }

    /// An empty name means the queue declared last on this channel (AMQP 0-9-1, domain queue-name).
    fn queue_name(&self, queue: ShortStr, id: MethodId) -> Result<ShortStr, AmqpError> {
        if !queue.is_empty() {
            return Ok(one_line(queue));
        }
        if self.last_queue.is_empty() {
            return Err(AmqpError::new(ReplyCode::NotFound, "no previously declared queue", id));
        }
        Ok(self.last_queue.clone())
    }

    /// With neither name nor key, the key too is the name of the queue declared last (queue.bind, rule 04).
    fn queue_and_key(&self, queue: ShortStr, key: ShortStr, id: MethodId) -> Result<(ShortStr, ShortStr), AmqpError> {
        let name = self.queue_name(queue.clone(), id)?;
        let key = if queue.is_empty() && key.is_empty() { name.clone() } else { key };
        Ok((name, key))
    }

    /// Turns the engine's reply into the client's. `Ok(true)` once the channel is closed for good.
    pub(crate) fn reply(&mut self, reply: Reply, shared: &mut Shared) -> Result<bool, AmqpError> {
        let Some(Waiting { method, no_wait, answer }) = self.waiting.take() else { return Ok(false) };
        let ok = match (answer, reply) {
            (Answer::Close, _) => {
                self.flush_confirms(shared);
                self.tell(&Method::ChannelCloseOk {}, shared);
                return Ok(true);
            }
            (answer, Reply::Failed(refusal)) => {
                if let Answer::Consume { consumer } = answer {
                    self.remove_consumer(consumer, shared);
                }
                let Refusal { code, text } = refusal;
                return Err(AmqpError::new(code, text, method));
            }
            (Answer::Plain(ok), Reply::Done) => Some(ok),
            (Answer::QueueDeclare, Reply::Declared { queue, messages, consumers }) => {
                self.last_queue = queue.detached();
                Some(Method::QueueDeclareOk { queue, message_count: messages, consumer_count: consumers })
            }
            (Answer::QueuePurge, Reply::Messages(message_count)) => Some(Method::QueuePurgeOk { message_count }),
            (Answer::QueueDelete, Reply::Messages(message_count)) => Some(Method::QueueDeleteOk { message_count }),
            (Answer::Consume { consumer }, Reply::Done) => self
                .consumers
                .get(&consumer)
                .map(|consumer| Method::BasicConsumeOk { consumer_tag: consumer.tag.clone() }),
            (Answer::Cancel { consumer, tag }, Reply::Done) => {
                self.remove_consumer(consumer, shared);
                Some(Method::BasicCancelOk { consumer_tag: tag })
            }
            (Answer::Get { consumer, no_ack }, Reply::Got { delivery, remaining }) => {
                self.send_got(consumer, no_ack, delivery, remaining, shared);
                None
            }
            (Answer::Get { .. }, Reply::Empty) => Some(Method::BasicGetEmpty {}),
            (Answer::SelectTx, Reply::Done) => {
                self.transaction = Some(Transaction::default());
                Some(Method::TxSelectOk {})
            }
            (Answer::CommitTx, Reply::Done) => Some(Method::TxCommitOk {}),
            _ => {
                let text = "the reply does not fit the method";
                return Err(AmqpError::new(ReplyCode::InternalError, text, method));
            }
        };
        if let (Some(ok), false) = (ok, no_wait) {
            self.tell(&ok, shared);
        }
        Ok(false)
    }
}

fn refused(requeue: bool) -> Outcome {
    if requeue { Outcome::Requeue } else { Outcome::Reject }
}

fn not_implemented(text: &str, method: MethodId) -> AmqpError {
    AmqpError::new(ReplyCode::NotImplemented, text, method)
}

fn unimplemented_method(method: MethodId) -> AmqpError {
    AmqpError::new(ReplyCode::CommandInvalid, "unimplemented method", method)
}

/// Names of queues and exchanges lose their line ends, as in RabbitMQ.
fn one_line(name: ShortStr) -> ShortStr {
    let is_line_end = |octet: &u8| matches!(octet, b'\r' | b'\n');
    if !name.as_bytes().iter().any(is_line_end) {
        return name;
    }
    let kept: Vec<u8> = name.as_bytes().iter().copied().filter(|octet| !is_line_end(octet)).collect();
    ShortStr::new(kept).unwrap_or_default()
}
