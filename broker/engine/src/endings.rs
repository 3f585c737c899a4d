//! Ends of channels, sessions and connections: what they hold goes back to the queues.

use holdfast_journal::EntryReader;
use holdfast_queue::ids::ConsumerId;
use holdfast_queue::meta::MetaCommand;
use holdfast_queue::queue::QueueCommand;
use holdfast_session::{ChannelId, Refusal};
use holdfast_wire::ReplyCode;

use crate::member::Member;
use crate::requests::Waiter;
use crate::seam::ConnId;

impl<R: EntryReader> Member<R> {
    /// A channel is gone: what it holds goes back to its queues.
    pub(crate) fn end_channel(&mut self, conn: ConnId, channel: ChannelId) {
        let Some(client) = self.clients.get_mut(&conn) else { return };
        let reference = client.channel_ref(channel);
        let Some(closed) = client.channels.remove(&channel) else { return };
        for (number, consumer) in &closed.consumers {
            let id = ConsumerId { channel: reference, number: *number };
            self.forget_consumer(id, consumer);
        }
        for group in closed.groups {
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

    /// Forgets what the clients have in the groups, since their run is over; they only have a close to hear.
    pub(crate) fn clients_of_old_run(&mut self) {
        for client in self.clients.values_mut() {
            client.ended = true;
            client.channels.clear();
            client.held.clear();
            client.delayed.clear();
        }
        self.consumers = Default::default();
        self.metrics.consumers = 0;
    }
}
