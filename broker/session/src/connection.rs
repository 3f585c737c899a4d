use std::collections::BTreeMap;

use bytes::Bytes;
use holdfast_wire::{FieldTable, FrameDecoder, Method, MethodId, Properties, ReplyCode, ShortStr};

use crate::assembly::PUBLISH;
use crate::channel::{Channel, Stage};
use crate::heartbeat::Heartbeat;
use crate::outbox::{Client, Outbox, Shared};
use crate::{AmqpError, ChannelId, Config, Delivery, LostReason, Refusal, Reply, Request};

/// `connection.close-ok` as a client sends it, for input whose framing is lost.
const CLOSE_OK_FRAME: &[u8] = b"\x01\x00\x00\x00\x00\x00\x04\x00\x0a\x00\x33\xce";

/// One client connection, without I/O. Times are microseconds on a monotonic clock.
///
/// The driver feeds octets and time, and after each of those and after each answer it drains `poll_request` and
/// `poll_transmit` until both are empty (handing out no-ack deliveries makes settlements).
#[derive(Debug)]
pub struct Connection {
    pub(crate) shared: Shared,
    pub(crate) phase: Phase,
    pub(crate) heartbeat: Heartbeat,
    pub(crate) decoder: FrameDecoder,
    pub(crate) channels: BTreeMap<u16, Channel>,
    pub(crate) generations: u32,
    pub(crate) channel_max: u16,
    /// Largest frame from the client, octets with overhead; 0 = no limit.
    pub(crate) frame_max: u32,
    paused: bool,
    /// No frame can be found any more in what the client sends.
    pub(crate) framing_lost: bool,
    blocked: bool,
    pub(crate) updating_secret: bool,
}

/// Where a connection is between the first octet and the last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// The protocol header is to come.
    Header { deadline_us: u64 },
    /// `connection.start-ok` is to come.
    Start { deadline_us: u64 },
    /// The engine checks the log-in.
    Authenticating { deadline_us: u64 },
    /// `connection.tune-ok` is to come.
    Tuning { deadline_us: u64 },
    /// `connection.open` is to come.
    Opening { deadline_us: u64 },
    /// The engine opens the virtual host.
    OpeningVhost { deadline_us: u64 },
    /// In use.
    Open,
    /// The client has closed; calls of its channels are still being answered.
    Draining,
    /// The client has closed; the engine makes durable what was published.
    ClientClosing,
    /// Closed by us; the client's close-ok is to come.
    Closing { deadline_us: u64 },
    /// Nothing more is read or written.
    Closed,
}

impl Connection {
    /// A connection whose client has just arrived.
    pub fn new(config: Config, now_us: u64) -> Connection {
        let deadline_us = now_us.saturating_add(config.handshake_timeout_us);
        Connection {
            shared: Shared {
                config,
                out: Outbox::default(),
                client: Client::default(),
                held_bytes: 0,
                held_delivery_bytes: 0,
            },
            phase: Phase::Header { deadline_us },
            heartbeat: Heartbeat::new(now_us),
            decoder: FrameDecoder::new(),
            channels: BTreeMap::new(),
            generations: 0,
            channel_max: 0,
            frame_max: crate::handshake::FIRST_FRAME_MAX,
            paused: false,
            framing_lost: false,
            blocked: false,
            updating_secret: false,
        }
    }

    /// Octets from the client.
    pub fn handle_bytes(&mut self, bytes: Bytes, now_us: u64) {
        self.heartbeat.received(now_us);
        if self.framing_lost {
            if bytes.ends_with(CLOSE_OK_FRAME) {
                self.phase = Phase::Closed;
            }
            return;
        }
        if !matches!(self.phase, Phase::Closed | Phase::Draining | Phase::ClientClosing) {
            self.decoder.feed(bytes);
            self.process(now_us);
        }
    }

    /// What the engine has to do next.
    pub fn poll_request(&mut self) -> Option<Request> {
        self.shared.out.next_request()
    }

    /// Octets for the client. No-ack deliveries in them count as settled from here on.
    pub fn poll_transmit(&mut self, now_us: u64) -> Option<Bytes> {
        self.flush_confirms();
        let bytes = self.shared.out.transmit()?;
        self.heartbeat.sent(now_us);
        Some(bytes)
    }

    /// When `handle_timeout` is due.
    pub fn poll_timeout(&self) -> Option<u64> {
        match self.phase {
            Phase::Header { deadline_us }
            | Phase::Start { deadline_us }
            | Phase::Authenticating { deadline_us }
            | Phase::Tuning { deadline_us }
            | Phase::Opening { deadline_us }
            | Phase::OpeningVhost { deadline_us }
            | Phase::Closing { deadline_us } => Some(deadline_us),
            Phase::Open | Phase::Draining | Phase::ClientClosing => self.heartbeat.next_due(),
            Phase::Closed => None,
        }
    }

    /// Heartbeats and deadlines.
    pub fn handle_timeout(&mut self, now_us: u64) {
        match self.phase {
            Phase::Closing { deadline_us } if now_us >= deadline_us => self.phase = Phase::Closed,
            Phase::Closing { .. } | Phase::Closed => {}
            Phase::Open | Phase::Draining | Phase::ClientClosing => {
                // What was not read cannot have been missed.
                if self.phase != Phase::Open || !self.wants_input() {
                    self.heartbeat.received(now_us);
                }
                if self.heartbeat.is_lost(now_us) {
                    return self.lose(LostReason::Heartbeat);
                }
                if self.heartbeat.must_send(now_us) {
                    self.shared.out.heartbeat();
                    self.heartbeat.sent(now_us);
                }
            }
            _ if self.poll_timeout().is_some_and(|deadline_us| now_us >= deadline_us) => {
                self.lose(LostReason::HandshakeTimeout);
            }
            _ => {}
        }
    }

    /// True once nothing more will be read or sent: close the socket (after draining `poll_transmit`).
    pub fn is_closed(&self) -> bool {
        self.phase == Phase::Closed
    }

    /// True once `connection.open-ok` has been sent and no close is under way.
    pub fn is_open(&self) -> bool {
        self.phase == Phase::Open
    }

    /// False while the driver should not read the socket: paused, or too much is held back.
    pub fn wants_input(&self) -> bool {
        match self.phase {
            Phase::Authenticating { .. } | Phase::OpeningVhost { .. } => false,
            Phase::Open => !self.paused && self.shared.held_bytes < self.shared.config.assembly_max_bytes,
            _ => true,
        }
    }

    /// Stops (or resumes) taking frames from the client, for want of publishing credit or disk. Octets fed meanwhile
    /// are kept; the client's heartbeats are not missed.
    pub fn set_reading_paused(&mut self, paused: bool, now_us: u64) {
        if self.paused && !paused {
            self.heartbeat.received(now_us);
        }
        self.paused = paused;
        self.process(now_us);
    }

    /// Octets for the client that are not handed out yet: waiting in `poll_transmit`, or held back by the prefetch of a
    /// channel.
    pub fn queued_bytes(&self) -> usize {
        self.shared.out.queued_bytes() + self.shared.held_delivery_bytes
    }

    /// Octets from the client that are kept: of bodies under way, of methods that wait for an answer, of uncommitted
    /// publishes.
    pub fn held_bytes(&self) -> usize {
        self.shared.held_bytes
    }

    /// The secret is taken, or not.
    pub fn reply_secret_updated(&mut self, result: Result<(), Refusal>) {
        if !std::mem::take(&mut self.updating_secret) {
            return;
        }
        match result {
            Ok(()) => self.shared.out.method(0, &Method::ConnectionUpdateSecretOk {}),
            Err(Refusal { code, text }) => {
                // Heard from lately: it has just asked.
                let now_us = self.heartbeat.last_received_us();
                self.fail(0, AmqpError::new(code, text, MethodId { class: 10, method: 70 }), now_us);
            }
        }
    }

    /// Everything published is durable: `connection.close-ok` leaves.
    pub fn reply_connection_closed(&mut self) {
        if self.phase == Phase::ClientClosing {
            self.flush_confirms();
            self.shared.out.method(0, &Method::ConnectionCloseOk {});
            self.phase = Phase::Closed;
        }
    }

    /// Answers the pending call, or `CloseChannel`, of a channel. Dropped if the channel has gone since.
    pub fn reply(&mut self, channel: ChannelId, reply: Reply, now_us: u64) {
        if self.close_failed_channel(channel, &reply) {
            return;
        }
        let Some(known) = live(&mut self.channels, channel) else { return };
        let result = match known.reply(reply, &mut self.shared) {
            Ok(true) => {
                known.abandon(&mut self.shared);
                self.channels.remove(&channel.number);
                Ok(())
            }
            Ok(false) => known.resume(&mut self.shared),
            Err(error) => Err(error),
        };
        if let Err(error) = result {
            self.fail(channel.number, error, now_us);
        }
        if let Err(error) = self.check_held(channel.number) {
            self.fail(channel.number, error, now_us);
        }
        self.finish_draining();
        self.process(now_us);
    }

    /// What came on a channel before it failed is durable: the client's close of it, which crossed ours, is answered.
    fn close_failed_channel(&mut self, id: ChannelId, reply: &Reply) -> bool {
        let failed =
            |channel: &Channel| channel.id == id && channel.is_closed_by_client && channel.stage == Stage::Failed;
        let is_done = *reply == Reply::Done && self.channels.get(&id.number).is_some_and(failed);
        if is_done {
            self.channels.remove(&id.number);
            self.shared.out.method(id.number, &Method::ChannelCloseOk {});
        }
        is_done
    }

    /// A publish is durable everywhere it was routed to. May come in any order.
    pub fn confirm(&mut self, channel: ChannelId, seq: u64) {
        if let Some(known) = live(&mut self.channels, channel) {
            known.resolve(seq, true, &mut self.shared);
        }
    }

    /// A publish was refused or lost: `basic.nack` in confirm mode.
    pub fn reject_publish(&mut self, channel: ChannelId, seq: u64) {
        if let Some(known) = live(&mut self.channels, channel) {
            known.resolve(seq, false, &mut self.shared);
        }
    }

    /// A mandatory message reached no queue: 312. Call before `confirm`.
    pub fn return_message(
        &mut self,
        channel: ChannelId,
        exchange: &ShortStr,
        routing_key: &ShortStr,
        properties: &Properties,
        body: &Bytes,
    ) {
        if live(&mut self.channels, channel).is_none() {
            return;
        }
        let method = Method::BasicReturn {
            reply_code: ReplyCode::NoRoute.number(),
            reply_text: ShortStr::from_static(ReplyCode::NoRoute.name()),
            exchange: exchange.clone(),
            routing_key: routing_key.clone(),
        };
        self.shared.out.content(channel.number, &method, properties.as_bytes(), body);
    }

    /// A message for a consumer. Dropped if the channel has gone or the client is closing; given back if only the
    /// consumer has gone.
    pub fn deliver(&mut self, channel: ChannelId, consumer: u32, delivery: Delivery) {
        if self.phase != Phase::Open {
            return;
        }
        if let Some(known) = live(&mut self.channels, channel) {
            known.deliver(consumer, delivery, &mut self.shared);
        }
    }

    /// The consumer ended by the broker's doing (queue deleted or lost): `basic.cancel` to clients that know it.
    pub fn cancel_consumer(&mut self, channel: ChannelId, consumer: u32) {
        let Some(known) = live(&mut self.channels, channel) else { return };
        let Some(removed) = known.remove_consumer(consumer, &mut self.shared) else { return };
        if self.shared.client.reads_cancel {
            let method = Method::BasicCancel { consumer_tag: removed.tag, no_wait: true };
            self.shared.out.method(channel.number, &method);
        }
    }

    /// An error of a publish (404 no exchange, 403 …): blames `basic.publish`, closes the channel or the connection.
    /// What the channel sent after it and the engine has not polled yet is dropped, as in RabbitMQ.
    pub fn fail_publish(&mut self, channel: ChannelId, refusal: Refusal, now_us: u64) {
        if live(&mut self.channels, channel).is_none() {
            return;
        }
        self.shared.out.drop_requests_of(channel);
        let error = AmqpError::new(refusal.code, refusal.text, PUBLISH);
        if matches!(self.phase, Phase::Draining | Phase::ClientClosing) {
            // It has closed and ignores the end of a channel; close-ok would say that the publish is durable.
            return self.fail(0, error, now_us);
        }
        self.fail(channel.number, error.clone(), now_us);
        if let Some(failed) = self.channels.get_mut(&channel.number).filter(|failed| failed.id == channel) {
            failed.dropped = Some(error);
        }
    }

    /// Closes the connection from this side, e.g. 320 CONNECTION_FORCED at shutdown.
    pub fn close(&mut self, refusal: Refusal, now_us: u64) {
        self.fail(0, AmqpError::new(refusal.code, refusal.text, MethodId::NONE), now_us);
    }

    /// `connection.blocked` (or unblocked, for `None`) to clients that know it; repeated calls are quiet.
    pub fn set_blocked(&mut self, reason: Option<&str>) {
        if self.blocked == reason.is_some() || self.phase != Phase::Open {
            return;
        }
        self.blocked = reason.is_some();
        if self.shared.client.reads_blocked {
            let method = match reason {
                Some(reason) => Method::ConnectionBlocked { reason: ShortStr::truncated(reason) },
                None => Method::ConnectionUnblocked {},
            };
            self.shared.out.method(0, &method);
        }
    }

    /// How many more unacknowledged deliveries a channel takes: `None` where `basic.qos` with global=true set no limit.
    pub fn channel_room(&self, channel: ChannelId) -> Option<u64> {
        self.channels.get(&channel.number).filter(|known| known.id == channel)?.room()
    }

    /// The name that logged in.
    pub fn user(&self) -> Option<&ShortStr> {
        self.shared.client.user.as_ref()
    }

    /// The open virtual host.
    pub fn vhost(&self) -> Option<&ShortStr> {
        self.shared.client.vhost.as_ref()
    }

    /// What the client said of itself.
    pub fn client_properties(&self) -> Option<&FieldTable> {
        self.shared.client.properties.as_ref()
    }
}

/// The channel, unless it has gone or is closed by an error.
fn live(channels: &mut BTreeMap<u16, Channel>, id: ChannelId) -> Option<&mut Channel> {
    channels.get_mut(&id.number).filter(|channel| channel.id == id && channel.stage != Stage::Failed)
}

impl Connection {
    /// A soft error closes the channel, a hard one, or any on channel 0, the connection.
    pub(crate) fn fail(&mut self, number: u16, error: AmqpError, now_us: u64) {
        if matches!(self.phase, Phase::Closing { .. } | Phase::Closed) {
            return;
        }
        let is_hard = error.code.is_hard() || number == 0;
        if self.phase == Phase::ClientClosing && !is_hard {
            return;
        }
        self.flush_confirms();
        if let (false, Some(channel)) = (error.code.is_hard(), self.channels.get_mut(&number)) {
            let method = Method::ChannelClose {
                reply_code: error.code.number(),
                reply_text: error.reply_text(),
                class_id: error.method.class,
                method_id: error.method.method,
            };
            let (id, was) = (channel.id, channel.stage);
            let client_closes = channel.abandon(&mut self.shared) || was == Stage::Closing;
            channel.stage = Stage::Failed;
            self.shared.out.method(number, &method);
            self.shared.out.request(Request::ChannelLost { channel: id });
            if client_closes {
                channel.close_crossed(&mut self.shared);
            }
            return self.finish_draining();
        }
        let method = Method::ConnectionClose {
            reply_code: error.code.number(),
            reply_text: error.reply_text(),
            class_id: error.method.class,
            method_id: error.method.method,
        };
        self.shared.out.method(0, &method);
        self.lose(LostReason::Error(error));
        // A client that has closed too gets no close-ok: it would say that what came before is durable.
        let deadline_us = now_us.saturating_add(self.shared.config.close_timeout_us);
        self.phase = Phase::Closing { deadline_us };
    }

    /// Ends the connection at once; what is queued for the client may still be sent.
    pub(crate) fn lose(&mut self, why: LostReason) {
        if self.phase == Phase::Closed {
            return;
        }
        self.channels.clear();
        self.shared.held_bytes = 0;
        self.shared.held_delivery_bytes = 0;
        self.shared.out.forget_handed();
        self.shared.out.request(Request::ConnectionLost { why });
        self.phase = Phase::Closed;
    }

    fn flush_confirms(&mut self) {
        for number in std::mem::take(&mut self.shared.out.confirming) {
            if let Some(channel) = self.channels.get_mut(&number) {
                channel.flush_confirms(&mut self.shared);
            }
        }
    }
}

#[cfg(test)]
#[path = "connection_tests/mod.rs"]
mod tests;
