use bytes::Bytes;
use holdfast_wire::{FieldTable, Properties, ShortStr};

use crate::{AmqpError, ChannelId, Config, Delivery, Refusal, Reply, Request};

/// One client connection, without I/O. Times are microseconds on a monotonic clock.
///
/// The driver feeds octets and time, and after each of those and after each answer it drains `poll_request` and
/// `poll_transmit` until both are empty (handing out no-ack deliveries makes settlements).
#[derive(Debug)]
pub struct Connection {
    config: Config,
}

#[allow(unused_variables)]
impl Connection {
    /// A connection whose client has just arrived.
    pub fn new(config: Config, now_us: u64) -> Connection {
        Connection { config }
    }

    /// Octets from the client.
    pub fn handle_bytes(&mut self, bytes: Bytes, now_us: u64) {}

    /// What the engine has to do next.
    pub fn poll_request(&mut self) -> Option<Request> {
        None
    }

    /// Octets for the client. No-ack deliveries in them count as settled from here on.
    pub fn poll_transmit(&mut self, now_us: u64) -> Option<Bytes> {
        None
    }

    /// When `handle_timeout` is due.
    pub fn poll_timeout(&self) -> Option<u64> {
        None
    }

    /// Heartbeats and deadlines.
    pub fn handle_timeout(&mut self, now_us: u64) {}

    /// True once nothing more will be read or sent: close the socket (after draining `poll_transmit`).
    pub fn is_closed(&self) -> bool {
        false
    }

    /// True once `connection.open-ok` has been sent and no close is under way.
    pub fn is_open(&self) -> bool {
        false
    }

    /// False while the driver should not read the socket: paused, or too much is held back.
    pub fn wants_input(&self) -> bool {
        true
    }

    /// Stops (or resumes) taking frames from the client, for want of publishing credit or disk. Octets fed meanwhile
    /// are kept; the client's heartbeats are not missed.
    pub fn set_reading_paused(&mut self, paused: bool, now_us: u64) {}

    /// Octets waiting in `poll_transmit`.
    pub fn queued_bytes(&self) -> usize {
        0
    }

    /// The log-in is checked. A refused one is told 403 if the client can read it.
    pub fn reply_authenticated(&mut self, accepted: bool, now_us: u64) {}

    /// The virtual host is open, or not (530).
    pub fn reply_vhost(&mut self, result: Result<(), Refusal>, now_us: u64) {}

    /// The secret is taken, or not.
    pub fn reply_secret_updated(&mut self, result: Result<(), Refusal>) {}

    /// Everything published is durable: `connection.close-ok` leaves.
    pub fn reply_connection_closed(&mut self) {}

    /// Answers the pending call, or `CloseChannel`, of a channel. Dropped if the channel has gone since.
    pub fn reply(&mut self, channel: ChannelId, reply: Reply, now_us: u64) {}

    /// A publish is durable everywhere it was routed to. May come in any order.
    pub fn confirm(&mut self, channel: ChannelId, seq: u64) {}

    /// A publish was refused or lost: `basic.nack` in confirm mode.
    pub fn reject_publish(&mut self, channel: ChannelId, seq: u64) {}

    /// A mandatory message reached no queue: 312. Call before `confirm`.
    pub fn return_message(
        &mut self,
        channel: ChannelId,
        exchange: &ShortStr,
        routing_key: &ShortStr,
        properties: &Properties,
        body: &Bytes,
    ) {
    }

    /// A message for a consumer. Dropped if the channel has gone; given back if only the consumer has.
    pub fn deliver(&mut self, channel: ChannelId, consumer: u32, delivery: Delivery) {}

    /// The consumer ended by the broker's doing (queue deleted or lost): `basic.cancel` to clients that know it.
    pub fn cancel_consumer(&mut self, channel: ChannelId, consumer: u32) {}

    /// An error of a publish that was not answered (404 no exchange, 403 …): blames `basic.publish`.
    pub fn fail_publish(&mut self, channel: ChannelId, refusal: Refusal, now_us: u64) {}

    /// Closes the connection from this side, e.g. 320 CONNECTION_FORCED at shutdown.
    pub fn close(&mut self, refusal: Refusal, now_us: u64) {}

    /// `connection.blocked` (or unblocked, for `None`) to clients that know it; repeated calls are quiet.
    pub fn set_blocked(&mut self, reason: Option<&str>) {}

    /// The name that logged in.
    pub fn user(&self) -> Option<&ShortStr> {
        None
    }

    /// The open virtual host.
    pub fn vhost(&self) -> Option<&ShortStr> {
        None
    }

    /// What the client said of itself.
    pub fn client_properties(&self) -> Option<&FieldTable> {
        None
    }
}
