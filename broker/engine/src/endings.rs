//! Ends of channels, sessions and connections: what they hold goes back to the queues.

use std::collections::BTreeSet;

use holdfast_journal::EntryReader;
use holdfast_queue::ids::{ConsumerId, GroupId};
use holdfast_queue::meta::MetaCommand;
use holdfast_queue::queue::QueueCommand;
use holdfast_session::{ChannelId, Refusal};
use holdfast_wire::ReplyCode;

use crate::clients::Client;
use crate::member::Member;
use crate::requests::Waiter;
use crate::seam::ConnId;

impl<R: EntryReader> Member<R> {
    /// A channel is gone: what it holds goes back to its queues.
    pub(crate) fn end_channel(&mut self, conn: ConnId, channel: ChannelId) {
        let Some(client) = self.clients.get_mut(&conn) else { return };
        let reference = client.channel_ref(channel);
        client.gets_waiting.retain(|(of, _)| *of != channel);
        let Some(closed) = client.channels.remove(&channel) else { return };
        for (number, consumer) in &closed.consumers {
            let id = ConsumerId { channel: reference, number: *number };
            self.forget_consumer(id, consumer);
        }
        let groups: BTreeSet<GroupId> = closed.queues.into_values().collect();
        for group in groups {
            self.tell(group, QueueCommand::ChannelClosed { channel: reference });
        }
    }

    /// A session is over: its channels, and the exclusive queues that belong to it.
    pub(crate) fn end_session(&mut self, conn: ConnId) {
        let Some(client) = self.clients.get_mut(&conn) else { return };
        if std::mem::replace(&mut client.ended, true) {
            return;
        }
        client.held.clear();
        client.delayed.clear();
        let session = client.id;
        let exclusive = client.has_exclusive_queues;
        let channels: Vec<ChannelId> = client.channels.keys().copied().collect();
        for channel in channels {
            self.end_channel(conn, channel);
        }
        if exclusive {
            self.ask_metadata(MetaCommand::SessionEnded { session }, Waiter::Nobody);
        }
    }

    /// Closes one client from this side.
    pub(crate) fn close_client(&mut self, conn: ConnId, text: &str) {
        let now = self.now.0;
        if let Some(client) = self.clients.get_mut(&conn) {
            client.session.close(Refusal::new(ReplyCode::ConnectionForced, text), now);
            self.touch(conn);
        }
    }

    /// Closes all clients from this side.
    pub(crate) fn close_clients(&mut self, text: &str) {
        let conns: Vec<ConnId> = self.clients.keys().copied().collect();
        for conn in conns {
            self.close_client(conn, text);
        }
    }

    /// Closes the connections whose user is no more, as RabbitMQ does.
    pub(crate) fn close_clients_of_deleted_users(&mut self) {
        let Some(meta) = self.metadata() else { return };
        let gone = |client: &Client| client.session.is_open() && meta.user(&client.user).is_none();
        let conns: Vec<ConnId> =
            self.clients.iter().filter(|(_, client)| gone(client)).map(|(conn, _)| *conn).collect();
        for conn in conns {
            self.close_client(conn, "the user was deleted");
        }
    }

    /// Forgets what the clients have in the groups, since their run is over; they only have a close to hear.
    pub(crate) fn clients_of_old_run(&mut self) {
        for client in self.clients.values_mut() {
            client.ended = true;
            client.channels.clear();
            client.failed.clear();
            // What was under way is not known any more, so no close-ok may say that it is durable.
            client.closing = false;
            client.gets_waiting.clear();
            client.gets_under_way = 0;
            client.held.clear();
            client.delayed.clear();
        }
        self.consumers = Default::default();
        self.metrics.consumers = 0;
    }

    /// Ends a channel by an error of a publish; what it sent after that is dropped, wherever it waits.
    pub(crate) fn fail_publish(&mut self, conn: ConnId, channel: ChannelId, refusal: Refusal) {
        let now = self.now.0;
        if let Some(client) = self.clients.get_mut(&conn) {
            client.session.fail_publish(channel, refusal, now);
            client.held.retain(|request| !request.is_of(channel));
            self.touch(conn);
        }
    }
}
