//! The synchronous methods of a channel: checks against the local view of the metadata, then a request to group 0 or to
//! the queue's own group.

use holdfast_journal::EntryReader;
use holdfast_queue::codec::Message;
use holdfast_queue::ids::{GroupId, QueueId, SessionId};
use holdfast_queue::meta::{Binding, Destination, MetaCommand, MetaReply, Permission};
use holdfast_queue::queue::{QueueCommand, QueueReply};
use holdfast_session::{Call, ChannelId, Refusal, Reply};
use holdfast_wire::{FieldTable, FieldValue, ReplyCode, ShortStr};

use crate::arguments::{arguments_of, refusal_of};
use crate::consuming::{Consumer, initial_credit, session_delivery};
use crate::member::Member;
use crate::publishing::group_of;
use crate::requests::{Declaration, Then, Waiter};
use crate::seam::ConnId;

/// Who calls.
struct Caller {
    user: String,
    vhost: String,
    session: SessionId,
}

type Checked<T> = Result<T, Refusal>;

impl<R: EntryReader> Member<R> {
    /// A synchronous method.
    pub(crate) fn call(&mut self, conn: ConnId, channel: ChannelId, call: Call) {
        let Some(client) = self.clients.get(&conn) else { return };
        let caller = Caller { user: client.user.clone(), vhost: client.vhost.clone(), session: client.id };
        let outcome = match call {
            Call::DeclareExchange { .. }
            | Call::DeleteExchange { .. }
            | Call::BindExchange { .. }
            | Call::UnbindExchange { .. }
            | Call::BindQueue { .. }
            | Call::UnbindQueue { .. } => self.call_topology(conn, channel, &caller, call),
            Call::DeclareQueue { .. } => self.declare_queue(conn, channel, &caller, call),
            Call::PurgeQueue { queue } => self.purge_queue(conn, channel, &caller, queue.as_str()),
            Call::DeleteQueue { queue, if_unused, if_empty } => {
                self.delete_queue(conn, channel, &caller, queue.as_str(), if_unused, if_empty)
            }
            Call::Consume { .. } => self.consume(conn, channel, &caller, call),
            Call::Cancel { consumer, .. } => self.cancel(conn, channel, consumer),
            Call::Get { queue, consumer, .. } => self.get(conn, channel, &caller, queue.as_str(), consumer),
            Call::Sync => {
                // The channel's prefetch may have changed.
                self.raise_credits_of_limited(conn, channel);
                self.reply(conn, channel, Reply::Done);
                Ok(())
            }
            Call::SelectTx | Call::CommitTx { .. } => {
                Err(Refusal::new(ReplyCode::NotImplemented, "transactions are not offered yet"))
            }
        };
        if let Err(refusal) = outcome {
            self.reply(conn, channel, Reply::Failed(refusal));
        }
    }

    fn check(&self, caller: &Caller, permission: Permission, kind: &str, name: &str) -> Checked<()> {
        if self.metadata().is_some_and(|meta| meta.may(&caller.user, &caller.vhost, permission, name)) {
            return Ok(());
        }
        let wish = match permission {
            Permission::Configure => "configure",
            Permission::Write => "write",
            Permission::Read => "read",
        };
        let text =
            format!("{wish} access to {kind} '{name}' in vhost '{}' refused for user '{}'", caller.vhost, caller.user);
        Err(Refusal::new(ReplyCode::AccessRefused, text))
    }

    /// A queue that the caller may use, and its group.
    fn find_queue(&self, caller: &Caller, name: &str) -> Checked<(QueueId, GroupId)> {
        let absent = || Refusal::new(ReplyCode::InternalError, "the metadata is not here");
        let meta = self.metadata().ok_or_else(absent)?;
        let (queue, _) = meta.queue_named(&caller.vhost, name, caller.session).map_err(refusal_of)?;
        Ok((queue, group_of(meta, queue).ok_or_else(absent)?))
    }

    fn call_topology(&mut self, conn: ConnId, channel: ChannelId, caller: &Caller, call: Call) -> Checked<()> {
        let vhost = caller.vhost.clone();
        let command = match call {
            Call::DeclareExchange { name, passive: true, .. } => {
                if let Some(meta) = self.metadata() {
                    meta.exchange(&vhost, name.as_str()).map_err(refusal_of)?;
                }
                self.reply(conn, channel, Reply::Done);
                return Ok(());
            }
            Call::DeclareExchange { name, kind, durable, auto_delete, internal, arguments, .. } => {
                self.check(caller, Permission::Configure, "exchange", name.as_str())?;
                let (name, kind) = (name.as_str().to_owned(), kind.as_str().to_owned());
                let arguments = arguments_of(&arguments);
                MetaCommand::DeclareExchange { vhost, name, kind, durable, auto_delete, internal, arguments }
            }
            Call::DeleteExchange { name, if_unused } => {
                self.check(caller, Permission::Configure, "exchange", name.as_str())?;
                MetaCommand::DeleteExchange { vhost, name: name.as_str().to_owned(), if_unused }
            }
            Call::BindExchange { destination, source, routing_key, arguments } => {
                let binding = self.exchange_binding(caller, &destination, &source, routing_key, &arguments)?;
                MetaCommand::Bind { vhost, binding, session: caller.session }
            }
            Call::UnbindExchange { destination, source, routing_key, arguments } => {
                let binding = self.exchange_binding(caller, &destination, &source, routing_key, &arguments)?;
                MetaCommand::Unbind { vhost, binding, session: caller.session }
            }
            Call::BindQueue { queue, exchange, routing_key, arguments } => {
                let binding = self.queue_binding(caller, &queue, &exchange, routing_key, &arguments)?;
                MetaCommand::Bind { vhost, binding, session: caller.session }
            }
            Call::UnbindQueue { queue, exchange, routing_key, arguments } => {
                let binding = self.queue_binding(caller, &queue, &exchange, routing_key, &arguments)?;
                MetaCommand::Unbind { vhost, binding, session: caller.session }
            }
            _ => return Err(Refusal::new(ReplyCode::InternalError, "not a topology call")),
        };
        self.ask_metadata(command, Waiter::Call { conn, channel, then: Then::Done });
        Ok(())
    }

    fn exchange_binding(
        &self,
        caller: &Caller,
        destination: &ShortStr,
        source: &ShortStr,
        routing_key: ShortStr,
        arguments: &FieldTable,
    ) -> Checked<Binding> {
        self.check(caller, Permission::Write, "exchange", destination.as_str())?;
        self.check(caller, Permission::Read, "exchange", source.as_str())?;
        Ok(Binding {
            source: source.as_str().to_owned(),
            destination: Destination::Exchange { name: destination.as_str().to_owned() },
            routing_key: routing_key.into_bytes(),
            arguments: arguments_of(arguments),
        })
    }

    fn queue_binding(
        &self,
        caller: &Caller,
        queue: &ShortStr,
        exchange: &ShortStr,
        routing_key: ShortStr,
        arguments: &FieldTable,
    ) -> Checked<Binding> {
        self.check(caller, Permission::Write, "queue", queue.as_str())?;
        self.check(caller, Permission::Read, "exchange", exchange.as_str())?;
        Ok(Binding {
            source: exchange.as_str().to_owned(),
            destination: Destination::Queue { name: queue.as_str().to_owned() },
            routing_key: routing_key.into_bytes(),
            arguments: arguments_of(arguments),
        })
    }

    fn declare_queue(&mut self, conn: ConnId, channel: ChannelId, caller: &Caller, call: Call) -> Checked<()> {
        let Call::DeclareQueue { name, passive, durable, exclusive, auto_delete, arguments } = call else {
            return Err(Refusal::new(ReplyCode::InternalError, "not a declare"));
        };
        let name = if name.is_empty() && !passive { self.rng.name("amq.gen-") } else { name.as_str().to_owned() };
        if passive {
            let (queue, group) = self.find_queue(caller, &name)?;
            let waiter = Waiter::Call { conn, channel, then: Then::Counts { name } };
            self.ask(group, QueueCommand::Stat { queue }, waiter);
            return Ok(());
        }
        self.check(caller, Permission::Configure, "queue", &name)?;
        let command = MetaCommand::DeclareQueue {
            vhost: caller.vhost.clone(),
            name: name.clone(),
            durable,
            exclusive,
            auto_delete,
            arguments: arguments_of(&arguments),
            session: caller.session,
        };
        self.ask_to_declare(conn, channel, Box::new(Declaration { name, exclusive, command, repeats: 3 }));
        Ok(())
    }

    fn ask_to_declare(&mut self, conn: ConnId, channel: ChannelId, declaration: Box<Declaration>) {
        let command = declaration.command.clone();
        self.ask_metadata(command, Waiter::Call { conn, channel, then: Then::Declare(declaration) });
    }

    /// A declare met a queue that the metadata still shows and its group does not have: either it is `gone` there (deleted
    /// with its last consumer, say) and the metadata is about to hear of it, or it is not there yet.
    fn declare_again(
        &mut self,
        conn: ConnId,
        channel: ChannelId,
        mut declaration: Box<Declaration>,
        gone: Option<QueueId>,
    ) {
        let Some(repeats) = declaration.repeats.checked_sub(1) else {
            return self.reply(conn, channel, declared(&declaration.name, 0, 0));
        };
        declaration.repeats = repeats;
        match gone {
            None => self.ask_to_declare(conn, channel, declaration),
            Some(queue) => {
                let waiter = Waiter::Call { conn, channel, then: Then::Again(declaration) };
                self.ask_metadata(MetaCommand::DeleteQueue { queue }, waiter);
            }
        }
    }

    fn purge_queue(&mut self, conn: ConnId, channel: ChannelId, caller: &Caller, name: &str) -> Checked<()> {
        self.check(caller, Permission::Read, "queue", name)?;
        let (queue, group) = self.find_queue(caller, name)?;
        let then = Then::Purge { name: name.to_owned() };
        self.ask(group, QueueCommand::Purge { queue }, Waiter::Call { conn, channel, then });
        Ok(())
    }

    fn delete_queue(
        &mut self,
        conn: ConnId,
        channel: ChannelId,
        caller: &Caller,
        name: &str,
        if_unused: bool,
        if_empty: bool,
    ) -> Checked<()> {
        self.check(caller, Permission::Configure, "queue", name)?;
        let (queue, group) = match self.find_queue(caller, name) {
            Ok(found) => found,
            // Deleting what is not there is no error, as in RabbitMQ.
            Err(refusal) if refusal.code == ReplyCode::NotFound => {
                self.reply(conn, channel, Reply::Messages(0));
                return Ok(());
            }
            Err(refusal) => return Err(refusal),
        };
        let then = Then::Delete { name: name.to_owned(), queue };
        let command = QueueCommand::DeleteQueue { queue, if_unused, if_empty };
        self.ask(group, command, Waiter::Call { conn, channel, then });
        Ok(())
    }

    fn consume(&mut self, conn: ConnId, channel: ChannelId, caller: &Caller, call: Call) -> Checked<()> {
        if self.delay_call(conn, channel, &call) {
            return Ok(());
        }
        let Call::Consume { queue: name, consumer, tag, no_ack, exclusive, prefetch, arguments, .. } = call else {
            return Err(Refusal::new(ReplyCode::InternalError, "not a consume"));
        };
        self.check(caller, Permission::Read, "queue", name.as_str())?;
        let (queue, group) = self.find_queue(caller, name.as_str())?;
        let priority = arguments.get("x-priority").as_ref().and_then(FieldValue::as_i64).unwrap_or(0);
        let Some(client) = self.clients.get(&conn) else { return Ok(()) };
        let room = client.session.channel_room(channel);
        let credit_to = initial_credit(prefetch, no_ack, room);
        let id = client.consumer_id(channel, consumer);
        self.add_consumer(conn, channel, consumer, Consumer::new(queue, group, credit_to, no_ack));
        let command = QueueCommand::Subscribe {
            queue,
            consumer: id,
            tag: tag.into_bytes(),
            no_ack,
            exclusive,
            prefetch: if no_ack { 0 } else { u32::from(prefetch) },
            credit_to,
            priority: i32::try_from(priority).unwrap_or(if priority < 0 { i32::MIN } else { i32::MAX }),
        };
        let then = Then::Consume { name: name.as_str().to_owned(), consumer };
        self.ask(group, command, Waiter::Call { conn, channel, then });
        Ok(())
    }

    fn cancel(&mut self, conn: ConnId, channel: ChannelId, consumer: u32) -> Checked<()> {
        let client = self.clients.get(&conn);
        let known = client.and_then(|client| {
            let known = client.channels.get(&channel)?.consumers.get(&consumer)?;
            Some((known.group, known.queue, client.consumer_id(channel, consumer)))
        });
        let Some((group, queue, id)) = known else {
            self.reply(conn, channel, Reply::Done);
            return Ok(());
        };
        let waiter = Waiter::Call { conn, channel, then: Then::Cancel { consumer } };
        self.ask(group, QueueCommand::Cancel { queue, consumer: id }, waiter);
        Ok(())
    }

    fn get(&mut self, conn: ConnId, channel: ChannelId, caller: &Caller, name: &str, number: u32) -> Checked<()> {
        self.check(caller, Permission::Read, "queue", name)?;
        let (queue, group) = self.find_queue(caller, name)?;
        let Some(client) = self.clients.get_mut(&conn) else { return Ok(()) };
        let consumer = client.consumer_id(channel, number);
        if let Some(open) = client.channels.get_mut(&channel) {
            open.queues.insert(queue, group);
        }
        if let Some(client) = self.clients.get_mut(&conn) {
            client.gets_under_way += 1;
        }
        let then = Then::Get { name: name.to_owned() };
        self.ask(group, QueueCommand::Get { queue, consumer }, Waiter::Call { conn, channel, then });
        Ok(())
    }

    /// A queue's group answered a call.
    pub(crate) fn call_answered(
        &mut self,
        conn: ConnId,
        channel: ChannelId,
        then: Then,
        reply: QueueReply,
        content: Option<Message>,
    ) {
        if let Then::Get { .. } = &then {
            self.get_ended(conn);
        }
        let vhost = self.clients.get(&conn).map(|client| client.vhost.clone()).unwrap_or_default();
        if let (Then::Delete { queue, .. }, QueueReply::Deleted { .. } | QueueReply::NoSuchQueue) = (&then, &reply) {
            let messages = if let QueueReply::Deleted { messages } = reply { messages } else { 0 };
            let waiter = Waiter::Call { conn, channel, then: Then::Deleted { messages } };
            return self.ask_metadata(MetaCommand::DeleteQueue { queue: *queue }, waiter);
        }
        if let Then::Consume { consumer, .. } = &then
            && reply != QueueReply::Subscribed
        {
            self.remove_consumer(conn, channel, *consumer);
        }
        if let (Then::Present { declaration, queue }, QueueReply::Gone | QueueReply::NoSuchQueue) = (&then, &reply) {
            let gone = (reply == QueueReply::Gone).then_some(*queue);
            return self.declare_again(conn, channel, declaration.clone(), gone);
        }
        if let Then::Cancel { consumer } = &then {
            if let QueueReply::Cancelled { last } = reply {
                self.give_back_missed(conn, channel, *consumer, last);
            }
            self.remove_consumer(conn, channel, *consumer);
            return self.reply(conn, channel, Reply::Done);
        }
        if let Some(refusal) = reply.refusal(&vhost, then.queue_name()) {
            return self.reply(conn, channel, Reply::Failed(refusal_of(refusal)));
        }
        let answer = match (then, reply) {
            (Then::Consume { .. }, _) => return self.reply_now(conn, channel, Reply::Done),
            (Then::Counts { name }, QueueReply::Stats { stats }) => {
                declared(&name, count(stats.ready), count(stats.consumers))
            }
            (Then::Present { declaration, .. }, QueueReply::Stats { stats }) => {
                declared(&declaration.name, count(stats.ready), count(stats.consumers))
            }
            (_, QueueReply::Purged { messages }) => Reply::Messages(count(messages)),
            (_, QueueReply::Empty) => Reply::Empty,
            (_, QueueReply::Got { delivery, remaining }) => match content {
                Some(content) => {
                    self.metrics.delivered += 1;
                    Reply::Got { delivery: session_delivery(&delivery, content), remaining: count(remaining) }
                }
                None => internal("the message cannot be read"),
            },
            _ => internal("the queue gave an answer that does not fit"),
        };
        self.reply(conn, channel, answer);
    }

    /// Group 0 answered a call; every member with a lease has applied it.
    pub(crate) fn metadata_call_answered(&mut self, conn: ConnId, channel: ChannelId, then: Then, reply: MetaReply) {
        let answer = match (then, reply) {
            (Then::Again(declaration), _) => return self.ask_to_declare(conn, channel, declaration),
            (_, MetaReply::Refused { refusal }) => Reply::Failed(refusal_of(refusal)),
            (Then::Declare(declaration), MetaReply::QueueDeclared { queue, created }) => {
                let exclusive = declaration.exclusive;
                match self.clients.get_mut(&conn).filter(|client| !client.has_ended()) {
                    Some(client) => client.has_exclusive_queues |= exclusive,
                    None if exclusive => {
                        // The connection went while the declare was under way.
                        let session = SessionId { boot: self.boot, conn: conn.0 };
                        return self.ask_metadata(MetaCommand::SessionEnded { session }, Waiter::Nobody);
                    }
                    None => return,
                }
                if !created {
                    let Some(group) = self.metadata().and_then(|meta| group_of(meta, queue)) else {
                        return self.declare_again(conn, channel, declaration, None);
                    };
                    let waiter = Waiter::Call { conn, channel, then: Then::Present { declaration, queue } };
                    return self.ask(group, QueueCommand::Stat { queue }, waiter);
                }
                declared(&declaration.name, 0, 0)
            }
            (Then::Deleted { messages }, _) => Reply::Messages(count(messages)),
            (Then::Done, _) => Reply::Done,
            _ => internal("the metadata gave an answer that does not fit"),
        };
        self.reply(conn, channel, answer);
    }
}

fn count(number: u64) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

fn declared(name: &str, messages: u32, consumers: u32) -> Reply {
    Reply::Declared { queue: ShortStr::truncated(name), messages, consumers }
}

fn internal(text: &str) -> Reply {
    Reply::Failed(Refusal::new(ReplyCode::InternalError, text))
}
