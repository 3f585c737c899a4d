//! The publish path: permission, routes, one command for each queue, and the confirm once all of them are durable.

use bytes::Bytes;
use holdfast_journal::EntryReader;
use holdfast_queue::codec::Message;
use holdfast_queue::ids::{GroupId, QueueId};
use holdfast_queue::meta::{MetaMachine, Permission, Placement};
use holdfast_queue::queue::QueueCommand;
use holdfast_queue::{Publication, RouteError};
use holdfast_session::{ChannelId, Publish, Refusal};
use holdfast_wire::{FieldTable, FieldValue, Properties, ReplyCode};

use crate::arguments::arguments_of;
use crate::copies::Target;
use crate::member::Member;
use crate::requests::Tracked;
use crate::seam::ConnId;
use crate::transient::transient_group_of;

/// What a message costs beside its content, bytes.
pub(crate) const OVERHEAD_BYTES: usize = 128;

/// The group that holds a queue, as commands to it are addressed.
pub(crate) fn group_of(meta: &MetaMachine, queue: QueueId) -> Option<GroupId> {
    Some(match meta.queue(queue)?.placement {
        Placement::Replicated { group } => group,
        Placement::Transient { owner } => transient_group_of(owner.boot),
    })
}

impl<R: EntryReader> Member<R> {
    /// A message from a client. Its end is reported with [`Member::publish_ended`].
    pub(crate) fn publish(&mut self, conn: ConnId, publish: Publish) {
        let mut targets = std::mem::take(&mut self.routed);
        targets.clear();
        let routed = self.route(conn, &publish, &mut targets);
        match routed {
            Ok(properties) => self.store(conn, publish, properties, &targets),
            Err(refusal) => self.fail_publish(conn, publish.channel, refusal),
        }
        self.routed = targets;
    }

    /// Finds the queues; gives the properties as they are to be stored.
    fn route(&self, conn: ConnId, publish: &Publish, targets: &mut Vec<Target>) -> Result<Properties, Refusal> {
        let gone = || Refusal::new(ReplyCode::InternalError, "the metadata is not here");
        let client = self.clients.get(&conn).ok_or_else(gone)?;
        let meta = self.metadata().ok_or_else(gone)?;
        let (vhost, exchange) = (client.vhost.as_str(), publish.exchange.as_str());
        if !meta.may(&client.user, vhost, Permission::Write, exchange) {
            let text =
                format!("write access to exchange '{exchange}' in vhost '{vhost}' refused for user '{}'", client.user);
            return Err(Refusal::new(ReplyCode::AccessRefused, text));
        }
        let headers = if publish.properties.has_headers() { publish.properties.headers().ok().flatten() } else { None };
        let copies = headers.as_ref().map(Copies::of).unwrap_or_default();
        let mut keys: Vec<&[u8]> = Vec::with_capacity(1 + copies.keys.len());
        keys.push(publish.routing_key.as_bytes());
        keys.extend(copies.keys.iter().map(|key| key.as_ref()));
        let table = || headers.as_ref().map(arguments_of).unwrap_or_default();
        let publication = Publication { vhost, exchange, routing_keys: &keys, headers: &table };
        let mut found = Vec::new();
        meta.router().route(&publication, &mut found).map_err(|error| refusal_of(error, vhost, exchange))?;
        targets.extend(found.into_iter().filter_map(|queue| {
            let copies = u8::try_from(meta.min_in_sync_replicas(queue)).unwrap_or(u8::MAX);
            Some(Target { queue, group: group_of(meta, queue)?, copies })
        }));
        Ok(match copies.rest {
            Some(rest) => publish.properties.with_headers(Some(&rest)),
            None => publish.properties.clone(),
        })
    }

    fn store(&mut self, conn: ConnId, publish: Publish, properties: Properties, targets: &[Target]) {
        let channel = publish.channel;
        if let Some(text) = self.too_few_copies(targets)
            && self.refuse(conn, &publish, text)
        {
            return;
        }
        self.metrics.published += 1;
        let size = publish.body.len() + properties.as_bytes().len() + OVERHEAD_BYTES;
        let Some(client) = self.clients.get_mut(&conn) else { return };
        let Some(open) = client.channels.get_mut(&channel) else { return };
        open.publishes.begin(targets.len() as u32);
        if targets.is_empty() {
            if publish.mandatory {
                self.metrics.returned += 1;
                let (exchange, key) = (&publish.exchange, &publish.routing_key);
                client.session.return_message(channel, exchange, key, &publish.properties, &publish.body);
            }
            client.session.confirm(channel, publish.seq);
            self.metrics.confirmed += 1;
            self.touch(conn);
            return self.block_publisher(conn);
        }
        client.unconfirmed_bytes += size * targets.len();
        client.unfinished += targets.len() as u64;
        self.count_published(size * targets.len());
        let Publish { seq, confirm, .. } = publish;
        let message = Message {
            exchange: publish.exchange.into_bytes(),
            routing_key: publish.routing_key.into_bytes(),
            properties: properties.into_bytes(),
            body: publish.body,
        };
        for Target { queue, group, copies } in targets {
            let command = QueueCommand::Publish { queue: *queue, message: message.clone() };
            let tracked = Tracked::Publish { conn, channel, seq, size: size as u32, confirm };
            self.track(*group, command, size, tracked, *copies);
            if let Some(host) = self.transient_owner(*group) {
                self.published_to_transient(conn, host);
            }
        }
        self.block_publisher(conn);
    }

    /// Refuses a publish before anything of it is appended: with a nack, or without confirms with the end of its channel.
    /// False when the client has closed already and could not be told: then its close waits for the copies.
    fn refuse(&mut self, conn: ConnId, publish: &Publish, text: String) -> bool {
        let channel = publish.channel;
        let Some(client) = self.clients.get_mut(&conn) else { return true };
        if publish.confirm {
            let Some(open) = client.channels.get_mut(&channel) else { return true };
            open.publishes.begin(0);
            client.session.reject_publish(channel, publish.seq);
        } else if client.session.is_open() {
            self.fail_publish(conn, channel, Refusal::new(ReplyCode::PreconditionFailed, text));
        } else {
            return false;
        }
        self.metrics.refused += 1;
        self.touch(conn);
        true
    }

    /// One queue has the message for good.
    pub(crate) fn publish_ended(&mut self, conn: ConnId, channel: ChannelId, seq: u64, size: u32) {
        let Some(client) = self.clients.get_mut(&conn) else { return };
        client.unconfirmed_bytes = client.unconfirmed_bytes.saturating_sub(size as usize);
        client.unfinished = client.unfinished.saturating_sub(1);
        let Some(open) = client.channels.get_mut(&channel) else {
            // The channel failed, but close-oks wait for what it published.
            if let Some(failed) = client.failed.get_mut(&channel) {
                failed.publishes.end_part(seq - 1);
            }
            self.barriers.insert(conn);
            return;
        };
        if open.publishes.end_part(seq - 1) {
            client.session.confirm(channel, seq);
            self.metrics.confirmed += 1;
            self.touched.insert(conn);
            self.barriers.insert(conn);
        }
    }

    /// One queue has the message on too few disks: the publish is nacked as a whole, and may still be delivered.
    pub(crate) fn publish_failed(&mut self, conn: ConnId, channel: ChannelId, seq: u64, size: u32) {
        let Some(client) = self.clients.get_mut(&conn) else { return };
        client.unconfirmed_bytes = client.unconfirmed_bytes.saturating_sub(size as usize);
        client.unfinished = client.unfinished.saturating_sub(1);
        self.barriers.insert(conn);
        let Some(open) = client.channels.get_mut(&channel) else {
            if let Some(failed) = client.failed.get_mut(&channel) {
                failed.publishes.fail(seq - 1);
            }
            return;
        };
        if open.publishes.fail(seq - 1) {
            client.session.reject_publish(channel, seq);
            self.metrics.refused += 1;
            self.touched.insert(conn);
        }
    }
}

fn refusal_of(error: RouteError, vhost: &str, exchange: &str) -> Refusal {
    crate::arguments::refusal_of(error.refusal(vhost, exchange))
}

/// The routing keys of the `CC` and `BCC` headers, RabbitMQ's sender-selected distribution.
#[derive(Default)]
struct Copies {
    keys: Vec<Bytes>,
    /// The headers without `BCC`, if it was there.
    rest: Option<FieldTable>,
}

impl Copies {
    fn of(headers: &FieldTable) -> Self {
        let mut keys = Vec::new();
        for name in ["CC", "BCC"] {
            if let Some(FieldValue::Array(array)) = headers.get(name) {
                keys.extend(array.iter().filter_map(|value| match value {
                    FieldValue::LongStr(key) => Some(key),
                    _ => None,
                }));
            }
        }
        let rest = headers.get("BCC").and_then(|_| {
            let others = headers.iter().filter(|(name, _)| *name != "BCC");
            FieldTable::from_entries(others.map(|(name, value)| (name.into_bytes(), value))).ok()
        });
        Self { keys, rest }
    }
}
